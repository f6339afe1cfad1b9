//! What long work says while it runs, on standard error: a line that moves on a terminal, a line for each event elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use gmah_api::control::operations::{Event, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// How often the line moves.
const TICK: Duration = Duration::from_millis(120);

/// Tells whoever watches what is being done.
pub(crate) fn steps() -> Progress {
    if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        return Arc::new(move |event| bar.set_message(sentence(event)));
    }
    Arc::new(|event| super::aside(sentence(event)))
}

/// A bar for work on so many organisations; hidden where nobody watches.
pub(crate) fn bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn sentence(event: &Event<'_>) -> String {
    format!("{} {}: {}", event.kind.as_str(), event.about, event.step)
}
