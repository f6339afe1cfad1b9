//! The way to what this process asks of others over HTTPS: certificate authority, collector of traces.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Connects with HTTP/1.1 and certificates that authorities of a PEM file have signed; without one, those of the system.
/// Plain `http://` is spoken only where `may_be_plain`.
///
/// # Errors
/// When the file cannot be read, with its path.
pub fn connector(
    ca_file: Option<&Path>,
    may_be_plain: bool,
) -> Result<HttpsConnector<HttpConnector>, String> {
    let tls = client_config(ca_file)?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    let builder = if may_be_plain { builder.https_or_http() } else { builder.https_only() };
    Ok(builder.enable_http1().build())
}

/// What certificates a client takes: those that authorities of a PEM file have signed; without one, those of the system.
///
/// # Errors
/// When the file cannot be read, with its path.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).map_err(|e| fault(&e))? {
                roots.add(certificate.map_err(|e| fault(&e))?).map_err(|e| fault(&e))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
