//! Whether the host has the memory that a VM's RAM takes once all of it is present.
//!
//! Memory that is only reserved costs nothing. Memory that must be present, because devices reach it or it is wired,
//! is allocated at once. If the host has too little, its kernel does not refuse, but ends processes, this one or others.

use std::path::Path;

use crate::placement::{Node, Pages, Placement};
use crate::segment::RamError;

impl Placement {
    /// Whether `bytes` of ordinary RAM can all be present: as far as the kernel's estimate goes, and with its swap
    /// for what others have. Huge pages are checked by [`Placement::check`].
    pub fn check_available(&self, bytes: u64) -> Result<(), RamError> {
        self.check_available_on(Path::new("/"), bytes)
    }

    /// Whether `bytes` of ordinary RAM could ever be present: no host has room for more than all its memory and swap, and
    /// a guest that used so much would be ended by the host's kernel.
    pub fn check_possible(&self, bytes: u64) -> Result<(), RamError> {
        self.check_possible_on(Path::new("/"), bytes)
    }

    fn check_possible_on(&self, root: &Path, bytes: u64) -> Result<(), RamError> {
        let text = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let swap = kib(&text, "SwapTotal:").unwrap_or(0);
        match kib(&text, "MemTotal:").map(|memory| memory.saturating_add(swap) << 10) {
            Some(all) if all < bytes && self.pages == Pages::Default => {
                Err(RamError::MoreThanAll { wanted: bytes, all })
            }
            _ => Ok(()),
        }
    }

    /// The same for a host whose `/proc` and `/sys` lie below `root`. If the host shows no number, the check passes.
    fn check_available_on(&self, root: &Path, bytes: u64) -> Result<(), RamError> {
        if self.pages != Pages::Default {
            return Ok(());
        }
        // A node that is not there is a finding of its own, and hides no other.
        let on_node = self.node.and_then(|node| Some((on_node(root, node)?, Some(node))));
        match on_node.or_else(|| Some((on_host(root)?, None))) {
            Some((available, node)) if available < bytes => {
                Err(RamError::Unavailable { wanted: bytes, available, node })
            }
            _ => Ok(()),
        }
    }
}

/// Memory that is available in the host, in bytes (proc_meminfo(5)).
fn on_host(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    Some(kib(&text, "MemAvailable:")?.saturating_add(swap(root)) << 10)
}

/// Memory that is available on a node, in bytes: free memory, and what the page cache and the kernel would release. The
/// kernel makes no estimate for nodes.
fn on_node(root: &Path, node: Node) -> Option<u64> {
    let text =
        std::fs::read_to_string(root.join(format!("sys/devices/system/node/node{node}/meminfo"))).ok()?;
    let cached = kib(&text, "FilePages:").unwrap_or(0).saturating_sub(kib(&text, "Shmem:").unwrap_or(0));
    let kernel = kib(&text, "SReclaimable:").unwrap_or(0);
    let swap = swap(root);
    Some(kib(&text, "MemFree:")?.saturating_add(cached).saturating_add(kernel).saturating_add(swap) << 10)
}

fn swap(root: &Path) -> u64 {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    kib(&text, "SwapFree:").unwrap_or(0)
}

/// The number behind a name, in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.split_once(name))?;
    line.1.split_whitespace().next()?.parse::<u64>().ok().filter(|kib| *kib <= u64::MAX >> 12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "proc/meminfo",
            "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    4096 kB\nSwapFree: 1024 kB\n",
        );
        put(
            "sys/devices/system/node/node1/meminfo",
            "Node 1 MemTotal: 4000 kB\nNode 1 MemFree:   1024 kB\nNode 1 FilePages: 2048 kB\nNode 1 Shmem: 1024 kB\n\
             Node 1 SReclaimable: 0 kB\n",
        );
        root
    }

    #[test]
    fn ram_must_fit_what_the_host_or_the_node_has_with_swap() {
        let host = host();
        let any = Placement::default();
        any.check_available_on(host.path(), 5 << 20).unwrap();
        let text = any.check_available_on(host.path(), (5 << 20) + 1).unwrap_err().to_string();
        assert!(text.contains("this host has 5 MiB") && text.contains("--memory"), "{text}");
        let on = Placement { node: Some(Node(1)), ..any };
        on.check_available_on(host.path(), 3 << 20).unwrap();
        let text = on.check_available_on(host.path(), (3 << 20) + 1).unwrap_err().to_string();
        assert!(text.contains("NUMA node 1 has 3 MiB"), "{text}");
        let nowhere = Placement { node: Some(Node(7)), ..any };
        let text = nowhere.check_available_on(host.path(), (5 << 20) + 1).unwrap_err().to_string();
        assert!(text.contains("this host has 5 MiB"), "{text}");
        any.check_possible_on(host.path(), 9000 << 10).unwrap();
        let text = any.check_possible_on(host.path(), (9000 << 10) + 1).unwrap_err().to_string();
        assert!(text.contains("more than all memory and swap of this host, 8 MiB"), "{text}");
    }

    #[test]
    fn a_host_that_does_not_say_and_huge_pages_are_left_alone() {
        let nothing = tempfile::tempdir().unwrap();
        Placement::default().check_available_on(nothing.path(), u64::MAX).unwrap();
        Placement::default().check_possible_on(nothing.path(), u64::MAX).unwrap();
        let huge = Placement { pages: Pages::Huge2M, node: None };
        huge.check_available_on(host().path(), u64::MAX).unwrap();
        huge.check_possible_on(host().path(), u64::MAX).unwrap();
    }
}
