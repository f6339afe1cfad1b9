//! A proxy with pingora and nothing of ours: `benches/tenancy` says by it what tenancy adds.
//!
//! usage: `bare_proxy LISTEN BACKEND CERTIFICATE KEY`

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Bare {
    backend: String,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.backend.as_str(), false, String::new())))
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, backend, certificate, key] = arguments.as_slice() else {
        eprintln!("usage: bare_proxy LISTEN BACKEND CERTIFICATE KEY");
        std::process::exit(2);
    };
    let mut server = Server::new(None)?;
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, Bare { backend: backend.clone() });
    let mut tls = TlsSettings::intermediate(certificate, key)?;
    tls.enable_h2();
    proxy.add_tls_with_settings(listen, None, tls);
    proxy.threads = Some(1);
    server.add_service(proxy);
    server.run_forever();
}
