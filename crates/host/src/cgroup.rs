//! Limits of this process's cgroups on memory and huge pages
//! (Linux, Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst and hugetlb.rst).
//!
//! Nothing refuses memory above such a limit when it is promised. It is refused at the first touch: huge pages by SIGBUS,
//! ordinary memory by the kernel's OOM killer. So the limits are checked before.
//!
//! `memory.high` is no limit in this sense: above it the kernel only slows the process down.

use std::fmt;
use std::path::{Path, PathBuf};

use memory::Pages;

use crate::{Host, attribute};

/// A cgroup whose limit is too low for a VM's RAM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct OverLimit {
    /// The file that holds the limit.
    pub file: PathBuf,
    /// The limit in bytes.
    pub limit: u64,
    /// Bytes below the limit that are not available, because others in the cgroup use them and cannot give them back.
    pub used: u64,
    /// Bytes of RAM.
    pub wanted: u64,
    /// Bytes of swap that the cgroup may use beside the limit; none for RAM that cannot be swapped.
    pub swap: u64,
    /// What the RAM is made of.
    pub pages: Pages,
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OverLimit { file, limit, used, wanted, swap, pages } = self;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(f, "the VM's RAM takes {} MiB", mib(*wanted))?;
        if pages.are_huge() {
            write!(f, " of huge pages of {pages}")?;
        }
        write!(
            f,
            ", and the cgroup that skep runs in has a limit of {} MiB ({})",
            limit >> 20,
            file.display()
        )?;
        if *swap > 0 {
            write!(f, " beside {} MiB of swap", swap >> 20)?;
        }
        if *used > 0 {
            write!(f, ", of which {} MiB are in use", mib(*used))?;
        }
        let needed = wanted.saturating_add(*used).saturating_sub(*swap);
        write!(
            f,
            ". Give the VM less memory (--memory), start it in another cgroup, or raise the limit, as root: echo {needed} > {}",
            file.display()
        )?;
        if pages.are_huge() { Ok(()) } else { write!(f, " (in a systemd unit: MemoryMax=)") }
    }
}

/// What the files of a hierarchy are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn limit(self) -> &'static str {
        match self {
            Version::V1 => "limit_in_bytes",
            Version::V2 => "max",
        }
    }

    fn used(self) -> &'static str {
        match self {
            Version::V1 => "usage_in_bytes",
            Version::V2 => "current",
        }
    }
}

/// A cgroup of this process, or one above it.
struct Cgroup {
    version: Version,
    /// From the host's root on.
    folder: PathBuf,
}

impl Host {
    /// The cgroups whose limits are too low for `wanted` bytes of RAM made of these pages, the nearest first. `stays`
    /// is whether ordinary RAM stays present, so that it cannot be swapped. If the host shows no limit, there is none.
    pub fn cgroup_limits(&self, wanted: u64, pages: Pages, stays: bool) -> Vec<OverLimit> {
        let names: &[&str] = match pages {
            Pages::Default => return self.memory_limits(wanted, stays),
            Pages::Huge2M => &["hugetlb.2MB", "hugetlb.2MB.rsvd"],
            Pages::Huge1G => &["hugetlb.1GB", "hugetlb.1GB.rsvd"],
        };
        let mut over = Vec::new();
        for cgroup in self.cgroups("hugetlb") {
            for name in names {
                let Some((file, limit)) = self.limit(&cgroup, name) else { continue };
                let used = self.number(&cgroup, &format!("{name}.{}", cgroup.version.used())).unwrap_or(0);
                if wanted > limit.saturating_sub(used) {
                    over.push(OverLimit { file, limit, used, wanted, swap: 0, pages });
                }
            }
        }
        over
    }

    fn memory_limits(&self, wanted: u64, stays: bool) -> Vec<OverLimit> {
        let mut over = Vec::new();
        for cgroup in self.cgroups("memory") {
            let Some((file, limit)) = self.limit(&cgroup, "memory") else { continue };
            // What others have may be swapped or go, unless this RAM is to stay: then it must fit beside them at once.
            let (used, swap) = if stays { (self.kept(&cgroup), 0) } else { (0, self.swap(&cgroup, limit)) };
            if wanted > limit.saturating_add(swap).saturating_sub(used) {
                over.push(OverLimit { file, limit, used, wanted, swap, pages: Pages::Default });
            }
        }
        over
    }

    /// What a cgroup uses and cannot release at once: all but the page cache.
    fn kept(&self, cgroup: &Cgroup) -> u64 {
        let used = self.number(cgroup, &format!("memory.{}", cgroup.version.used())).unwrap_or(0);
        let text = attribute(&self.path(cgroup.folder.join("memory.stat"))).unwrap_or_default();
        let of = |names: [&str; 2]| -> u64 {
            let named = text.lines().filter_map(|line| line.split_once(' '));
            named
                .filter(|(name, _)| names.contains(name))
                .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
                .sum()
        };
        let cache = match cgroup.version {
            Version::V1 => of(["total_active_file", "total_inactive_file"]),
            Version::V2 => of(["active_file", "inactive_file"]),
        };
        used.saturating_sub(cache)
    }

    /// Swap that a cgroup may use beside its memory.
    fn swap(&self, cgroup: &Cgroup, limit: u64) -> u64 {
        let text = attribute(&self.path("/proc/meminfo")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
        let allowed = match cgroup.version {
            // There the limit is on both together.
            Version::V1 => {
                self.number(cgroup, "memory.memsw.limit_in_bytes").map(|both| both.saturating_sub(limit))
            }
            Version::V2 => self.number(cgroup, "memory.swap.max"),
        };
        kib.saturating_mul(1024).min(allowed.unwrap_or(u64::MAX))
    }

    /// The limit of this name, and its file; none where there is none.
    fn limit(&self, cgroup: &Cgroup, name: &str) -> Option<(PathBuf, u64)> {
        let name = format!("{name}.{}", cgroup.version.limit());
        Some((cgroup.folder.join(&name), self.number(cgroup, &name)?))
    }

    /// A number of a cgroup; `None` where there is none, or the word `max`.
    fn number(&self, cgroup: &Cgroup, name: &str) -> Option<u64> {
        attribute(&self.path(cgroup.folder.join(name)))?.parse().ok()
    }

    /// The cgroups that this process is in where this controller may be, from its own up to the highest that is mounted.
    fn cgroups(&self, controller: &str) -> Vec<Cgroup> {
        let own = attribute(&self.path("/proc/self/cgroup")).unwrap_or_default();
        let mounts = attribute(&self.path("/proc/self/mountinfo")).unwrap_or_default();
        // proc_pid_cgroup(5): "0::/path" for version 2, "7:cpu,memory:/path" for version 1.
        let lines = own.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let version = if number == "0" && controllers.is_empty() { Version::V2 } else { Version::V1 };
            let here = version == Version::V2 || controllers.split(',').any(|name| name == controller);
            here.then(|| (version, Path::new(path)))
        });
        let mut cgroups = Vec::new();
        for (version, path) in lines {
            let Some((top, below)) = mounts.lines().find_map(|line| place(line, version, controller, path))
            else {
                continue;
            };
            let folders = below.ancestors().map(|part| top.join(part));
            cgroups.extend(folders.map(|folder| Cgroup { version, folder }));
        }
        cgroups
    }
}

/// Where a line of mountinfo (proc_pid_mountinfo(5)) has the cgroup at `path` of a hierarchy: the mount, and the path in it.
fn place<'a>(line: &str, version: Version, controller: &str, path: &'a Path) -> Option<(PathBuf, &'a Path)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut file_system = file_system.split(' ');
    let (kind, _source, options) = (file_system.next()?, file_system.next()?, file_system.next()?);
    let right = match version {
        Version::V1 => kind == "cgroup" && options.split(',').any(|option| option == controller),
        Version::V2 => kind == "cgroup2",
    };
    let mut fields = mount.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    let below = path.strip_prefix(root).ok().filter(|_| right)?;
    // A cgroup outside of this process's namespace begins with "..": its files cannot be seen from here.
    let outside = below.components().any(|part| part.as_os_str() == "..");
    (!outside).then(|| (PathBuf::from(at), below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    const MIB: u64 = 1 << 20;

    /// A host with version 2 at /cg, and this process in /vms/one there.
    fn unified() -> FakeHost {
        let host = FakeHost::new();
        host.file("/proc/self/cgroup", "0::/vms/one\n");
        host.file(
            "/proc/self/mountinfo",
            "22 1 0:20 / /proc rw - proc proc rw\n30 1 0:26 / /cg rw,nosuid shared:4 - cgroup2 none rw\n",
        );
        host.file("/proc/meminfo", "MemTotal: 9000 kB\nSwapTotal: 0 kB\n");
        host
    }

    fn files(over: &[OverLimit]) -> Vec<(&str, u64, u64)> {
        over.iter().map(|over| (over.file.to_str().unwrap(), over.limit / MIB, over.used / MIB)).collect()
    }

    #[test]
    fn huge_pages_must_fit_every_limit_on_the_way_up_beside_what_is_in_use() {
        let host = unified();
        host.file("/cg/vms/one/hugetlb.2MB.max", "max\n");
        host.file("/cg/vms/hugetlb.2MB.max", &format!("{}\n", 64 * MIB));
        host.file("/cg/vms/hugetlb.2MB.current", &format!("{}\n", 16 * MIB));
        host.file("/cg/vms/hugetlb.2MB.rsvd.max", &format!("{}\n", 32 * MIB));
        host.file("/cg/vms/hugetlb.1GB.max", "0\n");
        let of = |wanted, pages| host.host().cgroup_limits(wanted, pages, false);
        assert_eq!(of(32 * MIB, Pages::Huge2M), []);
        assert_eq!(files(&of(48 * MIB, Pages::Huge2M)), [("/cg/vms/hugetlb.2MB.rsvd.max", 32, 0)]);
        let over = of(50 * MIB, Pages::Huge2M);
        assert_eq!(
            files(&over),
            [("/cg/vms/hugetlb.2MB.max", 64, 16), ("/cg/vms/hugetlb.2MB.rsvd.max", 32, 0)]
        );
        let text = over[0].to_string();
        assert!(text.contains("takes 50 MiB of huge pages of 2 MiB"), "{text}");
        assert!(
            text.contains("limit of 64 MiB (/cg/vms/hugetlb.2MB.max), of which 16 MiB are in use"),
            "{text}"
        );
        assert!(text.contains(&format!("echo {} > /cg/vms/hugetlb.2MB.max", 66 * MIB)), "{text}");
        assert_eq!(of(MIB, Pages::Huge1G).len(), 1);
        assert_eq!(of(1 << 40, Pages::Default), []);
    }

    #[test]
    fn ordinary_ram_must_fit_with_swap_and_beside_what_is_in_use_if_it_is_to_stay() {
        let host = unified();
        host.file("/cg/vms/one/memory.max", &format!("{}\n", 256 * MIB));
        host.file("/cg/vms/one/memory.current", &format!("{}\n", 60 * MIB));
        host.file(
            "/cg/vms/one/memory.stat",
            &format!("anon 5\nactive_file {}\ninactive_file {}\n", 30 * MIB, 20 * MIB),
        );
        host.file("/cg/memory.max", "max\n");
        let over = |wanted, stays| host.host().cgroup_limits(wanted, Pages::Default, stays);
        assert_eq!(over(256 * MIB, false), []);
        assert_eq!(over(246 * MIB, true), []);
        assert_eq!(files(&over(247 * MIB, true)), [("/cg/vms/one/memory.max", 256, 10)]);
        assert_eq!(files(&over(257 * MIB, false)), [("/cg/vms/one/memory.max", 256, 0)]);
        host.file("/proc/meminfo", &format!("SwapTotal: {} kB\n", 512 * 1024));
        assert_eq!(over(768 * MIB, false), []);
        host.file("/cg/vms/one/memory.swap.max", &format!("{}\n", 64 * MIB));
        let text = over(321 * MIB, false)[0].to_string();
        assert!(text.contains("256 MiB (/cg/vms/one/memory.max) beside 64 MiB of swap"), "{text}");
        assert!(text.contains(&format!("echo {} > ", 257 * MIB)) && text.contains("MemoryMax="), "{text}");
        assert_eq!(over(320 * MIB, false), []);
    }

    #[test]
    fn version_1_is_read_where_a_controller_is_there() {
        let host = FakeHost::new();
        host.file("/proc/self/cgroup", "9:hugetlb:/x\n4:cpu,memory:/docker/y\n0::/z\n");
        host.file(
            "/proc/self/mountinfo",
            "31 1 0:27 / /cg/unified rw - cgroup2 none rw\n32 1 0:28 / /cg/hugetlb rw - cgroup cgroup rw,hugetlb\n\
             33 1 0:29 /docker/y /cg/memory rw - cgroup cgroup rw,cpu,memory\n",
        );
        host.file("/cg/hugetlb/x/hugetlb.2MB.limit_in_bytes", "0\n");
        host.file("/cg/memory/memory.limit_in_bytes", "1048576\n");
        host.file("/cg/memory/memory.usage_in_bytes", "4096\n");
        let limits = |pages| host.host().cgroup_limits(2 * MIB, pages, true);
        assert_eq!(files(&limits(Pages::Huge2M)), [("/cg/hugetlb/x/hugetlb.2MB.limit_in_bytes", 0, 0)]);
        assert_eq!(files(&limits(Pages::Default)), [("/cg/memory/memory.limit_in_bytes", 1, 0)]);
    }

    #[test]
    fn a_host_that_does_not_say_and_a_cgroup_out_of_sight_are_no_limits() {
        let host = FakeHost::new();
        assert_eq!(host.host().cgroup_limits(u64::MAX, Pages::Huge2M, true), []);
        host.file("/proc/self/cgroup", "0::/../other\nnonsense\n1:\n");
        host.file("/proc/self/mountinfo", "30 1 0:26 / /cg rw - cgroup2 none rw\nshort - cgroup2\n");
        host.file("/cg/memory.max", "0\n");
        assert_eq!(host.host().cgroup_limits(u64::MAX, Pages::Default, true), []);
    }
}
