//! A DNS server whose answers a test sets: Debian's `pebble-challtestsrv`.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::http::{exchange, request};

pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    /// Where its answers are set.
    pub(crate) management: SocketAddr,
    child: Child,
}

impl Dns {
    /// Without any name; what nobody set does not exist.
    pub(crate) async fn start() -> Self {
        let (address, management) = (free(), free());
        let child = Command::new("pebble-challtestsrv")
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", "", "-defaultIPv6", ""])
            .args(["-dns01", &address.to_string(), "-management", &management.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("pebble-challtestsrv starts");
        let ready = || async { TcpStream::connect(management).await.is_ok() };
        super::eventually("DNS server", Duration::from_secs(10), ready, |ready| *ready).await;
        Self { address, management, child }
    }

    pub(crate) async fn set_addresses(&self, name: &str, addresses: &[&str]) {
        self.tell("clear-a", json!({ "host": absolute(name) })).await;
        self.tell("add-a", json!({ "host": absolute(name), "addresses": addresses })).await;
    }

    pub(crate) async fn set_text(&self, name: &str, value: &str) {
        self.tell("set-txt", json!({ "host": absolute(name), "value": value })).await;
    }

    pub(crate) async fn clear_text(&self, name: &str) {
        self.tell("clear-txt", json!({ "host": absolute(name) })).await;
    }

    pub(crate) async fn set_alias(&self, name: &str, target: &str) {
        self.tell("set-cname", json!({ "host": absolute(name), "target": absolute(target) })).await;
    }

    async fn tell(&self, what: &str, body: Value) {
        let mut stream = TcpStream::connect(self.management).await.expect("connect");
        let bytes = request("POST", "localhost", &format!("/{what}"), &[], Some(&body.to_string()));
        assert_eq!(exchange(&mut stream, &bytes).await.status, 200, "{what}");
    }

    pub(crate) async fn stop(mut self) {
        self.child.kill().await.expect("killed");
    }
}

fn absolute(name: &str) -> String {
    format!("{name}.")
}

/// A port that is free for TCP and UDP alike, most likely; below those that outgoing connections get.
pub(crate) fn free() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_240..32_768)));
        if std::net::TcpListener::bind(address).is_ok() && std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}
