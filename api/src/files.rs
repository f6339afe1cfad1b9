//! The object store: bytes of files, in a folder or at a service that speaks S3.
//!
//! Where an object lies is made of an organisation's id and the file's, and of nothing that anybody sent.

pub(crate) mod store;

use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use gmah_shared::tenant::TenantId;
use object_store::path::Path;
use object_store::{GetResult, ObjectStore, ObjectStoreExt as _, WriteMultipart};
use ring::digest;
use uuid::Uuid;

use crate::config::Files as Config;
use crate::control::ControlError;
use crate::error::ApiError;

/// Bytes that are sent to the store at once; the least that S3 takes.
const PART: usize = 5 << 20;
/// Parts on their way at once: so much of an upload is in memory.
const PARTS: usize = 2;
/// Bytes by which a file is known for what it is.
const SNIFFED: usize = 512;

/// The store.
#[derive(Clone)]
pub struct Files {
    store: Arc<dyn ObjectStore>,
    max_bytes: u64,
}

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Bytes.
    pub size: i64,
    /// Of all of them.
    pub sha256: Vec<u8>,
    /// What it is, by what is in it.
    pub media_type: &'static str,
}

impl Files {
    /// As configured. Makes a folder that is not there, and asks no service.
    ///
    /// # Errors
    /// A sentence that begins with the key at fault.
    pub fn new(config: &Config) -> Result<Self, String> {
        let store = store::open("files", config.folder.as_deref(), config.s3.as_ref())?;
        Ok(Self { store, max_bytes: config.max_file_bytes.get() as u64 })
    }

    /// Most bytes of one file.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Stores a file as it comes in, up to `most` bytes. One that does not end well leaves nothing.
    ///
    /// # Errors
    /// [`ApiError::TooLarge`], [`ApiError::Malformed`] when the body ends early, [`ApiError::Unavailable`] for the store.
    pub async fn put(
        &self,
        tenant: TenantId,
        id: Uuid,
        most: u64,
        body: impl Stream<Item = Result<bytes::Bytes, ApiError>>,
    ) -> Result<Stored, ApiError> {
        let upload = self.store.put_multipart(&path(tenant, id)).await.map_err(|e| away(&e))?;
        let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
        let received = receive(&mut write, most.min(self.max_bytes), body).await;
        let stored = match received {
            Ok(stored) => stored,
            Err(refused) => {
                if let Err(e) = write.abort().await {
                    tracing::warn!(error = %e, "an upload that failed may have left something");
                }
                return Err(refused);
            }
        };
        write.finish().await.map_err(|e| away(&e))?;
        Ok(stored)
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`], also where they are missing: whoever asks knows of the file.
    pub async fn get(&self, tenant: TenantId, id: Uuid) -> Result<GetResult, ApiError> {
        self.store.get(&path(tenant, id)).await.map_err(|e| match e {
            object_store::Error::NotFound { .. } => {
                tracing::error!(%tenant, file = %id, "a file's bytes are missing from the store");
                ApiError::Unavailable
            }
            e => away(&e),
        })
    }

    /// Every file of an organisation whose bytes are there.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`].
    pub(crate) async fn all_of(&self, tenant: TenantId) -> Result<Vec<Uuid>, ApiError> {
        let folder = Path::from(tenant.as_uuid().simple().to_string());
        let mut listed = self.store.list(Some(&folder));
        let mut all = Vec::new();
        while let Some(found) = listed.next().await {
            let found = found.map_err(|e| away(&e))?;
            all.extend(found.location.filename().and_then(|name| Uuid::try_parse(name).ok()));
        }
        Ok(all)
    }

    /// Whether a file's bytes are there.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`].
    pub(crate) async fn has(&self, tenant: TenantId, id: Uuid) -> Result<bool, ApiError> {
        match self.store.head(&path(tenant, id)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(away(&e)),
        }
    }

    /// Stores bytes that a backup has, and no others.
    ///
    /// # Errors
    /// [`ControlError`]; then nothing is stored.
    pub(crate) async fn bring(
        &self,
        tenant: TenantId,
        id: Uuid,
        sha256: &str,
        plain: impl Stream<Item = Result<bytes::Bytes, ControlError>>,
    ) -> Result<(), ControlError> {
        let mut failed = None;
        let body = plain.map(|piece| {
            piece.map_err(|e| {
                failed = Some(e);
                ApiError::Unavailable
            })
        });
        // What it was allowed to be once it still is.
        let all = Self { store: self.store.clone(), max_bytes: u64::MAX };
        let stored = all.put(tenant, id, u64::MAX, body).await;
        let stored = match (stored, failed) {
            (_, Some(e)) => return Err(e),
            (Err(_), None) => return Err(ControlError::Silent("the store of files".into())),
            (Ok(stored), None) => stored,
        };
        let found: String = stored.sha256.iter().map(|b| format!("{b:02x}")).collect();
        if found == sha256 {
            return Ok(());
        }
        // It must not be taken for the file.
        self.remove(tenant, id).await.map_err(|_| ControlError::Silent("the store of files".into()))?;
        Err(ControlError::Foreign(format!("the backup of file {id} has other bytes")))
    }

    /// Removes a file's bytes; that there are none is fine.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`].
    pub async fn remove(&self, tenant: TenantId, id: Uuid) -> Result<(), ApiError> {
        match self.store.delete(&path(tenant, id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(away(&e)),
        }
    }
}

async fn receive(
    write: &mut WriteMultipart,
    most: u64,
    body: impl Stream<Item = Result<bytes::Bytes, ApiError>>,
) -> Result<Stored, ApiError> {
    let (mut size, mut head) = (0_u64, Vec::with_capacity(SNIFFED));
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut body = std::pin::pin!(body);
    while let Some(piece) = body.next().await {
        let piece = piece?;
        size += piece.len() as u64;
        if size > most {
            return Err(ApiError::TooLarge);
        }
        head.extend(piece.iter().take(SNIFFED - head.len()));
        hash.update(&piece);
        write.wait_for_capacity(PARTS).await.map_err(|e| away(&e))?;
        write.write(&piece);
    }
    let size = i64::try_from(size).map_err(|_| ApiError::TooLarge)?;
    Ok(Stored { size, sha256: hash.finish().as_ref().to_vec(), media_type: sniff(&head) })
}

/// What a file is by how it begins; never something that a browser runs.
fn sniff(head: &[u8]) -> &'static str {
    match infer::get(head).map(|kind| kind.mime_type()) {
        Some("text/html" | "text/xml" | "text/x-shellscript") => "text/plain",
        Some(known) => known,
        None if !head.is_empty() && is_text(head) => "text/plain",
        None => "application/octet-stream",
    }
}

/// UTF-8 without control characters, but that the last character may be cut off.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => {
            std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

fn path(tenant: TenantId, id: Uuid) -> Path {
    Path::from(format!("{}/{}", tenant.as_uuid().simple(), id.simple()))
}

fn away(e: &object_store::Error) -> ApiError {
    tracing::warn!(error = %e, "the object store gave no answer");
    ApiError::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_is_in_it() {
        for (head, expected) in [
            (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], "image/png"),
            (b"%PDF-1.7", "application/pdf"),
            (b"<html><script>alert(1)</script>", "text/plain"),
            (b"<!DOCTYPE html>", "text/plain"),
            (b"#!/bin/sh\n", "text/plain"),
            ("Grüße\n".as_bytes(), "text/plain"),
            (&"é".as_bytes()[..1], "text/plain"),
            (b"\0\x01\x02", "application/octet-stream"),
            (b"", "application/octet-stream"),
        ] {
            assert_eq!(sniff(head), expected, "{head:?}");
        }
    }

    #[test]
    fn a_place_is_made_of_ids() {
        let (tenant, id) = (TenantId::generate(), Uuid::from_u128(7));
        let place = path(tenant, id).to_string();
        assert_eq!(place, format!("{}/{}", tenant.as_uuid().simple(), "00000000000000000000000000000007"));
    }
}
