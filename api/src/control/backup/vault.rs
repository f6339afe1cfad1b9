//! Where backups lie: an object store, in which everything but the manifests is encrypted with age (age-encryption.org/v1).
//!
//! ```text
//! ORGANISATION/BACKUP/dump.age        what pg_dump wrote
//! ORGANISATION/BACKUP/manifest.json   written last: a backup is whole when it has one
//! ORGANISATION/files/FILE.KEY.age     bytes of a file, encrypted to that key; later backups share them
//! ```
//!
//! age notices a stream that was cut off or changed, and says nothing of who wrote it: the digest that the master keeps of a
//! dump does.

use std::io::{Read as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use age::x25519::{Identity, Recipient};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use ring::digest;
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::config::Backups;
use crate::control::ControlError;
use crate::files::store;

/// Bytes that are sent to the store at once; the least that S3 takes.
const PART: usize = 5 << 20;
/// Parts on their way at once.
const PARTS: usize = 2;
/// Bytes of plain text that are handed on at once, and how many such wait.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;
/// Bytes that are asked for at once.
const RANGE: u64 = 8 << 20;
/// Nothing coming for so long is a failure.
pub(crate) const SILENCE: Duration = Duration::from_secs(300);

/// The store, and the keys to what is in it.
pub(crate) struct Vault {
    store: Arc<dyn ObjectStore>,
    /// The first one's recipient is who everything is encrypted to.
    identities: Arc<Vec<Identity>>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Written {
    /// Bytes in the store.
    pub(crate) size: u64,
    /// SHA-256 of these, in hexadecimal digits.
    pub(crate) sha256: String,
}

impl Vault {
    /// As configured.
    ///
    /// # Errors
    /// [`ControlError::Usage`] with the key at fault.
    pub(crate) fn open(config: &Backups) -> Result<Self, ControlError> {
        let store = store::open("backups", config.folder.as_deref(), config.s3.as_ref());
        let identities = config.identities();
        Ok(Self {
            store: store.map_err(ControlError::Usage)?,
            identities: Arc::new(identities.map_err(ControlError::Usage)?),
        })
    }

    /// Who everything is encrypted to: the id of the key.
    pub(crate) fn recipient(&self) -> Result<Recipient, ControlError> {
        let first = self.identities.first();
        first
            .map(Identity::to_public)
            .ok_or_else(|| ControlError::Usage("backups.key_file: there is no key in it".into()))
    }

    /// Everybody who can open something here, the one that everything is encrypted to first.
    pub(crate) fn recipients(&self) -> Vec<String> {
        self.identities.iter().map(|i| i.to_public().to_string()).collect()
    }

    /// Encrypts what comes, and stores it. What does not come to its end leaves nothing.
    pub(crate) async fn put(
        &self,
        path: &Path,
        plain: impl Stream<Item = Result<Bytes, ControlError>>,
    ) -> Result<Written, ControlError> {
        let upload = self.store.put_multipart(path).await.map_err(|e| away(path, &e))?;
        let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
        match self.encrypt(path, &mut write, plain).await {
            Ok(written) => {
                within(path, async { write.finish().await.map_err(|e| away(path, &e)) }).await?;
                Ok(written)
            }
            Err(e) => {
                if let Err(left) = write.abort().await {
                    tracing::warn!(error = %left, %path, "a backup that failed may have left something");
                }
                Err(e)
            }
        }
    }

    async fn encrypt(
        &self,
        path: &Path,
        write: &mut WriteMultipart,
        plain: impl Stream<Item = Result<Bytes, ControlError>>,
    ) -> Result<Written, ControlError> {
        let failed = |e: &dyn std::fmt::Display| ControlError::Foreign(format!("encrypting {path}: {e}"));
        let recipient = self.recipient()?;
        let to = std::iter::once(&recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(to).map_err(|e| failed(&e))?;
        let pipe = Pipe::default();
        let mut sealed = encryptor.wrap_output(pipe.clone()).map_err(|e| failed(&e))?;
        let (mut size, mut hash) = (0, digest::Context::new(&digest::SHA256));
        let mut plain = std::pin::pin!(plain);
        loop {
            let next = tokio::time::timeout(SILENCE, plain.next()).await;
            let piece = next.map_err(|_| ControlError::Silent(format!("what is to become {path}")))?;
            let is_last = piece.is_none();
            match piece {
                Some(piece) => sealed.write_all(&piece?).map_err(|e| failed(&e))?,
                None => {
                    sealed.finish().map_err(|e| failed(&e))?;
                    // The writer is gone; what it held has come out.
                    let rest = pipe.take();
                    size += rest.len() as u64;
                    hash.update(&rest);
                    write.write(&rest);
                    break;
                }
            }
            debug_assert!(!is_last);
            let ready = pipe.take();
            size += ready.len() as u64;
            hash.update(&ready);
            within(path, async { write.wait_for_capacity(PARTS).await.map_err(|e| away(path, &e)) }).await?;
            write.write(&ready);
        }
        Ok(Written { size, sha256: hex(hash.finish().as_ref()) })
    }

    /// Decrypts an object. With `expected`, the last piece comes only if all that is stored is what was written.
    pub(crate) async fn get(
        &self,
        path: &Path,
        expected: Option<Written>,
    ) -> Result<impl Stream<Item = Result<Bytes, ControlError>> + use<>, ControlError> {
        let size =
            within(path, async { self.store.head(path).await.map_err(|e| away(path, &e)) }).await?.size;
        let stored = in_ranges(self.store.clone(), path.clone(), size);
        let (send, mut receive) = mpsc::channel(PIECES);
        let (identities, place) = (self.identities.clone(), path.to_string());
        // age reads where it stands; the task ends with the stream, or when nobody takes the next piece.
        tokio::task::spawn_blocking(move || {
            let sent = decrypt(&identities, stored, expected, &place, &send);
            if let Err(e) = sent {
                // Nobody to hear of it has gone away by himself.
                let _ = send.blocking_send(Err(e));
            }
        });
        Ok(futures::stream::poll_fn(move |cx| receive.poll_recv(cx)))
    }

    /// Stores a manifest.
    pub(crate) async fn put_plain(&self, path: &Path, bytes: Vec<u8>) -> Result<(), ControlError> {
        within(path, async { self.store.put(path, bytes.into()).await.map_err(|e| away(path, &e)) }).await?;
        Ok(())
    }

    /// Whether something lies there.
    pub(crate) async fn has(&self, path: &Path) -> Result<bool, ControlError> {
        within(path, async {
            match self.store.head(path).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(e) => Err(away(path, &e)),
            }
        })
        .await
    }

    /// Removes an object; that there is none is fine.
    pub(crate) async fn remove(&self, path: &Path) -> Result<(), ControlError> {
        within(path, async {
            match self.store.delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(away(path, &e)),
            }
        })
        .await
    }
}

type Stored = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

/// An object, a range at a time: a service ends a body that is read slowly, and whoever restores sets the pace.
fn in_ranges(store: Arc<dyn ObjectStore>, path: Path, size: u64) -> Stored {
    Box::pin(futures::stream::unfold(0, move |at| {
        let (store, path) = (store.clone(), path.clone());
        async move {
            if at >= size {
                return None;
            }
            let end = size.min(at + RANGE);
            let asked = tokio::time::timeout(SILENCE, store.get_range(&path, at..end)).await;
            let bytes = match asked {
                Ok(Ok(bytes)) if bytes.len() as u64 == end - at => Ok(bytes),
                Ok(Ok(_)) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
                Ok(Err(e)) => Err(std::io::Error::other(e)),
                Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
            };
            let next = if bytes.is_ok() { end } else { size };
            Some((bytes, next))
        }
    }))
}

fn decrypt(
    identities: &[Identity],
    stored: Stored,
    expected: Option<Written>,
    place: &str,
    send: &mpsc::Sender<Result<Bytes, ControlError>>,
) -> Result<(), ControlError> {
    let failed = |e: &dyn std::fmt::Display| ControlError::Foreign(format!("{place} cannot be read: {e}"));
    let counted = Counted {
        inner: SyncIoBridge::new(StreamReader::new(stored)),
        hash: digest::Context::new(&digest::SHA256),
        size: 0,
    };
    let counted = Arc::new(Mutex::new(counted));
    let opened = age::Decryptor::new(Shared(counted.clone())).map_err(|e| failed(&e))?;
    let keys = identities.iter().map(|i| i as &dyn age::Identity);
    let mut plain = opened.decrypt(keys).map_err(|e| failed(&e))?;
    let mut held: Option<Bytes> = None;
    loop {
        let mut piece = vec![0; PIECE];
        let read = plain.read(&mut piece).map_err(|e| failed(&e))?;
        if read == 0 {
            break;
        }
        piece.truncate(read);
        // One piece behind: the last goes out when everything is known to be well.
        if let Some(before) = held.replace(piece.into())
            && send.blocking_send(Ok(before)).is_err()
        {
            return Ok(());
        }
    }
    if let Some(expected) = expected {
        let counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        let found = Written { size: counted.size, sha256: hex(counted.hash.clone().finish().as_ref()) };
        if found != expected {
            return Err(failed(&"it is not what was written"));
        }
    }
    if let Some(last) = held {
        // Whoever has gone away needs it no more.
        let _ = send.blocking_send(Ok(last));
    }
    Ok(())
}

/// Counts and hashes what passes.
struct Counted<R> {
    inner: R,
    hash: digest::Context,
    size: u64,
}

/// One that somebody else looks at afterwards.
struct Shared<R>(Arc<Mutex<Counted<R>>>);

impl<R: std::io::Read> std::io::Read for Shared<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = counted.inner.read(buffer)?;
        counted.hash.update(&buffer[..read]);
        counted.size += read as u64;
        Ok(read)
    }
}

/// Where age writes to, and we take from.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn within<T>(
    path: &Path,
    asked: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    match tokio::time::timeout(SILENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(ControlError::Silent(format!("the store of backups, {path}"))),
    }
}

fn away(path: &Path, e: &object_store::Error) -> ControlError {
    match e {
        object_store::Error::NotFound { .. } => {
            ControlError::Refused(format!("there is no {path} among the backups"))
        }
        e => ControlError::Foreign(format!("the store of backups, {path}: {e}")),
    }
}

/// Hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use futures::{TryStreamExt as _, stream};

    use super::*;

    fn vault(folder: &std::path::Path, identities: Vec<Identity>) -> Vault {
        let store = store::open("backups", Some(folder), None).expect("store");
        Vault { store, identities: Arc::new(identities) }
    }

    async fn all(vault: &Vault, path: &Path, expected: Option<Written>) -> Result<Vec<u8>, String> {
        let stream = vault.get(path, expected).await.map_err(|e| e.to_string())?;
        let pieces: Vec<Bytes> = stream.try_collect().await.map_err(|e| e.to_string())?;
        Ok(pieces.concat())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_goes_in_comes_out_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("folder");
        let (key, older) = (Identity::generate(), Identity::generate());
        let before = vault(folder.path(), vec![older.clone()]);
        let now = vault(folder.path(), vec![key, older]);
        let stranger = vault(folder.path(), vec![Identity::generate()]);
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7, PART + 1] {
            let plain: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            for writer in [&before, &now] {
                let path = Path::from(format!("a/{size}.age"));
                let pieces = plain.chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>();
                let written = writer.put(&path, stream::iter(pieces)).await.expect("written");
                assert_eq!(all(&now, &path, Some(written.clone())).await.expect("read"), plain);
                assert!(all(&stranger, &path, None).await.is_err(), "another's key");
                let file = folder.path().join(format!("a/{size}.age"));
                let stored = std::fs::read(&file).expect("stored");
                assert_eq!(stored.len() as u64, written.size);
                if size > 16 {
                    assert!(!stored.windows(16).any(|w| w == &plain[..16]), "in clear");
                }
                // Cut off at any place, or changed: no last piece, and a reason.
                for cut in [0, 1, stored.len() / 2, stored.len() - 1] {
                    std::fs::write(&file, &stored[..cut]).expect("cut");
                    assert!(all(&now, &path, Some(written.clone())).await.is_err(), "{size} cut at {cut}");
                }
                let mut changed = stored.clone();
                *changed.last_mut().expect("a byte") ^= 1;
                std::fs::write(&file, &changed).expect("changed");
                assert!(all(&now, &path, None).await.is_err(), "{size} changed");
                std::fs::write(&file, &stored).expect("as it was");
                // Another backup in its place is whole, and is not it.
                let other = Written { size: written.size, sha256: hex(&[0; 32]) };
                assert!(all(&now, &path, Some(other)).await.is_err());
            }
        }
        let path = Path::from("a/broken.age");
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(ControlError::Refused("no".into()))]);
        assert!(now.put(&path, broken).await.is_err());
        assert!(!now.has(&path).await.expect("asked"), "what failed leaves nothing");
        assert!(all(&now, &path, None).await.is_err());
        now.remove(&path).await.expect("that there is none is fine");
    }
}
