//! A certificate authority of the test's own: Debian's `pebble`, which asks a DNS of the test's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::Dev;
use super::dev::address;
use super::dns::{self, Dns};
use super::http::Client;

/// `gmah dev` whose routers order certificates from an authority of the test's own.
pub(crate) struct Edge {
    pub(crate) dev: Dev,
    pub(crate) dns: Dns,
    /// Trusts what the authority issues.
    pub(crate) client: Client,
    _pebble: Child,
    _folder: TempDir,
}

impl Edge {
    pub(crate) async fn start(challenge: &str) -> Self {
        Self::start_with(challenge, "gmah.localhost", |_, _| String::new()).await
    }

    /// With another base domain, and more of a configuration, which may use the DNS and the folder.
    pub(crate) async fn start_with(
        challenge: &str,
        base: &str,
        more: impl FnOnce(&Dns, &Path) -> String,
    ) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("mode");
        let (dns, directory, management) = (Dns::start().await, dns::free(), dns::free());
        let extra = folder.path().join("extra.toml");
        let text = format!(
            "[dns]\nservers = [\"{dns}\"]\n\
             [domains]\nallow_private = true\nretry_after = \"300ms\"\nrecheck_every = \"1s\"\nmoved_after = 2\n\
             grace = \"2s\"\n\
             [acme]\ndirectory = \"https://localhost:{port}/dir\"\nca_file = \"{ca}\"\nchallenge = \"{challenge}\"\n\
             contact = [\"mailto:test@example.org\"]\npoll = \"300ms\"\nretry_after = \"500ms\"\n\
             propagation = \"200ms\"\n",
            dns = dns.address,
            port = directory.port(),
            ca = folder.path().join("data/certs/ca.pem").display(),
        );
        let text = text + &more(&dns, folder.path());
        std::fs::write(&extra, text).expect("written");
        let configuration = tempfile::tempdir().expect("folder");
        let extra = extra.display().to_string();
        let dev = Dev::start_in(folder, &["--extra-config", &extra, "--base-domain", base]).await;
        let pebble =
            pebble(&dev, &dns, configuration.path().join("pebble.json"), directory, management).await;
        // Its root is made anew at every start.
        let pem = dev.client.at(management).get("localhost", "/roots/0", &[]).await.body;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = dev.client.trusting(tls);
        Self { dev, dns, client, _pebble: pebble, _folder: configuration }
    }

    /// Claims a name and makes the records that prove it.
    pub(crate) async fn prove(&self, slug: &str, hostname: &str) {
        let added = self.dev.cli_json(&["domain", "add", slug, hostname]).await;
        let field = |name: &str| added[name].as_str().expect("text").to_owned();
        self.dns.set_text(&field("txt_name"), &field("txt_value")).await;
        self.dns.set_addresses(&field("cname"), &["127.0.0.1"]).await;
        self.dns.set_alias(hostname, &field("cname")).await;
    }

    /// How a name stands with an organisation, and why.
    pub(crate) async fn state(&self, slug: &str, hostname: &str) -> (String, String) {
        let all = self.dev.cli_json(&["domain", "list", slug]).await;
        let all = all.as_array().expect("list").clone();
        let found = all.iter().find(|d| d["hostname"] == hostname).expect("claimed");
        let text = |name: &str| found[name].as_str().unwrap_or("").to_owned();
        (text("status"), text("reason"))
    }

    pub(crate) async fn until(&self, slug: &str, hostname: &str, status: &str) -> String {
        let ask = || self.state(slug, hostname);
        super::eventually(status, Duration::from_secs(40), ask, |(s, _)| s == status).await.1
    }
}

async fn pebble(dev: &Dev, dns: &Dns, file: PathBuf, directory: SocketAddr, management: SocketAddr) -> Child {
    let folder = file.parent().expect("folder").to_owned();
    let (chain, key) = crate::tls::certificate(dev, &["localhost"]);
    std::fs::write(folder.join("chain.pem"), chain).expect("written");
    std::fs::write(folder.join("key.pem"), key).expect("written");
    let configuration = json!({ "pebble": {
        "listenAddress": directory.to_string(), "managementListenAddress": management.to_string(),
        "certificate": folder.join("chain.pem"), "privateKey": folder.join("key.pem"),
        "httpPort": address(&dev.info["http"]).port(), "tlsPort": address(&dev.info["https"]).port(),
        "ocspResponderURL": "", "externalAccountBindingRequired": false,
    }});
    std::fs::write(&file, configuration.to_string()).expect("written");
    let log = std::fs::File::create(folder.join("pebble.log")).expect("log");
    let child = Command::new("pebble")
        .arg("-config")
        .arg(&file)
        .args(["-dnsserver", &dns.address.to_string()])
        // Nonces are refused now and then, as an authority may do at any time.
        .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "15"), ("PEBBLE_AUTHZREUSE", "0")])
        .stdout(log.try_clone().expect("log"))
        .stderr(Stdio::from(log))
        .kill_on_drop(true)
        .spawn()
        .expect("pebble starts");
    let ready = || async { TcpStream::connect(management).await.is_ok() };
    super::eventually("pebble", Duration::from_secs(10), ready, |ready| *ready).await;
    child
}
