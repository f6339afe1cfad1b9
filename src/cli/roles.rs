//! `gmah router`, `gmah api`, `gmah config check`.

use gmah_api::config::ApiConfig;
use gmah_router::config::RouterConfig;
use gmah_shared::config::{ConfigFile, Settings};
use gmah_shared::telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Output;

/// Runs the router until it is told to stop.
pub(crate) async fn router(file: &ConfigFile) -> anyhow::Result<u8> {
    let (settings, config) = (file.settings()?, RouterConfig::from_file(file)?);
    start_logging(&settings)?;
    let mut signals = Signals::new()?;
    let running = gmah_router::server::start(&settings, config).await?;
    signals.received().await;
    running.stop().await;
    Ok(0)
}

/// Runs the api until it is told to stop.
pub(crate) async fn api(file: &ConfigFile) -> anyhow::Result<u8> {
    let (settings, config) = (file.settings()?, ApiConfig::from_file(file)?);
    start_logging(&settings)?;
    let mut signals = Signals::new()?;
    let running = gmah_api::server::start(&settings, config).await?;
    signals.received().await;
    running.stop().await;
    Ok(0)
}

/// Loads everything and starts nothing.
pub(crate) fn check(file: &ConfigFile, output: Output) -> anyhow::Result<u8> {
    let settings = file.settings()?;
    RouterConfig::from_file(file)?;
    ApiConfig::from_file(file)?;
    let path = file.path().display().to_string();
    let value = serde_json::json!({ "file": path, "base_domain": settings.base_domain, "valid": true });
    output.print(&value, || format!("{path}: valid"))?;
    Ok(0)
}

pub(crate) fn start_logging(settings: &Settings) -> anyhow::Result<()> {
    Ok(telemetry::init(settings.log.format, &settings.log.filter)?)
}

/// SIGTERM, Ctrl-C, and the end of the terminal, heard from the moment of creation.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Returns at the first of them.
    pub(crate) async fn received(&mut self) {
        let [term, int, hup] = &mut self.0;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {}
        }
    }
}
