//! What Unix sockets can do beyond a stream of bytes: say who is at the other end, and carry file descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};
use own::own_user;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, recvmsg,
    sendmsg, shutdown, socket_with,
};

/// File descriptors that the kernel carries in one message at most (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Room for a control message of [`MAX_FDS`] descriptors, in bytes.
const CONTROL: usize = cmsg_space!(ScmRights(MAX_FDS));

/// Connections that wait to be accepted at most.
const BACKLOG: i32 = 128;

/// Who is at the other end of a connection; for a client, who listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process; 0 if it is in another PID namespace, as that of a container.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
}

impl Peer {
    /// The peer of a connection, as it was when the connection was made (SO_PEERCRED).
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        // Not by rustix, in which a process of another PID namespace has no number that can be.
        let peer = getsockopt(stream, sockopt::PeerCredentials)?;
        Ok(Peer { pid: peer.pid().cast_unsigned(), uid: peer.uid() })
    }

    /// Whether it may use a VM of this process's user: that user and root may.
    pub fn is_allowed(self) -> bool {
        self.uid == 0 || self.uid == own_user()
    }
}

/// Connects, but does not wait for a listener that has no room: that one lives and is [`io::ErrorKind::WouldBlock`].
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &address(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Makes a socket with this name, to which only this user and root may connect, whatever the umask, and listens on it.
/// There must be nothing of that name.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket(SocketFlags::CLOEXEC)?;
    // Its mode is what the name gets, of which a umask can only take away (unix_bind in the kernel's net/unix/af_unix.c).
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let refused = |_| {
        io::Error::new(io::ErrorKind::InvalidInput, "a socket's path has at most 107 bytes, none of them 0")
    };
    SocketAddrUnix::new(path).map_err(refused)
}

/// Makes `accept` return with an error, now and in all later calls.
pub fn stop_listening(listener: &UnixListener) {
    shutdown(listener, Shutdown::Both).expect("a listener can be shut down, again and again");
}

/// Whether the other end of a connection is gone altogether.
pub fn is_gone(stream: &UnixStream) -> bool {
    let mut ends = [PollFd::new(stream, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ends, Some(&at_once)).is_ok() && ends[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Sends some of the bytes (at least one), and with the first of them the descriptors, [`MAX_FDS`] at most.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more file descriptors than one message carries",
        ));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives some bytes, 0 at the end, and the descriptors that came with them.
pub fn receive(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            fds.extend(came);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        let hint = "some file descriptors found no room; raise the limit of open files (ulimit -n)";
        return Err(io::Error::other(hint));
    }
    Ok(got.bytes)
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
