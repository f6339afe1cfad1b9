//! `gmah router`, `gmah api`, `gmah config check`.

use gmah_api::config::ApiConfig;
use gmah_router::config::RouterConfig;
use gmah_shared::config::{ConfigFile, Settings};
use gmah_shared::telemetry;
use tokio::signal::unix::{SignalKind, signal};

use super::Output;

/// Runs the router until it is told to stop.
pub(crate) async fn router(file: &ConfigFile) -> anyhow::Result<u8> {
    let (settings, config) = (file.settings()?, RouterConfig::from_file(file)?);
    start_logging(&settings)?;
    let running = gmah_router::server::start(&settings, config).await?;
    told_to_stop().await?;
    running.stop().await;
    Ok(0)
}

/// Runs the api until it is told to stop.
pub(crate) async fn api(file: &ConfigFile) -> anyhow::Result<u8> {
    let (settings, config) = (file.settings()?, ApiConfig::from_file(file)?);
    start_logging(&settings)?;
    let running = gmah_api::server::start(&settings, config).await?;
    told_to_stop().await?;
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

/// Waits for SIGTERM or Ctrl-C.
pub(crate) async fn told_to_stop() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
