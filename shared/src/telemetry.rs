//! Log set-up and the names of metrics that both roles have.

pub mod names;
pub mod traces;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// The filter is not in the syntax of `tracing-subscriber`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadFilter(#[from] tracing_subscriber::filter::ParseError);

/// Whether it is a filter.
///
/// # Errors
/// [`BadFilter`].
pub fn check(filter: &str) -> Result<(), BadFilter> {
    EnvFilter::try_new(filter)?;
    Ok(())
}

/// Starts logging to standard error, for the rest of the process. A second call changes nothing.
///
/// # Errors
/// [`BadFilter`].
pub fn init(format: LogFormat, filter: &str) -> Result<(), BadFilter> {
    // The proxy warns of every body that a client breaks off. Below these levels the libraries log whole requests and statements, which no filter of an operator may ask for.
    let mut filter = EnvFilter::try_new(filter)?;
    for cap in ["pingora_core=warn", "pingora_proxy=error", "h2=info", "hyper=info", "tokio_postgres=warn"] {
        filter = filter.add_directive(cap.parse()?);
    }
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry
                .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi))
                .try_init()
        }
        LogFormat::Json => {
            registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()
        }
    };
    // Already started: tests share one process.
    drop(started);
    Ok(())
}

/// The text of a registry, in the exposition format of Prometheus.
///
/// # Errors
/// Only when a metric is malformed, which registering it has checked.
pub fn encode(registry: &prometheus::Registry) -> Result<String, prometheus::Error> {
    prometheus::TextEncoder::new().encode_to_string(&registry.gather())
}
