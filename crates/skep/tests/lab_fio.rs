//! Linux's own drivers on all three controllers, each over a block device, a raw file, a qcow2 image and an NVMe
//! controller that skep drives: fio writes and reads back on the four at once, and the host reads it as well.

mod scenario;

use std::time::Duration;

use scenario::{Scenario, Seen};
use serde_json::Value;

/// Patterns of whole, aligned blocks of 4 KiB, and the others.
const ALIGNED: &str = "sequential random deep trims";
const UNALIGNED: &str = "sizes misaligned buffered";

/// In the guest: the four disks, which it finds by their serial numbers.
const FOUR: &str = r#"
    NAMES="block raw qcow2 driven"
    DISKS=
    for name in $NAMES; do
        wait_for 60 eval "[ -n \"\$(disk_of GUESTS$name)\" ]"
        eval "$name=/dev/$(disk_of GUESTS$name)"
        eval "DISKS=\"$DISKS $name=\$$name\""
    done
"#;

/// In the guest, at the end: what its kernel minded about disks.
const LOG: &str = r#"
    dmesg | grep -E "I/O error|rror, dev |ata[0-9.]+: .*([Ee]xception|failed|[Ee]rror|reset|SErr)|nvme.*(timeout|[Aa]bort|reset|fail)|EXT4-fs (error|warning)|blocked for more" |
        grep -v "SATA link up" | sed "s/^/guest: log /" || true
"#;

/// A file system on each disk, with files and their checksums in it.
const FILES: &str = r#"
    for disk in $DISKS; do
        at=${disk#*=}
        mkfs.ext4 -q -F $at
        modprobe -q ext4 || true
        mount -t ext4 $at /mnt
        for n in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/$n bs=37k count=$((n * 2)) 2> /dev/null; done
        rm /mnt/2 /mnt/4
        fstrim /mnt || say "no fstrim on ${disk%%=*}"
        dd if=/dev/urandom of=/mnt/9 bs=1M count=3 2> /dev/null
        (cd /mnt && sha256sum [0-9] > sums)
        umount /mnt
        e2fsck -fn $at > /tmp/fsck 2>&1 || { cat /tmp/fsck; say "fsck of ${disk%%=*} failed"; }
        mount -t ext4 $at /mnt
        (cd /mnt && sha256sum -c sums > /tmp/sums 2>&1) || { cat /tmp/sums; say "sums of ${disk%%=*} failed"; }
        umount /mnt
        say "files on ${disk%%=*}"
    done
"#;

/// In the host: its disks, and the images on the file system of one of them.
const HOST: &str = r#"
    BLOCK=/dev/$(disk_of BLOCK)
    DRIVEN=$(function_of $(disk_of DRIVEN))
    FILES=/dev/$(disk_of FILES)
    outer mkfs.ext4 -q $FILES
    mount -t ext4 -o discard $FILES /host/mnt
    truncate -s $((32 * SCALE))M /host/mnt/raw.img
    outer qemu-img create -q -f qcow2 /mnt/image.qcow2 $((32 * SCALE))M

    # with_four MODEL SCRIPT: a guest that has the four disks as MODEL and runs SCRIPT.
    with_four() {
        # Two CPUs have two queues. A port of AHCI has one list, which Linux fills under a lock: there the second only costs time.
        case $1 in ahci) cpus=1 ;; *) cpus=2 ;; esac
        MEMORY=320M guest "$2" --cpus $cpus --report /tmp/report \
            --disk path=$BLOCK,model=$1,serial=GUESTSblock \
            --disk path=/host/mnt/raw.img,model=$1,serial=GUESTSraw \
            --disk path=/host/mnt/image.qcow2,format=qcow2,model=$1,serial=GUESTSqcow2 \
            --disk nvme=$DRIVEN,model=$1,serial=GUESTSdriven
        say "report $(tr -d ' \n' < /tmp/report)"
        wait_for 20 eval '[ -n "$(disk_of DRIVEN)" ]'
        outer qemu-img check -q /mnt/image.qcow2
        outer qemu-img convert -O raw /mnt/image.qcow2 /mnt/flat.img
        DISKS="block=$BLOCK raw=/mnt/raw.img qcow2=/mnt/flat.img driven=/dev/$(disk_of DRIVEN)"
    }
"#;

/// In the host: the same file systems, checked and read.
const SAME_FILES: &str = r#"
    mkdir -p /host/srv
    for disk in $DISKS; do
        at=${disk#*=}
        outer e2fsck -fn $at > /tmp/fsck 2>&1 || { cat /tmp/fsck; say "fsck of ${disk%%=*} failed"; }
        case $at in /dev/*) ;; *) losetup /dev/loop0 /host$at; at=/dev/loop0 ;; esac
        mount -t ext4 -o ro $at /host/srv
        (cd /host/srv && sha256sum -c sums > /tmp/sums 2>&1) || { cat /tmp/sums; say "sums of ${disk%%=*} failed"; }
        umount /host/srv
        [ $at != /dev/loop0 ] || losetup -d /dev/loop0
        say "files on ${disk%%=*}"
    done
"#;

/// The patterns and the file systems on one controller; disks of 32 MiB times `scale`.
fn four_disks_as(model: &str, scale: u32) -> Seen {
    let (disk, files) = (32 * scale, 32 * scale * 4 + 32);
    let seen = Scenario::new()
        .programs()
        .patience(Duration::from_secs(1500 * u64::from(scale)))
        .memory(lab::Size::mib(1792))
        // Not on AHCI: QEMU's own loses a command now and then.
        .disk(&format!("virtio:{disk}M,serial=BLOCK"))
        .disk(&format!("virtio:{files}M,serial=FILES"))
        .disk(&format!("nvme:{disk}M,serial=DRIVEN"))
        .run(&format!(
            "SCALE={scale}
            {HOST}
            with_four {model} 'SCALE={scale}
                {FOUR} fio_on write {ALIGNED}
                {LOG}'
            fio_on check {ALIGNED}
            DISKS=block=$BLOCK
            dd if=/dev/zero of=$BLOCK bs=512 count=1 seek=$((16384 * SCALE)) 2> /dev/null
            sync
            fio_on check random
            with_four {model} 'SCALE={scale}
                {FOUR} fio_on write {UNALIGNED}
                fio_on check buffered
                {FILES} {LOG}'
            {SAME_FILES}
            umount /host/mnt
            dmesg | grep -E 'failed command|nvme.* timeout' | sed 's/^/host: log /'"
        ));
    seen.ended_with(&[0, 0]);
    for pattern in ALIGNED.split(' ') {
        seen.expect(&format!("guest: fio write {pattern} ok"));
        seen.expect(&format!("host: fio check {pattern} ok"));
    }
    // A sector that the host wrote over is found, and only that.
    assert_eq!(seen.after("host: fio check random "), ["ok", "failed"], "{seen}");
    for pattern in UNALIGNED.split(' ') {
        seen.expect(&format!("guest: fio write {pattern} ok"));
    }
    seen.expect("guest: fio check buffered ok");
    for disk in ["block", "raw", "qcow2", "driven"] {
        seen.expect(&format!("guest: files on {disk}"));
        seen.expect(&format!("host: files on {disk}"));
    }
    // The host's own trouble comes first, for what that does to guests is not skep's.
    for wrong in [
        "host: log ",
        "guest: log ",
        "guest: fsck ",
        "guest: sums ",
        "host: fsck ",
        "host: sums ",
        "guest: no fstrim ",
    ] {
        assert_eq!(seen.after(wrong), Vec::<&str>::new(), "{wrong}\n{seen}");
    }
    for report in reports(&seen) {
        for disk in report["disks"].as_array().unwrap() {
            assert_eq!(disk["errors"], 0, "{disk}");
            assert!(disk["discards"].as_u64().unwrap() > 0, "{disk}");
        }
    }
    seen
}

fn reports(seen: &Seen) -> Vec<Value> {
    seen.after("host: report ").iter().map(|report| serde_json::from_str(report).unwrap()).collect()
}

/// The bar: what is aligned to 4 KiB goes to block devices and driven controllers without a copy.
fn aligned_requests_were_not_copied(seen: &Seen) {
    let disks = &reports(seen)[0]["disks"];
    for disk in [&disks[0], &disks[3]] {
        let copied = disk["bytes_copied"].as_object().unwrap();
        assert!(!copied.is_empty() && copied.values().all(|bytes| bytes == 0), "{disk}");
        assert!(disk["bytes_direct"].as_u64().unwrap() > 16 << 20, "{disk}");
    }
}

#[test]
fn fio_finds_on_virtio_blk_what_it_wrote_and_no_aligned_byte_was_copied() {
    aligned_requests_were_not_copied(&four_disks_as("virtio-blk", 1));
}

#[test]
fn fio_finds_on_nvme_what_it_wrote_and_no_aligned_byte_was_copied() {
    aligned_requests_were_not_copied(&four_disks_as("nvme", 1));
}

#[test]
fn fio_finds_on_ahci_what_it_wrote() {
    four_disks_as("ahci", 1);
}

#[test]
#[ignore = "takes ten minutes"]
fn fio_finds_on_virtio_blk_what_it_wrote_on_larger_disks() {
    aligned_requests_were_not_copied(&four_disks_as("virtio-blk", 8));
}

#[test]
#[ignore = "takes ten minutes"]
fn fio_finds_on_nvme_what_it_wrote_on_larger_disks() {
    aligned_requests_were_not_copied(&four_disks_as("nvme", 8));
}

#[test]
#[ignore = "takes ten minutes"]
fn fio_finds_on_ahci_what_it_wrote_on_larger_disks() {
    four_disks_as("ahci", 8);
}
