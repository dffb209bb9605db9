//! Counts: vCPUs and queues.

use std::fmt;
use std::num::NonZeroU16;

use super::Invalid;

/// A number of vCPUs, 1 to 1024. What this host's KVM allows may be less; the start says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cpus(NonZeroU16);

impl Cpus {
    /// The most vCPUs that can be described.
    pub const MAX: u16 = 1024;

    /// The number.
    pub fn get(self) -> NonZeroU16 {
        self.0
    }
}

/// One vCPU.
impl Default for Cpus {
    fn default() -> Cpus {
        Cpus(NonZeroU16::MIN)
    }
}

impl TryFrom<i64> for Cpus {
    type Error = Invalid;

    fn try_from(count: i64) -> Result<Cpus, Invalid> {
        at_most(Cpus::MAX, count).map(Cpus).ok_or(Invalid::Cpus { count })
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of queues of a disk, 1 to 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queues(NonZeroU16);

impl Queues {
    /// The most queues a disk can have: as many as a VM can have vCPUs.
    pub const MAX: u16 = Cpus::MAX;

    /// The number.
    pub fn get(self) -> NonZeroU16 {
        self.0
    }
}

impl TryFrom<i64> for Queues {
    type Error = Invalid;

    fn try_from(count: i64) -> Result<Queues, Invalid> {
        at_most(Queues::MAX, count).map(Queues).ok_or(Invalid::Queues { count })
    }
}

impl fmt::Display for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn at_most(max: u16, count: i64) -> Option<NonZeroU16> {
    let count = u16::try_from(count).ok().filter(|count| *count <= max)?;
    NonZeroU16::new(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_1_to_1024_vcpus() {
        assert_eq!(Cpus::try_from(1).unwrap().get().get(), 1);
        assert_eq!(Cpus::try_from(1024).unwrap().get().get(), 1024);
        for bad in [0, -1, 1025, 65536 + 1, i64::MAX, i64::MIN] {
            assert_eq!(Cpus::try_from(bad), Err(Invalid::Cpus { count: bad }));
            assert_eq!(Queues::try_from(bad), Err(Invalid::Queues { count: bad }));
        }
    }
}
