//! OCSP responses, stapled to certificates that ask for them and to no others; the responder is `openssl ocsp`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gmah_router::config::RouterConfig;
use gmah_shared::config::HumanDuration;
use rcgen::{CertificateParams, CustomExtension, SerialNumber};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::harness::http::Client;
use crate::harness::origin::Origin;
use crate::harness::{Dev, dns, eventually, roles};
use crate::tls::certificate_with;

/// Remembers what was stapled.
#[derive(Debug, Default)]
struct Staples(Mutex<Vec<u8>>);

impl ServerCertVerifier for Staples {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        stapled: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().expect("lock") = stapled.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn stapled(client: &Client, staples: &Arc<Staples>) -> Vec<u8> {
    drop(client.connect("paris.gmah.localhost").await);
    std::mem::take(&mut staples.0.lock().expect("lock"))
}

/// Asks for a response (RFC 7633), and says where (RFC 5280, section 4.2.2.1).
fn asking(params: &mut CertificateParams, serial: u8, responder: SocketAddr) {
    params.serial_number = Some(SerialNumber::from(vec![0x10, serial]));
    let feature = vec![0x30, 3, 2, 1, 5];
    params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], feature));
    let uri = format!("http://{responder}/");
    let length = |n: usize| u8::try_from(n).expect("short");
    let ocsp = [&[6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 0x86, length(uri.len())], uri.as_bytes()].concat();
    let access = [&[0x30, length(ocsp.len() + 2), 0x30, length(ocsp.len())], &ocsp[..]].concat();
    params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access));
}

/// What the authority knows of the two certificates: `V` valid, `R` revoked.
fn index(file: &Path, states: [char; 2]) {
    let lines: Vec<String> = states
        .iter()
        .zip([1, 2])
        .map(|(state, n)| {
            let revoked = if *state == 'R' { "251101000000Z" } else { "" };
            format!("{state}\t391231235959Z\t{revoked}\t10{n:02}\tunknown\t/CN={n}\n")
        })
        .collect();
    std::fs::write(file, lines.concat()).expect("written");
}

async fn responder(
    dev: &Dev,
    address: SocketAddr,
    index: &Path,
    signer: (&Path, &Path),
) -> tokio::process::Child {
    let log = index.with_extension(format!("log{}", rand::random::<u32>()));
    let child = tokio::process::Command::new("openssl")
        .args(["ocsp", "-ndays", "1", "-port", &address.port().to_string(), "-index"])
        .arg(index)
        .arg("-CA")
        .arg(dev.folder().join("data/certs/ca.pem"))
        .arg("-rsigner")
        .arg(signer.0)
        .arg("-rkey")
        .arg(signer.1)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("log"))
        .kill_on_drop(true)
        .spawn()
        .expect("openssl");
    // It takes one connection at a time, and one that says nothing for ever.
    let up = || async { std::fs::read_to_string(&log).is_ok_and(|l| l.contains("waiting")) };
    eventually("responder", Duration::from_secs(10), up, |up| *up).await;
    child
}

/// Stops one, and waits until its port is free for the next.
async fn ended(responder: &mut tokio::process::Child) {
    responder.kill().await.expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_stapled_where_it_is_asked_for_and_good() {
    let dev = Dev::start().await;
    let origin = Origin::ok().await;
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    let ca = dev.folder().join("data/certs");
    let address = dns::free();
    let names = ["*.gmah.localhost"];
    // Both at once, so that no look finds one of each.
    let write = |(chain, key): (String, String)| {
        let issuer = std::fs::read_to_string(ca.join("ca.pem")).expect("CA");
        let pair = tempfile::tempdir_in(folder.path()).expect("folder").keep();
        std::fs::write(pair.join("key.pem"), key).expect("written");
        std::fs::write(pair.join("chain.pem"), format!("{chain}{issuer}")).expect("written");
        std::os::unix::fs::symlink(pair, at("next")).expect("linked");
        std::fs::rename(at("next"), at("pair")).expect("renamed");
    };
    index(&at("index"), ['V', 'V']);
    // A stranger answers first: well-formed, about the right certificate, and signed by somebody else.
    let stranger = certificate_with(&dev, &["stranger.example"], |_| {});
    std::fs::write(at("stranger.pem"), &stranger.0).expect("written");
    std::fs::write(at("stranger.key"), &stranger.1).expect("written");
    let mut liar = responder(&dev, address, &at("index"), (&at("stranger.pem"), &at("stranger.key"))).await;

    write(certificate_with(&dev, &names, |p| asking(p, 1, address)));
    let (router, client) = roles::router(&dev, &[origin.address], |_, c| {
        (c.router.certificate_file, c.router.key_file) =
            (Some(at("pair/chain.pem")), Some(at("pair/key.pem")));
        c.router.certificate_poll = HumanDuration::from_millis(30);
    })
    .await;
    let staples: Arc<Staples> = Arc::default();
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(staples.clone())
        .with_no_client_auth();
    let client = client.trusting(tls);
    let sum = |name: &'static str, result: &'static str| {
        let metrics = router.metrics.clone();
        async move {
            let text = gmah_shared::telemetry::encode(&metrics.registry).expect("metrics");
            crate::harness::dev::Metrics(text).sum(name, &[result])
        }
    };
    let count = |result| sum("gmah_router_ocsp_responses_total", result);
    let exchanges = |result| sum("gmah_router_certificate_reloads_total", result);
    eventually("refused", Duration::from_secs(10), || count("refused"), |n| *n >= 1.0).await;
    assert!(stapled(&client, &staples).await.is_empty(), "not the authority's word");

    // The authority itself. A pair that has just come is asked for at once.
    ended(&mut liar).await;
    let mut authority =
        responder(&dev, address, &at("index"), (&ca.join("ca.pem"), &ca.join("ca.key"))).await;
    write(certificate_with(&dev, &names, |p| asking(p, 1, address)));
    let seen =
        eventually("stapled", Duration::from_secs(15), || stapled(&client, &staples), |s| !s.is_empty())
            .await;
    // The tool of its authority reads it as one that holds.
    std::fs::write(at("response"), &seen).expect("written");
    let read = tokio::process::Command::new("openssl")
        .args(["ocsp", "-respin"])
        .arg(at("response"))
        .arg("-CAfile")
        .arg(ca.join("ca.pem"))
        .arg("-issuer")
        .arg(ca.join("ca.pem"))
        .args(["-serial", "0x1001"])
        .output()
        .await
        .expect("openssl");
    let said = [read.stdout, read.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("Response verify OK") && said.contains("good"), "{said}");
    // Of two handshakes in TLS 1.2 and 1.3 alike, as of any two.
    assert!(!stapled(&client, &staples).await.is_empty());

    // Revoked: what would say so is not served.
    index(&at("index"), ['V', 'R']);
    ended(&mut authority).await;
    let _authority = responder(&dev, address, &at("index"), (&ca.join("ca.pem"), &ca.join("ca.key"))).await;
    write(certificate_with(&dev, &names, |p| asking(p, 2, address)));
    eventually("refused", Duration::from_secs(15), || exchanges("refused"), |n| *n >= 1.0).await;
    assert_eq!(stapled(&client, &staples).await, seen, "the old pair is whole, and stays");
    // Nor does it come with another configuration.
    let mut config = RouterConfig::from_file(&dev.config()).expect("configuration");
    (config.router.https, config.router.http, config.router.admin) =
        (([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
    roles::api_pool(&mut config).addresses = vec![origin.address.into()];
    (config.router.certificate_file, config.router.key_file) =
        (Some(at("pair/chain.pem")), Some(at("pair/key.pem")));
    let refused = router.reload(config).await.expect_err("no staple");
    assert!(refused.to_string().contains("staple"), "{refused}");
    assert_eq!(stapled(&client, &staples).await, seen);
    // One that asks for nothing gets nothing.
    let before = count("loaded").await;
    write(certificate_with(&dev, &names, |_| {}));
    eventually("exchanged", Duration::from_secs(5), || stapled(&client, &staples), Vec::is_empty).await;
    assert_eq!(count("loaded").await, before);
    // What asks and does not say whom is refused as a whole; the old pair stays.
    write(certificate_with(&dev, &names, |p| {
        let feature = vec![0x30, 3, 2, 1, 5];
        p.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], feature));
    }));
    eventually("refused", Duration::from_secs(5), || exchanges("refused"), |n| *n >= 2.0).await;
    router.stop().await;
}
