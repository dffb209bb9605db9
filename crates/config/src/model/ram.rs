//! What guest RAM is made of.

use super::words::words;
use crate::values::count::NodeId;

/// What guest RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backing {
    /// Pages out of this host's pool; `None` for ordinary memory, large where the kernel has it so.
    pub hugepages: Option<HugePages>,
    /// The NUMA node of this host that it lies on; `None` for any.
    pub node: Option<NodeId>,
    /// Whether all of it is present and locked before the guest runs.
    pub wire: Wire,
}

words! {
    /// Pages out of the pool that this host's administrator set aside.
    pub enum HugePages, "a size of huge pages" {
        /// Pages of 2 MiB.
        Of2M = "2M",
        /// Pages of 1 GiB.
        Of1G = "1G",
    }
}

impl HugePages {
    /// The size of one page in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            HugePages::Of2M => 2 << 20,
            HugePages::Of1G => 1 << 30,
        }
    }
}

words! {
    /// Whether all RAM is present and locked before the guest runs.
    #[derive(Default)]
    pub enum Wire, "a choice for wire" {
        /// With assigned devices, yes: they need it. Otherwise no.
        #[default]
        Auto = "auto",
        /// Yes.
        On = "on",
        /// No, as far as the devices do not need it.
        Off = "off",
    }
}
