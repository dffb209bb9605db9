//! Where guest RAM comes from: which pages, and which NUMA node of this host.

use std::fmt;
use std::path::Path;

use crate::address::GpaRange;
use crate::pool::{self, Pool};
use crate::segment::RamError;

/// The pages that guest RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Pages {
    /// Ordinary memory, with large pages where the kernel provides them.
    #[default]
    Default,
    /// Pages of 2 MiB out of the host's pool.
    Huge2M,
    /// Pages of 1 GiB out of the host's pool.
    Huge1G,
}

impl Pages {
    /// The size in bytes that every page has at least.
    pub fn bytes(self) -> u64 {
        match self {
            Pages::Default => 4 << 10,
            Pages::Huge2M => 2 << 20,
            Pages::Huge1G => 1 << 30,
        }
    }

    /// Whether they come out of the host's pool.
    pub fn are_huge(self) -> bool {
        self != Pages::Default
    }
}

/// A size, as people say it: "2 MiB".
impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pages::Default => "4 KiB",
            Pages::Huge2M => "2 MiB",
            Pages::Huge1G => "1 GiB",
        })
    }
}

/// A NUMA node of the host, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where guest RAM comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// What pages it is made of.
    pub pages: Pages,
    /// The only node that it may come from; `None` for any.
    pub node: Option<Node>,
}

impl Placement {
    /// Everything that prevents RAM at `ranges`, as far as it is known before any is allocated: ranges
    /// that are not whole pages, a node that is not there, a pool that is short.
    pub fn check(&self, ranges: &[GpaRange]) -> Vec<RamError> {
        self.check_on(Path::new("/"), ranges)
    }

    /// The same for a host whose `/sys` lies below `root`.
    pub(crate) fn check_on(&self, root: &Path, ranges: &[GpaRange]) -> Vec<RamError> {
        let mut errors: Vec<RamError> =
            ranges.iter().filter_map(|range| self.check_alignment(*range).err()).collect();
        if let Some(node) = self.node {
            errors.extend(check_node(root, node).err());
        }
        if errors.is_empty() && self.pages.are_huge() {
            let wanted = ranges.iter().map(|range| range.len() / self.pages.bytes()).sum();
            let pool = Pool::read(root, self);
            errors.extend(pool.and_then(|pool| pool.check(wanted)).err().map(RamError::from));
        }
        errors
    }

    /// Whether a range is whole pages.
    pub(crate) fn check_alignment(&self, range: GpaRange) -> Result<(), RamError> {
        let whole = |bytes: u64| bytes.is_multiple_of(self.pages.bytes());
        match whole(range.start().0) && whole(range.len()) {
            true => Ok(()),
            false => Err(RamError::Unaligned { range, pages: self.pages }),
        }
    }
}

/// Whether the host has memory on a node. A kernel without NUMA has all of it on node 0.
fn check_node(root: &Path, node: Node) -> Result<(), RamError> {
    let there = pool::nodes(root);
    let exists = there.iter().any(|(number, _)| *number == node.0) || (there.is_empty() && node.0 == 0);
    match exists {
        true => Ok(()),
        false => {
            Err(RamError::NoNode { node, there: there.into_iter().map(|(number, _)| Node(number)).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::fake;
    use crate::{Gpa, ram_ranges};

    fn texts(errors: &[RamError]) -> Vec<String> {
        errors.iter().map(RamError::to_string).collect()
    }

    #[test]
    fn ram_must_be_whole_pages() {
        let placement = Placement { pages: Pages::Huge1G, node: None };
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        let ranges = [range(0, 3 << 30), range(4 << 30, 3 << 29)];
        let found = texts(&placement.check_on(fake(&[]).path(), &ranges));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("0x100000000-0x15fffffff") && found[0].contains("pages of 1 GiB"),
            "{found:?}"
        );
    }

    #[test]
    fn a_node_that_is_not_there_is_named_with_those_that_are() {
        let host = fake(&[(0, [0, 0, 0, 0]), (2, [0, 0, 0, 0])]);
        let placement = Placement { pages: Pages::Default, node: Some(Node(1)) };
        let found = texts(&placement.check_on(host.path(), &ram_ranges(1 << 30)));
        assert!(found[0].contains("no NUMA node 1") && found[0].contains("0, 2"), "{found:?}");
        let placement = Placement { node: Some(Node(2)), ..placement };
        assert!(placement.check_on(host.path(), &ram_ranges(1 << 30)).is_empty());
    }

    #[test]
    fn a_host_without_numa_has_node_0() {
        let host = tempfile::tempdir().unwrap();
        let on = |node| Placement { pages: Pages::Default, node: Some(Node(node)) };
        assert!(on(0).check_on(host.path(), &[]).is_empty());
        assert_eq!(on(1).check_on(host.path(), &[]).len(), 1);
    }

    #[test]
    fn the_pool_must_hold_all_segments_together() {
        let host = fake(&[(0, [2048, 2048, 0, 0])]);
        let placement = Placement { pages: Pages::Huge2M, node: None };
        assert!(placement.check_on(host.path(), &ram_ranges(4 << 30)).is_empty());
        let found = texts(&placement.check_on(host.path(), &ram_ranges(6 << 30)));
        assert!(found[0].contains("3072") && found[0].contains("2048"), "{found:?}");
    }
}
