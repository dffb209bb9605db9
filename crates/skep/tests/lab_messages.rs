//! What skep says when something stands in the way of a start: what, which, why, and what mends it.

mod scenario;

use lab::Iommu;
use scenario::tiny::{CRASH, DEAF, written_to};
use scenario::{Scenario, Seen, together};

/// The lines that skep wrote.
fn said(seen: &Seen) -> Vec<&str> {
    seen.after("host: said skep: ")
}

/// There is a line with all these parts.
#[track_caller]
fn says(seen: &Seen, parts: &[&str]) {
    let found = said(seen).iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "no line has all of {parts:?}\n{seen}");
}

fn everything_that_stands_in_the_way_is_said_at_once() {
    let seen = Scenario::quick().run(
        "NVME=$(of_class 0x010802 | head -n 1)
         mke2fs -F /dev/sda > /dev/null 2>&1
         mke2fs -F /dev/nvme0n1 > /dev/null 2>&1
         mkdir -p /tmp/a /tmp/b
         mount /dev/sda /tmp/a
         mount /dev/nvme0n1 /tmp/b
         ip link set eth0 up
         ip address add 10.0.2.15/24 dev eth0
         mv /dev/kvm /dev/mvk
         try skep run --kernel /no/vmlinux --initrd /no/initrd --disk /dev/sda --disk /dev/nosuch --disk /dev/null \\
             --assign $NVME --assign 0000:77:00.0 --assign $(of_class 0x020000) --assign 0000:00:1f.3
         mv /dev/mvk /dev/kvm
         given_back $NVME nvme
         try skep run --kernel /lab/guest/initrd
         umount /tmp/a
         umount /tmp/b",
    );
    seen.ended_with(&[1, 1]);
    says(&seen, &["/no/vmlinux", "No such file", "Check the path"]);
    says(&seen, &["/no/initrd", "No such file"]);
    says(&seen, &["disk /dev/sda", "in use", "mounted on /tmp/a", "umount"]);
    says(&seen, &["disk /dev/nosuch", "no such file or device", "lsblk"]);
    says(&seen, &["disk /dev/null", "not a disk"]);
    says(&seen, &["/dev/kvm", "No such file", "SVM or VT-x", "skep lab"]);
    says(&seen, &["0000:01:00.0", "in use", "nvme0n1 is mounted on /tmp/b"]);
    says(&seen, &["no PCI device 0000:77:00.0", "lspci -D"]);
    says(&seen, &["network interface eth0", "ip link set eth0 down"]);
    says(&seen, &["IOMMU group", "0000:00:1f.2 (", "driver ahci"]);
    says(&seen, &["/lab/guest/initrd", "not a kernel"]);
    for line in said(&seen) {
        assert!(line.ends_with(['.', ')']) || line.contains(". "), "{line:?} has no hint");
    }
}

#[test]
fn a_host_without_iommu_is_told_how_to_get_one() {
    let crash = written_to("/tmp/crash", &CRASH);
    let seen = Scenario::quick().iommu(Iommu::none()).run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         try skep run --memory 64M --kernel /tmp/crash --assign $NVME
         given_back $NVME nvme"
    ));
    seen.ended_with(&[1]);
    says(&seen, &["belongs to no IOMMU group", "Enable VT-d", "intel_iommu=on"]);
}

#[test]
fn a_host_without_interrupt_remapping_is_told_of_the_module_parameter() {
    let crash = written_to("/tmp/crash", &CRASH);
    let seen = Scenario::quick().iommu("intel,intremap=off".parse().unwrap()).run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         try skep run --memory 64M --kernel /tmp/crash --assign $NVME
         given_back $NVME nvme
         disk_is_back nvme0n1"
    ));
    seen.ended_with(&[1]);
    says(&seen, &["allow_unsafe_interrupts"]);
}

fn two_vms_cannot_have_the_same_device_or_disk() {
    let (deaf, crash) = (written_to("/tmp/deaf", &DEAF), written_to("/tmp/crash", &CRASH));
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         OTHER=$(of_class 0x010802 | tail -n 1)
         {deaf}
         {crash}
         skep run --name first --memory 64M --kernel /tmp/deaf --assign $NVME --disk /dev/sda < /dev/null &
         wait_for 120 runs first
         say the first is $!
         try skep run --name other --memory 64M --kernel /tmp/crash --assign $NVME
         try skep run --name other --memory 64M --kernel /tmp/crash --disk /dev/sda
         try skep run --name other --memory 64M --kernel /tmp/crash --assign $(function_of sda)
         try skep run --name other --memory 64M --kernel /tmp/crash --assign $OTHER
         try skep run --name first --memory 64M --kernel /tmp/crash
         given_back $OTHER nvme
         [ $(driver $NVME) = vfio-pci ]
         kill -TERM $!
         sleep 1
         kill -TERM $!
         wait $! && ended=0 || ended=$?
         say skep ended with $ended
         given_back $NVME nvme"
    ));
    seen.ended_with(&[1, 1, 1, 3, 1, 5]);
    let first = seen.after("host: the first is ")[0];
    says(&seen, &["0000:01:00.0 is in use by this host", "through VFIO in process", first]);
    let of_it = seen.after("host: said skep: PCI device 0000:01:00.0 ");
    assert_eq!(of_it.len(), 1, "it is said once\n{seen}");
    says(
        &seen,
        &["disk /dev/sda", "in use", &format!("sda is open for exclusive use by process {first} (skep)")],
    );
    says(&seen, &["a VM called first runs already in process", first, "--name"]);
    let other = format!("in use by this host: sda is open for exclusive use by process {first} (skep)");
    says(&seen, &[other.as_str()]);
}

fn a_user_without_privileges_is_told_the_limit_on_locked_memory() {
    let crash = written_to("/tmp/crash", &CRASH);
    // Root has set the device aside and made it the user's, as is usual; root itself may lock all it likes.
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         chmod 644 /tmp/crash
         echo 'user:x:1000:1000:user:/tmp:/bin/sh' >> /etc/passwd
         echo 'user:x:1000:' >> /etc/group
         as_user() {{ try su user -c \"ulimit -l $1; skep run --memory 64M --kernel /tmp/crash $2\"; }}
         chmod 600 /dev/kvm
         as_user unlimited
         chmod 666 /dev/kvm
         as_user unlimited
         as_user 131072 \"--assign $NVME\"
         given_back $NVME nvme
         echo vfio-pci > /sys/bus/pci/devices/$NVME/driver_override
         echo $NVME > /sys/bus/pci/devices/$NVME/driver/unbind
         echo $NVME > /sys/bus/pci/drivers_probe
         wait_for 10 test -e /sys/bus/pci/drivers/vfio-pci/$NVME
         chmod 666 /dev/vfio/vfio /dev/vfio/[0-9]*
         # The records are root's alone.
         mkdir -p /run/skep
         chown 0:0 /run/skep
         chmod 700 /run/skep
         as_user 64 \"--assign $NVME\"
         as_user 131072 \"--assign $NVME\"
         say set aside: $(driver $NVME)"
    ));
    seen.ended_with(&[1, 3, 1, 1, 3]);
    says(&seen, &["/dev/kvm", "Permission denied", "group that owns /dev/kvm"]);
    says(&seen, &["64 MiB must be locked for guest RAM", "may lock only 1 MiB", "ulimit -l 65536"]);
    says(&seen, &["0000:01:00.0", "ermission denied"]);
    seen.expect("host: set aside: vfio-pci");
}

fn a_disk_given_by_path_and_by_its_controller_is_told_once_with_both() {
    let crash = written_to("/tmp/crash", &CRASH);
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         try skep run --memory 64M --kernel /tmp/crash --disk /dev/nvme0n1 --assign $NVME
         say then by skep
         try skep run --memory 64M --kernel /tmp/crash --disk /dev/nvme0n1 --disk nvme=$NVME
         given_back $NVME nvme"
    ));
    seen.ended_with(&[1, 1]);
    for how in ["assigned to the guest", "driven by skep for a disk (nvme)"] {
        says(&seen, &["disk /dev/nvme0n1: it is on controller 0000:01:00.0", how, "Remove one of the two."]);
    }
    let about_it =
        said(&seen).into_iter().filter(|line| line.contains("nvme0n1") || line.contains("0000:01:00.0"));
    assert_eq!(about_it.count(), 2, "each start says it once\n{seen}");
}

together::together! { stories_of_messages_in_one_host:
    everything_that_stands_in_the_way_is_said_at_once,
    two_vms_cannot_have_the_same_device_or_disk,
    a_disk_given_by_path_and_by_its_controller_is_told_once_with_both,
    a_user_without_privileges_is_told_the_limit_on_locked_memory,
}
