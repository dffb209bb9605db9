//! Numbers: vCPUs, queues, namespaces, NUMA nodes, places in the boot order.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

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

/// A number of queues of a disk, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queues(NonZeroU16);

impl Queues {
    /// The most queues that a disk can have.
    pub const MAX: u16 = 64;

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

/// A place among what firmware boots, 0 to 65535; lower ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootIndex(u16);

impl BootIndex {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for BootIndex {
    type Error = Invalid;

    fn try_from(number: i64) -> Result<BootIndex, Invalid> {
        u16::try_from(number).map(BootIndex).map_err(|_| Invalid::BootIndex { number })
    }
}

impl fmt::Display for BootIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an NVMe namespace, 1 to 0xfffffffe (NVMe Base Specification 2.0, section 3.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(NonZeroU32);

impl Namespace {
    /// The largest number; the one above means all namespaces.
    pub const MAX: u32 = 0xffff_fffe;

    /// The number.
    pub fn get(self) -> NonZeroU32 {
        self.0
    }
}

/// Namespace 1, which a controller with one namespace has.
impl Default for Namespace {
    fn default() -> Namespace {
        Namespace(NonZeroU32::MIN)
    }
}

impl TryFrom<i64> for Namespace {
    type Error = Invalid;

    fn try_from(number: i64) -> Result<Namespace, Invalid> {
        let fits = u32::try_from(number).ok().filter(|number| *number <= Namespace::MAX);
        fits.and_then(NonZeroU32::new).map(Namespace).ok_or(Invalid::Namespace { number })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of the blocks that a guest sees in the place of larger ones of a disk: 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogicalBlock(());

impl LogicalBlock {
    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        512
    }
}

impl TryFrom<i64> for LogicalBlock {
    type Error = Invalid;

    fn try_from(bytes: i64) -> Result<LogicalBlock, Invalid> {
        if bytes == 512 { Ok(LogicalBlock(())) } else { Err(Invalid::LogicalBlock { bytes }) }
    }
}

impl fmt::Display for LogicalBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

/// The number of a NUMA node of the host, 0 to 1023. Whether there is such a node, the start says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u16);

impl NodeId {
    /// The largest number that Linux gives (CONFIG_NODES_SHIFT is at most 10 on x86).
    pub const MAX: u16 = 1023;

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for NodeId {
    type Error = Invalid;

    fn try_from(number: i64) -> Result<NodeId, Invalid> {
        let fits = u16::try_from(number).ok().filter(|number| *number <= NodeId::MAX);
        fits.map(NodeId).ok_or(Invalid::Node { number })
    }
}

impl fmt::Display for NodeId {
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
        }
    }

    #[test]
    fn a_disk_has_1_to_64_queues() {
        assert_eq!(Queues::try_from(64).unwrap().get().get(), 64);
        for bad in [0, -1, 65, 65536 + 1, i64::MAX, i64::MIN] {
            let error = Queues::try_from(bad).unwrap_err();
            assert_eq!(error, Invalid::Queues { count: bad });
            assert!(error.to_string().contains("Give it 1 to 64"), "{error}");
        }
    }

    #[test]
    fn a_namespace_is_counted_from_1_and_a_node_from_0() {
        assert_eq!(Namespace::try_from(1).unwrap(), Namespace::default());
        assert_eq!(Namespace::try_from(0xffff_fffe).unwrap().get().get(), 0xffff_fffe);
        for bad in [0, -1, 0xffff_ffff, 1 << 32 | 1] {
            assert_eq!(Namespace::try_from(bad), Err(Invalid::Namespace { number: bad }));
        }
        assert_eq!(NodeId::try_from(0).unwrap().get(), 0);
        for bad in [-1, 1024, 1 << 16] {
            assert_eq!(NodeId::try_from(bad), Err(Invalid::Node { number: bad }));
        }
    }
}
