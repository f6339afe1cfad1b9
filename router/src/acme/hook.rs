//! A program of the operator's that makes the DNS say something (RFC 8555, section 8.4).
//!
//! It is called as `PROGRAM ARG… present NAME. VALUE`, and with `cleanup` afterwards; status 0 means done. Two values stand
//! beside one another under one name, so it adds and takes away single records. What was shown is written down before, so
//! that whoever comes after a router that died takes it away.

use std::process::Stdio;
use std::time::Duration;

use gmah_shared::hostname::Hostname;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::Instant;

use super::{Acme, AcmeError, Job};

/// A TXT record.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Without its final dot.
    name: String,
    value: String,
}

impl Record {
    pub(super) fn of(base: &Hostname, value: String) -> Self {
        Self { name: format!("_acme-challenge.{base}"), value }
    }
}

/// Has a record made.
pub(super) async fn present(acme: &Acme, job: &Job, record: &Record) -> Result<(), AcmeError> {
    let noted = acme.client().await?.execute(NOTE, &[&job.order, &job.fence, &record.value]).await?;
    if noted == 0 {
        return Err(AcmeError::Fenced);
    }
    run(acme, "present", record).await
}

/// Has all of them taken away; that one was not does not keep the others. In the time of two runs, as many as an order
/// needs: what is left then waits for the next order.
pub(super) async fn cleanup(acme: &Acme, job: &Job, records: &[Record]) -> Result<(), AcmeError> {
    let Some(wildcard) = &acme.acme.wildcard else { return Ok(()) };
    // Losing it ends the program that runs.
    let all = tokio::time::timeout(*wildcard.hook_timeout * 2, cleanup_each(acme, job, records));
    all.await.unwrap_or_else(|_| {
        tracing::warn!(records = records.len(), "not all TXT records were taken away in time");
        Ok(())
    })
}

async fn cleanup_each(acme: &Acme, job: &Job, records: &[Record]) -> Result<(), AcmeError> {
    // Those that were shown last first: what an older order left may be what takes all the time.
    for record in records.iter().rev() {
        match run(acme, "cleanup", record).await {
            Ok(()) => {
                let client = acme.client().await?;
                client.execute(FORGET, &[&job.order, &job.fence, &record.value]).await?;
            }
            // Tried again with the next order; nothing is the worse for it but the zone.
            Err(e) => tracing::warn!(name = record.name, error = %e, "a TXT record was not taken away"),
        }
    }
    Ok(())
}

const NOTE: &str =
    "update certificate_orders set shown = (array_append(shown, $3))[greatest(1, cardinality(shown) - 14):]
    where id = $1 and fence = $2";
const FORGET: &str =
    "update certificate_orders set shown = array_remove(shown, $3) where id = $1 and fence = $2";

/// Waits until the DNS, as this machine sees it, has all of them: a proof that the authority does not find counts against
/// the account. Not for ever: what this machine is told may be an old denial (RFC 2308), or not what the world is told.
pub(super) async fn settled(acme: &Acme, records: &[Record]) {
    let Some(wildcard) = &acme.acme.wildcard else { return };
    let until = Instant::now() + *wildcard.propagation_timeout;
    // Asked too soon, resolvers would remember that there is nothing.
    tokio::time::sleep(*wildcard.settle).await;
    for record in records {
        // An answer that does not come is no different from one that is not there yet.
        while !acme.dns.texts(&record.name).await.unwrap_or_default().contains(&record.value) {
            if Instant::now() > until {
                tracing::warn!(
                    name = record.name,
                    "the DNS does not have the TXT record yet; going on all the same"
                );
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
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
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(fault)?;
    let mut group = Group(child.id());
    let mut said = child.stderr.take();
    let mut text = Vec::new();
    let ended = async {
        // What it leaves behind may hold its standard error open, and is not waited for.
        let mut reading = std::pin::pin!(read(said.as_mut(), &mut text));
        let status = tokio::select! {
            status = child.wait() => status,
            // Losing this arm loses nothing: it only ends when the other side has closed.
            () = &mut reading => return child.wait().await,
        };
        let _ = tokio::time::timeout(LAST_WORDS, reading).await;
        status
    };
    let status = match tokio::time::timeout(*wildcard.hook_timeout, ended).await {
        Ok(ended) => ended.map_err(fault)?,
        Err(_) => return Err(AcmeError::Hook(format!("{program} {what}: not done in time"))),
    };
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&text);
    Err(AcmeError::Hook(format!("{program} {what}: {status}: {}", text.trim())))
}

/// The beginning of what it says; the rest is read as well, or it would wait for us for ever.
async fn read(said: Option<&mut tokio::process::ChildStderr>, text: &mut Vec<u8>) {
    let Some(said) = said else { return };
    let mut piece = [0; 1024];
    while let Ok(n @ 1..) = said.read(&mut piece).await {
        let room = MAX_SAID.saturating_sub(text.len()).min(n);
        text.extend(&piece[..room]);
    }
}

/// What the program started ends with it, unless it has ended in order.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Nobody is there any more when it fails.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

const LAST_WORDS: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of what it says on standard error that are kept.
const MAX_SAID: usize = 300;
