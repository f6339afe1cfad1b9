//! The sockets that a router listens on: bound by itself, or handed over by the router that it takes over from.
//!
//! The running router waits on a Unix socket. Its successor (`gmah router --upgrade`) is given the listening sockets
//! there, begins to accept on them, and says when it is ready; only then does the old one stop accepting, finish what it
//! has, and end. A successor that dies on the way changes nothing.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gmah_shared::config::Listen;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::StartError;
use crate::config::Router;

/// A socket that is listening but not yet served.
pub(super) struct Bound {
    socket: TcpListener,
    pub(super) address: SocketAddr,
}

/// All of them.
pub struct Sockets {
    pub(super) https: Bound,
    pub(super) http: Bound,
    pub(super) admin: Bound,
}

/// Why sockets were not handed over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// There is nobody to take over from, or it does not answer.
    #[error("{}: {cause}", path.display())]
    Nobody {
        /// The Unix socket.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The running router listens elsewhere than the configuration says.
    #[error(
        "the running router listens on {running} and the configuration says {key} = {configured}: restart it"
    )]
    Moved {
        /// Key of the configuration.
        key: &'static str,
        /// What it says.
        configured: SocketAddr,
        /// Where the router listens.
        running: SocketAddr,
    },
    /// What came is not what was asked for.
    #[error("the running router did not hand its sockets over: {0}")]
    Refused(String),
}

impl Bound {
    /// The same socket for one more event loop.
    pub(super) fn listening(&self) -> std::io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.socket.try_clone()?)
    }

    fn taken(socket: OwnedFd) -> std::io::Result<Self> {
        let socket = TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { address: socket.local_addr()?, socket })
    }
}

impl Sockets {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// [`StartError::Bind`] with the key.
    pub fn bind(config: &Router) -> Result<Self, StartError> {
        Ok(Self {
            https: bind("router.https", config.https)?,
            http: bind("router.http", config.http)?,
            admin: bind("router.admin", config.admin)?,
        })
    }

    /// Takes them over from the router that runs. Blocks for some seconds at most.
    ///
    /// # Errors
    /// [`UpgradeError`]; the running router goes on.
    pub fn take_over(config: &Router) -> Result<(Self, Successor), UpgradeError> {
        let path = config
            .upgrade_socket
            .clone()
            .ok_or_else(|| UpgradeError::Refused("router.upgrade_socket is not configured".into()))?;
        let nobody = |cause| UpgradeError::Nobody { path: path.clone(), cause };
        let stream = UnixStream::connect(&path).map_err(nobody)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(nobody)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(nobody)?;
        (&stream).write_all(HELLO).map_err(nobody)?;
        let fds = receive(&stream).map_err(nobody)?;
        let [https, http, admin] = <[OwnedFd; 3]>::try_from(fds)
            .map_err(|fds| UpgradeError::Refused(format!("{} sockets came", fds.len())))?;
        let taken = Self {
            https: Bound::taken(https).map_err(nobody)?,
            http: Bound::taken(http).map_err(nobody)?,
            admin: Bound::taken(admin).map_err(nobody)?,
        };
        for (key, configured, running) in [
            ("router.https", config.https, taken.https.address),
            ("router.http", config.http, taken.http.address),
            ("router.admin", config.admin, taken.admin.address),
        ] {
            if configured != running && configured.port() != 0 {
                return Err(UpgradeError::Moved { key, configured, running });
            }
        }
        Ok((taken, Successor(stream)))
    }
}

/// The side that takes over.
pub struct Successor(UnixStream);

impl Successor {
    /// Says that it serves: the other one stops accepting.
    ///
    /// # Errors
    /// When the other one is gone.
    pub fn ready(mut self) -> std::io::Result<()> {
        self.0.write_all(READY)
    }
}

/// What a successor is given, and where it comes for it.
pub(super) struct Legacy {
    path: PathBuf,
    fds: [OwnedFd; 3],
}

/// The side that hands over: a Unix socket that only this user can reach.
pub(super) struct Predecessor {
    listener: UnixListener,
    fds: [OwnedFd; 3],
}

impl Legacy {
    pub(super) fn new(path: &Path, sockets: &Sockets) -> std::io::Result<Self> {
        let fd = |bound: &Bound| bound.socket.as_fd().try_clone_to_owned();
        let fds = [fd(&sockets.https)?, fd(&sockets.http)?, fd(&sockets.admin)?];
        Ok(Self { path: path.to_owned(), fds })
    }

    /// Begins to wait for a successor. What an earlier router left there is replaced at once, never missing.
    pub(super) fn offer(&self) -> std::io::Result<Predecessor> {
        let fresh = self.path.with_extension(format!("{}.new", std::process::id()));
        // Of an earlier process with our number.
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, &self.path)?;
        let [https, http, admin] = &self.fds;
        Ok(Predecessor { listener, fds: [https.try_clone()?, http.try_clone()?, admin.try_clone()?] })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Predecessor {
    /// Waits until a successor serves. Blocks; the thread ends with the process.
    pub(super) fn wait(self, handed_over: impl FnOnce()) {
        loop {
            let handed = match self.listener.accept() {
                Ok((stream, _)) => self.hand_over(&stream),
                Err(e) => Err(e),
            };
            match handed {
                Ok(()) => break,
                Err(e) => {
                    tracing::warn!(error = %e, "a successor came and did not take over");
                    // Never a busy loop, whatever the socket says.
                    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which may block")]
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        handed_over();
    }

    fn hand_over(&self, mut stream: &UnixStream) -> std::io::Result<()> {
        let refuse =
            |what: &str| Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, what.to_owned()));
        let peer = rustix::net::sockopt::socket_peercred(stream)?;
        if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
            return refuse("another user");
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut hello = [0; HELLO.len()];
        stream.read_exact(&mut hello)?;
        if hello != *HELLO {
            return refuse("not a successor");
        }
        let fds = self.fds.each_ref().map(|fd| fd.as_fd());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(stream, &[IoSlice::new(b"3")], &mut ancillary, SendFlags::empty())?;
        // It starts now, which may take a while.
        stream.set_read_timeout(Some(START_PATIENCE))?;
        let mut ready = [0; READY.len()];
        stream.read_exact(&mut ready)?;
        if ready == *READY { Ok(()) } else { refuse("not ready") }
    }
}

fn receive(stream: &UnixStream) -> std::io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(fds)
}

fn bind(key: &'static str, address: Listen) -> Result<Bound, StartError> {
    let bound = || {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from(socket);
        Ok(Bound { address: socket.local_addr()?, socket })
    };
    bound().map_err(|cause| StartError::Bind { key, address, cause })
}

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;
const HELLO: &[u8; 15] = b"gmah-upgrade 1\n";
const READY: &[u8; 6] = b"ready\n";
const PATIENCE: Duration = Duration::from_secs(10);
/// Until a successor that has the sockets says that it serves.
const START_PATIENCE: Duration = Duration::from_secs(120);
