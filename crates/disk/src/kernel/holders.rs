//! Who uses a block device, as far as the kernel says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A phrase that names who holds a block device or its partitions.
pub(super) fn of(path: &Path) -> String {
    let found = find(path);
    if found.is_empty() {
        "another program has opened it exclusively (`fuser -v` shows which)".to_owned()
    } else {
        found.join(", ")
    }
}

fn find(path: &Path) -> Vec<String> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    let number = format!("{}:{}", libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let Ok(sysfs) = fs::canonicalize(format!("/sys/dev/block/{number}")) else { return Vec::new() };
    let mut devices = vec![Device::at(&sysfs)];
    devices
        .extend(children(&sysfs).filter(|child| child.join("partition").exists()).map(|at| Device::at(&at)));

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut found = Vec::new();
    for device in devices {
        found.extend(mounted_at(&mounts, &device).map(|at| format!("{} is mounted at {at}", device.name)));
        if swaps.lines().any(|line| line.split_whitespace().next() == Some(&format!("/dev/{}", device.name)))
        {
            found.push(format!("{} is swap space", device.name));
        }
        found.extend(children(&device.sysfs.join("holders")).filter_map(|holder| {
            Some(format!("{} belongs to {}", device.name, holder.file_name()?.to_str()?))
        }));
    }
    found
}

struct Device {
    name: String,
    number: String,
    sysfs: std::path::PathBuf,
}

impl Device {
    fn at(sysfs: &Path) -> Device {
        let name = sysfs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = fs::read_to_string(sysfs.join("dev")).unwrap_or_default().trim().to_owned();
        Device { name, number, sysfs: sysfs.to_owned() }
    }
}

/// Mount points of a device: the fifth field of mountinfo where the third is its number, or where the source
/// names it (btrfs shows a number of its own).
fn mounted_at<'a>(mountinfo: &'a str, device: &Device) -> impl Iterator<Item = &'a str> {
    let source = format!("/dev/{}", device.name);
    mountinfo.lines().filter_map(move |line| {
        let mut fields = line.split(' ');
        let (number, at) = (fields.nth(2)?, fields.nth(1)?);
        let from = line.split(" - ").nth(1)?.split(' ').nth(1)?;
        (number == device.number || from == source).then_some(at)
    })
}

fn children(folder: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_number_and_by_name() {
        let mountinfo = "36 35 8:1 / /mnt/data rw,noatime shared:1 - ext4 /dev/sda1 rw\n\
                         37 35 0:25 /@ /home rw - btrfs /dev/sda2 rw\n\
                         38 35 8:17 / /other rw master:1 - ext4 /dev/sdb1 rw\n";
        let device = |name: &str, number: &str| Device {
            name: name.to_owned(),
            number: number.to_owned(),
            sysfs: "/nowhere".into(),
        };
        assert_eq!(mounted_at(mountinfo, &device("sda1", "8:1")).collect::<Vec<_>>(), ["/mnt/data"]);
        assert_eq!(mounted_at(mountinfo, &device("sda2", "8:2")).collect::<Vec<_>>(), ["/home"]);
        assert!(mounted_at(mountinfo, &device("sda", "8:0")).next().is_none());
    }
}
