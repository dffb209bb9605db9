//! Guests with UEFI firmware: OVMF of Debian's package, from what is on a disk and with a kernel that is named.

mod scenario;

use std::fs;
use std::path::Path;
use std::time::Duration;

use scenario::warnings::{WARNINGS, unknown_warnings};
use scenario::{Scenario, packages};

/// So long a start by firmware may take, on a bad day.
const EACH_START: Duration = Duration::from_secs(400);

/// OVMF and systemd's boot loader, in a folder.
fn firmware(folder: &Path) {
    for (package, pattern, name) in [
        ("ovmf", "./usr/share/OVMF/OVMF_CODE_4M.fd", "OVMF_CODE_4M.fd"),
        ("ovmf", "./usr/share/OVMF/OVMF_VARS_4M.fd", "OVMF_VARS_4M.fd"),
        ("systemd-boot-efi", "./usr/lib/systemd/boot/efi/systemd-bootx64.efi", "loader.efi"),
    ] {
        let file = packages::file(package, pattern).unwrap_or_else(|why| panic!("{package}: {why}"));
        fs::copy(file, folder.join(name)).unwrap();
    }
}

#[test]
fn what_disks_of_all_models_have_for_uefi_boots_and_again_after_a_reset_and_so_does_a_named_kernel() {
    let folder = tempfile::tempdir().unwrap();
    firmware(folder.path());
    let seen = Scenario::new()
        .patience(EACH_START * 5)
        .guest_firmware()
        .memory(lab::Size::mib(1536))
        .share(folder.path())
        .disk("ahci:100M")
        .run(
            &r#"
        uefi() {
            skep run --name uefi --memory 512M --firmware /share/OVMF_CODE_4M.fd --firmware-vars /tmp/vars "$@" < /dev/null &&
                ended=0 || ended=$?
            say "skep ended with $ended"
        }
        # script FILE: an initial RAM disk whose guest runs standard input.
        script() {
            # The firmware ends no line.
            { echo 'set -e; say() { echo "guest: $*"; }; echo'; both; cat; } > /tmp/script
            lab-initrd /tmp/script $1
        }
        mkdosfs /dev/sda > /dev/null
        modprobe vfat
        mount -t vfat /dev/sda /mnt
        mkdir -p /mnt/EFI/BOOT /mnt/loader/entries
        cp /share/loader.efi /mnt/EFI/BOOT/BOOTX64.EFI
        cp /lab/guest/vmlinuz /mnt/linux
        echo timeout 0 > /mnt/loader/loader.conf
        printf 'title lab\nlinux /linux\ninitrd /initrd\noptions %s\n' "$GUEST" > /mnt/loader/entries/lab.conf
        script /mnt/initrd << 'END'
            [ -d /sys/firmware/efi ] && say "firmware $(cat /sys/firmware/efi/fw_platform_size) bits"
            say "cpus $(grep -c ^processor /proc/cpuinfo)"
            WARNINGS
            mark=/dev/vdb
            if [ ! -b $mark ]; then
                say boot from $(ls /sys/block)
            elif [ "$(dd if=$mark bs=5 count=1 2> /dev/null)" = again ]; then
                say boot second
            else
                say boot first
                printf again | dd of=$mark conv=notrunc 2> /dev/null
                sync
                reboot -f
                sleep 100
            fi
END
        umount /mnt
        truncate -s 1M /tmp/mark
        uefi --cpus 2 --disk /dev/sda --disk path=/tmp/mark
        cmp -s /tmp/vars /share/OVMF_VARS_4M.fd || say variables written
        for model in ahci nvme; do uefi --disk path=/dev/sda,model=$model; done
        script /tmp/initrd << 'END'
            [ -d /sys/firmware/efi ] && say "named $(cut -d ' ' -f 1 /proc/cmdline)"
END
        uefi --kernel /lab/guest/vmlinuz --initrd /tmp/initrd --cmdline "by=name $GUEST"
        "#
            .replace("WARNINGS", WARNINGS),
        );
    seen.ended_with(&[0, 0, 0, 0]);
    for line in [
        "guest: firmware 64 bits",
        "guest: cpus 2",
        "guest: boot first",
        "guest: boot second",
        "host: variables written",
        "guest: boot from sda",
        "guest: boot from nvme0n1",
        "guest: named by=name",
    ] {
        seen.expect(line);
    }
    let unknown = unknown_warnings(&seen.after("guest: warning "));
    assert!(unknown.is_empty(), "{unknown:#?}");
}
