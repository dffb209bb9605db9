//! Assigned, used and given back, again and again: nothing stays behind in the host.

mod scenario;

use scenario::tiny::{CRASH, DEAF, written_to};
use scenario::{Scenario, together};

/// So many VMs, one after the other, each with an assigned device and a disk, all of whose RAM is pinned.
fn cycles(count: u32) {
    let (crash, deaf) = (written_to("/tmp/crash", &CRASH), written_to("/tmp/deaf", &DEAF));
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         {deaf}
         pinned() {{ awk '/nr_foll_pin_acquired/ {{ all += $2 }} /nr_foll_pin_released/ {{ all -= $2 }} END {{ print all }}' /proc/vmstat; }}
         state() {{
             sleep 1
             say $1 pinned $(pinned)
             say $1 tracing $(ls /sys/kernel/tracing/instances | wc -l) $(wc -l < /sys/kernel/tracing/kprobe_events)
         }}
         cycle() {{ skep run --memory 64M --kernel /tmp/crash --assign $NVME --disk /dev/sda < /dev/null > /dev/null 2>&1 || [ $? = 3 ]; }}
         skep run --memory 64M --kernel /tmp/deaf --assign $NVME < /dev/null & vm=$!
         wait_for 60 eval '[ $(pinned) -ge 16384 ]'
         state while
         kill -KILL $vm
         wait $vm || true
         cycle
         state before
         for n in $(seq {count}); do cycle; done
         state after
         given_back $NVME nvme"
    ));
    for what in ["pinned", "tracing"] {
        let of = |when: &str| seen.after(&format!("host: {when} {what} ")).concat();
        assert_eq!(of("before"), of("after"), "{what}\n{seen}");
    }
    let pinned: u64 = seen.after("host: while pinned ").concat().parse().unwrap();
    assert!(pinned >= 64 << 8, "RAM is pinned while a VM runs\n{seen}");
    assert_eq!(seen.after("host: after pinned "), ["0"], "{seen}");
}

fn ten_vms_with_an_assigned_device_leave_no_page_pinned_and_no_tracing_behind() {
    cycles(10);
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_vms_with_an_assigned_device_leave_no_page_pinned_and_no_tracing_behind() {
    cycles(100);
}

fn devices_that_are_taken_and_given_back_a_hundred_times_leave_no_file_open_and_no_page_pinned() {
    let seen = Scenario::quick().run(
        "NVME=$(of_class 0x010802 | head -n 1)
         try skep host rehearse $NVME --times 100
         given_back $NVME nvme
         disk_is_back nvme0n1
         sums nvme0n1
         mke2fs -F /dev/nvme0n1 > /dev/null 2>&1
         mkdir -p /tmp/mounted
         mount /dev/nvme0n1 /tmp/mounted
         try skep host rehearse $NVME
         umount /tmp/mounted",
    );
    seen.ended_with(&[0, 1]);
    let said = seen.after("host: said ");
    assert!(said[0].starts_with("Taken and given back 100 times"), "{seen}");
    assert!(said[1].contains("in use by this host"), "{seen}");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}

together::together! { stories_of_leaks_in_one_host:
    ten_vms_with_an_assigned_device_leave_no_page_pinned_and_no_tracing_behind,
    devices_that_are_taken_and_given_back_a_hundred_times_leave_no_file_open_and_no_page_pinned,
}
