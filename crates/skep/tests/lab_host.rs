//! What the host gives to VMs and gets back: devices of killed ones, huge pages.

mod scenario;

use scenario::Scenario;
use scenario::tiny::{CRASH, DEAF, written_to};

#[test]
fn what_a_killed_skep_left_is_listed_and_given_back_on_request() {
    let (deaf, crash) = (written_to("/tmp/deaf", &DEAF), written_to("/tmp/crash", &CRASH));
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {deaf}
         {crash}
         umask 0
         try skep host
         skep run --memory 64M --kernel /tmp/deaf --assign $NVME < /dev/null &
         wait_for 120 test -e /run/skep/vfio-$NVME.json
         wait_for 120 eval '[ $(driver $NVME) = vfio-pci ]'
         wait_for 120 grep -q skep_ /sys/kernel/tracing/kprobe_events
         # A VM that lives has left nothing.
         try skep host give-back
         say while it lives: driver $(driver $NVME)
         say modes $(stat -c %a /run/skep /run/skep/vm /run/skep/vm/vm.sock /run/skep/vfio-$NVME.json /run/skep/vfio-$NVME.lock)
         kill -KILL $!
         wait $! || true
         try skep host
         skep host --json > /tmp/left.json
         say json $(tr -d ' \\n' < /tmp/left.json)
         # Another program takes the device as it is; neither a start that has nothing to do with it nor a request
         # takes it away.
         mkdir -p /tmp/elsewhere
         unshare -m sh -c \"mount -t tmpfs none /run/skep; exec skep run --name other --memory 64M --kernel /tmp/deaf --assign $NVME\" < /dev/null &
         wait_for 120 sh -c 'ls -l /proc/[0-9]*/fd 2> /dev/null | grep -q \"/dev/vfio/[0-9d]\"'
         begin=$(cut -d . -f 1 /proc/uptime)
         try skep run --memory 64M --kernel /tmp/crash
         took=$(($(cut -d . -f 1 /proc/uptime) - begin))
         [ $took -lt 30 ] && say the start was not held up || say the start took $took s
         try skep host give-back $NVME
         kill -0 $! && say in use: driver $(driver $NVME)
         kill -KILL $!
         wait $! || true
         chmod 666 /run/skep/vfio-$NVME.json
         try skep host give-back $NVME
         chmod 600 /run/skep/vfio-$NVME.json
         try skep host give-back 0000:77:00.0
         try skep host give-back $NVME
         given_back $NVME nvme
         # All that is left are its probes.
         try skep host give-back
         try skep host
         say left $(ls /sys/kernel/tracing/instances | grep -c skep_) $(grep -c skep_ /sys/kernel/tracing/kprobe_events)
         disk_is_back nvme0n1
         sums nvme0n1"
    ));
    seen.ended_with(&[0, 0, 0, 3, 1, 1, 1, 0, 0, 0]);
    seen.expect("host: modes 700 700 600 600 600");
    seen.expect("host: the start was not held up");
    seen.expect("host: in use: driver vfio-pci");
    let said = seen.after("host: said ");
    assert_eq!(
        said.iter().filter(|line| **line == "No killed VM has left anything behind.").count(),
        3,
        "{seen}"
    );
    seen.expect("host: while it lives: driver vfio-pci");
    assert!(said.iter().any(|line| line.starts_with("0000:01:00.0 left by process ")), "{seen}");
    assert!(said.iter().any(|line| line.ends_with(", which is gone; driver nvme had it")), "{seen}");
    let json = seen.after("host: json ")[0];
    assert!(json.contains("\"tracing\":[{\"name\":\"skep_"), "{json}");
    assert!(json.contains("\"address\":\"0000:01:00.0\",\"driver\":\"nvme\""), "{json}");
    assert!(said.iter().any(|line| line.contains("0000:77:00.0 was not left by a VM")), "{seen}");
    seen.expect("host: said gave 0000:01:00.0 back to nvme");
    assert!(
        said.iter().any(|line| line.starts_with("removed the probes on DMA faults of process ")),
        "{seen}"
    );
    let stays = |line: &&&str| line.contains("which a killed VM") && line.contains("is in use by process");
    assert_eq!(said.iter().filter(stays).count(), 2, "{seen}");
    assert!(
        said.iter().any(|line| line.contains("is not safe to use") && line.contains("mode 0666")),
        "{seen}"
    );
    seen.expect("host: left 0 0");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}

#[test]
fn a_guest_and_its_device_use_huge_pages_of_one_node_which_go_back_to_the_pool() {
    let crash = written_to("/tmp/crash", &CRASH);
    let seen = Scenario::quick().hugepages(136).run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         free() {{ cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages; }}
         say free $(free)
         guest 'sums nvme0n1; say up' --hugepages 2M --node 0 --assign $NVME &
         wait_for 60 eval '[ $(free) = 8 ]'
         wait $!
         say free $(free)
         given_back $NVME nvme
         try skep run --memory 1G --hugepages 2M --kernel /tmp/crash
         try skep run --memory 64M --node 7 --kernel /tmp/crash
         try skep run --memory 64M --hugepages 1G --kernel /tmp/crash
         try skep run --memory 64M --wire on --kernel /tmp/crash
         say free $(free)"
    ));
    assert_eq!(seen.after("host: free "), ["136", "136", "136"], "{seen}");
    seen.expect("guest: up");
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("NVME0")));
    seen.ended_with(&[0, 1, 1, 2, 3]);
    let said = seen.after("host: said skep: ");
    for parts in [
        [
            "takes 512 huge pages of 2 MiB, and of the 136",
            "echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        ],
        ["no NUMA node 7", "--node"],
        ["64M of memory is not a multiple of huge pages of 1G", "--hugepages 1G"],
    ] {
        assert!(said.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?}\n{seen}");
    }
}
