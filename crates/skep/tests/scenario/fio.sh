# fio, in the host and in its guests: patterns, each on its own part of a disk, on all of $DISKS at once, which are
# NAME=PATH each. The parts of a disk of 32 MiB times $SCALE do not overlap.

# The options of a pattern.
pattern() {
    MIB=$((1048576 * SCALE))
    part() { echo --offset=$(($1 * MIB + ${3:-0})) --size=$(($2 * MIB)); }
    case $1 in
        sequential) echo --rw=write --bs=128k --iodepth=8 $(part 0 8) ;;
        random) echo --rw=randwrite --bs=4k --iodepth=16 $(part 8 2) ;;
        deep) echo --rw=randrw --bs=4k --iodepth=32 --fsync=64 $(part 10 2) ;;
        trims) echo --rw=randtrimwrite --bs=16k $(part 12 2) ;;
        sizes) echo --rw=randwrite --bssplit=512/30:1k/20:4k/20:16k/20:64k/10 --iodepth=8 $(part 16 2) ;;
        misaligned) echo --rw=randwrite --bs=3584 --iodepth=8 $(part 20 1 512) ;;
        buffered) echo --rw=write --bsrange=500-70000 --bs_unaligned --direct=0 --end_fsync=1 $(part 24 4 1000) ;;
    esac
}

# fio_on write|check PATTERN...: writes and reads it all back, or reads what was written before.
fio_on() {
    how=$1
    shift
    case $how in check) only=--verify_only ;; *) only= ;; esac
    for name in "$@"; do
        echo 3 > /proc/sys/vm/drop_caches
        jobs=
        for disk in $DISKS; do jobs="$jobs --name=${disk%%=*} --filename=${disk#*=}"; done
        if fio --name=global --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
            --clocksource=clock_gettime $(pattern $name) $only $jobs > /tmp/fio.log 2>&1 < /dev/null
        then say "fio $how $name ok"
        else cat /tmp/fio.log; say "fio $how $name failed"
        fi
    done
}
