//! A TCP proxy that does to its traffic what networks do.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They pass.
    None,
    /// They are taken and go nowhere; new connections are accepted, and hear nothing.
    BlackHole,
    /// Connections end, and new ones end at once.
    Reset,
    /// Each piece comes late.
    Latency(Duration),
    /// They pass one by one.
    Slice,
    /// Of an answer the first passes, and nothing more.
    FirstByte,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    fault: watch::Sender<Fault>,
    listener: AbortHandle,
}

impl Proxy {
    /// In front of a server.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address");
        let (fault, seen) = watch::channel(Fault::None);
        let task = gmah_shared::tasks::detach("fault-proxy", async move {
            let mut all = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                all.spawn(pipe(client, target, seen.clone()));
                while all.try_join_next().is_some() {}
            }
        });
        Self { address, fault, listener: task.abort_handle() }
    }

    /// From now on.
    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn pipe(client: TcpStream, target: SocketAddr, fault: watch::Receiver<Fault>) {
    let reset = {
        let mut fault = fault.clone();
        async move {
            let _ = fault.wait_for(|f| *f == Fault::Reset).await;
        }
    };
    let through = async {
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((cr, cw), (sr, sw)) = (client.into_split(), server.into_split());
        // Either side's end is the other's; in a black hole nobody hears of it.
        tokio::select! {
            () = one_way(cr, sw, fault.clone(), false) => {}
            () = one_way(sr, cw, fault.clone(), true) => {}
        }
    };
    tokio::select! {
        () = reset => {}
        () = through => {}
    }
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut fault: watch::Receiver<Fault>,
    is_answer: bool,
) {
    let mut buf = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buf).await.unwrap_or(0);
        let how = *fault.borrow_and_update();
        match how {
            // What was swallowed is lost, and with it the connection, when the network is well again.
            Fault::BlackHole => {
                let _ = fault.wait_for(|f| *f != Fault::BlackHole).await;
                return;
            }
            Fault::FirstByte if is_answer => {
                let _ = to.write_all(&buf[..n.min(1)]).await;
                let _ = fault.wait_for(|f| *f != Fault::FirstByte).await;
                return;
            }
            Fault::Latency(late) => tokio::time::sleep(late).await,
            Fault::None | Fault::Reset | Fault::Slice | Fault::FirstByte => {}
        }
        let pieces = if how == Fault::Slice { 1 } else { n.max(1) };
        for piece in buf[..n].chunks(pieces) {
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
        if n == 0 {
            return;
        }
    }
}
