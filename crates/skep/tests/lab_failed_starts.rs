//! A start that fails leaves the host as it was.

mod scenario;

use machine::steps::{STEPS, VARIABLE};
use scenario::Scenario;
use scenario::tiny::{CRASH, written_to};

#[test]
fn a_start_that_fails_at_any_step_leaves_the_host_as_it_was() {
    let crash = written_to("/tmp/crash", &CRASH);
    let steps: String = STEPS.iter().map(|step| format!("'{step}' ")).collect();
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         free_mib() {{ echo 3 > /proc/sys/vm/drop_caches; awk '/MemFree/ {{ print int($2 / 1024) }}' /proc/meminfo; }}
         drivers() {{ for device in /sys/bus/pci/devices/*; do echo $device $(driver ${{device##*/}}) $(cat $device/driver_override); done; }}
         drivers > /tmp/before
         free=$(free_mib)
         for step in {steps} ; do
             try env \"{VARIABLE}=$step\" skep run --memory 256M --kernel /lab/guest/vmlinux --initrd /lab/guest/initrd \\
                 --disk /dev/sda --assign $NVME
             disk_is_back nvme0n1
             drivers | cmp - /tmp/before && say drivers as before
             [ -z \"$(ls /run/skep/*.json 2> /dev/null)\" ] && say no records
             ! pidof skep && say no process
             [ ! -e /dev/vfio/$(basename $(readlink /sys/bus/pci/devices/$NVME/iommu_group)) ] && say no VFIO group
             lost=$((free - $(free_mib)))
             [ $lost -lt 64 ] && say memory is back || say lost $lost MiB
             dd if=/dev/nvme0n1 of=/dev/null bs=64K count=16 iflag=direct 2> /dev/null && say readable
         done
         # The last step once more, with a standard error that nobody reads any more.
         {{ sleep 1; env \"{VARIABLE}=$step\" skep run --memory 256M --kernel /lab/guest/vmlinux --initrd /lab/guest/initrd \
             --disk /dev/sda --assign $NVME < /dev/null || echo $? > /tmp/status; }} 2>&1 | true
         disk_is_back nvme0n1
         drivers | cmp - /tmp/before && say without a reader: status $(cat /tmp/status), all as before
         sums nvme0n1
         # A file system is made and mounted: both want the disk for themselves.
         mke2fs -F /dev/sda > /dev/null 2>&1
         mkdir -p /tmp/mounted
         mount /dev/sda /tmp/mounted
         umount /tmp/mounted
         try skep run --memory 64M --kernel /tmp/crash --disk /dev/sda --assign $NVME"
    ));
    let mut statuses = [1; STEPS.len() + 1];
    statuses[STEPS.len()] = 3;
    seen.ended_with(&statuses);
    for step in STEPS {
        seen.expect(&format!(
            "host: said skep: this start fails before the step {step:?}, as {VARIABLE} asks"
        ));
    }
    seen.expect("host: without a reader: status 1, all as before");
    for line in [
        "host: drivers as before",
        "host: no records",
        "host: no process",
        "host: no VFIO group",
        "host: memory is back",
        "host: readable",
    ] {
        assert_eq!(seen.count(line), STEPS.len(), "{line:?}\n{seen}");
    }
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}

#[test]
fn what_would_fail_half_way_is_found_before_anything_is_taken_and_all_of_it_at_once() {
    let seen = Scenario::quick().iommu("intel,intremap=off".parse().unwrap()).run(
        "NVME=$(of_class 0x010802 | head -n 1)
         OTHER=$(of_class 0x010802 | tail -n 1)
         truncate -s 400M /tmp/big
         echo kept > /tmp/console
         echo kept > /tmp/report
         truncate -s 16M /tmp/held
         drivers() { for device in /sys/bus/pci/devices/*; do echo $device $(driver ${device##*/}) $(cat $device/driver_override); done; }
         # The lock of the folder stays for the next who looks there.
         files() { ls -R /run/skep | grep -v 'lock$'; cat /tmp/console /tmp/report; }
         mkdir -p /run/skep/vm; chmod 700 /run/skep/vm
         drivers > /tmp/before
         files > /tmp/files-before
         try skep run --memory 256M --kernel /lab/guest/vmlinux --initrd /tmp/big --cpus 300 --disk /dev/sda \\
             --assign $NVME --disk nvme=$OTHER,namespace=9 --disk nvme=$(function_of sda) \\
             --console file:/tmp/console --report /tmp/report --disk /dev/nosuch --node 7
         drivers | cmp - /tmp/before && say drivers as before
         files | cmp - /tmp/files-before && say files as before
         echo 'user:x:1000:1000:user:/tmp:/bin/sh' >> /etc/passwd
         echo 'user:x:1000:' >> /etc/group
         chmod 666 /dev/kvm
         try su user -c \"SKEP_RUNTIME_DIR=/tmp/run-of-user skep run --memory 64M --kernel /no/kernel --assign $NVME\"
         drivers | cmp - /tmp/before && say drivers as before
         sums nvme0n1",
    );
    seen.ended_with(&[1, 1]);
    for parts in [
        &["initrd /tmp/big has 419430400 bytes", "Give the VM at least"][..],
        &["300 CPUs are more"],
        &["interrupt remapping is missing", "allow_unsafe_interrupts=1"],
        &["namespace 9", "no active namespace of that number"],
        &["SATA controller", "no NVMe controller"],
        &["/dev/nosuch"],
        &["no NUMA node 7"],
        &["cannot choose the driver of PCI device 0000:01:00.0", "This needs root"],
        &["/no/kernel"],
    ] {
        let said = seen.after("host: said skep: ");
        let found = said.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line has all of {parts:?}\n{seen}");
    }
    assert_eq!(seen.count("host: drivers as before"), 2, "{seen}");
    seen.expect("host: files as before");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}
