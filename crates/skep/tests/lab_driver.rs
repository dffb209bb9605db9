//! A disk behind an NVMe controller that skep drives itself, beside an assigned controller in the same guest.

mod scenario;

use std::time::Duration;

use scenario::{Scenario, Seen, together};

/// One controller for the guest, and one for skep's driver.
const CONTROLLERS: &str = "
    ASSIGNED=$(function_of $(disk_of NVME0))
    DRIVEN=$(function_of $(disk_of NVME1))
";

/// Two NVMe controllers; the disk of the second has blocks of this many bytes.
fn host(block: u32) -> Scenario {
    two_controllers(Scenario::new(), block)
}

fn two_controllers(host: Scenario, block: u32) -> Scenario {
    host.disk("nvme:128M").disk(&format!("nvme:128M,logical={block},physical={block}"))
}

/// The report of a run as one line, without spaces.
const REPORT: &str = "say report $(tr -d ' \\n' < /tmp/report)";

fn shared_both_ways(host: Scenario, block: u32) {
    let seen = two_controllers(host, block).run(&format!(
        "{CONTROLLERS}
        guest '
            sums vda nvme0n1
            say block $(cat /sys/block/vda/queue/logical_block_size)
            patterns fill /dev/vda 1
            patterns fill /dev/nvme0n1 2
            patterns check /dev/vda 1
            patterns check /dev/nvme0n1 2
        ' --disk nvme=$DRIVEN,namespace=1 --assign $ASSIGNED --report /tmp/report
        {REPORT}
        given_back $DRIVEN nvme
        given_back $ASSIGNED nvme
        disk_is_back nvme0n1
        disk_is_back nvme1n1
        patterns check /dev/$(disk_of NVME1) 1
        patterns check /dev/$(disk_of NVME0) 2
        patterns fill /dev/$(disk_of NVME1) 3
        guest 'patterns check /dev/vda 3' --cpus 2 --disk nvme=$DRIVEN,namespace=1,poll=off
        disk_is_back nvme1n1"
    ));
    seen.ended_with(&[0, 0]);
    seen.expect(&format!("guest: sum vda {}", seen.sum("NVME1")));
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("NVME0")));
    seen.expect(&format!("guest: block {block}"));
    seen.expect("guest: check /dev/vda 3 ok");
    assert_eq!(
        seen.after("host: check /dev/nvme").iter().filter(|line| line.ends_with(" ok")).count(),
        2,
        "{seen}"
    );
    let report: serde_json::Value = serde_json::from_str(&seen.after("host: report ").concat()).unwrap();
    let disk = &report["disks"][0];
    assert!(disk["bytes_direct"].as_u64().unwrap() > 128 << 20, "{report}");
    let copied = disk["bytes_copied"].as_object().unwrap();
    assert!(!copied.is_empty() && copied.values().all(|bytes| bytes == 0), "{report}");
}

fn a_guest_and_its_host_share_a_disk_that_skep_drives_without_a_copy() {
    shared_both_ways(Scenario::new(), 512);
}

#[test]
fn a_disk_with_blocks_of_4096_bytes_is_driven_as_well() {
    shared_both_ways(Scenario::quick(), 4096);
}

/// Reads by one segment and by many, and what became of them.
const READS: &str = "
    reads() {
        for size in 4K 1M; do
            if dd if=/dev/vda of=/tmp/read bs=$size count=1 iflag=direct 2> /dev/null; then
                say read of $size $(sha256sum < /tmp/read | cut -c 1-16)
            else
                say read of $size failed
            fi
        done
    }
";

fn bhyves_mistake(flags: &str) -> Seen {
    host(512).run(&format!(
        "{CONTROLLERS}
        for size in 4K 1M; do
            say disk of $size $(dd if=/dev/$(disk_of NVME1) bs=$size count=1 iflag=direct 2> /dev/null | sha256sum | cut -c 1-16)
        done
        start '{READS} reads' --disk nvme=$DRIVEN,namespace=1 {flags} 2> /tmp/errors && ended=0 || ended=$?
        sed \"s/^/host: said /; s/$DRIVEN/DRIVEN/g\" /tmp/errors
        say skep ended with $ended
        given_back $DRIVEN nvme"
    ))
}

fn ram_that_leaves_the_host_domain_with_an_assigned_device_makes_reads_fail_and_skep_says_so() {
    let seen = bhyves_mistake("--assign $ASSIGNED --host-domain exclusive --i-know");
    seen.ended_with(&[0]);
    seen.expect("guest: read of 4K failed");
    seen.expect("guest: read of 1M failed");
    let said = seen.after("host: said skep: ");
    let event = said.iter().find(|line| line.contains("DRIVEN") && line.contains("domain host"));
    let event = event.unwrap_or_else(|| panic!("no event names device and domain\n{seen}"));
    assert!(event.contains("write") && event.contains("0x"), "direction and address: {event}");
}

fn reads_are_right(seen: &Seen) {
    seen.ended_with(&[0]);
    for size in ["4K", "1M"] {
        let disk = seen.after(&format!("host: disk of {size} "));
        assert_eq!(seen.after(&format!("guest: read of {size} ")), disk, "{seen}");
        assert_eq!(disk.len(), 1, "{seen}");
    }
    // On a slow machine it says what it is at; no more.
    let said = seen
        .after("host: said skep: ")
        .into_iter()
        .filter(|line| !line.starts_with("making the guest's RAM"));
    assert_eq!(said.collect::<Vec<_>>(), Vec::<&str>::new(), "{seen}");
}

fn an_exclusive_host_domain_without_an_assigned_device_reads_what_is_on_the_disk() {
    reads_are_right(&bhyves_mistake("--host-domain exclusive --i-know"));
}

fn a_shared_host_domain_reads_what_is_on_the_disk_with_an_assigned_device_and_without() {
    reads_are_right(&bhyves_mistake("--assign $ASSIGNED"));
    reads_are_right(&bhyves_mistake(""));
}

/// Kills skep so often at random moments while its guest reads and writes on both disks; each time the host has its
/// devices back, by the next run or on request, and the next run works.
fn kills(count: u32) {
    let seen = host(512).patience(Duration::from_secs(600 + 60 * u64::from(count))).run(&format!(
        "{CONTROLLERS}
        for n in $(seq {count}); do
            start '
                say go
                while true; do patterns fill /dev/vda 1 || say trouble; patterns fill /dev/nvme0n1 2 || say trouble; done
            ' --disk nvme=$DRIVEN,namespace=1 --assign $ASSIGNED > /tmp/console 2> /tmp/errors & vm=$!
            wait_for 120 grep -q 'guest: go' /tmp/console || {{ cat /tmp/console /tmp/errors; false; }}
            usleep $(($(od -An -N2 -tu2 /dev/urandom) * 40))
            grep -q 'guest: trouble' /tmp/console && cat /tmp/console
            kill -KILL $(pidof skep)
            wait $vm || true
            # Every other time the next run has to see to it by itself.
            if [ $((n % 2)) = 0 ]; then
                try skep host give-back
                given_back $DRIVEN nvme
                given_back $ASSIGNED nvme
            fi
            say killed $n
        done
        guest '
            patterns fill /dev/vda 3 && patterns check /dev/vda 3
            patterns fill /dev/nvme0n1 4 && patterns check /dev/nvme0n1 4
        ' --disk nvme=$DRIVEN,namespace=1 --assign $ASSIGNED
        given_back $DRIVEN nvme
        given_back $ASSIGNED nvme
        disk_is_back nvme0n1
        disk_is_back nvme1n1
        patterns check /dev/$(disk_of NVME1) 3
        patterns check /dev/$(disk_of NVME0) 4"
    ));
    assert_eq!(seen.after("host: killed ").len(), count as usize, "{seen}");
    // The console of a guest whose I/O failed before the kill was passed on.
    assert!(!seen.lines().any(|line| line.contains("guest: trouble")), "{seen}");
    assert!(seen.after("host: skep ended with ").iter().all(|status| *status == "0"), "{seen}");
    let checked = seen.lines().filter(|line| line.starts_with("host: check /dev/") && line.ends_with(" ok"));
    assert_eq!(checked.count(), 2, "{seen}");
}

fn a_host_gets_both_controllers_back_after_skep_is_killed_during_io() {
    kills(3);
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn a_host_gets_both_controllers_back_after_fifty_kills_during_io() {
    kills(50);
}

together::together! { stories_of_driven_controllers_in_one_host:
    a_guest_and_its_host_share_a_disk_that_skep_drives_without_a_copy,
    ram_that_leaves_the_host_domain_with_an_assigned_device_makes_reads_fail_and_skep_says_so,
    an_exclusive_host_domain_without_an_assigned_device_reads_what_is_on_the_disk,
    a_shared_host_domain_reads_what_is_on_the_disk_with_an_assigned_device_and_without,
    a_host_gets_both_controllers_back_after_skep_is_killed_during_io,
}
