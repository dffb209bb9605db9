# Makes an installed Debian in the current folder: make.sh SUITE
#   vmlinuz, initrd                   its kernel and initramfs, to boot it without its boot loader
#   systemd-boot.img, grub.img        disks: GPT, an EFI system partition with that boot loader, and the root file system
# Nothing is mounted: file systems are made from folders and put into their partitions.
set -e
SUITE=$1
FILES=$(cd "$(dirname "$0")" && pwd)
export FILES

PACKAGES=systemd-sysv,dbus,linux-image-amd64,initramfs-tools,kmod,udev,e2fsprogs,login,efibootmgr,busybox-static,cpio
LOADERS=systemd-boot-efi,grub-efi-amd64-bin
CMDLINE='root=LABEL=root rw console=ttyS0 quiet no_timer_check panic=-1'
# What takes long on an emulated CPU and is of no use there, as in the lab's other guests.
CMDLINE="$CMDLINE mitigations=off cryptomgr.notests pty.legacy_count=0"
CMDLINE="$CMDLINE initcall_blacklist=crypto_kdf108_init,init_kprobe_trace"

# On a machine that does other things too, systemd's 90 seconds for a device can be too few.
CMDLINE="$CMDLINE systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900"

# In MiB.
ESP=64
ROOT=1000

leave_out() { for path in "$@"; do echo "--dpkgopt=path-exclude=$path"; done; }
mmdebstrap --quiet --variant=minbase --include="$PACKAGES,$LOADERS" \
    $(set -f; leave_out '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' \
        '/lib/modules/*/kernel/sound/*' '/lib/modules/*/kernel/net/wireless/*' \
        '/lib/modules/*/kernel/drivers/gpu/*' '/lib/modules/*/kernel/drivers/media/*' \
        '/lib/modules/*/kernel/drivers/net/wireless/*' '/lib/modules/*/kernel/drivers/infiniband/*' \
        '/lib/modules/*/kernel/drivers/staging/*' '/lib/modules/*/kernel/drivers/iio/*') \
    --customize-hook="sh $FILES/in-root.sh \"\$1\"" "$SUITE" root
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd

# Debian keeps the loaders' files in packages; installed are copies of them.
mkdir -p systemd-boot/EFI/systemd systemd-boot/EFI/BOOT systemd-boot/loader/entries systemd-boot/debian
cp root/usr/lib/systemd/boot/efi/systemd-bootx64.efi systemd-boot/EFI/systemd/
cp root/usr/lib/systemd/boot/efi/systemd-bootx64.efi systemd-boot/EFI/BOOT/BOOTX64.EFI
cp vmlinuz initrd systemd-boot/debian/
echo 'timeout 0' > systemd-boot/loader/loader.conf
echo "title Debian
linux /debian/vmlinuz
initrd /debian/initrd
options $CMDLINE" > systemd-boot/loader/entries/debian.conf

mkdir -p grub/EFI/debian grub/EFI/BOOT root/boot/grub
cp root/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi grub/EFI/debian/
cp root/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi grub/EFI/BOOT/BOOTX64.EFI
echo 'search --label root --set root
configfile ($root)/boot/grub/grub.cfg' > grub/EFI/debian/grub.cfg
echo "set timeout=0
menuentry Debian {
    linux /boot/$(cd root/boot; echo vmlinuz-*) $CMDLINE
    initrd /boot/$(cd root/boot; echo initrd.img-*)
}" > root/boot/grub/grub.cfg
rm -rf root/usr/lib/grub/x86_64-efi root/usr/lib/systemd/boot/efi

mke2fs -q -t ext4 -L root -d root root.img ${ROOT}M
for loader in systemd-boot grub; do
    # Apart: mkfs.vfat in the image would write over the partition table.
    mkfs.vfat -F 32 -n ESP -C esp.img $((ESP * 1024)) > /dev/null
    mcopy -s -i esp.img $loader/* ::
    truncate -s $((ESP + ROOT + 2))M $loader.img
    sgdisk --new 1:1M:+${ESP}M --typecode 1:ef00 --change-name 1:ESP \
        --new 2:$((1 + ESP))M:+${ROOT}M --typecode 2:8304 --change-name 2:root $loader.img > /dev/null
    dd if=esp.img of=$loader.img bs=1M seek=1 conv=notrunc,sparse status=none
    dd if=root.img of=$loader.img bs=1M seek=$((1 + ESP)) conv=notrunc,sparse status=none
    rm -rf esp.img $loader
done
rm -rf root root.img
