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

/// Makes sure that `wanted` more bytes may be locked, raising the limit where that is permitted.
pub(crate) fn ensure(wanted: u64) -> Result<(), MemlockError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if has_ipc_lock(&status) {
        return Ok(());
    }
    let locked = locked(&status);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    let fail = |cause| MemlockError { wanted, locked, limit: limit.rlim_cur, cause };
    if got != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    match plan(wanted.saturating_add(locked), limit.rlim_cur, limit.rlim_max) {
        Plan::Enough => Ok(()),
        Plan::Raise(soft, hard) => {
            let raised = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            // SAFETY: a plain system call that reads `raised`.
            match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const raised) } {
                0 => Ok(()),
                _ => Err(fail(io::Error::last_os_error())),
            }
        }
    }
}

/// CAP_IPC_LOCK (bit 14) lifts the limit.
fn has_ipc_lock(status: &str) -> bool {
    let value = field(status, "CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    value.is_some_and(|bits| bits & 1 << 14 != 0)
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
        assert!(has_ipc_lock(status));
        assert_eq!(locked(status), 132 * 1024);
        assert!(!has_ipc_lock("CapEff:\t0000000000000000\n"));
        assert!(!has_ipc_lock("") && locked("") == 0);
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
