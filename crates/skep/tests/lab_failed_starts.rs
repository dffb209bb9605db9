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
            "host: said skep: the start was made to fail before the step {step:?}, as {VARIABLE} asks"
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
