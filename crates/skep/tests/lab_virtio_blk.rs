//! virtio-blk as Linux drives it: packed queues, the write cache, and drivers that come and go.

mod scenario;

use std::time::Duration;

use scenario::{Scenario, together};

fn linux_uses_packed_queues_switches_the_cache_discards_and_sees_its_disk_grow() {
    let seen = Scenario::quick().run(
        r#"
        truncate -s 64M /tmp/b.img
        touch /tmp/seen
        (until grep -q before /tmp/seen; do sleep 1; done; truncate -s 96M /tmp/b.img) &
        guest '
            packed() { cut -c 35 /sys/block/$1/device/features; }
            cache() { echo "$(cat /sys/block/$1/cache_type), $(cat /sys/block/$1/queue/write_cache)"; }
            say packed $(packed vda) $(packed vdb)
            say cache $(cache vda), $(cache vdb)
            sums vda
            echo "write through" > /sys/block/vda/cache_type
            say through $(cache vda)
            patterns fill /dev/vda 1
            patterns check /dev/vda 1
            echo "write back" > /sys/block/vda/cache_type
            say back $(cache vda)
            dd if=/dev/vda of=/dev/vdb bs=1M count=32 conv=fsync 2> /dev/null
            say copy $(dd if=/dev/vdb bs=1M count=32 2> /dev/null | sha256sum)
            say discard $(cat /sys/block/vdb/queue/discard_granularity) $(cat /sys/block/vdb/queue/write_zeroes_max_bytes)
            blkdiscard -o 4194304 -l 8388608 /dev/vdb
            say left $(dd if=/dev/vdb bs=1M skip=4 count=8 2> /dev/null | tr -d "\0" | wc -c)
            say before $(cat /sys/block/vdb/size)
            grown() { [ $(cat /sys/block/vdb/size) = 196608 ]; }
            wait_for 60 grown
            lab-io fill /dev/vdb 80M 2M 64K 2 scattered > /dev/null
            lab-io check /dev/vdb 80M 2M 64K 2 scattered > /dev/null
            say after
        ' --cpus 2 --disk /dev/sda,packed=on --disk /tmp/b.img,packed=on,write-cache=off,queues=1 | tee /tmp/seen
        patterns check /dev/sda 1
        say copy $(dd if=/dev/sda bs=1M count=32 2> /dev/null | sha256sum)
        say left $(dd if=/tmp/b.img bs=1M skip=4 count=8 2> /dev/null | tr -d "\0" | wc -c)
        lab-io check /tmp/b.img 80M 2M 64K 2 scattered > /dev/null
        say grown too"#,
    );
    seen.ended_with(&[0]);
    seen.expect("guest: packed 1 1");
    seen.expect("guest: cache write back, write back, write through, write through");
    seen.expect("guest: through write through, write through");
    seen.expect("guest: back write back, write back");
    seen.expect(&format!("guest: sum vda {}", seen.sum("AHCI0")));
    seen.expect("guest: check /dev/vda 1 ok");
    seen.expect("host: check /dev/sda 1 ok");
    assert_eq!(seen.after("guest: copy "), seen.after("host: copy "), "{seen}");
    for line in ["guest: left 0", "host: left 0", "guest: before 131072", "guest: after", "host: grown too"] {
        seen.expect(line);
    }
}

/// Takes the driver from the disk and gives it back, so many times, each time under load. Linux resets the device each
/// time it lets it go and each time it takes it.
fn resets(times: u32, disk: &str) {
    let seen = Scenario::quick().patience(Duration::from_secs(3000)).run(&format!(
        r#"
        guest '
            patterns fill /dev/vda 1
            DEVICE=$(basename $(readlink -f /sys/block/vda/device))
            DRIVER=/sys/bus/virtio/drivers/virtio_blk
            for i in $(seq {times}); do
                lab-io randread /dev/vda 4K 16 60 > /dev/null 2>&1 &
                lab-io seqread /dev/vda 64K 4 60 > /dev/null 2>&1 &
                sleep 0.0$((i % 7))
                echo $DEVICE > $DRIVER/unbind
                wait
                echo $DEVICE > $DRIVER/bind
                wait_for 20 test -b /dev/vda
            done
            say resets $i
            patterns check /dev/vda 1
            patterns fill /dev/vda 2
        ' --cpus 2 --disk /dev/sda{disk}
        patterns check /dev/sda 2"#
    ));
    seen.ended_with(&[0]);
    seen.expect(&format!("guest: resets {times}"));
    seen.expect("guest: check /dev/vda 1 ok");
    seen.expect("host: check /dev/sda 2 ok");
    // What skep itself would say of a driver that went wrong.
    assert!(!seen.to_string().contains("waits for its driver"), "{seen}");
}

fn a_driver_comes_and_goes_under_load() {
    resets(50, ",packed=on");
}

#[test]
#[ignore = "takes minutes; run by hand with --run-ignored only"]
fn a_driver_comes_and_goes_a_thousand_times_under_load_on_each_kind_of_queue() {
    resets(500, ",packed=on");
    resets(500, "");
}

together::together! { stories_of_virtio_blk_in_one_host:
    linux_uses_packed_queues_switches_the_cache_discards_and_sees_its_disk_grow,
    a_driver_comes_and_goes_under_load,
}
