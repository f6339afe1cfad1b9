//! `gmah domain …`

use clap::{Args, Subcommand};
use gmah_api::control::domains::{Domain, parse_hostname};
use gmah_api::control::{ControlError, parse_slug};
use gmah_shared::config::ConfigFile;
use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantSlug;

use super::{Output, PARTLY};

#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// Claims a name for an organisation, and says which DNS records prove it.
    Add(Add),
    /// Looks now whether names are proven. Without a name: every one that is not.
    Verify(Which),
    /// Lists names, of one organisation or of all.
    List(List),
    /// Gives a name up. Claimed again it needs a fresh proof.
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Slug.
    slug: String,
    /// The name.
    hostname: String,
    /// Claims `www.` below it as well.
    #[arg(long)]
    www: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// `[SLUG] NAME`: the slug where several have claimed the name.
    #[arg(num_args = 0..=2, value_names = ["SLUG", "NAME"])]
    words: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// `[SLUG] NAME`: the slug where several have claimed the name.
    #[arg(num_args = 1..=2, required = true, value_names = ["SLUG", "NAME"])]
    words: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Slug.
    slug: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// A name, and whose where that was said.
fn which(words: &[String]) -> Result<(Option<TenantSlug>, Hostname), ControlError> {
    match words {
        [name] => Ok((None, parse_hostname(name)?)),
        [slug, name] => Ok((Some(parse_slug(slug)?), parse_hostname(name)?)),
        _ => Err(ControlError::Usage("[SLUG] NAME".into())),
    }
}

impl DomainCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        match self {
            Self::Add(add) => {
                let (slug, name) = (parse_slug(&add.slug)?, parse_hostname(&add.hostname)?);
                let mut names = vec![name.clone()];
                if add.www {
                    names.push(parse_hostname(&format!("www.{name}"))?);
                }
                let control = super::control(file).await?;
                let mut added = Vec::new();
                for name in &names {
                    added.push(control.add_domain(&slug, name).await?);
                }
                let text = || added.iter().map(instructions).collect::<Vec<_>>().join("\n\n");
                match &added[..] {
                    [one] => add.output.print(one, text)?,
                    all => add.output.print(&all, text)?,
                }
                Ok(0)
            }
            Self::Verify(asked) => verify(asked, file).await,
            Self::List(list) => {
                let slug = list.slug.as_deref().map(parse_slug).transpose()?;
                let control = super::control(file).await?;
                if let Some(slug) = &slug {
                    control.tenant(slug).await?;
                }
                let all = control.domains_of(slug.as_ref(), None).await?;
                list.output.print(&all, || table(&all))?;
                Ok(0)
            }
            Self::Remove(remove) => {
                let (slug, name) = which(&remove.words)?;
                let removed = super::control(file).await?.remove_domain(slug.as_ref(), &name).await?;
                remove.output.print(&removed, || format!("{name} is {}", removed.status))?;
                Ok(0)
            }
        }
    }
}

async fn verify(asked: Which, file: &ConfigFile) -> anyhow::Result<u8> {
    if !asked.words.is_empty() {
        let (slug, name) = which(&asked.words)?;
        let control = super::control(file).await?;
        let domain = control.one_domain(slug.as_ref(), &name).await?;
        let now = control.verify_domain(&domain).await?;
        asked.output.print(&now, || format!("{name} is {}", now.status))?;
        return Ok(0);
    }
    let control = super::control(file).await?;
    let (mut failed, mut results) = (0, Vec::new());
    for domain in control.domains_of(None, None).await? {
        if !matches!(domain.status.as_str(), "pending" | "failed") {
            continue;
        }
        let (status, reason) = match control.verify_domain(&domain).await {
            Ok(now) => (now.status, None),
            Err(e @ ControlError::Refused(_)) => {
                failed += 1;
                (domain.status, Some(e.to_string()))
            }
            Err(e) => return Err(e.into()),
        };
        results.push(serde_json::json!({
            "hostname": domain.hostname, "slug": domain.slug, "status": status, "reason": reason,
        }));
    }
    let line = |r: &serde_json::Value| match r["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None => format!("{} is {}", r["hostname"].as_str().unwrap_or(""), r["status"].as_str().unwrap_or("")),
    };
    asked.output.print(&results, || results.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    Ok(if failed > 0 { PARTLY } else { 0 })
}

pub(super) fn instructions(d: &Domain) -> String {
    let state = match &d.reason {
        Some(reason) => format!("{} ({reason})", d.status),
        None => d.status.clone(),
    };
    format!(
        "{} is {state} for {}. It needs two DNS records:\n  {} CNAME {}.\n  {} TXT \"{}\"\nAt the top of a zone, where no \
         CNAME can stand, the addresses of the CNAME's target do as well.\nThen: gmah domain verify {}",
        d.hostname, d.slug, d.hostname, d.cname, d.txt_name, d.txt_value, d.hostname
    )
}

fn table(all: &[Domain]) -> String {
    let mut text = format!("{:<40} {:<24} {:<10} {}\n", "NAME", "ORGANISATION", "STATUS", "REASON");
    for d in all {
        let reason = d.reason.as_deref().unwrap_or("");
        text.push_str(&format!("{:<40} {:<24} {:<10} {reason}\n", d.hostname, d.slug, d.status));
    }
    text
}
