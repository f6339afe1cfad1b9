//! A client's connection as the framework wants it, with no more between the HTTP and the socket than TLS.
//!
//! Writes are gathered until they are flushed. The framework writes a head, then its body, then flushes: passed on as they
//! come they would be two TLS records, two system calls and two packets; gathered above TLS they are one of each. What is
//! flushed goes out at once, and so does what is held when the framework listens for more, as it does while it waits for a
//! backend: nothing that is to be seen is held back, and what is held is at most [`HELD`] bytes.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::ctx::ConnectionInfo;

/// A head and a small body; of larger bodies the first part goes with the head, in the same record.
const HELD: usize = 2048;

/// A socket of which something was read that is not used up.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, read: Vec<u8>) -> Self {
        Self { stream, read }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let some = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..some]);
        this.read.drain(..some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Whose connection it is, for [`ClientStream`].
#[derive(Debug)]
pub(super) struct Digests {
    fd: RawFd,
    proxy: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
}

impl Digests {
    /// # Errors
    /// Never: the framework builds the head of a response that nobody sees.
    pub(super) fn new(fd: RawFd, client: SocketAddr, info: ConnectionInfo) -> Result<Self> {
        let socket = SocketDigest::from_raw_fd(fd);
        // Known here, so the framework need not ask the kernel.
        let _ = socket.peer_addr.set(Some(client.into()));
        let head = Box::new(ResponseHeader::build(200, Some(0))?);
        let proxy = Arc::new(ProxyDigest::new(head, Some(Box::new(info))));
        Ok(Self { fd, proxy, socket: Arc::new(socket) })
    }
}

/// A stream whose small writes wait for a flush, or for more than fits.
#[derive(Debug)]
pub(super) struct ClientStream<S: AsyncWrite + Unpin> {
    inner: S,
    held: Vec<u8>,
    /// Something was written since the last flush, and may be held here or by TLS, whose records a full socket does not take.
    is_unsent: bool,
    digests: Digests,
}

impl<S: AsyncWrite + Unpin> ClientStream<S> {
    pub(super) fn new(inner: S, digests: Digests) -> Self {
        Self { inner, held: Vec::new(), is_unsent: false, digests }
    }

    /// Everything that is held goes to the stream.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.forget(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The same, and everything that TLS has goes to the socket.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.is_unsent = false;
        Poll::Ready(Ok(()))
    }

    fn forget(&mut self, n: usize) {
        if n == self.held.len() {
            // Not kept for the next answer: most connections are idle.
            self.held = Vec::new();
        } else {
            drop(self.held.drain(..n));
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.is_unsent = true;
        let length: usize = bufs.iter().map(|b| b.len()).sum();
        if this.held.len() + length <= HELD {
            this.held.reserve(HELD - this.held.len());
            bufs.iter().for_each(|b| this.held.extend_from_slice(b));
            return Poll::Ready(Ok(length));
        }
        if this.held.is_empty() {
            return Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        }
        let mut all = Vec::with_capacity(1 + bufs.len());
        all.push(IoSlice::new(&this.held));
        all.extend(bufs.iter().map(|b| IoSlice::new(b)));
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, &all))?;
        let of_held = written.min(this.held.len());
        this.forget(of_held);
        if written > of_held || written == 0 {
            return Poll::Ready(Ok(written - of_held));
        }
        // A part of what is held went, and nothing of what is new, which the caller may not be told: it would be an end.
        ready!(this.poll_release(cx))?;
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_release(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Whoever listens has said what there was to say, for now: a head whose body is slow is not kept from the client. What
        // the socket does not take yet wakes this task when it does.
        if this.is_unsent
            && let Poll::Ready(sent) = this.poll_send(cx)
        {
            sent?;
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> Drop for ClientStream<S> {
    fn drop(&mut self) {
        // The framework drops a connection in the middle of an answer: as much of it as there was is seen, without a wait.
        let mut now = Context::from_waker(Waker::noop());
        let _ = self.poll_send(&mut now);
    }
}

#[async_trait]
impl<S: AsyncWrite + Unpin + Send> Shutdown for ClientStream<S> {
    async fn shutdown(&mut self) {
        // What cannot be said any more is nobody's to hear.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl<S: AsyncWrite + Unpin + Send> Peek for ClientStream<S> {}

impl<S: AsyncWrite + Unpin> UniqueID for ClientStream<S> {
    fn id(&self) -> UniqueIDType {
        self.digests.fd
    }
}

/// What is to be known of TLS is in [`ConnectionInfo`].
impl<S: AsyncWrite + Unpin> Ssl for ClientStream<S> {}

/// Nobody asks when a client's connection was made.
impl<S: AsyncWrite + Unpin> GetTimingDigest for ClientStream<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl<S: AsyncWrite + Unpin> GetProxyDigest for ClientStream<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digests.proxy.clone())
    }
}

impl<S: AsyncWrite + Unpin> GetSocketDigest for ClientStream<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digests.socket.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncReadExt as _;

    fn of(inner: tokio::io::DuplexStream) -> ClientStream<tokio::io::DuplexStream> {
        ClientStream::new(inner, digests())
    }

    fn digests() -> Digests {
        let client: SocketAddr = ([127, 0, 0, 1], 1).into();
        let info = ConnectionInfo {
            client: client.ip().into(),
            requests: crate::listener::Requests::default(),
            certificate_names: None,
            end: tokio_util::sync::CancellationToken::new(),
        };
        Digests::new(-1, client, info).expect("digests")
    }

    /// What can be read now, without waiting.
    fn at_hand(other: &mut tokio::io::DuplexStream) -> Vec<u8> {
        let (mut all, mut now) = (Vec::new(), Context::from_waker(Waker::noop()));
        loop {
            let mut bytes = [0; 512];
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *other).poll_read(&mut now, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => all.extend_from_slice(buf.filled()),
                _ => return all,
            }
        }
    }

    #[tokio::test]
    async fn what_is_small_waits_for_a_flush() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut stream = of(ours);
        stream.write_all(b"head").await.expect("written");
        stream.write_all(b"body").await.expect("written");
        assert!(at_hand(&mut theirs).is_empty());
        stream.flush().await.expect("flushed");
        assert_eq!(at_hand(&mut theirs), b"headbody");
        stream.write_all(&[7; HELD]).await.expect("written");
        assert!(at_hand(&mut theirs).is_empty());
        stream.write_all(b"more").await.expect("written");
        assert_eq!(at_hand(&mut theirs).len(), HELD + 4, "what does not fit takes along what is held");
    }

    #[tokio::test]
    async fn whoever_listens_has_spoken() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut stream = of(ours);
        stream.write_all(b"head").await.expect("written");
        let mut byte = [0];
        let listening = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await;
        assert!(listening.is_err());
        assert_eq!(at_hand(&mut theirs), b"head", "its body may take long");
    }

    /// Takes everything and lets go of it when it is flushed, as TLS does whose socket is full.
    #[derive(Debug)]
    struct Full(tokio::io::DuplexStream, Vec<u8>);

    impl AsyncRead for Full {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let Self(pipe, kept) = &mut *self;
            while !kept.is_empty() {
                let n = ready!(Pin::new(&mut *pipe).poll_write(cx, kept))?;
                drop(kept.drain(..n));
            }
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn what_tls_keeps_goes_out_while_somebody_listens() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut stream = ClientStream::new(Full(ours, Vec::new()), digests());
        stream.write_all(&[7; 10 * HELD]).await.expect("written");
        let mut byte = [0];
        let mut all = vec![0; 10 * HELD];
        tokio::select! {
            _ = stream.read(&mut byte) => panic!("nothing is said to it"),
            read = tokio::time::timeout(Duration::from_secs(5), theirs.read_exact(&mut all)) => drop(read.expect("in time")),
        }
    }

    #[tokio::test]
    async fn an_end_leaves_nothing_behind() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut stream = of(ours);
        stream.write_all(b"half an answer").await.expect("written");
        drop(stream);
        assert_eq!(at_hand(&mut theirs), b"half an answer");
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut stream = of(ours);
        stream.write_all(b"goodbye").await.expect("written");
        AsyncWriteExt::shutdown(&mut stream).await.expect("closed");
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, b"goodbye");
    }

    #[tokio::test]
    async fn no_byte_is_lost_doubled_or_moved_however_little_is_taken() {
        for taken in [1, 3, 100, HELD - 1, HELD, HELD + 1, 1 << 16] {
            let (ours, mut theirs) = tokio::io::duplex(taken);
            let sizes = [1, 5, HELD - 7, 1, HELD, HELD + 1, 0, 10 * HELD, 3, 300, HELD / 2, HELD / 2 + 1, 1];
            let all: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|n| (n % 251) as u8).collect();
            let (expected, mut rest) = (all.clone(), all);
            let writer = gmah_shared::tasks::detach("writer", async move {
                let mut stream = of(ours);
                for (n, size) in sizes.iter().enumerate() {
                    let after = rest.split_off(*size);
                    stream.write_all(&rest).await.expect("written");
                    rest = after;
                    if n % 4 == 3 {
                        stream.flush().await.expect("flushed");
                    }
                }
                AsyncWriteExt::shutdown(&mut stream).await.expect("closed");
            });
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).await.expect("read");
            writer.await.expect("ended");
            assert!(read == expected, "{taken} at a time");
        }
    }
}
