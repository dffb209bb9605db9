//! Who keeps the kernel from unbinding a device.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Host, PciAddress, attribute, link_name, names};

impl Host {
    /// For a person who waits for the kernel to unbind a device: what it waits for.
    pub(crate) fn why_it_hangs(&self, address: PciAddress) -> String {
        let driver =
            link_name(&self.device_dir(address).join("driver")).unwrap_or_else(|| "the kernel".to_owned());
        match &self.vfio_users(address)[..] {
            [] => format!("{driver} is still at work on it, and goes on; see the kernel's log (`dmesg`)"),
            users => format!("It is still open in {}; stop that first", users.join(", ")),
        }
    }

    /// The processes that have a device's group or the device itself open through VFIO: "process 77 (qemu)".
    fn vfio_users(&self, address: PciAddress) -> Vec<String> {
        let dir = self.device_dir(address);
        let group = link_name(&dir.join("iommu_group")).map(|group| Path::new("/dev/vfio").join(group));
        let devices =
            names(&dir.join("vfio-dev")).into_iter().map(|name| Path::new("/dev/vfio/devices").join(name));
        let files: Vec<PathBuf> = group.into_iter().chain(devices).map(|file| self.path(file)).collect();
        let proc = self.path("/proc");
        let has_it_open = |pid: &String| {
            let fds = proc.join(pid).join("fd");
            names(&fds).iter().any(|fd| fs::read_link(fds.join(fd)).is_ok_and(|file| files.contains(&file)))
        };
        let pids = names(&proc).into_iter().filter(|name| name.parse::<u32>().is_ok()).filter(has_it_open);
        pids.map(|pid| {
            let name = attribute(&proc.join(&pid).join("comm")).unwrap_or_default();
            format!("process {pid} ({name})")
        })
        .collect()
    }
}
