//! The host's pool of huge pages, and whether it holds a VM's RAM
//! (Linux, Documentation/admin-guide/mm/hugetlbpage.rst).

use std::fmt;
use std::path::{Path, PathBuf};

use crate::placement::{Node, Pages, Placement};

/// Why the pool does not hold a VM's RAM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The kernel or the CPU has no such pages.
    #[error(
        "this host has no huge pages of {pages}: there is no {}. Use {} (--hugepages), or ordinary memory; pages of 1 \
         GiB need a CPU with the flag pdpe1gb, all of them a kernel with CONFIG_HUGETLBFS",
        folder.display(),
        if *pages == Pages::Huge1G { "2M" } else { "another size" }
    )]
    NoSuchPages {
        /// The size.
        pages: Pages,
        /// The folder in which the kernel would show them.
        folder: PathBuf,
    },
    /// There are not enough of them.
    #[error(transparent)]
    Short(#[from] PoolShort),
}

/// There are not enough huge pages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PoolShort {
    /// The size of a page.
    pub pages: Pages,
    /// How many pages the VM's RAM takes.
    pub wanted: u64,
    /// How many are free and not reserved.
    pub free: u64,
    /// How many there are, free or not.
    pub all: u64,
    /// Free pages by node, reserved or not.
    pub by_node: Vec<(Node, u64)>,
    /// The node that they must come from, if it must be one.
    pub node: Option<Node>,
}

impl fmt::Display for PoolShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolShort { pages, wanted, free, all, .. } = self;
        write!(f, "the VM's RAM takes {wanted} huge pages of {pages}, and of the {all} that ")?;
        match self.node {
            Some(node) => write!(f, "NUMA node {node} has, {free} are free")?,
            None => write!(f, "this host has, {free} are free")?,
        }
        let nodes: Vec<String> =
            self.by_node.iter().map(|(node, free)| format!("node {node}: {free}")).collect();
        if self.by_node.len() > 1 {
            write!(f, " ({})", nodes.join(", "))?;
        }
        let needed = all.saturating_add(wanted.saturating_sub(*free));
        let file = folder(self.pages, self.node).join("nr_hugepages");
        write!(f, ". Set more aside, as root: echo {needed} > {}", file.display())?;
        if *pages == Pages::Huge1G {
            let name = "hugepagesz=1G hugepages";
            let count = self.node.map_or(needed.to_string(), |node| format!("{node}:{needed}"));
            write!(
                f,
                "; where the host's memory has no whole GiB left for that, boot it with {name}={count} on the kernel's \
                 command line"
            )?;
        }
        Ok(())
    }
}

/// What the kernel says of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    pages: Pages,
    node: Option<Node>,
    all: u64,
    free: u64,
    by_node: Vec<(Node, u64)>,
}

/// The folder in which the kernel shows the pool.
fn folder(pages: Pages, node: Option<Node>) -> PathBuf {
    let name = format!("hugepages-{}kB", pages.bytes() >> 10);
    match node {
        Some(node) => PathBuf::from(format!("/sys/devices/system/node/node{node}/hugepages")).join(name),
        None => Path::new("/sys/kernel/mm/hugepages").join(name),
    }
}

fn number(folder: &Path, name: &str) -> u64 {
    let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The host's NUMA nodes with their folders, by number; none when the kernel knows of no NUMA.
pub(crate) fn nodes(root: &Path) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(below(root, "/sys/devices/system/node")).into_iter().flatten().flatten();
    let mut nodes: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    nodes.sort();
    nodes
}

fn below(root: &Path, absolute: impl AsRef<Path>) -> PathBuf {
    let absolute = absolute.as_ref();
    root.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

impl Pool {
    /// Reads the pool of the host whose `/sys` lies below `root`.
    pub(crate) fn read(root: &Path, placement: &Placement) -> Result<Pool, PoolError> {
        let Placement { pages, node } = *placement;
        let whole = folder(pages, None);
        if !below(root, &whole).exists() {
            return Err(PoolError::NoSuchPages { pages, folder: whole });
        }
        let whole = below(root, &whole);
        let by_node: Vec<(Node, u64)> = nodes(root)
            .into_iter()
            .map(|(node, _)| {
                (Node(node), number(&below(root, folder(pages, Some(Node(node)))), "free_hugepages"))
            })
            .collect();
        // Free pages may be reserved already, for mappings that have not touched them; and where the administrator
        // allows it, the kernel makes more when they are wanted.
        let surplus =
            number(&whole, "nr_overcommit_hugepages").saturating_sub(number(&whole, "surplus_hugepages"));
        let free =
            number(&whole, "free_hugepages").saturating_sub(number(&whole, "resv_hugepages")) + surplus;
        let on_node = node.and_then(|node| by_node.iter().find(|(there, _)| *there == node));
        Ok(match on_node {
            // Reservations are made for the host as a whole, so it is unknown from which node the pages will come.
            Some((_, on_node)) => {
                let all = number(&below(root, folder(pages, node)), "nr_hugepages");
                Pool { pages, node, all, free: free.min(*on_node), by_node }
            }
            None => Pool { pages, node: None, all: number(&whole, "nr_hugepages"), free, by_node },
        })
    }

    /// Whether the pool holds `wanted` pages.
    pub(crate) fn check(self, wanted: u64) -> Result<(), PoolError> {
        if wanted <= self.free {
            return Ok(());
        }
        let Pool { pages, node, all, free, by_node } = self;
        Err(PoolShort { pages, wanted, free, all, by_node, node }.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A host with these nodes; for each of them how many pages of 2 MiB there are, are free, and are promised, and
    /// how many more the kernel may make.
    pub(crate) fn fake(nodes: &[(u32, [u64; 4])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let names = ["nr_hugepages", "free_hugepages", "resv_hugepages", "nr_overcommit_hugepages"];
        let put = |folder: PathBuf, numbers: [u64; 4]| {
            let folder = below(root.path(), folder);
            std::fs::create_dir_all(&folder).unwrap();
            for (name, number) in names.iter().zip(numbers) {
                std::fs::write(folder.join(name), format!("{number}\n")).unwrap();
            }
        };
        let mut sum = [0; 4];
        for (node, numbers) in nodes {
            put(folder(Pages::Huge2M, Some(Node(*node))), *numbers);
            std::iter::zip(&mut sum, numbers).for_each(|(sum, number)| *sum += number);
        }
        put(folder(Pages::Huge2M, None), sum);
        root
    }

    fn check(root: &Path, node: Option<u32>, wanted: u64) -> Result<(), PoolError> {
        Pool::read(root, &Placement { pages: Pages::Huge2M, node: node.map(Node) })?.check(wanted)
    }

    #[test]
    fn a_short_pool_says_what_is_wanted_what_is_free_and_the_command() {
        let host = fake(&[(0, [100, 60, 0, 0]), (1, [50, 10, 0, 0])]);
        check(host.path(), None, 70).unwrap();
        assert_eq!(
            check(host.path(), None, 100).unwrap_err().to_string(),
            "the VM's RAM takes 100 huge pages of 2 MiB, and of the 150 that this host has, 70 are free (node 0: 60, node \
             1: 10). Set more aside, as root: echo 180 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
        );
    }

    #[test]
    fn a_short_node_says_how_to_fill_that_node() {
        let host = fake(&[(0, [100, 60, 0, 0]), (1, [50, 10, 0, 0])]);
        check(host.path(), Some(1), 10).unwrap();
        let text = check(host.path(), Some(1), 11).unwrap_err().to_string();
        assert!(
            text.contains("of the 50 that NUMA node 1 has, 10 are free (node 0: 60, node 1: 10)"),
            "{text}"
        );
        let command = "echo 51 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
        assert!(text.ends_with(command), "{text}");
    }

    #[test]
    fn promised_pages_are_not_free_and_pages_that_can_be_made_are() {
        let host = fake(&[(0, [100, 60, 20, 5])]);
        check(host.path(), None, 45).unwrap();
        assert!(check(host.path(), None, 46).is_err());
    }

    #[test]
    fn pages_that_the_kernel_does_not_have_are_an_error_with_another_way() {
        let host = fake(&[(0, [1, 1, 0, 0])]);
        let error = Pool::read(host.path(), &Placement { pages: Pages::Huge1G, node: None }).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no huge pages of 1 GiB") && text.contains("pdpe1gb"), "{text}");
    }

    #[test]
    fn a_short_pool_of_1_gib_pages_names_the_kernel_s_parameter() {
        let short =
            PoolShort { pages: Pages::Huge1G, wanted: 4, free: 1, all: 2, by_node: Vec::new(), node: None };
        let text = short.to_string();
        assert!(
            text.contains("echo 5 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"),
            "{text}"
        );
        assert!(text.contains("hugepagesz=1G hugepages=5"), "{text}");
    }
}
