//! An installed Debian boots from wherever its disk is: by UEFI firmware, twice, and by its kernel to a login.

mod scenario;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use lab::{Loader, Size};
use scenario::firmware::{CODE, LOADER, UEFI, VARS, put};
use scenario::installed::{InstalledDisk, system};
use scenario::{EACH_INSTALLED_BOOT, Scenario, packages};

/// Where a system boots from.
struct Place {
    name: &'static str,
    /// skep's flags for it.
    flags: &'static str,
    /// What the system's disk hangs on then.
    hangs_on: &'static str,
}

/// Something must have been said so often, be it behind what moves the cursor, or behind a prompt.
fn says(name: &str, lines: &[&str], what: &str, times: usize) {
    let count = lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(count, times, "{name}: {what:?}, in:\n{}", lines.join("\n"));
}

/// Boots the system on a disk twice from each of these places, one after the other in one emulated host. In between it reboots.
/// At its very first boot it makes a boot entry, which finds it at all places from then on.
fn boots_from(host: Scenario, folder: &Path, disk: &InstalledDisk, places: &[Place]) {
    put(&[CODE, VARS], folder);
    let mut script = String::from(
        "# Firmware and system, twice.
        PATIENCE=2400
        boot() {
            name=$1
            shift
            began=$(cut -d . -f 1 /proc/uptime)
            uefi --firmware-vars /tmp/vars \"$@\"
            say \"$name took $(($(cut -d . -f 1 /proc/uptime) - began)) s\"
        }\n",
    );
    for Place { name, flags, .. } in places {
        writeln!(script, "boot {name} {flags}").unwrap();
    }
    let seen = host
        .patience(EACH_INSTALLED_BOOT * 2 * places.len() as u32)
        .guest_firmware()
        .memory(Size::mib(1536))
        .share(folder)
        .run(&(UEFI.to_owned() + &script));
    seen.ended_with(&vec![0; places.len()]);
    for (index, (Place { name, hangs_on, .. }, lines)) in places.iter().zip(seen.each_vm()).enumerate() {
        let has = |what: &str, times| says(name, &lines, what, times);
        has("guest: state running", 2);
        has(&format!("guest: disk {hangs_on}"), 2);
        has("installed login:", 2);
        let by_the_entry = if index == 0 { 1 } else { 2 };
        has("guest: booted by its entry", by_the_entry);
        has("guest: found the file: by the first boot", by_the_entry);
    }
    disk.is_clean();
}

#[test]
fn a_debian_with_systemd_boot_boots_from_an_assigned_nvme_controller_a_driven_one_and_an_emulated_one() {
    let folder = tempfile::tempdir().unwrap();
    let disk = InstalledDisk::new(folder.path(), Loader::SystemdBoot);
    let host = Scenario::new().disk(&format!("nvme:{}", disk.path().display()));
    boots_from(
        host,
        folder.path(),
        &disk,
        &[
            Place { name: "assigned-nvme", flags: "--assign $(of_class 0x010802)", hangs_on: "nvme" },
            Place { name: "driven-nvme", flags: "--disk nvme=$(of_class 0x010802)", hangs_on: "virtio" },
            Place { name: "emulated-nvme", flags: "--disk path=/dev/nvme0n1,model=nvme", hangs_on: "nvme" },
        ],
    );
}

#[test]
fn a_debian_with_grub_boots_from_an_assigned_ahci_controller_and_from_a_physical_disk_as_virtio_blk_and_ahci()
{
    let folder = tempfile::tempdir().unwrap();
    let disk = InstalledDisk::new(folder.path(), Loader::Grub);
    let host = Scenario::new().disk(&format!("ahci:{}", disk.path().display()));
    boots_from(
        host,
        folder.path(),
        &disk,
        &[
            Place { name: "assigned-ahci", flags: "--assign $(function_of sda)", hangs_on: "ata" },
            Place { name: "virtio-blk", flags: "--disk /dev/sda", hangs_on: "virtio" },
            Place { name: "emulated-ahci", flags: "--disk path=/dev/sda,model=ahci", hangs_on: "ata" },
        ],
    );
}

/// One boot after the other in one emulated host, each of the system that the one before left on the disk.
fn boots_to_a_login(all: &[(&str, u32)]) {
    let folder = tempfile::tempdir().unwrap();
    let disk = InstalledDisk::new(folder.path(), Loader::SystemdBoot);
    let boots: Vec<String> = all.iter().map(|(model, cpus)| format!("boot {model} {cpus}")).collect();
    let seen = Scenario::new()
        .patience(EACH_INSTALLED_BOOT * all.len() as u32)
        .memory(Size::mib(1024))
        .share(system().folder())
        // Not on AHCI: QEMU's own loses a command now and then, and Linux waits for it for half a minute.
        .disk(&format!("virtio:{}", disk.path().display()))
        .run(&format!(
            "# On a machine that does other things too, systemd's 90 seconds for a device can be too few.
             PATIENT='systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900'
             boot() {{
                 : > /tmp/console
                 skep run --name debian --memory 512M --cpus $2 --kernel /share/vmlinuz --initrd /share/initrd \
                     --cmdline \"$GUEST root=LABEL=root $PATIENT\" \
                     --disk path=/dev/vda,model=$1 --console file:/tmp/console < /dev/null &
                 login=no
                 wait_for 800 grep -q 'installed login:' /tmp/console && login=yes
                 skep stop --wait debian
                 wait $! && ended=0 || ended=$?
                 say $1 with $2 CPUs login $login
                 say skep ended with $ended
                 [ $login$ended = yes0 ] || tail -n 40 /tmp/console
             }}
             {}",
            boots.join("\n")
        ));
    seen.ended_with(&vec![0; all.len()]);
    for (model, cpus) in all {
        let line = format!("host: {model} with {cpus} CPUs login yes");
        assert_eq!(
            seen.count(&line),
            all.iter().filter(|one| *one == &(*model, *cpus)).count(),
            "{line}\n{seen}"
        );
    }
    disk.is_clean();
}

#[test]
fn an_installed_debian_boots_to_a_login_and_is_switched_off() {
    boots_to_a_login(&[("nvme", 2)]);
}

#[test]
#[ignore = "half an hour"]
fn thirty_boots_of_an_installed_debian_reach_a_login_and_end() {
    let round = [("virtio-blk", 2), ("nvme", 1), ("ahci", 2), ("virtio-blk", 1), ("nvme", 2), ("ahci", 1)];
    // In two emulated hosts at a time.
    std::thread::scope(|scope| {
        for rounds in [3, 2] {
            scope.spawn(move || (0..rounds).for_each(|_| boots_to_a_login(&round)));
        }
    });
}

#[test]
fn a_disc_boots_twice_and_a_variable_is_kept_and_memtest86_runs_and_a_disc_for_once_leaves_the_reset_to_the_disk()
 {
    let folder = tempfile::tempdir().unwrap();
    put(&[CODE, VARS, LOADER], folder.path());
    let grub = packages::file("grub-efi-amd64-bin", "./usr/lib/grub/x86_64-efi/monolithic/gcdx64.efi");
    fs::copy(grub.unwrap(), folder.path().join("grub.efi")).unwrap();
    for (path, name) in [
        ("./boot/memtest86+x64.efi", "memtest.efi"),
        ("./usr/lib/memtest86+/memtest86+x64.iso", "debian.iso"),
    ] {
        fs::copy(packages::file("memtest86+", path).unwrap(), folder.path().join(name)).unwrap();
    }
    let seen = Scenario::new()
        .patience(EACH_INSTALLED_BOOT * 4)
        .guest_firmware()
        .memory(Size::mib(1536))
        .share(folder.path())
        .outer_root()
        .disk("ahci:100M")
        .run(
            &(UEFI.to_owned()
                + r#"
        { echo 'set -e; say() { echo "guest: $*"; }'; both; cat; } > /tmp/script << 'END'
            mount -t iso9660 -o ro /dev/sr0 /mnt
            say "the disc says $(cat /mnt/words)"
            mount -t efivarfs efivarfs /sys/firmware/efi/efivars
            kept=/sys/firmware/efi/efivars/Kept-3f1c6e7a-5d0b-4c57-9a43-0b1e3f7a9c55
            if [ -f $kept ]; then
                say "the variable says $(tail -c +5 $kept)"
            else
                # Its attributes are the first four bytes: kept when the power is off, for boot and afterwards.
                printf '\007\000\000\000again' > $kept
                reboot -f
                sleep 100
            fi
END
        work=/host/tmp/disc
        mkdir -p $work/disc/boot/grub
        lab-initrd /tmp/script $work/disc/initrd
        cp /lab/guest/vmlinuz /share/grub.efi $work
        mv $work/vmlinuz $work/disc
        echo hello > $work/disc/words
        echo "linux /vmlinuz $GUEST
              initrd /initrd
              boot" > $work/disc/boot/grub/grub.cfg
        outer sh -e -c '
            cd /tmp/disc
            mkfs.vfat -C disc/efi.img 8192 > /dev/null
            mmd -i disc/efi.img ::EFI ::EFI/BOOT
            mcopy -i disc/efi.img grub.efi ::EFI/BOOT/BOOTX64.EFI
            xorriso -as mkisofs -quiet -R -V DISC -e efi.img -no-emul-boot -o disc.iso disc'
        uefi --firmware-vars /tmp/vars --disk path=$work/disc.iso,model=ahci-cd
        mkdosfs /dev/sda > /dev/null
        modprobe vfat
        mount -t vfat /dev/sda /mnt
        mkdir -p /mnt/EFI/BOOT /mnt/loader/entries
        cp /share/loader.efi /mnt/EFI/BOOT/BOOTX64.EFI
        cp $work/disc/vmlinuz /mnt
        echo 'echo; echo "guest: the disk boots"' > /tmp/script
        lab-initrd /tmp/script /mnt/initrd
        echo timeout 0 > /mnt/loader/loader.conf
        printf 'title lab\nlinux /vmlinuz\ninitrd /initrd\noptions %s\n' "$GUEST" > /mnt/loader/entries/lab.conf
        umount /mnt
        # memtest86+ shows itself on a serial port only if it is told to. Debian's own disc does not.
        cp /share/memtest.efi $work/disc
        printf 'linux /memtest.efi console=ttyS0,115200\nboot\n' > $work/disc/boot/grub/grub.cfg
        outer sh -e -c 'cd /tmp/disc; xorriso -as mkisofs -quiet -R -V DISC -e efi.img -no-emul-boot -o memtest.iso disc'
        for disc in $work/memtest.iso /share/debian.iso; do
            : > /tmp/console
            skep run --name memtest --memory 64M --firmware /share/OVMF_CODE_4M.fd --firmware-vars /tmp/memtest \
                --disk path=$disc,model=ahci-cd --console file:/tmp/console < /dev/null & VM=$!
            wait_for 380 grep -q -e "Errors: 0" -e "set_screen_info() failed" /tmp/console || cat /tmp/console
            skep stop --now memtest
            wait $VM || say "memtest86+ of $(basename $disc) was there, and skep ended with $?"
        done
        uefi --firmware-vars /tmp/once --boot once:cd --disk path=/dev/sda,bootindex=0 --disk path=$work/disc.iso,model=ahci-cd
        "#),
        );
    seen.ended_with(&[0, 0]);
    for disc in ["memtest.iso", "debian.iso"] {
        assert_eq!(
            seen.count(&format!("host: memtest86+ of {disc} was there, and skep ended with 5")),
            1,
            "{seen}"
        );
    }
    let [twice, once] = &seen.each_vm()[..] else { panic!("not two VMs: {seen}") };
    says("a disc", twice, "guest: the disc says hello", 2);
    says("a disc", twice, "guest: the variable says again", 1);
    says("a disc for once", once, "guest: the disc says hello", 1);
    says("a disc for once", once, "guest: the disk boots", 1);
}
