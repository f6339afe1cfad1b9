//! What every test stands on.

pub(crate) mod acme;
pub(crate) mod dev;
pub(crate) mod dns;
pub(crate) mod fault;
pub(crate) mod http;
pub(crate) mod origin;
pub(crate) mod redis;
pub(crate) mod roles;

use std::time::Duration;

use tokio::time::Instant;

pub(crate) use dev::Dev;
pub(crate) use http::Answer;

/// Asks until `holds`, for at most that long; then fails with what was seen last.
pub(crate) async fn eventually<T, F, Fut>(
    what: &str,
    patience: Duration,
    mut ask: F,
    holds: impl Fn(&T) -> bool,
) -> T
where
    T: std::fmt::Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = T>,
{
    let deadline = Instant::now() + patience;
    loop {
        let seen = ask().await;
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: last seen {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
