//! Locks on files, which keep VMs and other programs from writing the same one.
//!
//! There are two kinds, both of the open file and gone with it. One is of our own, and refuses all that lock whole
//! files. The other is QEMU's (`block/file-posix.c`, `raw_check_lock_bytes`): a byte for each thing that a program does
//! with the file, and one for each thing that no other program may do meanwhile. Each is locked for reading and so by
//! everybody; whoever finds that a byte cannot be locked for writing knows that somebody has it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use host::{Host, Openers};

use super::facts::Kind;
use super::file_options::FileOptions;
use crate::contract::Access;
use crate::options::{Claim, OpenError};

/// So often a lock is tried for that nobody who still runs seems to hold, and how long to wait in between.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// So often in a row the same holders must be seen to count.
const LOOKS: usize = 10;

/// Our own lock is on the bytes before QEMU's first.
const OWN: Bytes = Bytes { start: 0, len: DOES };
/// All of a file, however long it gets.
const EVERYTHING: Bytes = Bytes { start: 0, len: 0 };
/// QEMU's bytes for what a program does, and for what it forbids to others (`RAW_LOCK_PERM_BASE`,
/// `RAW_LOCK_SHARED_BASE`).
const DOES: libc::off_t = 100;
const FORBIDS: libc::off_t = 200;

/// A range of a file to lock. What it has is of no account.
#[derive(Clone, Copy)]
struct Bytes {
    start: libc::off_t,
    len: libc::off_t,
}

/// What can be done with an image, by the number of its byte (QEMU's `BLK_PERM_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    Read = 0,
    Write = 1,
    Resize = 3,
}

/// What keeps us from the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Clash {
    /// A lock on the whole file, or one like ours.
    Whole,
    /// Somebody does what we forbid.
    Does,
    /// Somebody forbids what we do.
    Forbids(Deed),
}

impl Clash {
    /// A sentence about who it is.
    fn about(self, who: &str) -> String {
        match self {
            Clash::Whole => format!("{who} holds a lock on the file"),
            Clash::Does => format!("{who} writes to it (it holds QEMU's lock for that)"),
            Clash::Forbids(Deed::Read) => format!("{who} lets nobody read it meanwhile (QEMU's lock)"),
            Clash::Forbids(_) => format!("{who} uses it and lets nobody write to it meanwhile (QEMU's lock)"),
        }
    }
}

/// What we do with a file.
fn deeds(access: Access) -> &'static [Deed] {
    match access {
        Access::ReadWrite => &[Deed::Read, Deed::Write, Deed::Resize],
        Access::ReadOnly => &[Deed::Read],
    }
}

/// What nobody else may do with it meanwhile.
const FORBIDDEN: [Deed; 2] = [Deed::Write, Deed::Resize];

/// Takes all locks that go with this access, and says what is in the way. Those that it could take it keeps.
fn take(file: &File, kind: Kind, access: Access) -> io::Result<Option<Clash>> {
    let own = match access {
        Access::ReadWrite => libc::F_WRLCK,
        Access::ReadOnly => libc::F_RDLCK,
    };
    let does = deeds(access).iter().map(|deed| (byte(DOES, *deed), libc::F_RDLCK));
    let forbids = FORBIDDEN.iter().map(|deed| (byte(FORBIDS, *deed), libc::F_RDLCK));
    // Of block devices the kernel keeps our own kind of claim.
    let own = (kind == Kind::File).then_some((OWN, own));
    let mut refused = false;
    for (bytes, lock) in own.into_iter().chain(does).chain(forbids) {
        refused |= !set(file, bytes, lock)?;
    }
    if refused {
        return Ok(Some(Clash::Whole));
    }
    // Who comes at the same time has taken its bytes before it looks at ours, as we do.
    for deed in deeds(access) {
        if is_held(file, byte(FORBIDS, *deed))? {
            return Ok(Some(Clash::Forbids(*deed)));
        }
    }
    for deed in FORBIDDEN {
        if is_held(file, byte(DOES, deed))? {
            return Ok(Some(Clash::Does));
        }
    }
    Ok(None)
}

fn byte(base: libc::off_t, deed: Deed) -> Bytes {
    Bytes { start: base + deed as libc::off_t, len: 1 }
}

fn flock(bytes: Bytes, kind: libc::c_int) -> libc::flock {
    // SAFETY: flock is plain data.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (bytes.start, bytes.len);
    lock
}

/// Sets a lock or takes it away; whether nobody else's was in the way.
fn set(file: &File, bytes: Bytes, kind: libc::c_int) -> io::Result<bool> {
    let lock = flock(bytes, kind);
    // SAFETY: our own descriptor and a valid flock for the duration of the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(true);
    }
    let cause = io::Error::last_os_error();
    match cause.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(cause),
    }
}

/// Whether somebody else has any lock on these bytes.
fn is_held(file: &File, bytes: Bytes) -> io::Result<bool> {
    let mut lock = flock(bytes, libc::F_WRLCK);
    // SAFETY: our own descriptor and a valid flock, which the call fills in.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
        0 => Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Locks a file or block device against other users; several may read. The locks belong to the open file and go with
/// it. What was overridden by force is returned, and that there are no locks.
pub(super) fn lock(file: &File, kind: Kind, options: &FileOptions) -> Result<Option<String>, OpenError> {
    let path = options.path.clone();
    let holders = match try_lock(file, kind, options.access) {
        Ok(None) => return Ok(None),
        Ok(Some(holders)) => holders,
        Err(cause) => return without(options, cause),
    };
    match options.claim {
        Claim::Forced => match take(file, kind, options.access) {
            Ok(_) => Ok(Some(overridden(&path, &holders))),
            Err(cause) => without(options, cause),
        },
        Claim::Exclusive => Err(OpenError::Busy { path, holders }),
    }
}

/// Locks a file that is no disk as one that this process alone writes, against VMs and QEMU alike. The lock belongs to the open file
/// and goes with it. `None` is that it is locked; otherwise this is who has it. A file system without locks is an error.
pub fn lock_file(file: &File) -> io::Result<Option<String>> {
    try_lock(file, Kind::File, Access::ReadWrite)
}

/// Takes the locks for this access, or says who has them.
fn try_lock(file: &File, kind: Kind, access: Access) -> io::Result<Option<String>> {
    // A process that has just ended may take a moment to let go of its lock (the kernel tears io_uring down in its
    // own time); one that still runs is not waited for. Nor does one count that is about to run another program: until
    // then it has all that its parent had, and the lock although the parent has let go of it.
    let (host, mut known, mut looks) = (Host::here(), Vec::new(), 0);
    let mut clash = Clash::Whole;
    for _ in 0..LOCK_TRIES {
        let Some(found) = take(file, kind, access)? else { return Ok(None) };
        clash = found;
        // We are none of those who hold locks, and in nobody's way while we wait.
        let released = set(file, EVERYTHING, libc::F_UNLCK);
        let facts = released.and_then(|_| file.metadata());
        let now = facts.map_or_else(|_| Vec::new(), |facts| host.openers(&facts, Openers::WithLock));
        looks = if now == known { looks + 1 } else { 1 };
        known = now;
        if !known.is_empty() && looks >= LOOKS {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    let who = if known.is_empty() { "another program".to_owned() } else { known.join(", ") };
    Ok(Some(clash.about(&who)))
}

/// A file system without locks cannot be asked who else uses the file. Whoever only reads harms nobody, and who writes
/// it meanwhile is told.
pub(super) fn overridden(path: &Path, holders: &str) -> String {
    format!(
        "disk {}: force=on overrides that it is in use: {holders}. What both write is lost or mixed up",
        path.display()
    )
}

fn without(options: &FileOptions, cause: io::Error) -> Result<Option<String>, OpenError> {
    let path = options.path.clone();
    match (cause.raw_os_error(), options.access) {
        (Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::ENOSYS), Access::ReadOnly) => Ok(None),
        (Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::ENOSYS), Access::ReadWrite) => Ok(Some(format!(
            "disk {}: it cannot be locked on its file system ({cause}); nothing keeps another VM or program from \
             writing it at the same time, which would destroy what is on it. On NFS, run the lock service \
             (rpc.statd) or use NFS 4",
            path.display()
        ))),
        _ => Err(OpenError::Failed { path, cause }),
    }
}
