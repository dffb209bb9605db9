# What the installed system does at each boot by firmware: without its boot entry, it makes one, as an installer does, writes
# a file and reboots; with it, it looks for both, and switches off.
# It starts few programs, which take long there.
[ -d /sys/firmware/efi ] || exit 0
state=$(systemctl is-system-running --wait)
exec > /dev/ttyS0 2>&1
# The prompt of the login is there, on a line that does not end.
echo
say() { echo "guest: $*"; }
read -r up idle < /proc/uptime
say "state $state"
say "up for $up s"
[ "$state" = running ] || systemctl --failed --no-legend
while read -r root at rest && [ "$at" != / ]; do :; done < /proc/mounts
case $(readlink -f "/sys/class/block/${root#/dev/}") in
    */virtio*) say disk virtio ;;
    */nvme*) say disk nvme ;;
    */ata*) say disk ata ;;
esac
entries=$(efibootmgr)
case $entries in
    *'* kept'*)
        number=${entries%%\* kept*}
        number=${number##*Boot}
        case $entries in *"BootCurrent: $number"*) say booted by its entry ;; esac
        read -r words < /var/lib/written && say "found the file: $words"
        systemctl poweroff
        ;;
    *)
        disk=${root%2}
        case $disk in *nvme*) disk=${disk%p} ;; esac
        mount /boot/efi
        loader='\EFI\systemd\systemd-bootx64.efi'
        [ ! -d /boot/efi/EFI/debian ] || loader='\EFI\debian\grubx64.efi'
        echo 'by the first boot' > /boot/efi/written
        umount /boot/efi
        efibootmgr -q -c -L kept -d "$disk" -p 1 -l "$loader" || say 'no entry was made'
        echo 'by the first boot' > /var/lib/written
        systemctl reboot
        ;;
esac
