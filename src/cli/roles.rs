//! `gmah router`, `gmah api`, `gmah config check`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use gmah_api::config::ApiConfig;
use gmah_api::control::config::ControlConfig;
use gmah_router::config::RouterConfig;
use gmah_router::server::{self, RunningRouter, Sockets};
use gmah_shared::config::{ConfigFile, Settings};
use gmah_shared::telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Output;

/// Arguments of `gmah router`.
#[derive(Debug, Args)]
pub(crate) struct RouterArgs {
    /// Takes the sockets over from the router that runs on this configuration; that one finishes what it has and ends.
    #[arg(long)]
    upgrade: bool,
}

/// Runs the router until it is told to stop, or a successor has taken over.
pub(crate) async fn router(file: &ConfigFile, args: RouterArgs) -> anyhow::Result<u8> {
    let (settings, config) = (file.settings()?, RouterConfig::from_file(file)?);
    start_logging(&settings)?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut signals = Signals::without_hangup()?;
    let running = if args.upgrade {
        let router = config.router.clone();
        let taken = tokio::task::spawn_blocking(move || Sockets::take_over(&router)).await?;
        let (sockets, successor) = taken?;
        let running = server::start_on(&settings, config, sockets).await?;
        if !running.ready(READY_WITHIN).await {
            running.stop().await;
            anyhow::bail!("not ready in time: the running router goes on");
        }
        successor.ready()?;
        running
    } else {
        server::start(&settings, config).await?
    };
    running.await_successor()?;
    loop {
        tokio::select! {
            () = signals.received() => break,
            () = running.handed_over.cancelled() => {
                tracing::info!("a successor has taken over");
                break;
            }
            // Losing this arm loses no signal: it is asked for again.
            _ = hangup.recv() => reload(file, &running).await,
        }
    }
    running.stop().await;
    Ok(0)
}

/// Until a successor must be able to serve.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Reads the file again; a fault leaves everything as it is.
async fn reload(file: &ConfigFile, running: &RunningRouter) {
    let read = ConfigFile::load(file.path()).and_then(|f| {
        // The rest of the file must be sound as well, although only the router's part is taken.
        f.settings()?;
        RouterConfig::from_file(&f)
    });
    let loaded = match read {
        Ok(config) => running.reload(config).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    if let Err(error) = loaded {
        tracing::error!(error, "configuration not loaded; the old one goes on");
    }
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

/// Loads everything and starts nothing; says of each part the first fault, and of the top level every one.
pub(crate) fn check(path: &Path, output: Output) -> anyhow::Result<u8> {
    let (file, mut faults) = ConfigFile::examine(path)?;
    let base = match file.settings() {
        Ok(settings) => Some(settings.base_domain),
        Err(fault) => {
            faults.push(fault);
            None
        }
    };
    faults.extend(RouterConfig::from_file(&file).err());
    faults.extend(ApiConfig::from_file(&file).err());
    faults.extend(ControlConfig::from_file(&file).err());
    let mut said = BTreeSet::new();
    let faults: Vec<String> =
        faults.iter().map(ToString::to_string).filter(|f| said.insert(f.clone())).collect();
    let path = file.path().display().to_string();
    let valid = faults.is_empty();
    let value = serde_json::json!({ "file": path, "base_domain": base, "valid": valid, "faults": faults });
    if valid || output.json {
        output.print(&value, || format!("{path}: valid"))?;
    }
    faults.iter().for_each(|fault| super::aside(format_args!("error: {fault}")));
    Ok(if valid { 0 } else { super::USAGE })
}

pub(crate) fn start_logging(settings: &Settings) -> anyhow::Result<()> {
    Ok(telemetry::init(settings.log.format, &settings.log.filter)?)
}

/// SIGTERM, Ctrl-C, and the end of the terminal, heard from the moment of creation.
pub(crate) struct Signals(Vec<Signal>);

impl Signals {
    /// For roles where the end of the terminal means something else.
    pub(crate) fn without_hangup() -> anyhow::Result<Self> {
        Ok(Self(vec![signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
    }

    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut signals = Self::without_hangup()?;
        signals.0.push(signal(SignalKind::hangup())?);
        Ok(signals)
    }

    /// Returns at the first of them.
    pub(crate) async fn received(&mut self) {
        std::future::poll_fn(|cx| {
            let told = self.0.iter_mut().any(|s| s.poll_recv(cx).is_ready());
            if told { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
}
