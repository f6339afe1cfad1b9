//! A program of the operator's that makes the DNS say something (RFC 8555, section 8.4).
//!
//! It is called as `PROGRAM ARG… present NAME. VALUE`, and with `cleanup` afterwards; status 0 means done. Two values stand
//! beside one another under one name, so it adds and takes away single records.

use std::process::Stdio;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::Instant;

use super::{Acme, AcmeError};

/// A TXT record.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Without its final dot.
    pub(super) name: String,
    pub(super) value: String,
}

/// Has a record made.
pub(super) async fn present(acme: &Acme, record: &Record) -> Result<(), AcmeError> {
    run(acme, "present", record).await
}

/// Has all of them taken away; that one was not does not keep the others.
pub(super) async fn cleanup(acme: &Acme, records: &[Record]) -> Result<(), AcmeError> {
    for record in records {
        if let Err(e) = run(acme, "cleanup", record).await {
            // Nothing is the worse for it but the zone.
            tracing::warn!(name = record.name, error = %e, "a TXT record was not taken away");
        }
    }
    Ok(())
}

/// Waits until the DNS, as this machine sees it, has all of them: a proof that the authority does not find counts against
/// the account.
pub(super) async fn visible(acme: &Acme, records: &[Record]) -> Result<(), AcmeError> {
    let Some(wildcard) = &acme.acme.wildcard else { return Ok(()) };
    let until = Instant::now() + *wildcard.propagation_timeout;
    for record in records {
        loop {
            // An answer that does not come is no different from one that is not there yet.
            let seen = acme.dns.texts(&record.name).await.unwrap_or_default();
            if seen.contains(&record.value) {
                break;
            }
            if Instant::now() > until {
                return Err(AcmeError::Invisible(record.name.clone(), record.value.clone()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

async fn run(acme: &Acme, what: &str, record: &Record) -> Result<(), AcmeError> {
    let Some(wildcard) = &acme.acme.wildcard else {
        return Err(AcmeError::Hook("none is configured".into()));
    };
    let (program, arguments) = wildcard.hook.split_first().ok_or_else(|| AcmeError::Hook("empty".into()))?;
    let fault = |e: std::io::Error| AcmeError::Hook(format!("{program}: {e}"));
    let passed = wildcard.hook_env.iter().map(String::as_str).chain(["PATH"]);
    let mut child = Command::new(program)
        .args(arguments)
        .args([what, &format!("{}.", record.name), &record.value])
        // What this process knows is not the program's to know.
        .env_clear()
        .envs(passed.filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(fault)?;
    let said = child.stderr.take();
    let ended = async {
        let mut text = Vec::new();
        if let Some(mut said) = said {
            (&mut said).take(MAX_SAID).read_to_end(&mut text).await?;
            // The rest is read as well, or it would wait for us for ever.
            tokio::io::copy(&mut said, &mut tokio::io::sink()).await?;
        }
        Ok((child.wait().await?, text))
    };
    let (status, text) = match tokio::time::timeout(*wildcard.hook_timeout, ended).await {
        Ok(ended) => ended.map_err(fault)?,
        Err(_) => return Err(AcmeError::Hook(format!("{program} {what}: not done in time"))),
    };
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&text);
    Err(AcmeError::Hook(format!("{program} {what}: {status}: {}", text.trim())))
}

const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
/// Bytes of what it says on standard error that are kept.
const MAX_SAID: u64 = 300;
