# Functions of the host and of its guests.

# That of the lab for standard input, which is much faster under emulation; else that of busybox.
sha256sum() {
    case $# in
        0) lab-io sum | sed 's/^sum \(.*\)/\1  -/' ;;
        *) command sha256sum "$@" ;;
    esac
}

# The checksums of whole disks: sum NAME SHA256
sums() {
    for disk in "$@"; do say "sum $disk $(sha256sum < /dev/$disk | cut -d ' ' -f 1)"; done
}

# The disk with a serial number: its name in /dev.
disk_of() {
    for disk in /sys/block/*; do
        for serial in $disk/serial $disk/device/serial $disk/device/vpd_pg80; do
            [ ! -r $serial ] || case $(tr -cd '[:alnum:]' < $serial) in *$1) echo ${disk##*/};; esac
        done
    done
}

# patterns fill|check DEVICE SEED: 16 MiB from 1 MiB on, in requests of 4 KiB to 1 MiB, in single pieces and in
# many. The host, whose memory is not the matter, compares in scattered pages.
patterns() {
    echo 1 > /proc/sys/vm/nr_hugepages
    at=1
    for size in 4K 64K 256K 1M; do
        for pieces in scattered whole; do
            lab-io $1 $2 ${at}M 2M $size $3 $pieces > /dev/null || { say "$1 $2 $3 failed"; return 1; }
            at=$((at + 2))
        done
    done
    echo 0 > /proc/sys/vm/nr_hugepages
    say "$1 $2 $3 ok"
}

# wait_for SECONDS COMMAND...: tries until it succeeds.
wait_for() {
    deadline=$(($(cut -d . -f 1 /proc/uptime) + $1))
    shift
    until "$@" 2> /dev/null; do
        [ $(cut -d . -f 1 /proc/uptime) -lt $deadline ] || { say "waited in vain for: $*"; return 1; }
        sleep 0.2
    done
}
