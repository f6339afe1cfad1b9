//! A Redis of the test's own.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

pub(crate) struct Redis {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_at(super::dns::free()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let port = address.port().to_string();
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &port,
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                "/tmp",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server starts");
        let ready = || async { TcpStream::connect(address).await.is_ok() };
        super::eventually("Redis", Duration::from_secs(10), ready, |ready| *ready).await;
        Self { address, child }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    pub(crate) async fn stop(mut self) -> SocketAddr {
        self.child.kill().await.expect("killed");
        self.address
    }
}
