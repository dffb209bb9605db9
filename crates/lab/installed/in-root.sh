# What an installer asks, and what makes a system quick where its CPU is emulated twice: each program that starts costs a
# tenth of a second there. mmdebstrap runs it, with the root folder, when the packages are there.
set -e
ROOT=$1

chroot "$ROOT" passwd -q -d root
echo installed > "$ROOT/etc/hostname"
echo '127.0.0.1 localhost installed' > "$ROOT/etc/hosts"
mkdir -p "$ROOT/boot/efi"
# The initial RAM disk mounts the root file system writable, and nothing has to do it again.
echo 'LABEL=ESP /boot/efi vfat umask=0077,noauto 0 0' > "$ROOT/etc/fstab"

# udev looks at disks, keys and the console.
units=$ROOT/etc/systemd/system
mkdir -p "$units/systemd-udev-trigger.service.d" "$ROOT/etc/systemd/journald.conf.d" "$ROOT/etc/systemd/system-generators"
echo '[Service]
ExecStart=
ExecStart=udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=input
ExecStart=udevadm trigger --type=devices --action=add --sysname-match=ttyS0' > "$units/systemd-udev-trigger.service.d/few.conf"
echo '[Journal]
Storage=volatile' > "$ROOT/etc/systemd/journald.conf.d/volatile.conf"
for generator in "$ROOT"/usr/lib/systemd/system-generators/*; do
    case ${generator##*/} in
        *fstab* | *getty*) ;;
        *) ln -s /dev/null "$ROOT/etc/systemd/system-generators/${generator##*/}" ;;
    esac
done
chroot "$ROOT" systemctl --quiet mask getty@tty1.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer \
    e2scrub_reap.service systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-pstore.service systemd-journal-flush.service systemd-sysusers.service systemd-sysctl.service \
    systemd-tmpfiles-setup-dev.service systemd-remount-fs.service systemd-modules-load.service kmod-static-nodes.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@fuse.service modprobe@loop.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount
cp "$FILES/at-boot.service" "$units/"
chroot "$ROOT" systemctl --quiet enable at-boot.service

# The initial RAM disk: busybox, and the drivers of the disks that VMs have, of the power button and of firmware's variables,
# in an order in which they can be loaded.
ram=$ROOT/tmp/ram
mkdir -p "$ram/bin" "$ram/dev" "$ram/proc" "$ram/root" "$ram/modules"
cp "$ROOT/bin/busybox" "$ram/bin/"
cp "$FILES/init" "$ram/init"
chmod +x "$ram/init"
version=$(ls "$ROOT/usr/lib/modules")
for module in virtio_pci virtio_blk nvme ahci sd_mod crc32c_generic ext4 button evdev efivarfs nls_ascii nls_cp437 vfat; do
    chroot "$ROOT" modprobe --set-version "$version" --show-depends $module | sed -n 's/^insmod //p'
done | awk '!seen[$1]++ { print $1 }' | {
    number=100
    while read -r file; do
        cp "$ROOT$file" "$ram/modules/$number-${file##*/}"
        number=$((number + 1))
    done
}
chroot "$ROOT" sh -c 'cd /tmp/ram && find . | cpio --quiet -o -H newc' | gzip -1 > "$ROOT/boot/initrd.img-$version"

rm -rf "$ram" "$ROOT"/var/cache/apt/* "$ROOT"/var/lib/apt/lists/*
