# Functions of the host. `scenario`, the story, is defined after them.
say() { echo "host: $*"; }

# What takes long in a guest of an emulated CPU and is of no use there is left out: see QUICK_BOOT of the lab, and tracing by
# kprobes and disks that are only pretended.
GUEST='console=ttyS0 no_timer_check panic=-1 quiet mitigations=off cryptomgr.notests pty.legacy_count=0'
GUEST="$GUEST initcall_blacklist=crypto_kdf108_init,init_kprobe_trace,nbd_init,null_init,scsi_debug_init"

# start SCRIPT ARGUMENTS...: skep with the lab's guest, which runs SCRIPT. Its exit status is skep's.
start() {
    { echo 'set -e; say() { echo "guest: $*"; }'; both; echo "$1"; } > /tmp/script
    shift
    lab-initrd /tmp/script /tmp/initrd
    [ ! -f /share/programs.cpio ] || cat /share/programs.cpio >> /tmp/initrd
    skep run --memory ${MEMORY:-256M} --kernel ${KERNEL:-/lab/guest/vmlinux} --initrd /tmp/initrd \
        --cmdline "$GUEST" "$@" < /dev/null
}

# guest SCRIPT ARGUMENTS...: the same, and says how it ended.
guest() {
    start "$@" && ended=0 || ended=$?
    say "skep ended with $ended"
}

# try COMMAND...: says how a command ended that may fail, with its errors as lines of their own.
try() {
    "$@" > /tmp/tried 2>&1 < /dev/null && ended=0 || ended=$?
    sed 's/^/host: said /' /tmp/tried
    say "skep ended with $ended"
}

# The addresses of all PCI functions of a class: 0x010802 is NVMe, 0x010601 AHCI, 0x020000 Ethernet.
of_class() {
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat $device/class)" != $1 ] || echo ${device##*/}
    done
}

# Programs of the outer machine, whose / the host has at /host.
outer() { chroot /host "$@"; }
fio() { outer fio "$@"; }

# The PCI function that a disk hangs on.
function_of() { readlink -f /sys/block/$1 | grep -o '[0-9a-f:]*\.[0-7]/\(ata\|nvme\)' | cut -d / -f 1; }

# The driver of a PCI function, or none.
driver() {
    link=$(readlink /sys/bus/pci/devices/$1/driver) || link=none
    echo ${link##*/}
}

# given_back ADDRESS DRIVER: the device is with its driver, as if nothing had been.
given_back() {
    say "$1 driver $(driver $1) override $(cat /sys/bus/pci/devices/$1/driver_override) records $(ls /run/skep/*.json 2> /dev/null | wc -l)"
    [ $(driver $1) = $2 ]
}

# A disk that its driver has just got again takes a moment to appear.
disk_is_back() { wait_for 20 test -b /dev/$1; }

# Where all threads of skep are, and what the CPUs do.
where_skep_is() {
    for skep in $(pidof skep); do
        for thread in /proc/$skep/task/*; do
            say "skep $skep, $(cat $thread/comm): $(grep State $thread/status), in $(cat $thread/wchan), $(cat $thread/syscall)"
        done
    done
    top -b -n 1 | head -20
}

# Tells the story, and shows the host's log at the end.
play() {
    # For a story that does not end; beside its output, where a guest may be in the middle of a line.
    { for when in 1 2; do sleep 200; where_skep_is; done; } >&2 &
    # A story in a condition would go on after failures.
    (set -e; scenario)
    status=$?
    echo 'host: its log'
    dmesg
    exit $status
}
