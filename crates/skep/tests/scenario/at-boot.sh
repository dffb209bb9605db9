# What the installed system does at each boot by firmware: without its boot entry, it makes one, as an installer does, and writes
# a file; with it, it looks for both. It reboots after one boot and switches off after the next.
# It starts few programs, which take long there.
[ -d /sys/firmware/efi ] || exit 0
state=$(systemctl is-system-running --wait)
exec > /dev/ttyS0 2>&1
say() { echo "guest: $*"; }
# systemd counts a login as there before it has its terminal. It waits for a name, in read or select, once its prompt is out.
at_its_prompt() {
    getty=$(pidof agetty) && read -r call rest < "/proc/$getty/syscall"
    case $call in 0 | 23 | 270) ;; *) return 1 ;; esac
}
tries=0
until at_its_prompt; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || { say "no login waits for a name: ${getty:-none} is in ${call:-no call}" && break; }
    sleep 1
done
# The prompt is on a line that does not end.
echo
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
        ;;
esac
# What a terminal has not sent yet is lost when systemd takes it from the login: this waits until all is out.
stty -F /dev/ttyS0 intr ^C
if rm /var/lib/rebooted 2> /dev/null; then
    systemctl poweroff
else
    : > /var/lib/rebooted
    systemctl reboot
fi
