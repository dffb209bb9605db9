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
fio() { outer env LD_LIBRARY_PATH=$(cat /share/unused.path) fio "$@"; }

# The PCI function that a disk hangs on.
function_of() { readlink -f /sys/block/$1 | grep -o '[0-9a-f:]*\.[0-7]/\(ata\|nvme\)' | cut -d / -f 1; }

# A VM of this name has all it needs, and its vCPUs run.
runs() { skep list | grep -q "^$1 .*running"; }

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

# play STORY: tells the story, shows the host's log at its end, and leaves its status in $status.
play() {
    # For a story that does not end; beside its output, where a guest may be in the middle of a line.
    { for when in 1 2; do sleep 200; where_skep_is; done; } >&2 &
    # A story in a condition would go on after failures.
    (set -e; $1)
    status=$?
    echo 'host: its log'
    dmesg
}

# play_all NUMBER: so many stories, one after the other, as long as each leaves the host as it was.
play_all() {
    facts > /run/facts
    writes > /run/writes
    cp /etc/passwd /etc/group /run
    number=0
    while [ $number -lt $1 ]; do
        dmesg -c > /dev/null
        echo "host: story begins $number" >&2
        echo "host: story begins $number"
        play story_$number
        echo "host: story ended with $status"
        [ $status = 0 ] && tidy || break
        number=$((number + 1))
    done
}

# What a story may not change for the next one.
facts() {
    for device in /sys/bus/pci/devices/*; do
        echo ${device##*/} $(driver ${device##*/}) $(cat $device/driver_override)
    done
    for disk in /sys/block/*; do
        case $disk in */sd* | */nvme* | */vd* | */dm-*) echo ${disk##*/} $(cat $disk/size) $(function_of ${disk##*/}) ;; esac
    done
    cat /proc/mounts /proc/sys/vm/nr_hugepages
    ls -l /dev/kvm /dev/vfio/vfio | cut -d ' ' -f 1
    ip address | grep -v ' scope \| valid_lft ' | sed 's/ qdisc [a-z_]*//'
    ls /sys/kernel/tracing/instances
    cat /sys/kernel/tracing/kprobe_events
    losetup -a
}

# The disks by their serial numbers: which block device each has been since it came, and what was written and discarded
# by it. What an assigned controller writes is not counted, but then its disk comes anew.
writes() {
    grep -o '"serial": "[^"]*"' /lab/disks.json | cut -d '"' -f 4 | while read serial; do
        disk=/sys/block/$(disk_of $serial)
        echo $serial $(cat $disk/diskseq) $(awk '{ print $5, $12 }' $disk/stat)
    done
}

# Functions as their own drivers have them.
rebind() {
    [ ! -e /sys/bus/pci/devices/$1/driver ] || echo $1 > /sys/bus/pci/devices/$1/driver/unbind
    echo $1 > /sys/bus/pci/drivers_probe
}
names_of() { for at in "$@"; do ls /sys/bus/pci/devices/$at/nvme 2> /dev/null || true; done; }
as_it_was() { facts > /tmp/facts; cmp -s /tmp/facts /run/facts; }

# Takes away what a story left, and gives the disks back what they held. Fails when the host is not as it was.
tidy() {
    for process in /proc/[0-9]*; do
        # Kernel threads have no command line.
        case ${process#/proc/} in 1 | $$) ;; *) [ -z "$(cat $process/cmdline 2> /dev/null)" ] || kill -9 ${process#/proc/} 2> /dev/null ;; esac
    done
    wait
    ! ls /run/skep/*.json > /dev/null 2>&1 || skep host give-back > /dev/null 2>&1
    for at in $(cut -d ' ' -f 2 /proc/mounts | grep -E '^/(tmp|mnt)/?' | grep -vx /tmp | sort -r); do umount $at; done
    ! ls -d /sys/block/dm-* > /dev/null 2>&1 || lab-io dm remove-all > /dev/null
    losetup -a | cut -d : -f 1 | while read loop; do losetup -d $loop; done
    for instance in /sys/kernel/tracing/instances/*; do
        [ ! -d $instance ] || { echo 0 > $instance/events/enable; rmdir $instance; }
    done
    echo > /sys/kernel/tracing/kprobe_events
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat $device/driver_override)" = '(null)' ] || { echo > $device/driver_override; rebind ${device##*/}; }
    done
    NVMES=$(of_class 0x010802)
    # Linux counts them as they come: from the first on, if that was another order.
    names_of $NVMES | sort -c 2> /dev/null || {
        for at in $NVMES; do echo $at > /sys/bus/pci/drivers/nvme/unbind; done
        for at in $NVMES; do rebind $at; done
    }
    for net in /sys/class/net/[!l]*; do
        ip address flush dev ${net##*/}
        ip link set ${net##*/} down
    done
    cp /run/passwd /run/group /etc
    rm -rf /run/skep /tmp/*
    if ! wait_for 10 as_it_was > /dev/null; then
        say 'this host is not used again, for the story changed it:'
        diff /run/facts /tmp/facts
        return 1
    fi
    sync
    echo 3 > /proc/sys/vm/drop_caches
    writes | grep -vxFf /run/writes | while read serial facts; do
        lab-io original /dev/$(disk_of $serial) $serial || exit 1
    done && writes > /run/writes
}
