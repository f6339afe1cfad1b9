//! Letters over SMTP, to a real relay, with and without TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use gmah_api::config::ApiConfig;
use gmah_api::language::Language;
use gmah_api::mail::{self, Relay};
use gmah_shared::config::ConfigFile;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::harness::eventually;

/// Debian's relay of Python, which keeps what it gets in a folder.
struct Smtp {
    address: SocketAddr,
    folder: TempDir,
    _child: Child,
}

impl Smtp {
    async fn start(tls: bool) -> Self {
        let (folder, address) = (tempfile::tempdir().expect("folder"), crate::harness::dns::free());
        certificate(folder.path());
        let at = |name: &str| folder.path().join(name).display().to_string();
        let listen = address.to_string();
        let mut command = Command::new("aiosmtpd");
        command.args(["-n", "-l", &listen, "-c", "aiosmtpd.handlers.Mailbox", &at("box")]);
        if tls {
            command.args(["--tlscert", &at("relay.pem"), "--tlskey", &at("relay.key")]);
        }
        let child =
            command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().expect("aiosmtpd");
        let ready = || async { TcpStream::connect(address).await.is_ok() };
        eventually("the relay", Duration::from_secs(20), ready, |ready| *ready).await;
        Self { address, folder, _child: child }
    }

    /// What the api would make of `[mail]` with these lines.
    fn relay(&self, more: &str) -> Relay {
        let path = self.folder.path().join("gmah.toml");
        let text = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[mail]\nfrom = \"gmah <no-reply@gmah.example>\"\n\
             relay = \"localhost\"\nport = {}\n{more}",
            self.address.port()
        );
        std::fs::write(&path, text).expect("written");
        let file = ConfigFile::load(&path).expect("a file");
        let config = ApiConfig::from_file(&file).expect("a configuration");
        Relay::new(&config.mail.expect("[mail]")).expect("a relay")
    }

    fn received(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path().join("box/new")).into_iter().flatten().flatten();
        files.filter_map(|f| std::fs::read_to_string(f.path()).ok()).collect()
    }
}

/// For `localhost`, by an authority that nobody else trusts.
fn certificate(folder: &Path) {
    let (key, own) = (KeyPair::generate().expect("key"), KeyPair::generate().expect("key"));
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("authority");
    let issuer = Issuer::new(params, key);
    let leaf = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    let leaf = leaf.signed_by(&own, &issuer).expect("certificate");
    for (name, text) in
        [("ca.pem", authority.pem()), ("relay.pem", leaf.pem()), ("relay.key", own.serialize_pem())]
    {
        std::fs::write(folder.join(name), text).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_reach_a_relay() {
    let smtp = Smtp::start(true).await;
    let link = "https://paris.gmah.example/account#invitation=x";
    let letter =
        mail::invitation(Language::Fr, "eva@example.org", "Éva\r\nBcc: x@evil.example", "GMAH\r\nX: y", link);
    let id = Uuid::now_v7();
    smtp.relay("security = \"starttls\"\nca_file = \"ca.pem\"\n").send(id, &letter).await.expect("sent");
    let received = smtp.received();
    assert_eq!(received.len(), 1);
    let headers = received[0].split_once("\n\n").map_or(received[0].as_str(), |(h, _)| h);
    assert!(headers.contains(&format!("Message-ID: <{id}@gmah.example>")), "{headers}");
    // What a name holds makes no line of the head.
    assert!(!headers.lines().any(|l| l.starts_with("X:") || l.starts_with("Bcc:")), "{headers}");
    // Nobody is told anything who is not certified, or who will not have TLS.
    let strangers = smtp.relay("security = \"starttls\"\n").send(id, &letter).await;
    assert!(strangers.is_err());
    assert!(smtp.relay("security = \"tls\"\nca_file = \"ca.pem\"\n").send(id, &letter).await.is_err());
    let plain = Smtp::start(false).await;
    assert!(plain.relay("security = \"starttls\"\nca_file = \"ca.pem\"\n").send(id, &letter).await.is_err());
    plain.relay("security = \"none\"\n").send(id, &letter).await.expect("sent");
    assert_eq!((smtp.received().len(), plain.received().len()), (1, 1));
}

#[test]
fn what_is_configured_wrongly_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("gmah.toml");
    for (lines, expected) in [
        ("from = \"a@b.example\"", "mail.relay"),
        ("from = \"a@b.example\"\nrelay = \"x\"\nfolder = \"y\"", "mail.relay"),
        ("from = \"a@b.example\"\nrelay = \"x\"\nlink = \"https://{host}/\"", "mail.link"),
        ("from = \"a@b.example\"\nrelay = \"x\"\nsecurity = \"maybe\"", "security"),
        ("from = \"a@b.example\"\nrelay = \"x\"\npassword_file = \"none\"", "mail.password_file"),
        ("relay = \"x\"", "from"),
    ] {
        let text = format!("[api]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[mail]\n{lines}\n");
        std::fs::write(&path, text).expect("written");
        let refused = ApiConfig::from_file(&ConfigFile::load(&path).expect("a file"));
        let refused = refused.expect_err(lines).to_string();
        assert!(refused.contains(expected), "{lines}: {refused}");
    }
}
