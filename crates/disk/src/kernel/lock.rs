//! Locks on files, which keep VMs from writing the same one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use host::{Host, Openers};

use crate::geometry::Access;
use crate::kernel::open::{FileOptions, OpenError, overridden};
use crate::options::Claim;

/// So often a lock is tried for that nobody who still runs seems to hold, and how long to wait in between.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// So often in a row the same holders must be seen to count.
const LOOKS: usize = 10;

/// Locks a file against other users of the same kind of lock; several may read. The lock belongs to the open
/// file and goes with it. What was overridden by force is returned, and that there are no locks.
pub(super) fn lock(file: &File, options: &FileOptions) -> Result<Option<String>, OpenError> {
    // SAFETY: flock is plain data; all zeroes mean "the whole file, from its start".
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = match options.access {
        Access::ReadWrite => libc::F_WRLCK as libc::c_short,
        Access::ReadOnly => libc::F_RDLCK as libc::c_short,
    };
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // A process that has just ended may take a moment to let go of its lock (the kernel tears io_uring down in its
    // own time); one that still runs is not waited for. Nor does one count that is about to run another program: until
    // then it has all that its parent had, and the lock although the parent has let go of it.
    let mut cause = io::Error::from_raw_os_error(libc::EAGAIN);
    let (host, mut known, mut looks) = (Host::here(), Vec::new(), 0);
    for _ in 0..LOCK_TRIES {
        // SAFETY: our own descriptor and a valid flock for the duration of the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
            return Ok(None);
        }
        cause = io::Error::last_os_error();
        let now =
            file.metadata().map_or_else(|_| Vec::new(), |facts| host.openers(&facts, Openers::WithLock));
        looks = if now == known { looks + 1 } else { 1 };
        known = now;
        let is_held = !known.is_empty() && looks >= LOOKS;
        if is_held || !matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    let path = options.path.clone();
    match cause.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            let holders = match known {
                unknown if unknown.is_empty() => "another program holds a lock on the file".to_owned(),
                known => format!("{} holds a lock on the file", known.join(", ")),
            };
            match options.claim {
                Claim::Forced => Ok(Some(overridden(&path, &holders))),
                Claim::Exclusive => Err(OpenError::Busy { path, holders }),
            }
        }
        // A file system without locks cannot be asked who else uses the file. Whoever only reads harms nobody, and who
        // writes it meanwhile is told.
        Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::ENOSYS) => Ok(match options.access {
            Access::ReadOnly => None,
            Access::ReadWrite => Some(format!(
                "disk {}: it cannot be locked on its file system ({cause}); nothing keeps another VM or program from \
                 writing it at the same time, which would destroy what is on it. On NFS, run the lock service \
                 (rpc.statd) or use NFS 4",
                path.display()
            )),
        }),
        _ => Err(OpenError::Failed { path, cause }),
    }
}
