//! The limit on memory that a process may lock, which pinned RAM counts against.

use std::io;

/// Pinning RAM would exceed the limit on locked memory, and it could not be raised.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} MiB of guest RAM must be pinned for DMA, {} MiB are locked already, and this process may lock only {} MiB: \
     {cause}. Run as root, or raise the limit: `ulimit -l {}` in the shell, LimitMEMLOCK=infinity in a systemd unit",
    mib(*wanted), mib(*locked), mib(*limit), wanted.saturating_add(*locked).div_ceil(1024)
)]
pub struct MemlockError {
    /// Bytes to be pinned.
    pub wanted: u64,
    /// Bytes locked before.
    pub locked: u64,
    /// RLIMIT_MEMLOCK in bytes.
    pub limit: u64,
    /// Why it could not be raised.
    pub cause: io::Error,
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
            _ => Err(process.error(wanted, io::Error::last_os_error())),
        }
    }

    fn plan(&self, wanted: u64) -> Plan {
        if has_capability(&self.status, CAP_IPC_LOCK) {
            return Plan::Enough;
        }
        plan(wanted.saturating_add(locked(&self.status)), self.limit.rlim_cur, self.limit.rlim_max)
    }

    /// Whether the kernel would refuse to carry the plan out.
    fn check(&self, wanted: u64) -> Result<(), MemlockError> {
        match self.plan(wanted) {
            Plan::Raise(_, hard)
                if hard > self.limit.rlim_max && !has_capability(&self.status, CAP_SYS_RESOURCE) =>
            {
                Err(self.error(wanted, io::Error::from_raw_os_error(libc::EPERM)))
            }
            _ => Ok(()),
        }
    }

    fn error(&self, wanted: u64, cause: io::Error) -> MemlockError {
        MemlockError { wanted, locked: locked(&self.status), limit: self.limit.rlim_cur, cause }
    }
}

/// Whether `wanted` more bytes may be locked, which a domain does with the RAM it maps, or may be once the limit is
/// raised, which a domain does when it must. Changes nothing.
pub fn check_memlock(wanted: u64) -> Result<(), MemlockError> {
    Process::read(wanted)?.check(wanted)
}

/// Makes sure that `wanted` more bytes may be locked, raising the limit where that is permitted.
pub(crate) fn ensure(wanted: u64) -> Result<(), MemlockError> {
    let process = Process::read(wanted)?;
    let Plan::Raise(soft, hard) = process.plan(wanted) else { return Ok(()) };
    let raised = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: a plain system call that reads `raised`.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const raised) } {
        0 => Ok(()),
        _ => Err(process.error(wanted, io::Error::last_os_error())),
    }
}

/// Lifts the limit on locked memory (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;
/// Permits raising limits (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

fn has_capability(status: &str, capability: u32) -> bool {
    let value = field(status, "CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    value.is_some_and(|bits| bits & 1 << capability != 0)
}

fn locked(status: &str) -> u64 {
    let value = field(status, "VmLck:").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
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
        assert_eq!(locked(status), 132 * 1024);
        assert!(!has_capability("CapEff:\t0000000000000000\n", CAP_IPC_LOCK));
        assert!(!has_capability("", CAP_IPC_LOCK) && locked("") == 0);
    }

    #[test]
    fn what_could_not_be_locked_is_known_before() {
        let process = |capabilities: u64, hard| Process {
            status: format!("VmLck:\t1 kB\nCapEff:\t{capabilities:016x}\n"),
            limit: libc::rlimit { rlim_cur: 1000, rlim_max: hard },
        };
        assert!(process(0, 5000).check(5000).is_err(), "1 KiB is locked already");
        process(0, 6024).check(5000).unwrap();
        process(1 << CAP_SYS_RESOURCE, 5000).check(5000).unwrap();
        process(1 << CAP_IPC_LOCK, 1000).check(5000).unwrap();
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
