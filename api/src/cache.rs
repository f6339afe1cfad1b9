//! What is dear to compute and may be a little old: in this process, or in Redis where several nodes share it.
//!
//! A key is made of an organisation's id, of fixed width and first, and of a name of ours: no text that anybody sends makes
//! one organisation's key another's. Redis away is slower and never wrong: then it is computed.

use std::sync::Arc;
use std::time::Duration;

use gmah_shared::redis::{Away, Link};
use gmah_shared::tenant::TenantId;
use redis::AsyncCommands as _;
use redis::aio::ConnectionManager;
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    Redis(Arc<Link>),
}

impl Cache {
    /// As configured. Connects to nothing.
    ///
    /// # Errors
    /// A sentence that begins with the key at fault.
    pub fn new(config: &CacheSettings) -> Result<Self, String> {
        let place = match &config.address {
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
                let link = Link::new(url, PATIENCE).map_err(|e| format!("cache.url: {e}"))?;
                Place::Redis(Arc::new(link))
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
            Place::Redis(link) => {
                let asked = async |c: &mut ConnectionManager| c.get::<_, Option<String>>(key).await;
                link.ask(PATIENCE, asked).await.unwrap_or_else(away).map(Into::into)
            }
        }
    }

    async fn write(&self, key: String, text: String) {
        match &self.place {
            Place::Here(cache) => cache.insert(key, text.into()).await,
            Place::Redis(link) => {
                let seconds = self.ttl.as_secs().max(1);
                let told = async |c: &mut ConnectionManager| c.set_ex::<_, _, ()>(key, text, seconds).await;
                link.ask(PATIENCE, told).await.unwrap_or_else(away);
            }
        }
    }
}

/// Nothing is kept, and what is asked for is computed.
fn away<T: Default>(why: Away) -> T {
    if let Away::Failed(why) = why {
        tracing::warn!(error = why, "the cache is away");
    }
    T::default()
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
