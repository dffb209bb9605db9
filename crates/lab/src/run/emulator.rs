//! The emulator as a process: it inherits its disks, dies with us, and is killed in time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::description::Limit;
use crate::{LabError, process};

/// Starts it with these files open under the numbers they have here, and with a library before its own if there is one.
pub fn spawn(
    qemu: &Path,
    arguments: &[String],
    inherited: &[File],
    preloaded: Option<&Path>,
) -> Result<Child, LabError> {
    let mut command = Command::new(qemu);
    command.envs(preloaded.map(|library| ("LD_PRELOAD", library)));
    // Its tables of translations are large, and looked up after each exit of a guest: some in a hundred faster in huge pages.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fds: Vec<i32> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure runs in the child between fork and exec and calls only fcntl, which is
    // async-signal-safe, on descriptors that the parent keeps open until spawn returns.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    process::tie(&mut command).spawn().map_err(LabError::path("start", qemu))
}

/// The child process. Once it is reaped its number may belong to another, so nobody kills it any more.
pub struct Running {
    child: Child,
    reaped: bool,
    timed_out: bool,
}

impl Running {
    /// A child made by [`spawn`].
    pub fn new(child: Child) -> Running {
        Running { child, reaped: false, timed_out: false }
    }

    /// Whether a [`Watch`] killed it.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// Ends the emulator if it has not ended by itself after `grace`, and reaps it.
    pub fn end(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        let status = match process::wait(&mut self.child, grace)? {
            Some(status) => status,
            None => {
                process::kill_group(&self.child);
                self.child.wait()?
            }
        };
        self.reaped = true;
        Ok(status)
    }
}

/// When the time is over, where there is a limit.
#[derive(Clone, Copy)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// How much time there was, and of what.
    pub limit: Limit,
}

/// Kills the emulator when the time is over, whatever everybody else does. Dropped, it lets it live.
pub struct Watch(Arc<(Mutex<bool>, Condvar)>);

impl Watch {
    /// From now on.
    pub fn set(qemu: &Arc<Mutex<Running>>, deadline: Deadline) -> Watch {
        let off = Arc::new((Mutex::new(false), Condvar::new()));
        let (qemu, watched) = (Arc::clone(qemu), Arc::clone(&off));
        let id = lock(&qemu).child.id();
        thread::spawn(move || {
            let mut until = deadline.at;
            while until > Instant::now() {
                let left = until.saturating_duration_since(Instant::now());
                let (flag, changed) = &*watched;
                let result = changed.wait_timeout_while(lock(flag), left, |off| !*off);
                if *result.unwrap_or_else(PoisonError::into_inner).0 {
                    return;
                }
                until = match deadline.limit {
                    Limit::Clock(_) => deadline.at,
                    Limit::OwnTime(_) => deadline.at + waited(id),
                };
            }
            let mut qemu = lock(&qemu);
            if !qemu.reaped {
                qemu.timed_out = true;
                process::kill_group(&qemu.child);
            }
        });
        Watch(off)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }
}

/// How long a process has waited for a CPU of this machine, by that of its threads which waited longest (proc(5),
/// /proc/PID/schedstat).
fn waited(process: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let waited = threads.filter_map(|thread| {
        let numbers = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        numbers.split_whitespace().nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or(0))
}

/// Locks, also after a thread panicked: what is locked here is never left half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do about what the emulator says, where that is known.
pub fn known(message: &str) -> Option<&'static str> {
    if message.contains("plugin") {
        Some(
            "Counting instructions needs a QEMU that was built with plugins (--enable-plugins) of API version 1, as Debian 12's is. Name one with SKEP_LAB_QEMU.",
        )
    } else if message.contains("tcg_handle_interrupt") {
        Some("A guest's firmware met a fault of QEMU's. Give --guest-firmware, which works around it.")
    } else if message.contains("lock") {
        Some("The image is in use by another lab or virtual machine.")
    } else if message.contains("annot set up guest memory") {
        Some("Ask for less with --memory.")
    } else {
        None
    }
}

/// The same, and something to try where it is not known.
pub fn hint(message: &str) -> &'static str {
    known(message).unwrap_or("Look at what was asked for with --device, --disk and --iommu.")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_process_that_shares_its_cpu_has_waited_for_it() {
        let own = std::process::id();
        let before = waited(own);
        let begin = Instant::now();
        // They are to be there still when it is looked.
        let looked = AtomicBool::new(false);
        // More threads than CPUs.
        let threads = 4 * thread::available_parallelism().unwrap().get();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while begin.elapsed() < Duration::from_millis(300) {}
                    while !looked.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(10));
                    }
                });
            }
            thread::sleep(Duration::from_millis(350));
            let after = waited(own);
            looked.store(true, Ordering::Relaxed);
            assert!(after > before + Duration::from_millis(50), "{before:?}, {after:?}");
        });
    }

    #[test]
    fn a_qemu_without_plugins_is_said_to_be_one() {
        for message in [
            "-plugin: invalid option",
            "plugin interface not enabled in this build",
            "TCG plugin requires API version 1, but this QEMU supports only a minimum version of 2",
        ] {
            assert!(hint(message).contains("built with plugins"), "{message}");
        }
        assert!(!hint("-device igb: 'igb' is not a valid device model name").contains("plugins"));
    }
}
