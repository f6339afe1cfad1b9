//! `gmah doctor`

use clap::Args;
use gmah_api::control::doctor::{Examination, Fault};
use gmah_shared::config::ConfigFile;

use super::{FAILED, Output};

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Repairs what can be repaired without losing anything.
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    output: Output,
}

impl Doctor {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let found = super::control(file).await?.examine(self.fix).await?;
        self.output.print(&found, || text(&found, self.fix))?;
        Ok(if found.is_clean() { 0 } else { FAILED })
    }
}

fn text(found: &Examination, fix: bool) -> String {
    let mut text: String = found.faults.iter().map(|f| line(f, fix)).collect();
    text.extend(found.advice.iter().map(|a| format!("advice: {}", line(a, fix))));
    let left = found.faults.iter().filter(|f| !f.repaired).count();
    text.push_str(&match left {
        0 => format!("{} organisations on {} servers are well", found.organizations, found.servers),
        _ => {
            format!("{left} faults among {} organisations on {} servers", found.organizations, found.servers)
        }
    });
    text
}

fn line(f: &Fault, fix: bool) -> String {
    let end = match (&f.error, f.repaired, f.can_be_repaired) {
        (Some(error), ..) => format!(" [not repaired: {error}]"),
        (None, true, _) => " [repaired]".to_owned(),
        (None, false, true) if !fix => " [--fix repairs it]".to_owned(),
        _ => String::new(),
    };
    format!("{}: {}: {}{end}\n", f.subject, f.kind, f.what)
}
