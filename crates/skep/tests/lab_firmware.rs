//! Guests with UEFI firmware: OVMF of Debian's package, from what is on a disk and with a kernel that is named.

mod scenario;

use scenario::warnings::{WARNINGS, unknown_warnings};
use scenario::{Scenario, firmware};

#[test]
#[ignore = "firmware sometimes waits for ever before its first word on the console; why is not known yet"]
fn what_a_disk_has_for_uefi_boots_again_after_a_reset_and_a_named_kernel_boots_too() {
    let folder = tempfile::tempdir().unwrap();
    firmware::files(folder.path());
    let seen = Scenario::new()
        .patience(firmware::EACH_START * 3)
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
            { echo 'set -e; say() { echo "guest: $*"; }'; both; cat; } > /tmp/script
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
            WARNINGS
            mark=/dev/vdb
            if [ "$(dd if=$mark bs=5 count=1 2> /dev/null)" = again ]; then
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
        uefi --disk /dev/sda --disk path=/tmp/mark
        cmp -s /tmp/vars /share/OVMF_VARS_4M.fd || say variables written
        script /tmp/initrd << 'END'
            [ -d /sys/firmware/efi ] && say "named $(cut -d ' ' -f 1 /proc/cmdline)"
END
        uefi --kernel /lab/guest/vmlinuz --initrd /tmp/initrd --cmdline "by=name $GUEST"
        "#
            .replace("WARNINGS", WARNINGS),
        );
    seen.ended_with(&[0, 0]);
    for line in [
        "guest: firmware 64 bits",
        "guest: boot first",
        "guest: boot second",
        "host: variables written",
        "guest: named by=name",
    ] {
        seen.expect(line);
    }
    let unknown = unknown_warnings(&seen.after("guest: warning "));
    assert!(unknown.is_empty(), "{unknown:#?}");
}
