//! What is dear to compute and may be a little old: in this process, or in Redis where several nodes share it.
//!
//! A key is made of an organisation's id, of fixed width and first, and of a name of ours: no text that anybody sends makes
//! one organisation's key another's. Redis away is slower and never wrong: then it is computed.

use std::sync::Arc;
use std::time::Duration;

use gmah_shared::tenant::TenantId;
use redis::AsyncCommands as _;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::config::CacheSettings;
use crate::error::ApiError;

/// How long Redis may take.
const PATIENCE: Duration = Duration::from_millis(250);

/// The cache.
#[derive(Clone)]
pub struct Cache {
    ttl: Duration,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Here(moka::future::Cache<String, Arc<str>>),
    Redis(Arc<Shared>),
}

struct Shared {
    client: redis::Client,
    connection: OnceCell<ConnectionManager>,
}

impl Cache {
    /// As configured. Connects to nothing.
    ///
    /// # Errors
    /// A sentence that begins with the key at fault.
    pub fn new(config: &CacheSettings) -> Result<Self, String> {
        let place = match &config.url {
            None => Place::Here(
                moka::future::Cache::builder()
                    .max_capacity(config.max_bytes.get() as u64)
                    .weigher(|key: &String, value: &Arc<str>| {
                        u32::try_from(key.len() + value.len() + 64).unwrap_or(u32::MAX)
                    })
                    .time_to_live(*config.ttl)
                    .build(),
            ),
            Some(url) => {
                let client = redis::Client::open(url.as_str()).map_err(|e| format!("cache.url: {e}"))?;
                Place::Redis(Arc::new(Shared { client, connection: OnceCell::new() }))
            }
        };
        Ok(Self { ttl: *config.ttl, place })
    }

    /// What is kept under a name for an organisation, or what `compute` says, which is then kept.
    ///
    /// # Errors
    /// What `compute` refuses.
    pub async fn get<T: Serialize + DeserializeOwned>(
        &self,
        tenant: TenantId,
        name: &'static str,
        compute: impl AsyncFnOnce() -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let key = key(tenant, name);
        if let Some(found) = self.read(&key).await
            && let Ok(value) = serde_json::from_str(&found)
        {
            return Ok(value);
        }
        let value = compute().await?;
        let text = serde_json::to_string(&value).map_err(|_| ApiError::Internal)?;
        self.write(key, text).await;
        Ok(value)
    }

    async fn read(&self, key: &str) -> Option<Arc<str>> {
        match &self.place {
            Place::Here(cache) => cache.get(key).await,
            Place::Redis(shared) => {
                let asked = async { shared.connection().await?.get::<_, Option<String>>(key).await };
                match tokio::time::timeout(PATIENCE, asked).await {
                    Ok(Ok(found)) => found.map(Into::into),
                    _ => None,
                }
            }
        }
    }

    async fn write(&self, key: String, text: String) {
        match &self.place {
            Place::Here(cache) => cache.insert(key, text.into()).await,
            Place::Redis(shared) => {
                let seconds = self.ttl.as_secs().max(1);
                let told = async { shared.connection().await?.set_ex::<_, _, ()>(key, text, seconds).await };
                if !matches!(tokio::time::timeout(PATIENCE, told).await, Ok(Ok(()))) {
                    tracing::debug!("the cache is away");
                }
            }
        }
    }
}

impl Shared {
    /// One connection for all, made when it is needed first, and again when it broke.
    async fn connection(&self) -> redis::RedisResult<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connect = || ConnectionManager::new_with_config(self.client.clone(), config);
        self.connection.get_or_try_init(connect).await.cloned()
    }
}

fn key(tenant: TenantId, name: &str) -> String {
    format!("gmah:{}:{name}", tenant.as_uuid().simple())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_is_kept_is_one_organisations() {
        let cache = Cache::new(&CacheSettings::default()).expect("cache");
        let (a, b) = (TenantId::generate(), TenantId::generate());
        let computed = AtomicU32::new(0);
        let ask =
            |tenant, name| cache.get(tenant, name, async || Ok(computed.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(ask(a, "x").await, Ok(0));
        assert_eq!(ask(a, "x").await, Ok(0));
        assert_eq!(ask(b, "x").await, Ok(1));
        assert_eq!(ask(a, "y").await, Ok(2));
        assert_eq!(
            cache.get::<u32>(a, "z", async || Err(ApiError::Unavailable)).await,
            Err(ApiError::Unavailable)
        );
        assert_eq!(ask(a, "z").await, Ok(3), "a refusal is not kept");
    }
}
