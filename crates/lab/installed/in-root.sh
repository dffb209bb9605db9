# What an installer asks, and what makes a system quick where its CPU is emulated twice: each program that starts costs a
# tenth of a second there. mmdebstrap runs it, with the root folder, when the packages are there.
set -e
ROOT=$1

chroot "$ROOT" passwd -q -d root
echo installed > "$ROOT/etc/hostname"
echo '127.0.0.1 localhost installed' > "$ROOT/etc/hosts"
# Without an identity, the first boot would be for choosing one, and set up all units again.
rm -f "$ROOT/etc/machine-id"
chroot "$ROOT" systemd-machine-id-setup > /dev/null
mkdir -p "$ROOT/boot/efi"
# The kernel mounts the root file system writable, and nothing has to do it again.
echo 'LABEL=ESP /boot/efi vfat umask=0077,noauto 0 0' > "$ROOT/etc/fstab"

# The initramfs has the drivers of the disks that VMs have, and loads them all: udev would ask which of them are wanted.
echo MODULES=list > "$ROOT/etc/initramfs-tools/conf.d/drivers"
printf '%s\n' virtio_pci virtio_blk nvme ahci sd_mod ext4 crc32c_generic >> "$ROOT/etc/initramfs-tools/modules"
rm "$ROOT"/usr/share/initramfs-tools/hooks/udev "$ROOT"/usr/share/initramfs-tools/scripts/init-*/udev
echo '#!/bin/sh
[ "$1" = prereqs ] || { . /usr/share/initramfs-tools/hook-functions; copy_exec /sbin/blkid; }' > "$ROOT/etc/initramfs-tools/hooks/blkid"
chmod +x "$ROOT/etc/initramfs-tools/hooks/blkid"
chroot "$ROOT" update-initramfs -u 2>&1 | grep -v 'No zstd\|type of root file system' >&2 || true

# udev looks at disks, terminals and keys; the drivers of keys and of firmware's variables are loaded by name.
mkdir -p "$ROOT/etc/systemd/system/systemd-udev-trigger.service.d" "$ROOT/etc/systemd/system-generators"
echo '[Service]
ExecStart=
ExecStart=udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=tty --subsystem-match=input' \
    > "$ROOT/etc/systemd/system/systemd-udev-trigger.service.d/few.conf"
printf '%s\n' button evdev efivarfs > "$ROOT/etc/modules-load.d/few.conf"
mkdir -p "$ROOT/etc/systemd/journald.conf.d"
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
    systemd-pstore.service systemd-journal-flush.service kmod-static-nodes.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@fuse.service modprobe@loop.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount

cp "$FILES/at-boot.service" "$ROOT/etc/systemd/system/"
chroot "$ROOT" systemctl --quiet enable at-boot.service
rm -rf "$ROOT"/var/cache/apt/* "$ROOT"/var/lib/apt/lists/*
