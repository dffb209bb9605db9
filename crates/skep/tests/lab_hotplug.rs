//! SATA disks that come and go while the guest runs.

mod scenario;

use scenario::{Scenario, Seen};
use serde_json::Value;

#[test]
fn a_disk_of_the_host_is_plugged_into_a_guest_and_is_the_hosts_again_when_it_is_unplugged() {
    let seen = Scenario::quick().run(
        r#"
        # The lab kernel would make a disk of its own the first.
        GUEST="$GUEST scsi_debug.add_host=0"
        truncate -s 1M /tmp/fixed
        mkdir -p /tmp/mounted
        touch /tmp/seen
        saw() { grep -q "guest: $1" /tmp/seen; }
        opened() { ls -l /proc/$VM/fd | grep -c "/dev/nvme0n1" || true; }
        plugs() { skep disk plugs "$@"; }
        pattern() { lab-io $1 $2 1M 4M 64K $3 > /dev/null && say "$1 $3 ok"; }
        (
            set -e
            wait_for 120 saw first
            VM=$(skep list --json | grep pid | tr -cd 0-9)
            mke2fs -F /dev/nvme0n1 > /dev/null 2>&1
            mount /dev/nvme0n1 /tmp/mounted
            plugs plug /dev/nvme0n1 2>&1 | sed 's/^/host: mounted /'
            umount /tmp/mounted
            (cd /dev && plugs plug nvme0n1,serial=PLUGGED)
            say "opened $(opened)"
            plugs plug /dev/nvme0n1 2>&1 | sed 's/^/host: twice /'
            plugs unplug /tmp/fixed 2>&1 | sed 's/^/host: fixed /'
            skep stats plugs | sed 's/^/host: stats /'
            wait_for 120 saw filled
            plugs unplug /dev/nvme0n1
            say "opened $(opened)"
            plugs unplug /dev/sda
            pattern check /dev/nvme0n1 7
            pattern fill /dev/nvme0n1 8
            mke2fs -F /dev/sda > /dev/null 2>&1
            # Whoever mounts a disk claims it.
            mount /dev/sda /tmp/mounted
            umount /tmp/mounted
            say "free /dev/sda"
            wait_for 120 saw gone
            plugs plug /dev/nvme0n1,serial=AGAIN
            mount /dev/nvme0n1 /tmp/mounted 2>&1 | sed 's/^/host: claimed /'
            skep events plugs | cut -c 27- | sed 's/^/host: event /'
        ) &
        OUTSIDE=$!
        guest '
            pattern() { lab-io $1 $2 1M 4M 64K $3 > /dev/null && say "$1 $3 ok"; }
            there() { [ -n "$(disk_of $1)" ]; }
            absent() { ! there $1; }
            at() { echo /dev/$(disk_of $1); }
            busy() {
                while dd if=$1 of=/dev/null bs=64k count=16 iflag=direct 2> /dev/null; do :; done
                say broken
            }
            wait_for 60 there FIRST
            pattern fill $(at FIRST) 5
            say first
            wait_for 60 there PLUGGED
            pattern fill $(at PLUGGED) 7
            pattern check $(at PLUGGED) 7
            # Requests are under way on the other one when it goes.
            busy $(at FIRST) &
            say filled
            # Linux tries for some twenty seconds before it gives a disk up.
            wait_for 60 absent PLUGGED
            wait_for 60 absent FIRST
            say gone
            wait_for 60 there AGAIN
            pattern check $(at AGAIN) 8
            wait
        ' --name plugs --disk /dev/sda,model=ahci,serial=FIRST --disk /tmp/fixed --report /tmp/report 2>&1 \
            | tee /tmp/seen
        wait $OUTSIDE
        sed 's/^/host: report /' /tmp/report
        "#,
    );
    seen.ended_with(&[0]);
    seen.expect("host: check 7 ok");
    seen.expect("guest: check 8 ok");
    seen.expect("guest: broken");
    seen.expect("host: free /dev/sda");
    assert_eq!(seen.after("host: opened "), ["1", "0"], "{seen}");
    let says = |what: &str, parts: &[&str]| {
        let said = seen.after(&format!("host: {what} ")).join("\n");
        parts.iter().for_each(|part| assert!(said.contains(part), "{what}: {part}\n{said}\n{seen}"));
    };
    says(
        "mounted",
        &["the VM plugs refused", "disk /dev/nvme0n1", "in use", "mounted on /tmp/mounted", "umount"],
    );
    says("twice", &["disk /dev/nvme0n1", "in use"]);
    says("fixed", &["/tmp/fixed", "its model is virtio-blk", "Stop the VM"]);
    says("stats", &["/dev/sda", "/dev/nvme0n1"]);
    says("claimed", &["busy"]);
    says(
        "event",
        &[
            "disk /dev/nvme0n1 was plugged in (ahci ",
            "disk /dev/nvme0n1 was unplugged (ahci ",
            "disk /dev/sda was unplugged (ahci ",
            ", port 1)",
        ],
    );
    assert_eq!(
        went_through(&seen),
        [("/dev/sda", 4), ("/tmp/fixed", 0), ("/dev/nvme0n1", 4), ("/dev/nvme0n1", 0)]
    );
}

/// The disks of the report, and the MiB that were written to each.
fn went_through(seen: &Seen) -> Vec<(&'static str, u64)> {
    let report: Value = serde_json::from_str(&seen.after("host: report ").join("\n")).unwrap();
    let disks = report["disks"].as_array().unwrap().iter().map(|disk| {
        let name: &'static str = disk["name"].as_str().unwrap().to_owned().leak();
        (name, disk["bytes_written"].as_u64().unwrap() >> 20)
    });
    disks.collect()
}
