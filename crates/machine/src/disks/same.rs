//! Disks that are given twice: by two names of one file or device, or by a name and by the controller that they are on.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use config::{DiskSource, FileDisk};
use disk::OpenError;
use host::{Host, PciAddress};

use crate::error::{StartError, host_address};

/// The real reason why a disk cannot be opened because it is in use: it may be one of these `earlier` ones, which the VM
/// has opened by then.
pub fn same_as(earlier: &[config::Disk], again: &config::Disk, error: StartError) -> StartError {
    let StartError::Disk(OpenError::Busy { .. }) = error else { return error };
    let Some(wanted) = facts(again) else { return error };
    let same = |disk: &&config::Disk| facts(disk).is_some_and(|facts| is_same(&facts, &wanted));
    match earlier.iter().find(same) {
        Some(first) => StartError::SameDisk { again: name(again), first: name(first) },
        None => error,
    }
}

/// Disks that are given by name, and by a controller that the guest gets or skep drives.
pub fn on_controllers(host: &Host, draft: &config::Draft) -> Vec<StartError> {
    let assigned = draft.assigned.iter().map(|assign| (assign.address, "assigned to the guest"));
    let driven = draft.disks.iter().filter_map(|disk| match disk.source {
        DiskSource::Nvme { address, .. } => Some((address, "driven by skep for a disk (nvme)")),
        _ => None,
    });
    let given: Vec<(PciAddress, &'static str)> = assigned
        .chain(driven)
        .filter_map(|(address, how)| Some((host_address(address).ok()?, how)))
        .collect();
    let wrong = |disk: &config::Disk| {
        let facts = facts(disk).filter(|facts| facts.file_type().is_block_device())?;
        let controller = host.controller_of(facts.rdev())?;
        let (_, how) = given.iter().find(|(address, _)| *address == controller)?;
        Some(StartError::DiskAndController { disk: name(disk), controller, how })
    };
    draft.disks.iter().filter_map(wrong).collect()
}

fn facts(disk: &config::Disk) -> Option<Metadata> {
    match &disk.source {
        DiskSource::File(FileDisk { path, .. }) => fs::metadata(path.as_path()).ok(),
        _ => None,
    }
}

fn name(disk: &config::Disk) -> String {
    match &disk.source {
        DiskSource::File(FileDisk { path, .. }) => path.to_string(),
        _ => disk.to_flag(),
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    match (one.file_type().is_block_device(), other.file_type().is_block_device()) {
        (true, true) => one.rdev() == other.rdev(),
        (false, false) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_disk_given_by_two_names_is_refused_with_both_of_them() {
        let folder = std::env::temp_dir().join(format!("skep-same-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let [real, link, other] = ["real", "link", "other"].map(|name| folder.join(name));
        [&real, &other].into_iter().for_each(|path| fs::write(path, [0; 4096]).unwrap());
        symlink(&real, &link).unwrap();
        let disk = |path: &std::path::Path| {
            let text = path.display().to_string();
            config::describe_disk("the disk", &text, config::ModelName::VirtioBlk).unwrap()
        };
        let disks = [disk(&other), disk(&real), disk(&link)];
        let cpus = config::Cpus::default();
        let _held = super::super::check(&disks[1], cpus).unwrap();
        let busy = || super::super::check(&disks[2], cpus).map(|_| ()).unwrap_err();
        let text = same_as(&disks[..2], &disks[2], busy()).to_string();
        let unrelated = same_as(&disks[..1], &disks[2], busy()).to_string();
        fs::remove_dir_all(&folder).unwrap();
        assert!(
            text.contains(&format!("{}: it is the same as disk {},", link.display(), real.display())),
            "{text}"
        );
        assert!(unrelated.contains("in use"), "{unrelated}");
    }
}
