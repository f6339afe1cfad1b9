//! A connection to Redis or Valkey that both roles can do without.
//!
//! It is made when it is needed first, and again after whatever went wrong; after a failure it is left alone for a while,
//! so that nobody waits again and again for what is away. No error of it holds the address, and with that a password.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, RedisResult};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;

/// After a failure.
const REST: Duration = Duration::from_secs(1);

/// The connection.
pub struct Link {
    client: Client,
    /// For connecting, and for each answer.
    timeout: Duration,
    manager: Mutex<Option<ConnectionManager>>,
    start: Instant,
    /// Until when it is left alone, in milliseconds after `start`.
    resting_until: AtomicU64,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Away {
    /// It failed a moment ago, and was not asked.
    Resting,
    /// What went wrong, by its kind.
    Failed(String),
}

impl Link {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(url: &SecretString, timeout: Duration) -> Result<Self, String> {
        let client = Client::open(url.expose_secret()).map_err(|_| "not an address of Redis".to_owned())?;
        Ok(Self {
            client,
            timeout,
            manager: Mutex::new(None),
            start: Instant::now(),
            resting_until: AtomicU64::new(0),
        })
    }

    /// Whether it is left alone right now.
    pub fn is_resting(&self) -> bool {
        self.now() < self.resting_until.load(Ordering::Acquire)
    }

    /// Asks, for at most that long.
    ///
    /// # Errors
    /// [`Away`]; then it is left alone for a second, and connected to anew.
    pub async fn ask<T>(
        &self,
        patience: Duration,
        asked: impl AsyncFnOnce(&mut ConnectionManager) -> RedisResult<T>,
    ) -> Result<T, Away> {
        if self.is_resting() {
            return Err(Away::Resting);
        }
        let answer = tokio::time::timeout(patience, async {
            let mut connection = self.connection().await?;
            asked(&mut connection).await
        });
        let failed = match answer.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(e)) => format!("{:?}", e.kind()),
            Err(_) => "no answer in time".to_owned(),
        };
        self.resting_until.store(self.now() + REST.as_millis() as u64, Ordering::Release);
        // One that a server's error or a silence has left behind does not mend itself.
        if let Ok(mut manager) = self.manager.try_lock() {
            *manager = None;
        }
        Err(Away::Failed(failed))
    }

    async fn connection(&self) -> RedisResult<ConnectionManager> {
        let mut manager = self.manager.lock().await;
        if let Some(connected) = &*manager {
            return Ok(connected.clone());
        }
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            .set_number_of_retries(0);
        let connected = ConnectionManager::new_with_config(self.client.clone(), config).await?;
        *manager = Some(connected.clone());
        Ok(connected)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
