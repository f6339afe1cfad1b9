//! The master key, exchanged while everything runs.
//!
//! ```text
//! make (a last line in the file) ─► known (every node opens with it) ─► first (every node seals with it)
//!     ─► reseal (whatever an older one sealed) ─► alone, note, forget (the older ones may go)
//! ```
//!
//! On more than one machine the file is copied to the others while this waits for them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::Duration;

use gmah_shared::secret::{MAX_KEYS, MasterKey};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::operations::{Again, Ask, Kind, Subject};
use super::{Control, ControlError, During as _};

/// What came of an exchange.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reseals {
    /// Id of the key that seals now.
    pub id: String,
    /// Secrets that were sealed anew.
    pub resealed: u64,
    /// Ids of older keys that still open.
    pub older: Vec<String>,
}

/// Where the master keeps something that is sealed.
struct Place {
    table: &'static str,
    column: &'static str,
    /// The context that it was sealed for, as an expression of the row.
    context: &'static str,
}

const fn place(table: &'static str, column: &'static str, context: &'static str) -> Place {
    Place { table, column, context }
}

const PLACES: [Place; 10] = [
    place("signing_keys", "private_key", "'signing_keys/' || kid"),
    place(
        "certificates",
        "private_key",
        "'certificates/' || case when base_domain is null then domain_id::text else '*.' || base_domain end",
    ),
    place("acme_accounts", "credentials", "'acme_accounts/' || directory"),
    place("ticket_secrets", "secret", "'ticket_secrets'"),
    place("platform_secrets", "secret", "'platform_secrets/' || name"),
    place("database_servers", "admin_password", "'database_servers/' || name"),
    place("organizations", "role_password", "'organizations/' || id || '/role'"),
    place("organizations", "role_password_next", "'organizations/' || id || '/role'"),
    place("system_admins", "totp_secret", "'system_admins/' || id || '/totp'"),
    place("organization_keys", "secrets", "'organizations/' || organization_id || '/data'"),
];

/// Rows that are read at once.
const BATCH: i64 = 500;
/// Whatever a node sealed with the older key before it had the new one is written by then.
const SETTLE: Duration = Duration::from_secs(5);
/// `gmah` and `seal` in ASCII: shared by all commands, which may seal; whole for whoever takes older keys away.
const SEALING: i64 = 0x676d_6168_7365_616c;
const ASK_EVERY: Duration = Duration::from_millis(100);
const WHAT: &str = "exchanging the master key";

impl Control {
    /// Exchanges the master key. With `forget_older` the older ones are taken out of the file at the end.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when the key is not in a file, the file cannot be written, another exchange is under
    /// way, or a node does not learn of the key; whatever was sealed opens all the same.
    pub async fn rotate_master_key(
        &mut self,
        forget_older: bool,
        patience: Duration,
    ) -> Result<Reseals, ControlError> {
        self.rotate_master_key_as(forget_older, patience, None).await
    }

    pub(crate) async fn rotate_master_key_as(
        &mut self,
        forget_older: bool,
        patience: Duration,
        resume: Option<Uuid>,
    ) -> Result<Reseals, ControlError> {
        let key = self.settings.master_key.clone();
        if forget_older && key.file().is_none() {
            return Err(ControlError::Refused(
                "the master key comes from a variable: take the older ones out of it yourself".into(),
            ));
        }
        // What cannot be begun leaves nothing behind.
        key.reload()?;
        let left = self
            .master
            .query_opt("select from operations where subject = 'fleet/master-key' and state in ('running', 'failed') limit 1", &[])
            .await
            .during(WHAT)?;
        if left.is_none() && self.unfinished(&key).await?.is_none() {
            has_room(&key)?;
        }
        let ask = Ask {
            kind: Kind::MasterKey,
            subject: Subject::Fleet("master-key".into()),
            organization: None,
            about: "the master key".into(),
            // Asked for either way it is the same exchange: two that were left would go on with each other's keys.
            input: json!({}),
            again: Again::Yes,
            resume,
        };
        let mut had_ended = false;
        let ran = self
            .operate(ask, async |control, operation| {
                let (master, key) = (&control.master, &key);
                key.reload()?;
                let made: Option<(String, bool)> = operation.recorded("make")?;
                had_ended = control.has_sealed_all(made.as_ref().map(|(id, _)| id)).await?;
                let make = async { Ok((control.next_master_key(key).await?, forget_older)) };
                let (new, was_asked): (String, bool) = operation.step(master, "make", make).await?;
                if !key.ids().contains(&new) {
                    return Err(ControlError::Refused(format!(
                        "master key {new} is not in the file here: bring it up to the other nodes', or gmah operation cancel {}",
                        operation.id()
                    )));
                }
                // Whatever an earlier runner saw: there may be other nodes by now, and another file.
                operation.again(master, "known", control.is_known(&new, patience)).await?;
                operation.again(master, "first", control.put_first(key, &new, patience)).await?;
                let mut resealed: u64 = operation.again(master, "reseal", control.reseal(key, &new)).await?;
                let forgets = (forget_older || was_asked) && key.ids().len() > 1;
                if forgets {
                    let alone = control.reseal_alone(key, &new, patience);
                    resealed += operation.again(master, "alone", alone).await?;
                }
                operation.step(master, "note", control.note_master_key(&new, resealed)).await?;
                if forgets {
                    operation.again(master, "forget", async { forget_others(key, &new) }).await?;
                }
                let older = key.ids().split_off(1);
                Ok(Reseals { id: new, resealed, older })
            })
            .await;
        // This session may go on with something else, and others with theirs.
        self.with_secrets_of_others().await;
        let (reseals, _) = ran?;
        // Whoever asks for another key gets one: this was the end of an exchange that an earlier run had all but ended.
        if had_ended && resume.is_none() {
            return Box::pin(self.rotate_master_key_as(forget_older, patience, None)).await;
        }
        Ok(reseals)
    }

    /// Whether everything was sealed with that key once.
    async fn has_sealed_all(&self, id: Option<&String>) -> Result<bool, ControlError> {
        let row = self
            .master
            .query_one(
                "select exists (select from master_keys where id = $1 and done_at is not null)",
                &[&id],
            )
            .await
            .during(WHAT)?;
        Ok(row.get(0))
    }

    async fn next_master_key(&self, key: &MasterKey) -> Result<String, ControlError> {
        match self.unfinished(key).await? {
            Some(id) => Ok(id),
            None => self.newer_master_key(key).await,
        }
    }

    async fn is_known(&self, new: &str, patience: Duration) -> Result<(), ControlError> {
        self.wait_for_nodes("$1 = any (master_keys)", new, &format!("master key {new}"), patience).await
    }

    async fn is_first(&self, new: &str, patience: Duration) -> Result<(), ControlError> {
        let what = format!("master key {new} as the first");
        self.wait_for_nodes("$1 = master_keys[1]", new, &what, patience).await
    }

    /// The first line seals.
    async fn put_first(&self, key: &MasterKey, new: &str, patience: Duration) -> Result<(), ControlError> {
        if key.ids().first().is_none_or(|first| first != new) {
            rewrite(key, |lines| {
                let at = position(lines, new)?;
                lines[..=at].rotate_right(1);
                Ok(())
            })?;
        }
        self.is_first(new, patience).await
    }

    /// Other commands may have begun with the older key; from here on none can begin.
    async fn reseal_alone(
        &self,
        key: &MasterKey,
        new: &str,
        patience: Duration,
    ) -> Result<u64, ControlError> {
        self.alone_with_secrets(patience).await?;
        tokio::time::sleep(SETTLE).await;
        self.is_first(new, patience).await?;
        self.reseal(key, new).await
    }

    async fn note_master_key(&self, new: &str, resealed: u64) -> Result<(), ControlError> {
        let count = i64::try_from(resealed).unwrap_or(i64::MAX);
        self.master
            .execute(
                "with done as (insert into master_keys (id, done_at) values ($1, now())
                               on conflict (id) do update set done_at = now() where master_keys.done_at is null
                               returning id)
                 insert into audit_log (actor, action, detail)
                 select $3, 'key.rotate_master', jsonb_build_object('id', id, 'resealed', $2::bigint) from done",
                &[&new, &count, &self.actor],
            )
            .await
            .during(WHAT)?;
        Ok(())
    }

    /// Every command says that it may seal something, and knows the key that is used now.
    pub(super) async fn may_seal(&self) -> Result<(), ControlError> {
        let key = &self.settings.master_key;
        self.lock_sealing("select pg_try_advisory_lock_shared($1)", Duration::from_secs(30)).await?;
        key.reload()?;
        let ids = key.ids();
        let row = self
            .master
            .query_one(
                "select (select id from master_keys where done_at is not null order by done_at desc, id limit 1) as newest,
                     exists (select from master_keys where id = $1 and done_at is not null) as is_known",
                &[&ids.first()],
            )
            .await
            .during("reading which master key is used")?;
        let Some(newest) = row.get::<_, Option<String>>("newest") else { return Ok(()) };
        // One that nobody here has heard of is the operator's own, put before the others.
        let is_older = ids.first() != Some(&newest) && row.get("is_known");
        if is_older || !ids.contains(&newest) {
            return Err(ControlError::Refused(format!(
                "the master key here is older than {newest}, which is used: bring the file up to the other nodes'"
            )));
        }
        Ok(())
    }

    /// No other command is under way, and none begins before this session ends.
    async fn alone_with_secrets(&self, patience: Duration) -> Result<(), ControlError> {
        self.lock_sealing("select pg_try_advisory_lock($1)", patience).await
    }

    /// Ends [`Self::alone_with_secrets`], if it was begun.
    async fn with_secrets_of_others(&self) {
        let held = "select pg_advisory_unlock($1) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
            and mode = 'ExclusiveLock' and granted and objsubid = 1 and ((classid::bigint << 32) | objid::bigint) = $1";
        if let Err(e) = self.master.execute(held, &[&SEALING]).await {
            tracing::debug!(error = %e, "lock not released by hand; it ends with the session");
        }
    }

    async fn lock_sealing(&self, sql: &str, patience: Duration) -> Result<(), ControlError> {
        let until = Instant::now() + patience;
        while !self.master.query_one(sql, &[&SEALING]).await.during(WHAT)?.get::<_, bool>(0) {
            if Instant::now() > until {
                let why = "other commands are at work, or the master key is being exchanged: try again later";
                return Err(ControlError::Refused(why.into()));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    /// A key that an earlier run made and did not finish with; or one that somebody put before the others by hand.
    async fn unfinished(&self, key: &MasterKey) -> Result<Option<String>, ControlError> {
        let ids = key.ids();
        let rows = self
            .master
            .query(
                "select id, done_at is null as unfinished from master_keys where id = any ($1)
                 order by created_at desc, id",
                &[&ids],
            )
            .await
            .during(WHAT)?;
        let begun = rows.iter().find(|r| r.get("unfinished")).map(|r| r.get("id"));
        let known: Vec<String> = rows.iter().map(|r| r.get("id")).collect();
        let by_hand = ids.first().filter(|id| ids.len() > 1 && !known.contains(id));
        Ok(begun.or_else(|| by_hand.cloned()))
    }

    /// A new key as the file's last line, where it opens and does not seal.
    async fn newer_master_key(&self, key: &MasterKey) -> Result<String, ControlError> {
        has_room(key)?;
        let before = key.ids();
        let text = MasterKey::generate_text();
        let id = MasterKey::parse(&text)?.ids().swap_remove(0);
        // The one that sealed so far is an older one from now on, also if it was made before anything was noted.
        let what = "noting the new master key";
        self.master
            .execute(
                "with older as (insert into master_keys (id, done_at) values ($1, now()) on conflict do nothing)
                 insert into master_keys (id) values ($2)",
                &[&before.first(), &id],
            )
            .await
            .during(what)?;
        let written = rewrite(key, |lines| {
            lines.push(text.expose_secret().to_owned());
            Ok(())
        });
        if let Err(e) = written {
            self.master.execute("delete from master_keys where id = $1", &[&id]).await.during(what)?;
            return Err(e);
        }
        Ok(id)
    }

    /// Seals anew until nothing is left that another key sealed.
    async fn reseal(&self, key: &MasterKey, new: &str) -> Result<u64, ControlError> {
        let mut resealed = 0;
        for Place { table, column, context } in &PLACES {
            let read = format!(
                "select ctid::text as at, {context} as context, {column} as sealed from {table}
                 where encode(substring({column} from 2 for 4), 'hex') <> $1 and length({column}) > 0 limit {BATCH}"
            );
            // What is empty was destroyed with its organisation. Whoever changed a row meanwhile sealed it, and the next look finds
            // with what.
            let write =
                format!("update {table} set {column} = $3 where ctid = $1::text::tid and {column} = $2");
            loop {
                let rows = self.master.query(&read, &[&new]).await.during(WHAT)?;
                if rows.is_empty() {
                    break;
                }
                for row in &rows {
                    let (at, context, sealed): (String, String, Vec<u8>) =
                        (row.get("at"), row.get("context"), row.get("sealed"));
                    let plain = Zeroizing::new(key.open(&context, &sealed).map_err(|e| {
                        ControlError::Refused(format!(
                            "{table}: what is sealed for {context} does not open: {e}"
                        ))
                    })?);
                    let anew = key.seal(&context, &plain)?;
                    resealed += self.master.execute(&write, &[&at, &sealed, &anew]).await.during(WHAT)?;
                }
            }
        }
        Ok(resealed)
    }
}

/// Refuses a file that takes no other key.
fn has_room(key: &MasterKey) -> Result<(), ControlError> {
    if key.file().is_none() {
        return Err(ControlError::Refused(
            "the master key comes from a variable: put a new one (`head -c 32 /dev/urandom | base64`) after it as \
                 a second line, restart every node, put it before the other, restart every node, and run this again"
                    .into(),
            ));
    }
    if key.ids().len() >= MAX_KEYS {
        return Err(ControlError::Refused(format!(
            "the file holds {MAX_KEYS} keys, which is the most: keep a copy of it with the backups, take older lines \
                 out, everywhere, and run this again"
        )));
    }
    Ok(())
}

/// Leaves that key alone in the file.
fn forget_others(key: &MasterKey, new: &str) -> Result<(), ControlError> {
    rewrite(key, |lines| {
        let at = position(lines, new)?;
        lines.swap(0, at);
        lines.truncate(1);
        Ok(())
    })
}

/// Which line is the key of that id.
fn position(lines: &[String], id: &str) -> Result<usize, ControlError> {
    let is_it = |line: &String| {
        MasterKey::parse(&line.clone().into()).is_ok_and(|key| key.ids().first().is_some_and(|is| is == id))
    };
    let gone = || ControlError::Refused(format!("master key {id} is not in the file any more"));
    lines.iter().position(is_it).ok_or_else(gone)
}

/// Changes the lines of the key's file, whole or not at all, and keeps its owner and mode. What could not be read again is
/// not written.
fn rewrite(
    key: &MasterKey,
    change: impl FnOnce(&mut Vec<String>) -> Result<(), ControlError>,
) -> Result<(), ControlError> {
    let file =
        key.file().ok_or_else(|| ControlError::Refused("the master key comes from a variable".into()))?;
    let refused = |e: std::io::Error| ControlError::Refused(format!("{}: {e}", file.display()));
    let text = Zeroizing::new(fs::read_to_string(file).map_err(refused)?);
    let mut lines: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
    change(&mut lines)?;
    let new = Zeroizing::new(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    lines.iter_mut().for_each(zeroize::Zeroize::zeroize);
    MasterKey::parse(&new.to_string().into())?;
    // What a link leads to is replaced, not the link.
    let file = fs::canonicalize(file).map_err(refused)?;
    replace(&file, new.as_bytes()).map_err(refused)?;
    Ok(key.reload()?)
}

fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let old = fs::metadata(file)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    // Of nobody else's, and readable by nobody else at any moment.
    let half = folder.join(format!(".{:016x}.half", rand::random::<u64>()));
    let mut out = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&half)?;
    let written = (|| {
        out.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        let new = out.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            chown(&half, Some(old.uid()), Some(old.gid()))?;
        }
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&half, file)
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&half);
        return Err(e);
    }
    fs::File::open(folder)?.sync_all()
}
