//! The access log: a JSON object a line, for each request that became one.
//!
//! Lines go through a bounded queue to one thread that writes; a full queue drops lines and counts them, because a slow
//! disk must slow nobody down. Files have the day (UTC) in their names and go after `retention_days`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus::IntCounter;
use serde::Serialize;
use time::{Date, OffsetDateTime};

use crate::config::AccessLog;

/// One request.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// When its head was complete (RFC 3339, UTC).
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// As in the response.
    pub request_id: &'a str,
    /// Of the trace, where the request is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Who was served, or refused; absent for hosts that are nobody's.
    #[serde(rename = "tenant.slug", skip_serializing_if = "Option::is_none")]
    pub tenant: Option<&'a str>,
    /// The normalised authority, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<&'a str>,
    /// Method.
    pub method: &'a str,
    /// Path without its query, which may hold secrets; at most 1,024 bytes.
    pub path: &'a str,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: &'a str,
    /// Whether over TLS.
    pub tls: bool,
    /// Status; 0 where nothing was answered.
    pub status: u16,
    /// Why the edge answered by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// From the end of the head to the end of the response.
    pub duration_ms: f64,
    /// Until a backend had begun to answer, all attempts together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<f64>,
    /// Until the organisation was known.
    pub lookup_ms: f64,
    /// Attempts at a backend.
    pub attempts: usize,
    /// Body bytes.
    pub bytes_in: u64,
    /// Body bytes.
    pub bytes_out: u64,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
}

/// Takes lines.
pub struct Log {
    queue: SyncSender<(Option<Box<str>>, String)>,
    sample: f64,
    dropped: IntCounter,
}

/// Lines that wait to be written.
const QUEUE: usize = 16_384;
/// Files that are open at once.
const MAX_OPEN: usize = 64;
/// A line is on the disk after that long.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

impl Log {
    /// Opens the files, or says which it cannot. The thread that writes ends when the log is dropped.
    ///
    /// # Errors
    /// The first file or folder that cannot be written.
    pub fn open(config: &AccessLog, dropped: IntCounter) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let mut files = Files::new(config)?;
        std::thread::Builder::new().name("access-log".into()).spawn(move || files.run(&lines))?;
        Ok(Self { queue, sample: config.sample.0, dropped })
    }

    /// Whether a request with that status is written: all that failed, a sample of the rest.
    pub fn wants(&self, status: u16) -> bool {
        status >= 400 || status == 0 || self.sample >= 1.0 || rand::random::<f64>() < self.sample
    }

    /// Writes a line, soon. Never waits.
    pub fn write(&self, line: &Line<'_>) {
        if let Some(written) = Written::of(line) {
            self.send(written);
        }
    }

    /// The same with what was written before.
    pub fn send(&self, Written(tenant, text): Written) {
        match self.queue.try_send((tenant, text)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.inc(),
        }
    }
}

/// A line as text, and whose it is.
pub struct Written(Option<Box<str>>, String);

impl Written {
    /// Nothing where a line is none, which does not happen.
    pub fn of(line: &Line<'_>) -> Option<Self> {
        let mut text = serde_json::to_string(line).ok()?;
        text.push('\n');
        Some(Self(line.tenant.map(Into::into), text))
    }
}

struct Files {
    file: Option<PathBuf>,
    folder: Option<PathBuf>,
    retention: time::Duration,
    day: Date,
    open: HashMap<PathBuf, BufWriter<File>>,
    is_failing: bool,
}

impl Files {
    fn new(config: &AccessLog) -> io::Result<Self> {
        let days = i64::try_from(config.retention_days.get()).unwrap_or(i64::MAX);
        let mut files = Self {
            file: config.file.clone(),
            folder: config.per_tenant.clone(),
            retention: time::Duration::days(days),
            day: OffsetDateTime::now_utc().date(),
            open: HashMap::new(),
            is_failing: false,
        };
        if let Some(folder) = &files.folder {
            std::fs::create_dir_all(folder)?;
        }
        if let Some(file) = files.file.clone() {
            files.writer(&file)?;
        }
        files.expire();
        Ok(files)
    }

    fn run(&mut self, lines: &Receiver<(Option<Box<str>>, String)>) {
        loop {
            match lines.recv_timeout(FLUSH_EVERY) {
                Ok((tenant, text)) => {
                    let today = OffsetDateTime::now_utc().date();
                    if today != self.day {
                        self.day = today;
                        self.open.clear();
                        self.expire();
                    }
                    self.append(tenant.as_deref(), &text);
                }
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
        }
    }

    fn append(&mut self, tenant: Option<&str>, text: &str) {
        let own = self.folder.as_ref().zip(tenant).map(|(folder, slug)| folder.join(format!("{slug}.log")));
        for path in [self.file.clone(), own].into_iter().flatten() {
            let written = self.writer(&path).and_then(|file| file.write_all(text.as_bytes()));
            self.said(&path, written);
        }
    }

    fn flush(&mut self) {
        for (path, file) in std::mem::take(&mut self.open) {
            let mut file = file;
            let flushed = file.flush();
            if flushed.is_ok() {
                self.open.insert(path, file);
            } else {
                self.said(&path, flushed);
            }
        }
    }

    /// A disk that is full is said once, not for each line.
    fn said(&mut self, path: &Path, result: io::Result<()>) {
        match result {
            Ok(()) => self.is_failing = false,
            Err(e) if !self.is_failing => {
                self.is_failing = true;
                tracing::error!(path = %path.display(), error = %e, "access log not written");
            }
            Err(_) => {}
        }
    }

    fn writer(&mut self, path: &Path) -> io::Result<&mut BufWriter<File>> {
        let dated = dated(path, self.day);
        if !self.open.contains_key(&dated) {
            if self.open.len() >= MAX_OPEN {
                self.flush();
                self.open.clear();
            }
            let file = OpenOptions::new().create(true).append(true).open(&dated)?;
            self.open.insert(dated.clone(), BufWriter::new(file));
        }
        self.open.get_mut(&dated).ok_or_else(|| io::Error::other("just opened"))
    }

    /// Removes what is older than the retention, and nothing that is not ours by its name.
    fn expire(&self) {
        let oldest = self.day - self.retention;
        let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
        let main = self.file.as_deref().and_then(|f| Some((f.parent()?.to_owned(), stem(f))));
        let folders = main.into_iter().chain(self.folder.clone().map(|f| (f, None)));
        for (folder, wanted) in folders {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.filter_map(|e| Some(e.ok()?.path())) {
                let Some((name, day)) = parts(&path) else { continue };
                if day < oldest && wanted.as_ref().is_none_or(|w| *w == name) {
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
    }
}

/// `access.log` of a day: `access-2026-11-22.log`.
fn dated(path: &Path, day: Date) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{day}.log"))
}

/// What [`dated`] made a name of.
fn parts(path: &Path) -> Option<(String, Date)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".log")?;
    let (name, day) = stem.split_at_checked(stem.len().checked_sub(11)?)?;
    let format = time::macros::format_description!("-[year]-[month]-[day]");
    Some((name.to_owned(), Date::parse(day, format).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_days_and_their_end() {
        let folder = tempfile::tempdir().expect("folder");
        let config: AccessLog = toml::from_str("retention_days = 3").expect("defaults");
        let config = AccessLog {
            file: Some(folder.path().join("access.log")),
            per_tenant: Some(folder.path().join("tenants")),
            ..config
        };
        std::fs::create_dir_all(folder.path().join("tenants")).expect("folder");
        let today = OffsetDateTime::now_utc().date();
        let day = |n: i64| today - time::Duration::days(n);
        let old = ["access", "tenants/paris", "other", "notes"]
            .map(|n| folder.path().join(format!("{n}-{}.log", day(9))));
        let kept = folder.path().join(format!("access-{}.log", day(2)));
        for path in old.iter().chain([&kept]) {
            std::fs::write(path, "x").expect("written");
        }
        std::fs::write(folder.path().join("access-notaday.log"), "x").expect("written");
        let dropped = IntCounter::new("x", "x").expect("counter");
        let log = Log::open(&config, dropped).expect("opened");
        assert!(!old[0].exists() && !old[1].exists(), "over the retention");
        assert!(old[2].exists() && old[3].exists() && kept.exists(), "not ours, or not old");
        let line = Line {
            at: OffsetDateTime::now_utc(),
            request_id: "id",
            trace_id: None,
            tenant: Some("lyon"),
            host: Some("lyon.gmah.com"),
            method: "GET",
            path: "/a\r\n{\"tenant.slug\":\"paris\"}\"",
            protocol: "HTTP/1.1",
            tls: true,
            status: 200,
            reason: None,
            duration_ms: 1.5,
            upstream_ms: Some(1.0),
            lookup_ms: 0.0,
            attempts: 1,
            bytes_in: 0,
            bytes_out: 2,
            client: None,
        };
        log.write(&line);
        drop(log);
        let path = folder.path().join(format!("tenants/lyon-{today}.log"));
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let text = loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if !text.is_empty() || std::time::Instant::now() > deadline {
                break text;
            }
            std::thread::yield_now();
        };
        assert_eq!(text.lines().count(), 1, "one line, whatever the client wrote: {text}");
        let parsed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&parsed["tenant.slug"], &parsed["status"]), (&"lyon".into(), &200.into()));
        let whole = std::fs::read_to_string(folder.path().join(format!("access-{today}.log"))).expect("file");
        assert_eq!(whole, text);
    }
}
