//! A connected socket, and guest memory through it.

use std::fs::File;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::NbdError;
use super::url::{NbdServer, NbdUrl};

/// How long a server may take to answer at first.
const CONNECT: Duration = Duration::from_secs(10);

/// The kernel takes no more pieces than this at once.
const MOST_PIECES: usize = 1024;

pub(super) struct Socket(File);

impl Socket {
    /// Connects; every single read and write of the socket has the address's time-out.
    pub(super) fn connect(url: &NbdUrl) -> Result<Socket, NbdError> {
        let failed = |cause| NbdError::Connection { url: url.clone(), cause };
        let fd: OwnedFd = match &url.server {
            NbdServer::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                let mut connected = None;
                for address in (host.as_str(), *port).to_socket_addrs().map_err(failed)? {
                    match TcpStream::connect_timeout(&address, CONNECT) {
                        Ok(stream) => {
                            connected = Some(stream);
                            break;
                        }
                        Err(error) => last = error,
                    }
                }
                let Some(stream) = connected else { return Err(failed(last)) };
                stream.set_nodelay(true).map_err(failed)?;
                stream.into()
            }
            NbdServer::Unix(path) => UnixStream::connect(path).map_err(failed)?.into(),
        };
        let socket = Socket(fd.into());
        socket.set_timeout(libc::SO_RCVTIMEO, url.timeout).map_err(failed)?;
        socket.set_timeout(libc::SO_SNDTIMEO, url.timeout).map_err(failed)?;
        Ok(socket)
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    fn set_timeout(&self, which: libc::c_int, timeout: Duration) -> io::Result<()> {
        let value = libc::timeval { tv_sec: timeout.as_secs() as libc::time_t, tv_usec: 0 };
        let (start, len) = (&raw const value, size_of_val(&value) as libc::socklen_t);
        // SAFETY: both options take a timeval, which lives as long as the call.
        let status =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, which, start.cast(), len) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until there is something to read, for `timeout` at most; whether there is.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd of ours.
        match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
            0.. => Ok(poll.revents != 0),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Sends a header and then the memory of the pieces, whole.
    pub(super) fn send(&self, header: &mut [u8], pieces: &[libc::iovec]) -> io::Result<()> {
        let header = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() };
        let mut left: Vec<libc::iovec> = std::iter::once(header).chain(pieces.iter().copied()).collect();
        self.move_all(&mut left, |fd, message| {
            // SAFETY: the pieces are the header and guest RAM, both of which the caller holds.
            unsafe { libc::sendmsg(fd, message, libc::MSG_NOSIGNAL) }
        })
    }

    /// Fills the memory of the pieces, whole.
    pub(super) fn receive(&self, pieces: &mut [libc::iovec]) -> io::Result<()> {
        self.move_all(pieces, |fd, message| {
            // SAFETY: as in `send`; the pieces are guest RAM, or a header of the caller's.
            unsafe { libc::recvmsg(fd, message, 0) }
        })
    }

    /// `pieces` is used up.
    fn move_all(
        &self,
        pieces: &mut [libc::iovec],
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

    /// Ends the connection for everybody who uses it.
    pub(super) fn hang_up(&self) {
        // SAFETY: our own descriptor; no memory is involved. One that is not connected any more is what is wanted.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }
}
