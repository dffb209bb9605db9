//! Whether the host uses a disk.

use std::io;
use std::path::Path;

use crate::disks::{device, size};
use crate::in_use::Reason;
use crate::{Host, Openers, attribute, names};

/// How deep devices may stand on devices (a file system on dm-crypt on LVM on md on a partition is 5).
const DEPTH: usize = 16;

impl Host {
    /// Every reason why a guest may not have the block device of this number (stat(2), `st_rdev`); empty when it may,
    /// or when there is no such device.
    pub fn device_number_in_use(&self, number: u64) -> Vec<Reason> {
        let link = self.path(format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)));
        let Ok(place) = link.canonicalize() else { return Vec::new() };
        place.file_name().and_then(|name| name.to_str()).map_or_else(Vec::new, |name| self.block_in_use(name))
    }

    /// Every reason why a guest may not have a block device, by the kernel's name of it (`sda`, `nvme0n1p2`);
    /// empty when it may. A whole disk is in use when a partition of it is.
    pub(crate) fn block_in_use(&self, name: &str) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mounts = self.path("/proc/self/mountinfo");
        if std::fs::read(&mounts).is_err() {
            reasons.push(Reason::Unknown { path: mounts });
        }
        let dir = self.path("/sys/class/block").join(name);
        let is_partition = |child: &String| dir.join(child).join("partition").exists();
        let parts: Vec<String> = names(&dir).into_iter().filter(is_partition).collect();
        self.one_in_use(name, DEPTH, &mut reasons);
        for part in &parts {
            self.one_in_use(part, DEPTH, &mut reasons);
        }
        let claimed = self.open_exclusively(name, &parts, &reasons);
        reasons.extend(claimed);
        reasons
    }

    /// The parts of a disk that are open exclusively, and of which no one of the `reasons` says so. A
    /// claim on a disk keeps others from claiming its partitions, and one on a partition from claiming the disk; so
    /// either shows at both.
    fn open_exclusively(&self, disk: &str, parts: &[String], reasons: &[Reason]) -> Vec<Reason> {
        let claimed = |block: &str| {
            let opened = self.kernel.open_exclusively(&self.path(device(block)));
            opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
        };
        let known = |block: &str| reasons.iter().any(|reason| reason.block() == Some(block));
        if known(disk) || !claimed(disk) {
            return Vec::new();
        }
        let busy: Vec<&String> = parts.iter().filter(|part| claimed(part)).collect();
        let by_parts = parts.iter().any(|part| known(part)) || !busy.is_empty() && busy.len() < parts.len();
        let blocks = if by_parts {
            busy.into_iter().filter(|part| !known(part)).cloned().collect()
        } else {
            vec![disk.to_owned()]
        };
        blocks.into_iter().map(|block| self.claim_on(block)).collect()
    }

    /// Who may have a block device open exclusively, where nothing else shows it. The mark on a disk says what uses
    /// it, unless a process has it open: then the mark may have been written by a guest.
    fn claim_on(&self, block: String) -> Reason {
        if self.path("/sys/class/block").join(&block).join("bcache").exists() {
            return Reason::Member { block, of: "bcache" };
        }
        let mut by = self.who_has_open(&block);
        if by.is_empty()
            && let Some(whole) = self.whole_disk_of(&block)
        {
            by = self.who_has_open(&whole);
        }
        match self.mark_on(&block) {
            Some(of) if by.is_empty() => Reason::Member { block, of },
            mark => Reason::Exclusive { block, by, mark },
        }
    }

    fn who_has_open(&self, block: &str) -> Vec<String> {
        let facts = std::fs::metadata(self.path(device(block)));
        facts.map_or_else(|_| Vec::new(), |facts| self.openers(&facts, Openers::All))
    }

    /// The disk that a partition is of.
    fn whole_disk_of(&self, block: &str) -> Option<String> {
        let place = self.path("/sys/class/block").join(block).canonicalize().ok()?;
        place.join("partition").exists().then_some(())?;
        Some(place.parent()?.file_name()?.to_str()?.to_owned())
    }

    fn one_in_use(&self, block: &str, depth: usize, reasons: &mut Vec<Reason>) {
        let dir = self.path("/sys/class/block").join(block);
        let number = attribute(&dir.join("dev"));
        // Without udev the names below /dev/mapper are devices of their own.
        let mapped = attribute(&dir.join("dm/name")).map(|name| format!("/dev/mapper/{name}"));
        let is_it = |source: &str| {
            mapped.as_deref() == Some(source) || self.block_name(source).as_deref() == Some(block)
        };

        for mount in
            attribute(&self.path("/proc/self/mountinfo")).unwrap_or_default().lines().filter_map(mount)
        {
            if Some(mount.number) == number.as_deref() || is_it(&unescape(mount.source)) {
                reasons.push(Reason::Mounted { block: block.to_owned(), at: unescape(mount.at).into() });
            }
        }
        let btrfs = self.path("/sys/fs/btrfs");
        for id in names(&btrfs).into_iter().filter(|id| btrfs.join(id).join("devices").join(block).exists()) {
            reasons.push(Reason::InFilesystem { block: block.to_owned(), filesystem: format!("btrfs {id}") });
        }
        for line in attribute(&self.path("/proc/swaps")).unwrap_or_default().lines().skip(1) {
            if line.split_whitespace().next().is_some_and(|source| is_it(&unescape(source))) {
                reasons.push(Reason::Swap { block: block.to_owned() });
            }
        }
        for holder in names(&dir.join("holders")) {
            let by = match self.what_stands_there(&holder) {
                Some(what) => format!("{holder} ({what})"),
                None => holder.clone(),
            };
            // Several partitions may be under one volume, which is reported once; and there could be a loop.
            let told = |reason: &Reason| matches!(reason, Reason::Held { by: other, .. } if *other == by);
            let known = reasons.iter().any(told);
            reasons.push(Reason::Held { block: block.to_owned(), by });
            if depth > 0 && !known {
                self.one_in_use(&holder, depth - 1, reasons);
            }
        }
    }

    /// What a block device is that stands on others: "LVM vg-root", "md raid1".
    fn what_stands_there(&self, holder: &str) -> Option<String> {
        let dir = self.path("/sys/class/block").join(holder);
        if let Some(name) = attribute(&dir.join("dm/name")) {
            // Programs that make device mapper devices put the kind before the identity.
            let identity = attribute(&dir.join("dm/uuid")).unwrap_or_default();
            let kinds = [("LVM-", "LVM "), ("CRYPT-", "dm-crypt "), ("mpath-", "multipath ")];
            let kind = kinds.iter().find(|(mark, _)| identity.starts_with(mark)).map_or("", |(_, kind)| kind);
            return Some(format!("{kind}{name}"));
        }
        if let Some(level) = attribute(&dir.join("md/level")) {
            return Some(if level.is_empty() { "md, not started".to_owned() } else { format!("md {level}") });
        }
        dir.join("bcache").exists().then(|| "bcache".to_owned())
    }

    /// The mark on a block device that the kernel has open without showing it anywhere.
    fn mark_on(&self, block: &str) -> Option<&'static str> {
        let marks = [("ZFS member", "a ZFS pool"), ("bcache member", "bcache"), ("md member", "md")];
        let contents = self.contents(block, size(&self.path("/sys/class/block").join(block)))?;
        let of = |kind: &str| marks.iter().find(|(mark, _)| *mark == kind).map(|(_, of)| *of);
        contents.iter().find_map(|content| of(content.kind))
    }

    /// The kernel's name of the block device behind a path such as `/dev/mapper/vg-root`.
    fn block_name(&self, source: &str) -> Option<String> {
        let path = Path::new(source).strip_prefix("/dev").ok()?;
        let place = self.path("/dev").join(path);
        let place = place.canonicalize().unwrap_or(place);
        Some(place.file_name()?.to_str()?.to_owned())
    }
}

/// What we need of a line of mountinfo (proc_pid_mountinfo(5)).
struct Mount<'a> {
    number: &'a str,
    at: &'a str,
    source: &'a str,
}

fn mount(line: &str) -> Option<Mount<'_>> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    Some(Mount { number: front.next()?, at: front.nth(1)?, source: back.split(' ').nth(1)? })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn a_mount_of_what_stands_on_a_disk_is_found_through_every_layer() {
        let fake = FakeHost::new();
        fake.pci("0000:00:05.0", 0x010601, Some("ahci"), 1);
        fake.disk("0000:00:05.0", "ata1/sda", "8:0");
        fake.partition("sda", "sda1", "8:1");
        fake.virtual_disk("md0", "9:0", None);
        fake.virtual_disk("dm-0", "253:0", Some("secret"));
        fake.holder("sda1", "md0");
        fake.holder("md0", "dm-0");
        fake.file("/proc/self/mountinfo", "22 1 253:0 / / rw - ext4 /dev/mapper/secret rw\n");
        let found = fake.host().block_in_use("sda");
        assert!(found.contains(&Reason::Mounted { block: "dm-0".into(), at: "/".into() }), "{found:?}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_file_system_with_a_made_up_number_is_found_by_its_source() {
        let fake = FakeHost::new();
        fake.pci("0000:00:05.0", 0x010601, Some("ahci"), 1);
        fake.disk("0000:00:05.0", "ata1/sda", "8:0");
        fake.disk("0000:00:05.0", "ata2/sdb", "8:16");
        fake.file("/proc/self/mountinfo", "22 1 0:38 / /data rw - btrfs /dev/sda rw\n");
        fake.dir("/sys/fs/btrfs/1234-5678/devices/sdb");
        assert_eq!(
            fake.host().block_in_use("sda"),
            [Reason::Mounted { block: "sda".into(), at: "/data".into() }]
        );
        assert!(matches!(&fake.host().block_in_use("sdb")[..], [Reason::InFilesystem { .. }]));
    }

    #[test]
    fn members_of_lvm_crypt_md_bcache_and_zfs_are_named_as_such() {
        let fake = FakeHost::new();
        fake.pci("0000:00:05.0", 0x010601, Some("ahci"), 1);
        fake.disk("0000:00:05.0", "ata1/sda", "8:0");
        let held_by = |holder: &str| {
            fake.remove("/sys/class/block/sda/holders");
            fake.holder("sda", holder);
            fake.host().block_in_use("sda").remove(0).to_string()
        };
        fake.dir("/sys/class/block/sda/holders");
        for (name, uuid, kind) in [("dm-0", "LVM-x", "LVM"), ("dm-1", "CRYPT-LUKS2-x", "dm-crypt")] {
            fake.virtual_disk(name, "253:0", Some("vg-root"));
            fake.file(format!("/sys/class/block/{name}/dm/uuid"), uuid);
            assert!(held_by(name).contains(&format!("held by {name} ({kind} vg-root)")), "{}", held_by(name));
        }
        fake.virtual_disk("md0", "9:0", None);
        fake.file("/sys/class/block/md0/md/level", "raid1\n");
        assert!(held_by("md0").contains("held by md0 (md raid1)"));
        fake.virtual_disk("bcache0", "250:0", None);
        fake.dir("/sys/class/block/bcache0/bcache");
        assert!(held_by("bcache0").contains("held by bcache0 (bcache)"));

        fake.remove("/sys/class/block/sda/holders");
        fake.open_exclusively(&["sda"]);
        let exclusive = |by: &[&str], mark| {
            let by = by.iter().map(|&by| by.to_owned()).collect();
            [Reason::Exclusive { block: "sda".into(), by, mark }]
        };
        assert_eq!(fake.host().block_in_use("sda"), exclusive(&[], None));
        let uberblock = [&[0; 0x2_0000][..], &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]].concat();
        fake.dir("/dev");
        std::fs::write(fake.path("/dev/sda"), uberblock).unwrap();
        assert_eq!(
            fake.host().block_in_use("sda"),
            [Reason::Member { block: "sda".into(), of: "a ZFS pool" }]
        );
        // The disk of a VM, whose guest may have a pool on it, or a pool of the host's that somebody looks at.
        fake.opens(77, "qemu", "/dev/sda");
        let found = fake.host().device_number_in_use(libc::makedev(8, 0));
        assert_eq!(found, exclusive(&["process 77 (qemu)"], Some("a ZFS pool")));
        let text = found[0].to_string();
        assert!(text.ends_with("by process 77 (qemu) or a ZFS pool, whose mark is on it"), "{text}");
        fake.dir("/sys/class/block/sda/bcache");
        assert_eq!(fake.host().block_in_use("sda"), [Reason::Member { block: "sda".into(), of: "bcache" }]);
    }

    #[test]
    fn whoever_has_a_whole_disk_open_has_its_partitions() {
        let fake = FakeHost::new();
        fake.pci("0000:00:05.0", 0x010601, Some("ahci"), 1);
        fake.disk("0000:00:05.0", "ata1/sda", "8:0");
        fake.partition("sda", "sda1", "8:1");
        fake.file("/dev/sda", "");
        fake.file("/dev/sda1", "");
        fake.opens(77, "qemu", "/dev/sda");
        fake.open_exclusively(&["sda", "sda1"]);
        for (number, name) in [(0, "sda"), (1, "sda1")] {
            let found = fake.host().device_number_in_use(libc::makedev(8, number));
            let text = found.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(text, [format!("{name} is open for exclusive use by process 77 (qemu)")]);
        }
        assert_eq!(fake.host().device_number_in_use(libc::makedev(8, 2)), []);
    }

    #[test]
    fn swap_on_a_mapped_volume_is_found_without_udev_and_a_circle_of_holders_ends() {
        let fake = FakeHost::new();
        fake.virtual_disk("sdb", "8:16", None);
        fake.virtual_disk("dm-1", "253:1", Some("swap"));
        fake.remove("/dev/mapper/swap");
        fake.holder("sdb", "dm-1");
        fake.holder("dm-1", "sdb");
        fake.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/mapper/swap partition 8 0 -2\n");
        let found = fake.host().block_in_use("sdb");
        assert!(found.contains(&Reason::Swap { block: "dm-1".into() }), "{found:?}");
        assert!(found.len() <= 4, "{found:?}");
    }

    #[test]
    fn a_volume_on_several_partitions_is_told_of_once() {
        let fake = FakeHost::new();
        fake.pci("0000:00:05.0", 0x010601, Some("ahci"), 1);
        fake.disk("0000:00:05.0", "ata1/sda", "8:0");
        fake.virtual_disk("md0", "9:0", None);
        for (name, number) in [("sda1", "8:1"), ("sda2", "8:2")] {
            fake.partition("sda", name, number);
            fake.holder(name, "md0");
        }
        fake.file("/proc/self/mountinfo", "22 1 9:0 / /srv/my\\040data rw - ext4 /dev/md0 rw\n");
        let found = fake.host().block_in_use("sda");
        let found: Vec<_> = found.iter().map(|reason| reason.block().unwrap()).collect();
        assert_eq!(found, ["sda1", "md0", "sda2"]);
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
    fn a_partition_is_free_while_only_its_sibling_is_used() {
        let fake = FakeHost::new();
        fake.pci("0000:00:05.0", 0x010601, Some("ahci"), 1);
        fake.disk("0000:00:05.0", "ata1/sda", "8:0");
        fake.partition("sda", "sda1", "8:1");
        fake.partition("sda", "sda2", "8:2");
        fake.file("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        assert_eq!(fake.host().block_in_use("sda2"), []);
        assert_eq!(fake.host().block_in_use("sda").len(), 1);
    }
}
