//! Guests with UEFI firmware: OVMF of Debian's package, from what is on a disk and with a kernel that is named.

mod scenario;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use scenario::Scenario;
use scenario::firmware::{CODE, EACH_START, GRUB, KEYS, LOADER, SHIM, UEFI, VARS, put};
use scenario::warnings::{WARNINGS, unknown_warnings};

#[test]
fn what_disks_of_all_models_have_for_uefi_boots_and_again_after_a_reset_and_so_does_a_named_kernel() {
    let folder = tempfile::tempdir().unwrap();
    put(&[CODE, VARS, LOADER], folder.path());
    let seen = Scenario::new()
        .patience(EACH_START * 5)
        .guest_firmware()
        .memory(lab::Size::mib(1536))
        .share(folder.path())
        .disk("ahci:100M")
        .run(
            &(UEFI.to_owned()
                + &r#"
        vm() { uefi --firmware-vars /tmp/vars "$@"; }
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
        vm --cpus 2 --disk /dev/sda --disk path=/tmp/mark
        cmp -s /tmp/vars /share/OVMF_VARS_4M.fd || say variables written
        for model in ahci nvme; do vm --disk path=/dev/sda,model=$model; done
        script /tmp/initrd << 'END'
            [ -d /sys/firmware/efi ] && say "named $(cut -d ' ' -f 1 /proc/cmdline)"
            modprobe qemu_fw_cfg
            say "file $(cat /sys/firmware/qemu_fw_cfg/by_name/opt/org.example/config/raw)"
            # Those that the kernel loaded itself are in a folder of their own.
            tar -c -C /sys/firmware/acpi/tables . > /dev/vda
END
        truncate -s 1M /tmp/tables
        vm --fw-cfg opt/org.example/config,string=of-the-host --kernel /lab/guest/vmlinuz --initrd /tmp/initrd \
            --cmdline "by=name $GUEST" --disk path=/tmp/tables
        cp /tmp/tables /share
        sync
        "#
            .replace("WARNINGS", WARNINGS)),
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
        "guest: file of-the-host",
    ] {
        seen.expect(line);
    }
    let unknown = unknown_warnings(&seen.after("guest: warning "));
    assert!(unknown.is_empty(), "{unknown:#?}");
    let tables = acpi_tables(&folder.path().join("tables"));
    for name in ["APIC", "DSDT", "FACP", "MCFG"] {
        assert!(tables.iter().any(|table| table.ends_with(name)), "{name} is not among {tables:?}");
    }
    tables.iter().for_each(|table| is_clean(table));
}

/// The ACPI tables of a guest, out of an archive of those that its kernel has.
fn acpi_tables(archive: &Path) -> Vec<PathBuf> {
    let folder = archive.with_extension("d");
    fs::create_dir(&folder).unwrap();
    ran(Command::new("tar").arg("-x").arg("-f").arg(archive).arg("-C").arg(&folder));
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

/// What a program said, which must have gone well.
fn ran(command: &mut Command) -> String {
    let run = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    assert!(run.status.success(), "{command:?}: {said}");
    said
}

/// Takes a table apart and puts it together again, without a complaint.
fn is_clean(table: &Path) {
    let source = table.with_extension("dsl");
    let said = ran(Command::new("iasl").arg("-p").arg(&source).arg("-d").arg(table));
    for word in ["Error", "Warning", "Invalid", "ncorrect", "Could not"] {
        assert!(!said.contains(word), "{said}");
    }
    let said = ran(Command::new("iasl").arg(&source));
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
}

#[test]
fn with_secure_boot_firmware_starts_what_is_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    put(&[CODE, VARS, KEYS, LOADER, SHIM, GRUB], folder.path());
    let seen = Scenario::new()
        .patience(EACH_START * 2)
        .guest_firmware()
        .memory(lab::Size::mib(1536))
        .share(folder.path())
        .disk("virtio:100M")
        .disk("virtio:100M")
        .run(
            &(UEFI.to_owned()
                + r#"
        modprobe vfat
        cat > /tmp/script << 'END'
            echo
            echo "guest: started by $(sed 's/.*by=\([a-z]*\).*/\1/' /proc/cmdline)"
            dmesg | grep -q 'Secure boot enabled' && echo "guest: secure boot"
END
        lab-initrd /tmp/script /tmp/initrd
        # disk DISK: a file system with a kernel, at /mnt.
        disk() {
            mkdosfs $1 > /dev/null
            mount -t vfat $1 /mnt
            mkdir -p /mnt/EFI/BOOT /mnt/EFI/debian /mnt/loader/entries
            cp /lab/guest/vmlinuz /mnt/linux
            cp /tmp/initrd /mnt/initrd
        }
        disk /dev/vda
        cp /share/loader.efi /mnt/EFI/BOOT/BOOTX64.EFI
        echo timeout 0 > /mnt/loader/loader.conf
        printf 'title lab\nlinux /linux\ninitrd /initrd\noptions by=unsigned %s\n' "$GUEST" > /mnt/loader/entries/lab.conf
        umount /mnt
        disk /dev/vdb
        cp /share/shim.efi /mnt/EFI/BOOT/BOOTX64.EFI
        cp /share/grub.efi /mnt/EFI/BOOT/grubx64.efi
        printf 'linux /linux by=signed %s\ninitrd /initrd\nboot\n' "$GUEST" > /mnt/EFI/debian/grub.cfg
        umount /mnt
        vm() { uefi --firmware-vars /tmp/vars --secure-boot "$@" 2>&1; }
        vm --disk /dev/vda --disk /dev/vdb
        cp /share/OVMF_VARS_4M.fd /tmp/vars
        vm --disk /dev/vda
        "#),
        );
    seen.ended_with(&[0, 1]);
    seen.expect("guest: started by signed");
    seen.expect("guest: secure boot");
    assert_eq!(seen.count("guest: started by unsigned"), 0);
    assert!(seen.lines().any(|line| line.contains("Access Denied")), "{seen}");
    assert!(seen.lines().any(|line| line.contains("/tmp/vars do not turn Secure Boot on")), "{seen}");
}
