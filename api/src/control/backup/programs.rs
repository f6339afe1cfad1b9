//! `pg_dump` and `pg_restore`: how they are told where to go, and what is made of what they say.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use gmah_shared::pg::programs;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::vault::SILENCE;
use crate::control::ControlError;
use crate::control::servers::{Access, Environment};

/// Bytes that are read at once: no more than that is in a pipe (pipe(7)).
const PIECE: usize = 64 << 10;
/// Of what a program complains about, the beginning.
const COMPLAINT: u64 = 4096;

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// In the named folder, or where this machine has them.
    pub(crate) fn find(named: Option<&PathBuf>) -> Result<Self, ControlError> {
        named.cloned().or_else(|| programs::folder(&["pg_dump", "pg_restore"])).map(Self).ok_or_else(|| {
            ControlError::Refused(
                "there is no pg_dump on this machine: apt-get install postgresql-client, or backups.programs"
                    .into(),
            )
        })
    }

    /// What `pg_dump` says of a database, as it stands in a snapshot that somebody holds open (PostgreSQL, chapter 9.28.5).
    /// The stream ends with an error if the program does not end well.
    pub(crate) fn dump(
        &self,
        access: &Access,
        database: &str,
        snapshot: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ControlError>> + use<>, ControlError> {
        let environment = access.environment(database)?;
        let mut child = self
            .command("pg_dump", &environment)
            .args([
                "--format=custom",
                "--no-owner",
                "--no-password",
                "--lock-wait-timeout=30s",
                "--no-subscriptions",
                "--no-publications",
                // Nothing here has any, and of what an extension of the old server had put on something a restore would not come to
                // its end on a server without it. To look for them takes a twelfth of a small dump.
                "--no-security-labels",
            ])
            .arg(format!("--snapshot={snapshot}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| ControlError::Refused(format!("pg_dump: {e}")))?;
        let complaint = complaint(&mut child);
        let out = child.stdout.take();
        let running = Some((child, out, complaint, environment));
        Ok(futures::stream::unfold(running, |running| async move {
            let (mut child, mut out, complaint, environment) = running?;
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = match &mut out {
                Some(out) => out.read_buf(&mut piece).await,
                None => Ok(0),
            };
            match read {
                Ok(0) => match ended("pg_dump", child.wait().await, complaint).await {
                    Ok(()) => None,
                    Err(e) => Some((Err(e), None)),
                },
                Ok(_) => Some((Ok(piece.freeze()), Some((child, out, complaint, environment)))),
                Err(e) => Some((Err(ControlError::Foreign(format!("pg_dump: {e}"))), None)),
            }
        }))
    }

    /// Gives `pg_restore` a dump for a database that is empty: all of it, or nothing.
    pub(crate) async fn restore(
        &self,
        access: &Access,
        database: &str,
        dump: impl Stream<Item = Result<Bytes, ControlError>>,
    ) -> Result<(), ControlError> {
        let environment = access.environment(database)?;
        let mut child = self
            .command("pg_restore", &environment)
            .args([
                "--format=custom",
                "--no-owner",
                "--no-password",
                "--exit-on-error",
                "--single-transaction",
            ])
            .arg(format!("--dbname={database}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| ControlError::Refused(format!("pg_restore: {e}")))?;
        let complaint = complaint(&mut child);
        let mut dump = std::pin::pin!(dump);
        let mut input = child.stdin.take();
        while let Some(piece) = dump.next().await {
            // What cannot be read ends the program with its transaction open: it is killed with the child.
            let piece = piece?;
            let Some(to) = &mut input else { break };
            match tokio::time::timeout(SILENCE, to.write_all(&piece)).await {
                Ok(Ok(())) => {}
                // It has ended, and says why; or the dump goes on after what it takes for the end.
                Ok(Err(_)) => input = None,
                Err(_) => return Err(ControlError::Silent("pg_restore".into())),
            }
        }
        drop(input);
        ended("pg_restore", child.wait().await, complaint).await
    }

    fn command(&self, name: &str, environment: &Environment) -> Command {
        let mut command = Command::new(self.0.join(name));
        // Nothing of ours: the variables of libpq say who and where, so that no argument does.
        command.env_clear().env("LC_ALL", "C").envs(environment.variables());
        command.stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// Reads what a program complains about, for as long as it does.
fn complaint(child: &mut Child) -> JoinHandle<String> {
    let out = child.stderr.take();
    gmah_shared::tasks::detach("program-complaint", async move {
        let Some(out) = out else { return String::new() };
        beginning(out).await
    })
}

async fn beginning(mut out: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // A program that cannot be read complains of nothing; its exit code is heard all the same.
    let _ = (&mut out).take(COMPLAINT).read_to_end(&mut text).await;
    let _ = tokio::io::copy(&mut out, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).trim().to_owned()
}

async fn ended(
    name: &str,
    status: std::io::Result<ExitStatus>,
    complaint: JoinHandle<String>,
) -> Result<(), ControlError> {
    let status = status.map_err(|e| ControlError::Foreign(format!("{name}: {e}")))?;
    if status.success() {
        return Ok(());
    }
    let said = complaint.await.unwrap_or_default();
    // Its own words only: what PostgreSQL adds may be somebody's data.
    let said: Vec<&str> = said.lines().filter(|l| l.starts_with("pg_")).take(3).collect();
    Err(ControlError::Foreign(format!("{name}: {status}: {}", said.join("; "))))
}
