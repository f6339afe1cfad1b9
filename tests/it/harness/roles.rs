//! Roles in the test's own process, on the master of a running `gmah dev`, with other bounds or another backend.

use std::net::SocketAddr;

use gmah_api::config::ApiConfig;
use gmah_api::server::RunningApi;
use gmah_router::config::RouterConfig;
use gmah_router::server::RunningRouter;
use gmah_shared::config::{HumanDuration, Settings};

use super::Dev;
use super::http::Client;

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The pool `api` of a configuration.
pub(crate) fn api_pool(config: &mut RouterConfig) -> &mut gmah_router::config::Pool {
    config.router.pools.get_mut("api").expect("pool api")
}

/// A router in front of `backends`.
pub(crate) async fn router(
    dev: &Dev,
    backends: &[SocketAddr],
    change: impl FnOnce(&mut Settings, &mut RouterConfig),
) -> (RunningRouter, Client) {
    let mut settings = dev.settings();
    let mut config = RouterConfig::from_file(&dev.config()).expect("configuration");
    (config.router.https, config.router.http, config.router.admin) = (free(), free(), free());
    api_pool(&mut config).addresses = backends.iter().map(|a| (*a).into()).collect();
    change(&mut settings, &mut config);
    let router = gmah_router::server::start(&settings, config).await.expect("router");
    let client = dev.client.at(router.https);
    // The keys are read in the background.
    let admin = router.admin;
    super::eventually(
        "router ready",
        std::time::Duration::from_secs(10),
        || async move { super::http::plain(admin, "/readyz").await.status },
        |status| *status == 200,
    )
    .await;
    (router, client)
}

/// An api.
pub(crate) async fn api(dev: &Dev, change: impl FnOnce(&mut Settings, &mut ApiConfig)) -> RunningApi {
    let mut settings = dev.settings();
    let mut config = ApiConfig::from_file(&dev.config()).expect("configuration");
    (config.api.listen, config.api.admin) = (free(), free());
    change(&mut settings, &mut config);
    let api = gmah_api::server::start(&settings, config).await.expect("api");
    let admin = api.admin;
    super::eventually(
        "api ready",
        std::time::Duration::from_secs(10),
        || async move { super::http::plain(admin, "/readyz").await.status },
        |status| *status == 200,
    )
    .await;
    api
}

/// A router and an api that wait for databases no longer than a test wants to.
pub(crate) async fn hasty(dev: &Dev) -> (RunningRouter, RunningApi, Client) {
    let api = api(dev, |_, c| {
        c.pool.statement_timeout = HumanDuration::from_secs(1);
        c.pool.connect_timeout = HumanDuration::from_secs(1);
        c.pool.wait_timeout = HumanDuration::from_secs(2);
    })
    .await;
    let (router, client) = router(dev, &[api.address], |_, _| {}).await;
    (router, api, client)
}
