//! Who uses a block device, as far as the kernel says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::kernel::openers::{self, Openers};

/// How deep devices may stand on devices (a file system on dm-crypt on LVM on md on a partition is 5).
const DEPTH: usize = 16;

/// A phrase that names who holds a block device or its partitions.
pub(super) fn of(path: &Path) -> String {
    let found = fs::metadata(path).map_or_else(|_| Vec::new(), |facts| find(Path::new("/"), facts.rdev()));
    if found.is_empty() {
        match openers::of(path, Openers::All) {
            unknown if unknown.is_empty() => {
                "another program has opened it exclusively (`fuser -v` shows which)".to_owned()
            }
            known => format!("{} has opened it exclusively", known.join(", ")),
        }
    } else {
        found.join(", ")
    }
}

/// Everybody who uses the device or a partition of it, and whoever stands on those, up to the mount point. The
/// host's files are looked for under `root`.
fn find(root: &Path, number: u64) -> Vec<String> {
    let link = root.join(format!("sys/dev/block/{}:{}", libc::major(number), libc::minor(number)));
    let Ok(sysfs) = fs::canonicalize(link) else { return Vec::new() };
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut search = Search {
        block: root.join("sys/class/block"),
        mounts: read("proc/self/mountinfo"),
        swaps: read("proc/swaps"),
        found: Vec::new(),
    };
    search.add(&Device::at(&sysfs), DEPTH);
    for part in children(&sysfs).filter(|child| child.join("partition").exists()) {
        search.add(&Device::at(&part), DEPTH);
    }
    search.found
}

struct Search {
    /// Where sysfs has all block devices by name.
    block: PathBuf,
    mounts: String,
    swaps: String,
    found: Vec<String>,
}

impl Search {
    fn add(&mut self, device: &Device, depth: usize) {
        let mut found = Vec::new();
        found.extend(mounted_at(&self.mounts, device).map(|at| format!("{device} is mounted at {at}")));
        let mut swaps = self.swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        if swaps.any(|source| device.is_at(&unescape(source))) {
            found.push(format!("{device} is swap space"));
        }
        for holder in children(&device.sysfs.join("holders")) {
            let Some(name) = holder.file_name() else { continue };
            let holder = Device::at(&self.block.join(name));
            let sentence = format!("{device} belongs to {holder}");
            // Several partitions may stand under one volume, which is told of once.
            let known = self.found.iter().any(|other| other.ends_with(&format!(" belongs to {holder}")));
            self.found.append(&mut found);
            self.found.push(sentence);
            if depth > 0 && !known {
                self.add(&holder, depth - 1);
            }
        }
        self.found.append(&mut found);
    }
}

struct Device {
    /// As the kernel calls it.
    name: String,
    /// What device mapper calls it.
    mapped: Option<String>,
    number: String,
    sysfs: PathBuf,
}

impl Device {
    fn at(sysfs: &Path) -> Device {
        let read = |file: &str| fs::read_to_string(sysfs.join(file)).map(|text| text.trim().to_owned());
        Device {
            name: sysfs.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            mapped: read("dm/name").ok(),
            number: read("dev").unwrap_or_default(),
            sysfs: sysfs.to_owned(),
        }
    }

    /// Whether a path under /dev is this device's.
    fn is_at(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix("/dev/") else { return false };
        path == self.name || self.mapped.is_some() && path.strip_prefix("mapper/") == self.mapped.as_deref()
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.mapped {
            Some(mapped) => write!(f, "{} ({mapped})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Mount points of a device: the fifth field of mountinfo where the third is its number, or where the source
/// names it (btrfs shows a number of its own); proc_pid_mountinfo(5).
fn mounted_at<'a>(mountinfo: &'a str, device: &'a Device) -> impl Iterator<Item = String> + 'a {
    mountinfo.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut fields = front.split(' ');
        let (number, at) = (fields.nth(2)?, fields.nth(1)?);
        let source = unescape(back.split(' ').nth(1)?);
        (number == device.number || device.is_at(&source)).then(|| unescape(at))
    })
}

/// Undoes the kernel's escapes: a backslash and the byte in three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                after
            }
            _ => {
                bytes.push(*first);
                after
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is in a folder, in the order of the names.
fn children(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut children: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    children.sort();
    children.into_iter()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host's files in a folder.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Fake {
            let fake = Fake(tempfile::tempdir().unwrap());
            for folder in ["sys/dev/block", "sys/class/block", "proc/self"] {
                fs::create_dir_all(fake.0.path().join(folder)).unwrap();
            }
            fake
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A device at `devices/PLACE`.
        fn device(&self, place: &str, number: &str) {
            let (root, at) = (self.0.path(), format!("sys/devices/{place}"));
            self.file(&format!("{at}/dev"), &format!("{number}\n"));
            symlink(root.join(&at), root.join("sys/dev/block").join(number)).unwrap();
            let name = Path::new(place).file_name().unwrap();
            symlink(root.join(&at), root.join("sys/class/block").join(name)).unwrap();
        }

        fn find(&self, major: u32, minor: u32) -> Vec<String> {
            find(self.0.path(), libc::makedev(major, minor))
        }
    }

    #[test]
    fn whoever_stands_on_a_disk_is_named_up_to_the_mount_point() {
        let fake = Fake::new();
        fake.device("sda", "8:0");
        fake.device("sda/sda1", "8:1");
        fake.device("sda/sda2", "8:2");
        fake.device("md0", "9:0");
        fake.device("dm-0", "253:0");
        fake.file("sys/devices/dm-0/dm/name", "secret\n");
        for (place, number) in [("sda/sda1", "1\n"), ("sda/sda2", "2\n")] {
            fake.file(&format!("sys/devices/{place}/partition"), number);
            fake.file(&format!("sys/devices/{place}/holders/md0"), "");
        }
        fake.file("sys/devices/md0/holders/dm-0", "");
        fake.file("proc/self/mountinfo", "22 1 0:38 / /srv/my\\040data rw - btrfs /dev/mapper/secret rw\n");
        let expected = [
            "sda1 belongs to md0",
            "md0 belongs to dm-0 (secret)",
            "dm-0 (secret) is mounted at /srv/my data",
            "sda2 belongs to md0",
        ];
        assert_eq!(fake.find(8, 0), expected);
        assert_eq!(fake.find(8, 2)[0], "sda2 belongs to md0");
        assert_eq!(fake.find(8, 3), [""; 0]);
    }

    #[test]
    fn swap_on_a_mapped_volume_is_found_and_a_circle_of_holders_ends() {
        let fake = Fake::new();
        fake.device("sdb", "8:16");
        fake.device("dm-1", "253:1");
        fake.file("sys/devices/dm-1/dm/name", "swap\n");
        fake.file("sys/devices/sdb/holders/dm-1", "");
        fake.file("sys/devices/dm-1/holders/sdb", "");
        fake.file("proc/swaps", "Filename Type Size Used Priority\n/dev/dm-1 partition 8 0 -2\n");
        let found = fake.find(8, 16);
        assert_eq!(found[..2], ["sdb belongs to dm-1 (swap)", "dm-1 (swap) is swap space"]);
        assert!(found.len() <= 4, "{found:?}");
    }

    #[test]
    fn octal_escapes_become_bytes_and_nothing_else_changes() {
        for (escaped, plain) in [
            ("/a\\040b", "/a b"),
            ("\\134040", "\\040"),
            ("\\011\\012\\043", "\t\n#"),
            ("/caf\\303\\251", "/café"),
            ("\\04", "\\04"),
            ("\\8", "\\8"),
            ("end\\", "end\\"),
        ] {
            assert_eq!(unescape(escaped), plain);
        }
    }

    #[test]
    fn a_mount_is_found_by_number_and_by_name() {
        let mountinfo = "36 35 8:1 / /mnt/data rw,noatime shared:1 - ext4 /dev/sda1 rw\n\
                         37 35 0:25 /@ /home rw - btrfs /dev/sda2 rw\n\
                         38 35 8:17 / /other rw master:1 - ext4 /dev/sdb1 rw\n";
        let device = |name: &str, number: &str| Device {
            name: name.to_owned(),
            mapped: None,
            number: number.to_owned(),
            sysfs: "/nowhere".into(),
        };
        assert_eq!(mounted_at(mountinfo, &device("sda1", "8:1")).collect::<Vec<_>>(), ["/mnt/data"]);
        assert_eq!(mounted_at(mountinfo, &device("sda2", "8:2")).collect::<Vec<_>>(), ["/home"]);
        assert!(mounted_at(mountinfo, &device("sda", "8:0")).next().is_none());
    }
}
