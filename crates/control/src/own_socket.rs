//! A Unix socket on which only this process's user and root get an answer: the control socket, the console's, and those
//! to come.
//!
//! Its mode is 0600 whatever the umask, and the user at the other end is checked as well. A socket that a killed process left is
//! replaced, under a lock, so that of two processes which find it at the same time one gets it.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use own::{OwnError, OwnFolder, own_user};

use crate::folder::Folder;
use crate::unix::{self, Peer};

/// How long other processes may hold the lock on the folder's sockets. They need it for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait with the next connection after one could not be taken.
const RESPITE: Duration = Duration::from_millis(100);

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error(
        "{} listens on the socket {} already. Name another one, or end that process",
        pid.map_or("another process".to_owned(), |pid| format!("process {pid}")),
        path.display()
    )]
    Alive {
        /// The socket.
        path: PathBuf,
        /// The process, if it could be asked.
        pid: Option<u32>,
    },
    /// There is a socket of another user, or something else.
    #[error("the socket {} cannot be made: {what} has that name. Look at it and remove it, or name another one", path.display())]
    Taken {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// A call failed.
    #[error("cannot {what} the socket {}: {cause}{}", path.display(), hint(cause))]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Another process has held the lock on sockets for too long, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] OwnError),
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            ". Its folder is not there: make it, or name another one"
        }
        io::ErrorKind::PermissionDenied => ". This user may not make files in that folder: name another one",
        io::ErrorKind::InvalidInput => ". Choose a shorter path",
        _ => "",
    }
}

/// The socket. When this is dropped, its file is removed, and a thread that accepts connections returns.
#[derive(Debug)]
pub struct OwnSocket {
    listening: Arc<Listening>,
    /// What it is called, for people.
    path: PathBuf,
    /// Which file it is.
    file: (u64, u64),
    /// Where the lock is, if there is one.
    lock: Option<LockPlace>,
}

/// Where processes that make and remove sockets exclude each other.
#[derive(Debug)]
struct LockPlace {
    folder: OwnFolder,
    name: &'static str,
}

impl LockPlace {
    fn lock(&self) -> Result<File, OwnError> {
        self.folder.lock(Path::new("/proc"), self.name, LOCK_LIMIT)
    }
}

#[derive(Debug)]
struct Listening {
    listener: UnixListener,
    stopped: AtomicBool,
}

/// The end of a socket from which connections come, for a thread.
#[derive(Clone, Debug)]
pub struct Callers(Arc<Listening>);

impl OwnSocket {
    /// Makes the socket at a path that somebody named, in whatever folder. One that is left there is replaced if this
    /// user has a folder for control sockets, which has the lock.
    pub fn at(path: &Path) -> Result<OwnSocket, SocketError> {
        let lock = match Folder::of_this_user() {
            Ok(folder) => Some(LockPlace { folder: OwnFolder::make(folder.path())?, name: "sockets.lock" }),
            Err(_) => None,
        };
        OwnSocket::make(path.to_owned(), lock)
    }

    /// Makes the socket in a folder of skep's own.
    pub(crate) fn in_folder(folder: OwnFolder, name: &str) -> Result<OwnSocket, SocketError> {
        // Nobody else can change what the folder is called, or what is in it.
        OwnSocket::make(folder.path().join(name), Some(LockPlace { folder, name: "lock" }))
    }

    fn make(path: PathBuf, lock: Option<LockPlace>) -> Result<OwnSocket, SocketError> {
        let held = lock.as_ref().map(LockPlace::lock).transpose()?;
        let failed = |what| {
            let path = path.clone();
            move |cause| SocketError::Failed { what, path, cause }
        };
        let there = match fs::symlink_metadata(&path) {
            Ok(there) => Some(there),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(failed("look for")(cause)),
        };
        if let Some(there) = there {
            check_left(&path, &there)?;
            if held.is_none() {
                let what = "one that another process left there, as it seems,";
                return Err(SocketError::Taken { path, what });
            }
            fs::remove_file(&path).map_err(failed("replace"))?;
        }
        let listener = unix::listen(&path).map_err(|cause| match cause.kind() {
            // Without a lock another process may have been faster.
            io::ErrorKind::AddrInUse => SocketError::Alive { path: path.clone(), pid: None },
            _ => failed("make")(cause),
        })?;
        let facts = fs::symlink_metadata(&path).map_err(failed("look at"))?;
        drop(held);
        let listening = Arc::new(Listening { listener, stopped: AtomicBool::new(false) });
        Ok(OwnSocket { listening, path, file: (facts.dev(), facts.ino()), lock })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where connections come from, for the thread that takes them.
    pub fn callers(&self) -> Callers {
        Callers(self.listening.clone())
    }
}

/// Refuses what is at the path unless it is a socket of this user's at which nobody listens.
fn check_left(path: &Path, there: &Metadata) -> Result<(), SocketError> {
    let connect = || unix::connect(path);
    let path = path.to_owned();
    if !there.file_type().is_socket() {
        return Err(SocketError::Taken { path, what: "something that is no socket" });
    }
    match connect() {
        Ok(stream) => {
            let pid = Peer::of(&stream).ok().map(|peer| peer.pid);
            Err(SocketError::Alive { path, pid })
        }
        // There is no room for another connection, so a process listens.
        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::Alive { path, pid: None })
        }
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => match there.uid() == own_user() {
            true => Ok(()),
            false => Err(SocketError::Taken { path, what: "a socket of another user" }),
        },
        Err(cause) => Err(SocketError::Failed { what: "find out whether a process listens on", path, cause }),
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // While we listen no process replaces it; without the lock another process could be doing it now.
        let held = self.lock.as_ref().map(LockPlace::lock);
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|facts| (facts.dev(), facts.ino()) == self.file);
        if ours && let Err(cause) = fs::remove_file(&self.path) {
            say::error(format_args!(
                "cannot remove the socket {}: {cause}. Remove it by hand.",
                self.path.display()
            ));
        }
        self.listening.stopped.store(true, Ordering::SeqCst);
        unix::stop_listening(&self.listening.listener);
        drop(held);
    }
}

impl Callers {
    /// The next connection of somebody who may have one, as long as it takes; `None` once the socket is gone. Others are
    /// passed to `turn_away`, which must not wait for them.
    pub fn next(&self, turn_away: impl Fn(&UnixStream)) -> Option<UnixStream> {
        let Listening { listener, stopped } = &*self.0;
        while !stopped.load(Ordering::SeqCst) {
            match listener.accept() {
                // It may have come before the socket was gone, or be nobody's (shutdown).
                Ok(_) if stopped.load(Ordering::SeqCst) => {}
                Ok((stream, _)) if Peer::of(&stream).is_ok_and(Peer::is_allowed) => return Some(stream),
                Ok((stream, _)) => turn_away(&stream),
                Err(cause) if is_of_the_caller(&cause) || stopped.load(Ordering::SeqCst) => {}
                // Usually there are no file descriptors or no memory left, and some will be released.
                Err(_) => std::thread::sleep(RESPITE),
            }
        }
        None
    }
}

/// Whether the next call may succeed at once.
fn is_of_the_caller(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    fn place() -> (tempfile::TempDir, OwnFolder) {
        let place = tempfile::tempdir().unwrap();
        let folder = OwnFolder::make(&place.path().join("vm")).unwrap();
        (place, folder)
    }

    fn make(folder: &OwnFolder) -> Result<OwnSocket, SocketError> {
        OwnSocket::in_folder(OwnFolder::make(folder.path()).unwrap(), "it.sock")
    }

    /// A listener that is closed without more leaves its file, as a killed process does.
    fn leave(path: &Path) {
        drop(UnixListener::bind(path).unwrap());
    }

    #[test]
    fn whatever_the_umask_a_socket_is_for_its_owner_and_its_file_goes_with_it() {
        let (_place, folder) = place();
        // SAFETY: sets a number of this process, which no other test depends on.
        let before = unsafe { libc::umask(0) };
        let made = make(&folder);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        let made = made.unwrap();
        assert_eq!(fs::metadata(made.path()).unwrap().mode() & 0o7777, 0o600);
        drop(made);
        assert_eq!(folder.names().unwrap(), ["lock"]);
    }

    #[test]
    fn what_a_killed_process_left_is_replaced_by_one_of_those_who_find_it() {
        for _ in 0..20 {
            let (_place, folder) = place();
            leave(&folder.path().join("it.sock"));
            let begin = std::sync::Barrier::new(4);
            let got: Vec<_> = std::thread::scope(|scope| {
                let take = || {
                    begin.wait();
                    make(&folder)
                };
                let all: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
                all.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (got, refused): (Vec<_>, Vec<_>) = got.into_iter().partition(Result::is_ok);
            assert_eq!((got.len(), refused.len()), (1, 3));
            assert!(refused.into_iter().all(|error| matches!(error, Err(SocketError::Alive { .. }))));
            unix::connect(&folder.path().join("it.sock")).unwrap();
        }
    }

    #[test]
    fn a_path_in_a_folder_of_others_is_served_too_and_what_is_left_there_is_replaced() {
        let (place, folder) = place();
        let path = place.path().join("console");
        leave(&path);
        let lock = || LockPlace { folder: OwnFolder::make(folder.path()).unwrap(), name: "sockets.lock" };
        let text = OwnSocket::make(path.clone(), None).unwrap_err().to_string();
        assert!(text.contains("remove it"), "without a lock nothing is replaced: {text}");
        let made = OwnSocket::make(path.clone(), Some(lock())).unwrap();
        let text = OwnSocket::make(path.clone(), Some(lock())).unwrap_err().to_string();
        assert!(text.starts_with(&format!("process {} listens on", std::process::id())), "{text}");
        drop(made);
        assert!(!path.exists());
        drop(OwnSocket::make(path.clone(), None).unwrap());
    }

    #[test]
    fn a_folder_that_is_not_there_is_called_that_and_nothing_is_said_to_be_left() {
        let (place, folder) = place();
        fs::write(place.path().join("file"), "").unwrap();
        for path in ["missing/console", "file/console"] {
            let path = place.path().join(path);
            let lock = LockPlace { folder: OwnFolder::make(folder.path()).unwrap(), name: "sockets.lock" };
            let text = OwnSocket::make(path, Some(lock)).unwrap_err().to_string();
            assert!(text.contains("Its folder is not there") && !text.contains("remove"), "{text}");
        }
    }

    #[test]
    fn a_file_or_link_at_the_path_is_left_alone() {
        let (_place, folder) = place();
        let path = folder.path().join("it.sock");
        fs::write(&path, "mine").unwrap();
        assert!(make(&folder).unwrap_err().to_string().contains("that is no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        leave(&folder.path().join("other"));
        symlink("other", &path).unwrap();
        assert!(make(&folder).unwrap_err().to_string().contains("that is no socket"));
    }

    #[test]
    fn a_file_that_took_the_sockets_place_meanwhile_is_not_removed() {
        let (_place, folder) = place();
        let made = make(&folder).unwrap();
        let path = made.path().to_owned();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(made);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
    }

    #[test]
    fn whoever_waits_for_callers_gets_them_and_is_woken_by_the_end() {
        let (_place, folder) = place();
        let made = make(&folder).unwrap();
        let callers = made.callers();
        let serving = std::thread::spawn(move || {
            let mut served = 0;
            while let Some(mut stream) = callers.next(|_| panic!("they may all connect")) {
                stream.write_all(b"hello").unwrap();
                served += 1;
            }
            served
        });
        for _ in 0..3 {
            let mut text = String::new();
            unix::connect(made.path()).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
        drop(made);
        assert_eq!(serving.join().unwrap(), 3);
    }

    #[test]
    fn running_out_of_files_ends_no_service() {
        let (_place, folder) = place();
        let made = make(&folder).unwrap();
        let callers = made.callers();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads the limit into a structure of ours.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        let waiting = unix::connect(made.path()).unwrap();
        let set = |files| {
            let limit = libc::rlimit { rlim_cur: files, ..limit };
            // SAFETY: sets the limit from a structure of ours.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        };
        set(3);
        let serving = std::thread::spawn(move || callers.next(|_| ()).is_some());
        std::thread::sleep(2 * RESPITE);
        set(limit.rlim_cur);
        assert!(serving.join().unwrap());
        drop(waiting);
    }
}
