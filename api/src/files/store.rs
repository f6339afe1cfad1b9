//! Object stores: a folder of this machine, or a service that speaks S3.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::{ClientOptions, ObjectStore};
use secrecy::ExposeSecret as _;

use crate::config::S3;

/// For all of an object's way out of a service.
const TRANSFER: Duration = Duration::from_secs(1800);
const CONNECT: Duration = Duration::from_secs(5);

/// As a section of the configuration says. Makes a folder that is not there, and asks no service.
///
/// # Errors
/// A sentence that begins with the key at fault.
pub(crate) fn open(
    section: &str,
    folder: Option<&Path>,
    s3: Option<&S3>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let Some(s3) = s3 else {
        let folder = folder.ok_or_else(|| format!("{section}.folder: must be there, or {section}.s3"))?;
        std::fs::create_dir_all(folder)
            .map_err(|e| format!("{section}.folder: {}: {e}", folder.display()))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|e| format!("{section}.folder: {e}"))?;
        // A row that is durable must not name bytes that are not.
        return Ok(Arc::new(store.with_automatic_cleanup(true).with_fsync(true)));
    };
    // Whoever was first is right: there is one in this program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_client_options(
            // The first is for the whole of a body, however slowly it is read.
            ClientOptions::new().with_timeout(TRANSFER).with_connect_timeout(CONNECT),
        )
        .with_access_key_id(&s3.access_key_id)
        .with_secret_access_key(s3.secret.as_ref().map_or("", |s| s.expose_secret()));
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http:"));
    }
    Ok(Arc::new(builder.build().map_err(|e| format!("{section}.s3: {e}"))?))
}
