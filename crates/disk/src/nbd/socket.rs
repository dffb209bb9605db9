//! A connected socket, and guest memory through it.

use std::fs::File;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::NbdError;
use super::url::{NbdServer, NbdUrl};

/// How long it may take until a server has accepted a connection, where the address gives no shorter time.
const CONNECT: Duration = Duration::from_secs(10);
/// A transfer that has to wait asks so often whether it may go on.
const TICK: Duration = Duration::from_millis(250);

/// The kernel takes no more pieces than this at once.
const MOST_PIECES: usize = 1024;

/// Whether a transfer may go on, which is asked whenever the socket makes it wait; the error ends it. A server that
/// sends or takes a byte now and then is asked about as often as one that does nothing.
pub(super) type MayGoOn<'a> = &'a dyn Fn() -> io::Result<()>;

/// Whether `deadline` has not passed.
pub(super) fn in_time(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

pub(super) struct Socket(File);

impl Socket {
    pub(super) fn connect(url: &NbdUrl) -> Result<Socket, NbdError> {
        let patience = url.timeout.min(CONNECT);
        let fd = match &url.server {
            NbdServer::Tcp(host, port) => connect_tcp(host, *port, patience),
            NbdServer::Unix(path) => connect_unix(path, patience),
        };
        match fd {
            Ok(fd) => Ok(Socket(fd.into())),
            Err(cause) => Err(NbdError::Connection { url: url.clone(), cause }),
        }
    }

    /// Sends a header and then the memory of the pieces, whole.
    pub(super) fn send(
        &self,
        header: &mut [u8],
        pieces: &[libc::iovec],
        may_go_on: MayGoOn<'_>,
    ) -> io::Result<()> {
        let header = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() };
        let mut left: Vec<libc::iovec> = std::iter::once(header).chain(pieces.iter().copied()).collect();
        self.move_all(&mut left, libc::POLLOUT, may_go_on, |fd, message| {
            // SAFETY: the pieces are the header and guest RAM, both of which the caller holds.
            unsafe { libc::sendmsg(fd, message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
        })
    }

    /// Fills the memory of the pieces, whole.
    pub(super) fn receive(&self, pieces: &mut [libc::iovec], may_go_on: MayGoOn<'_>) -> io::Result<()> {
        self.move_all(pieces, libc::POLLIN, may_go_on, |fd, message| {
            // SAFETY: as in `send`; the pieces are guest RAM, or memory of `receive_bytes`' caller.
            unsafe { libc::recvmsg(fd, message, libc::MSG_DONTWAIT) }
        })
    }

    /// Fills `bytes`, whole.
    pub(super) fn receive_bytes(&self, bytes: &mut [u8], may_go_on: MayGoOn<'_>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        self.receive(&mut [piece], may_go_on)
    }

    /// `pieces` is used up.
    fn move_all(
        &self,
        pieces: &mut [libc::iovec],
        direction: libc::c_short,
        may_go_on: MayGoOn<'_>,
        step: impl Fn(libc::c_int, *mut libc::msghdr) -> libc::ssize_t,
    ) -> io::Result<()> {
        let mut left = pieces;
        while !left.is_empty() {
            // SAFETY: msghdr is plain data, for which all zeroes mean "nothing".
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = left.as_mut_ptr();
            message.msg_iovlen = left.len().min(MOST_PIECES) as _;
            let moved = step(self.0.as_raw_fd(), &raw mut message);
            let mut moved = match usize::try_from(moved) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error if error.kind() == io::ErrorKind::WouldBlock => {
                        may_go_on()?;
                        self.wait(direction)?;
                        continue;
                    }
                    error => return Err(error),
                },
            };
            while let Some(first) = left.first_mut()
                && moved >= first.iov_len
            {
                moved -= first.iov_len;
                left = &mut std::mem::take(&mut left)[1..];
            }
            if let Some(first) = left.first_mut() {
                first.iov_base = first.iov_base.cast::<u8>().wrapping_add(moved).cast();
                first.iov_len -= moved;
            }
        }
        Ok(())
    }

    /// Waits for a tick at most until the socket may have something to read, or room.
    fn wait(&self, direction: libc::c_short) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: direction, revents: 0 };
        // SAFETY: one pollfd of ours.
        match unsafe { libc::poll(&raw mut poll, 1, TICK.as_millis() as libc::c_int) } {
            0.. => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Ends the connection for everybody who uses it.
    pub(super) fn hang_up(&self) {
        // SAFETY: our own descriptor; no memory is involved. One that is not connected any more is what is wanted.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// Tries the addresses of a host one after the other.
fn connect_tcp(host: &str, port: u16, patience: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + patience;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to a socket in the file system, which the standard library would wait for without an end while the server
/// accepts nobody.
fn connect_unix(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let name = path.as_os_str().as_bytes();
    // SAFETY: an address is plain data, for which all zeroes are the empty name.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // One byte stays for the zero at the end.
    if name.len() >= address.sun_path.len() || name.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket's path is too long, or holds a zero",
        ));
    }
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no memory is involved; a new descriptor is returned, which nobody else has.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let patience = libc::timeval { tv_sec: patience.as_secs() as libc::time_t, tv_usec: 0 };
    let (option, len) = (&raw const patience, size_of_val(&patience) as libc::socklen_t);
    // SAFETY: the option takes a timeval, which lives as long as the call.
    let status = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, option.cast(), len)
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    let (start, len) = (&raw const address, size_of_val(&address) as libc::socklen_t);
    // SAFETY: an address of that length, which lives as long as the call.
    match unsafe { libc::connect(socket.as_raw_fd(), start.cast(), len) } {
        0 => Ok(socket),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the server accepts no connection"))
            }
            error => Err(error),
        },
    }
}
