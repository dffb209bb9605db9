//! The limit on memory that a process may lock, which pinned RAM counts against.
//!
//! The kernel compares one limit (RLIMIT_MEMLOCK) with two counts. What VFIO type1 pins counts as locked by the
//! process, anew in each container, together with what the process locks itself (mlock). What iommufd pins counts for
//! the user of the process, once however many domains map it.

use std::io;

/// Locking or pinning RAM would exceed the limit on locked memory, and it could not be raised.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} MiB must be locked for guest RAM (VFIO type1 counts all of it in each DMA domain, iommufd in all of them once, \
     wiring once more), {} MiB are locked already, and this process may lock only {} MiB: {cause}. Run as root, or raise \
     the limit: `ulimit -l {}` in the shell, LimitMEMLOCK=infinity in a systemd unit",
    mib(*wanted), mib(*locked), mib(*limit), wanted.saturating_add(*locked).div_ceil(1024)
)]
pub struct MemlockError {
    /// Bytes to be locked.
    pub wanted: u64,
    /// Bytes locked before.
    pub locked: u64,
    /// RLIMIT_MEMLOCK in bytes.
    pub limit: u64,
    /// Why it could not be raised.
    pub cause: io::Error,
}

/// Bytes that are going to be locked, by the counts that the limit is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Locked {
    /// As locked by this process: wired, or pinned by VFIO type1.
    pub process: u64,
    /// As pinned for its user, by iommufd.
    pub user: u64,
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What is to be done about the limit.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It is high enough.
    Enough,
    /// Set soft and hard limit to these.
    Raise(u64, u64),
}

fn plan(needed: u64, soft: u64, hard: u64) -> Plan {
    if soft >= needed { Plan::Enough } else { Plan::Raise(needed, hard.max(needed)) }
}

/// What this process may lock.
struct Process {
    status: String,
    limit: libc::rlimit,
}

impl Process {
    fn read(wanted: u64) -> Result<Process, MemlockError> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mut process = Process { status, limit: libc::rlimit { rlim_cur: 0, rlim_max: 0 } };
        // SAFETY: `limit` is a valid place for the answer.
        match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut process.limit) } {
            0 => Ok(process),
            _ => Err(process.error(wanted, 0, io::Error::last_os_error())),
        }
    }

    /// Bytes that it has locked, by itself or by VFIO type1.
    fn locked(&self) -> u64 {
        bytes(&self.status, "VmLck:")
    }

    /// Bytes that it has pinned by iommufd or io_uring. What other processes of its user have pinned counts as well,
    /// and cannot be known.
    fn pinned(&self) -> u64 {
        bytes(&self.status, "VmPin:")
    }

    fn plan(&self, wanted: u64, locked: u64) -> Plan {
        if wanted == 0 || has_capability(&self.status, CAP_IPC_LOCK) {
            return Plan::Enough;
        }
        plan(wanted.saturating_add(locked), self.limit.rlim_cur, self.limit.rlim_max)
    }

    /// Whether the kernel would refuse to carry the plan out.
    fn check(&self, wanted: u64, locked: u64) -> Result<(), MemlockError> {
        match self.plan(wanted, locked) {
            Plan::Raise(_, hard)
                if hard > self.limit.rlim_max && !has_capability(&self.status, CAP_SYS_RESOURCE) =>
            {
                Err(self.error(wanted, locked, io::Error::from_raw_os_error(libc::EPERM)))
            }
            _ => Ok(()),
        }
    }

    fn check_all(&self, more: Locked) -> Result<(), MemlockError> {
        self.check(more.process, self.locked())?;
        self.check(more.user, self.pinned())
    }

    /// Carries the plan out.
    fn raise(&self, wanted: u64, locked: u64) -> Result<(), MemlockError> {
        let Plan::Raise(soft, hard) = self.plan(wanted, locked) else { return Ok(()) };
        let raised = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: a plain system call that reads `raised`.
        match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const raised) } {
            0 => Ok(()),
            _ => Err(self.error(wanted, locked, io::Error::last_os_error())),
        }
    }

    fn error(&self, wanted: u64, locked: u64, cause: io::Error) -> MemlockError {
        MemlockError { wanted, locked, limit: self.limit.rlim_cur, cause }
    }
}

/// Whether so much more may be locked, or may be once the limit is raised, as is done when it must be
/// ([`raise_memlock`]). Changes nothing.
pub fn check_memlock(more: Locked) -> Result<(), MemlockError> {
    Process::read(more.process.max(more.user))?.check_all(more)
}

/// Makes sure that this process may lock so many more bytes, raising the limit where that is permitted.
pub fn raise_memlock(more: u64) -> Result<(), MemlockError> {
    let process = Process::read(more)?;
    process.raise(more, process.locked())
}

/// The same for what iommufd will have pinned: `all` bytes of this process in the end, `more` of which are new.
pub(crate) fn raise_for_pins(all: u64, more: u64) -> Result<(), MemlockError> {
    let process = Process::read(all)?;
    process.raise(more, still_to_come(all, more, process.pinned()))
}

/// What counts beside `more`: all the rest, which may be pinned by now or not, or whatever is pinned if that is more.
fn still_to_come(all: u64, more: u64, pinned: u64) -> u64 {
    all.saturating_sub(more).max(pinned)
}

/// Lifts the limit on locked memory (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;
/// Permits raising limits (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

fn has_capability(status: &str, capability: u32) -> bool {
    let value = field(status, "CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    value.is_some_and(|bits| bits & 1 << capability != 0)
}

/// A field of /proc/PID/status that is in KiB.
fn bytes(status: &str, name: &str) -> u64 {
    let value = field(status, name).and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    value.unwrap_or(0).saturating_mul(1024)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_only_when_it_is_too_low_and_the_hard_one_never_lowered() {
        assert_eq!(plan(100, 100, 100), Plan::Enough);
        assert_eq!(plan(100, 99, 200), Plan::Raise(100, 200));
        assert_eq!(plan(100, 50, 50), Plan::Raise(100, 100));
        assert_eq!(plan(100, u64::MAX, u64::MAX), Plan::Enough);
    }

    #[test]
    fn the_state_of_the_process_is_read() {
        let status = "Name:\tx\nVmLck:\t     132 kB\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK) && !has_capability(status, CAP_SYS_RESOURCE));
        assert_eq!(bytes(status, "VmLck:"), 132 * 1024);
        assert!(!has_capability("CapEff:\t0000000000000000\n", CAP_IPC_LOCK));
        assert!(!has_capability("", CAP_IPC_LOCK) && bytes("", "VmLck:") == 0);
    }

    #[test]
    fn what_could_not_be_locked_is_known_before() {
        let process = |capabilities: u64, hard| Process {
            status: format!("VmLck:\t1 kB\nVmPin:\t2 kB\nCapEff:\t{capabilities:016x}\n"),
            limit: libc::rlimit { rlim_cur: 1000, rlim_max: hard },
        };
        let check = |process: Process, more| process.check_all(more);
        let locked = Locked { process: 5000, user: 0 };
        assert!(check(process(0, 5000), locked).is_err(), "1 KiB is locked already");
        check(process(0, 6024), locked).unwrap();
        check(process(1 << CAP_SYS_RESOURCE, 5000), locked).unwrap();
        check(process(1 << CAP_IPC_LOCK, 1000), locked).unwrap();
        check(process(0, 500), Locked::default()).unwrap();
    }

    #[test]
    fn the_process_and_its_user_have_a_count_each() {
        let process = Process {
            status: "VmLck:\t1 kB\nVmPin:\t2 kB\n".into(),
            limit: libc::rlimit { rlim_cur: 5000, rlim_max: 5000 },
        };
        process.check_all(Locked { process: 5000 - 1024, user: 5000 - 2048 }).unwrap();
        assert_eq!(process.check_all(Locked { process: 3977, user: 0 }).unwrap_err().locked, 1024);
        assert_eq!(process.check_all(Locked { process: 0, user: 2953 }).unwrap_err().locked, 2048);
    }

    #[test]
    fn segments_that_no_device_has_pinned_yet_are_summed_all_the_same() {
        // The second segment of three, none of them pinned.
        assert_eq!(still_to_come(300, 100, 0), 200);
        // All pinned, and a little more by something else.
        assert_eq!(still_to_come(300, 0, 310), 310);
    }

    #[test]
    fn the_error_has_the_numbers_and_the_command() {
        let cause = io::Error::from_raw_os_error(libc::EPERM);
        let error = MemlockError { wanted: 6 << 30, locked: 1 << 20, limit: 8 << 20, cause };
        let text = error.to_string();
        assert!(
            text.contains("6144 MiB") && text.contains("only 8 MiB") && text.contains("ulimit -l 6292480"),
            "{text}"
        );
    }
}
