//! Processes that prevent the kernel from unbinding a device, and whose devices must stay.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{Host, PciAddress, attribute, link_name, names};

impl Host {
    /// What the kernel waits for when it unbinds a device, in words for people.
    pub(crate) fn why_it_hangs(&self, address: PciAddress) -> String {
        let driver =
            link_name(&self.device_dir(address).join("driver")).unwrap_or_else(|| "the kernel".to_owned());
        match &self.processes_with(&self.vfio_nodes(&[address]))[..] {
            [] => format!("{driver} has not finished with it and continues; see the kernel's log (`dmesg`)"),
            pids => format!("It is still open in {}; stop that first", self.named(pids).join(", ")),
        }
    }

    /// Who has a device, or another one of its IOMMU group, through VFIO: "process 77 (qemu)". This process, which knows
    /// what it has, is left out.
    pub(crate) fn vfio_users(&self, address: PciAddress) -> Vec<String> {
        let group = link_name(&self.device_dir(address).join("iommu_group"));
        let members = match &group {
            Some(group) => names(&self.path(format!("/sys/kernel/iommu_groups/{group}/devices"))),
            None => Vec::new(),
        };
        let mut members: BTreeSet<PciAddress> = members.iter().filter_map(|name| name.parse().ok()).collect();
        members.insert(address);
        let members: Vec<PciAddress> = members.into_iter().collect();
        let nodes = self.vfio_nodes(&members);
        let mut pids = self.processes_with(&nodes);
        // A VM that has taken a device and not opened it yet.
        let records = members.iter().filter_map(|member| self.record(*member).ok().flatten());
        pids.extend(records.filter(|record| self.is_alive(record)).map(|record| record.pid));
        pids.sort_unstable();
        pids.dedup();
        let ours = pids.contains(&std::process::id());
        pids.retain(|pid| *pid != std::process::id());
        // The kernel opens a group for one process at a time, and for none while a device of it is open in another way
        // (vfio_group_fops_open). So it knows of processes that this one does not see, those of other containers.
        if pids.is_empty() && !ours && self.group_is_open(group.as_deref()) {
            return vec!["a process that cannot be seen from here (in a container?)".to_owned()];
        }
        self.named(&pids)
    }

    fn group_is_open(&self, group: Option<&str>) -> bool {
        let Some(group) = group else { return false };
        let opened = self.kernel.open_exclusively(&self.path("/dev/vfio").join(group));
        opened.is_err_and(|cause| cause.kind() == io::ErrorKind::ResourceBusy)
    }

    /// The files by which user space has these devices: those of their groups and their own.
    fn vfio_nodes(&self, devices: &[PciAddress]) -> Nodes {
        let mut nodes = Nodes { paths: BTreeSet::new(), numbers: BTreeSet::new() };
        for address in devices {
            let dir = self.device_dir(*address);
            if let Some(group) = link_name(&dir.join("iommu_group")) {
                // A group without an IOMMU has the other name.
                for name in [group.clone(), format!("noiommu-{group}")] {
                    nodes.numbers.extend(number(&self.path("/sys/class/vfio").join(&name)));
                    nodes.paths.insert(self.path("/dev/vfio").join(name));
                }
            }
            for name in names(&dir.join("vfio-dev")) {
                nodes.numbers.extend(number(&dir.join("vfio-dev").join(&name)));
                nodes.paths.insert(self.path("/dev/vfio/devices").join(name));
            }
        }
        nodes
    }

    fn processes_with(&self, nodes: &Nodes) -> Vec<u32> {
        let proc = self.path("/proc");
        let has = |pid: &u32| {
            let fds = proc.join(pid.to_string()).join("fd");
            names(&fds).iter().any(|fd| nodes.has(&fds.join(fd)))
        };
        names(&proc).into_iter().filter_map(|name| name.parse().ok()).filter(has).collect()
    }

    fn named(&self, pids: &[u32]) -> Vec<String> {
        let named = |pid: &u32| {
            let name = attribute(&self.path(format!("/proc/{pid}/comm"))).unwrap_or_default();
            format!("process {pid} ({name})")
        };
        pids.iter().map(named).collect()
    }
}

/// Character devices, by name and by number: a process in a container has other names for them.
struct Nodes {
    paths: BTreeSet<PathBuf>,
    numbers: BTreeSet<u64>,
}

impl Nodes {
    /// Whether a descriptor, as /proc shows it, is of one of them.
    fn has(&self, descriptor: &Path) -> bool {
        let named = || fs::read_link(descriptor).is_ok_and(|file| self.paths.contains(&file));
        let numbered = || {
            fs::metadata(descriptor)
                .is_ok_and(|facts| facts.file_type().is_char_device() && self.numbers.contains(&facts.rdev()))
        };
        named() || numbered()
    }
}

/// The device number in a folder of sysfs ("511:0").
fn number(dir: &Path) -> Option<u64> {
    let text = attribute(&dir.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    const BDF: &str = "0000:01:00.0";
    const OTHER: &str = "0000:01:00.1";

    fn users(fake: &FakeHost) -> Vec<String> {
        fake.host().vfio_users(BDF.parse().unwrap())
    }

    fn fake() -> FakeHost {
        let fake = FakeHost::new();
        fake.pci(BDF, 0x010802, Some("vfio-pci"), 9);
        fake.pci(OTHER, 0x010802, Some("vfio-pci"), 9);
        fake.file("/proc/77/comm", "qemu\n");
        fake
    }

    #[test]
    fn whoever_has_the_group_the_device_or_another_of_its_group_is_a_user() {
        assert_eq!(users(&fake()), [""; 0]);
        for node in
            ["/dev/vfio/9", "/dev/vfio/noiommu-9", "/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1"]
        {
            let fake = fake();
            fake.dir(format!("/sys/bus/pci/devices/{BDF}/vfio-dev/vfio0"));
            fake.dir(format!("/sys/bus/pci/devices/{OTHER}/vfio-dev/vfio1"));
            fake.link("/proc/77/fd/5", node);
            assert_eq!(users(&fake), ["process 77 (qemu)"], "{node}");
        }
        for node in ["/dev/vfio/10", "/dev/vfio/vfio", "/dev/vfio/devices/vfio2"] {
            let fake = fake();
            fake.link("/proc/77/fd/5", node);
            assert_eq!(users(&fake), [""; 0], "{node}");
        }
    }

    #[test]
    fn a_container_that_calls_the_file_otherwise_is_known_by_the_devices_number() {
        let fake = fake();
        let null = fs::metadata("/dev/null").unwrap().rdev();
        fake.link("/proc/77/fd/5", "/dev/other");
        fs::remove_file(fake.path("/proc/77/fd/5")).unwrap();
        std::os::unix::fs::symlink("/dev/null", fake.path("/proc/77/fd/5")).unwrap();
        assert_eq!(users(&fake), [""; 0]);
        fake.file("/sys/class/vfio/9/dev", &format!("{}:{}\n", libc::major(null), libc::minor(null)));
        assert_eq!(users(&fake), ["process 77 (qemu)"]);
    }

    #[test]
    fn what_the_kernel_has_open_for_nobody_in_sight_is_in_use_too() {
        let fake = fake();
        fake.open_exclusively(&["vfio/9"]);
        assert!(users(&fake)[0].contains("cannot be seen from here"), "{:?}", users(&fake));
        // This process may have the group open, which is no reason against itself.
        fake.link(format!("/proc/{}/fd/5", std::process::id()), "/dev/vfio/9");
        assert_eq!(users(&fake), [""; 0]);
    }
}
