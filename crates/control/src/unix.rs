//! What Unix sockets can do beyond a stream of bytes: say who is at the other end, and carry file descriptors.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use own::own_user;

/// File descriptors that the kernel carries in one message at most (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Room for a control message of [`MAX_FDS`] descriptors, aligned as the kernel wants its header: 8 bytes a unit.
const CONTROL: usize = 2 + MAX_FDS.div_ceil(2);

/// Connections that wait to be accepted at most.
const BACKLOG: libc::c_int = 128;

/// Who is at the other end of a connection; for a client, who listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
}

impl Peer {
    /// The peer of a connection, as it was when the connection was made (SO_PEERCRED).
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of_val(&peer) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into a structure of ours of that size.
        let done = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut len,
            )
        };
        check(done as isize)?;
        Ok(Peer { pid: peer.pid.cast_unsigned(), uid: peer.uid })
    }

    /// Whether it may use a VM of this process's user: that user and root may.
    pub fn is_allowed(self) -> bool {
        self.uid == 0 || self.uid == own_user()
    }
}

/// Connects, but does not wait for a listener that has no room: that one lives and is [`io::ErrorKind::WouldBlock`].
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let (socket, address) = (socket(kind)?, address(path)?);
    // SAFETY: the address is a whole structure of ours, zero-terminated.
    let done = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    check(done as isize)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Makes a socket with this name, to which only this user and root may connect, whatever the umask, and listens on it.
/// There must be nothing of that name.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (socket, address) = (socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)?, address(path)?);
    // SAFETY: a plain call on our own descriptor. Its mode is what the name gets, of which a umask can only take away
    // (unix_bind in the kernel's net/unix/af_unix.c).
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) } as isize)?;
    // SAFETY: the address is a whole structure of ours, zero-terminated.
    let done = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    check(done as isize)?;
    // SAFETY: a plain call on our own descriptor.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } as isize)?;
    Ok(UnixListener::from(socket))
}

fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) } as isize)? as i32;
    // SAFETY: the kernel just gave us this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a socket's path has at most 107 bytes, none of them 0",
        ));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(address)
}

/// Makes `accept` return with an error, now and in all later calls.
pub fn stop_listening(listener: &UnixListener) {
    // SAFETY: a plain call on our own descriptor. A listener cannot refuse it.
    unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Whether the other end of a connection is gone altogether.
pub fn is_gone(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one structure of ours, no waiting.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0 }
}

/// Sends some of the bytes (at least one), and with the first of them the descriptors, [`MAX_FDS`] at most.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut control = [0u64; CONTROL];
    let slice = IoSlice::new(bytes);
    let mut message = empty_message();
    // An IoSlice is an iovec by its contract; sendmsg only reads through it.
    message.msg_iov = (&raw const slice).cast_mut().cast();
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = size_of_val(fds) as u32;
        // SAFETY: plain arithmetic.
        let (space, whole) = unsafe { (libc::CMSG_SPACE(len) as usize, libc::CMSG_LEN(len) as usize) };
        if fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more file descriptors than one message carries",
            ));
        }
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space;
        // SAFETY: the control buffer is aligned and has room for a header and MAX_FDS descriptors, so the first
        // header and all its data lie in it. A BorrowedFd is a descriptor's number by its contract.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = whole;
            std::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                size_of_val(fds),
            );
        }
    }
    // SAFETY: all pointers in the message lead to buffers above that live and have the stated lengths.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    check(sent).map(isize::cast_unsigned)
}

/// Receives some bytes, 0 at the end, and the descriptors that came with them.
pub fn receive(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = [0u64; CONTROL];
    let mut place = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = empty_message();
    message.msg_iov = &raw mut place;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all pointers in the message lead to buffers above that live and have the stated lengths.
    let got = check(unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: the kernel filled the control buffer and set its length; the macros walk within that. Descriptors
    // in it are new ones that nothing else owns.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let len = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<libc::c_int>();
                for at in 0..len / size_of::<libc::c_int>() {
                    fds.push(OwnedFd::from_raw_fd(first.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        let hint = "some file descriptors found no room; raise the limit of open files (ulimit -n)";
        return Err(io::Error::other(hint));
    }
    Ok(got.cast_unsigned())
}

fn empty_message() -> libc::msghdr {
    // SAFETY: null pointers and zero lengths are what an empty message has.
    unsafe { std::mem::zeroed() }
}

fn check(returned: isize) -> io::Result<isize> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn descriptors_go_over_with_the_first_byte() {
        let (here, there) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, mut file) in files.iter().enumerate() {
            file.write_all(&[number as u8]).unwrap();
        }
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(&here, b"ab", &fds).unwrap(), 2);
        let (mut bytes, mut got) = ([0; 8], Vec::new());
        assert_eq!(receive(&there, &mut bytes, &mut got).unwrap(), 2);
        assert_eq!((&bytes[..2], got.len()), (&b"ab"[..], 3));
        for (number, fd) in got.into_iter().enumerate() {
            let mut byte = [9];
            File::from(fd).read_exact_at(&mut byte, 0).unwrap();
            assert_eq!(byte, [number as u8]);
        }
    }

    #[test]
    fn as_many_descriptors_go_as_the_kernel_takes_and_no_more() {
        let (here, there) = UnixStream::pair().unwrap();
        let fds = vec![here.as_fd(); MAX_FDS + 1];
        assert!(send(&here, b"a", &fds).is_err());
        send(&here, b"a", &fds[1..]).unwrap();
        let mut got = Vec::new();
        receive(&there, &mut [0], &mut got).unwrap();
        assert_eq!(got.len(), MAX_FDS);
    }

    #[test]
    fn a_peer_is_known_and_its_end_is_seen() {
        let (here, there) = UnixStream::pair().unwrap();
        let peer = Peer::of(&here).unwrap();
        assert_eq!((peer.pid, peer.uid), (std::process::id(), own_user()));
        assert!(peer.is_allowed() && !Peer { uid: 1 + own_user(), ..peer }.is_allowed());
        assert!(!is_gone(&here));
        there.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!is_gone(&here), "it may still read");
        drop(there);
        assert!(is_gone(&here));
    }
}
