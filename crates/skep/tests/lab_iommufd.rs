//! Assigned devices in a host whose kernel has iommufd.

mod scenario;

use scenario::Scenario;

/// What skep has open of the kernel's, once it has the devices; to be started before the guest.
const WATCH: &str = "
    watch() {
        wait_for 60 eval 'ls -l /proc/$(pidof skep)/fd 2> /dev/null | grep -q kvm-vfio'
        ls -l /proc/$(pidof skep)/fd | grep -o '/dev/[iv].*' | sort > /tmp/open
    }
";

#[test]
fn with_iommufd_devices_come_by_their_character_devices_and_go_back_as_with_groups() {
    let Some(scenario) = Scenario::with_iommufd("with_iommufd_devices_come_by_their_character_devices")
    else {
        return;
    };
    let seen = scenario.disk("nvme:64M,serial=ONE").disk("nvme:64M,serial=TWO").device("edu").run(&format!(
        "{WATCH}
         one=$(function_of $(disk_of ONE))
         two=$(function_of $(disk_of TWO))
         edu=$(of_class 0x00ff00)
         for round in 1 2; do
             watch &
             guest 'sums nvme0n1 nvme1n1
                 patterns fill /dev/nvme0n1 '$round'
                 patterns check /dev/nvme0n1 '$round'
             ' --assign $one --assign $two --assign $edu
             wait
             sed 's/^/host: open /' /tmp/open
             given_back $one nvme
             given_back $two nvme
             given_back $edu none
         done
         disk_is_back nvme0n1
         patterns check /dev/$(disk_of ONE) 2
         [ -z \"$(ls /dev/vfio/devices 2> /dev/null)\" ] && say no character devices left"
    ));
    seen.ended_with(&[0, 0]);
    assert_eq!(seen.count("host: open /dev/iommu"), 2, "one for the VM, each time\n{seen}");
    assert_eq!(seen.after("host: open /dev/vfio/devices/vfio").len(), 6, "{seen}");
    assert_eq!(seen.after("host: open /dev/vfio/").len(), 6, "nothing else of VFIO's\n{seen}");
    assert_eq!(seen.count(&format!("guest: sum nvme1n1 {}", seen.sum("TWO"))), 2, "{seen}");
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("ONE")));
    seen.expect("guest: check /dev/nvme0n1 1 ok");
    assert_eq!(seen.after("host: check /dev/").len(), 1, "{seen}");
    seen.expect("host: no character devices left");
}

#[test]
fn without_interrupt_remapping_iommufd_says_which_parameter_would_go_without() {
    let Some(scenario) = Scenario::with_iommufd("without_interrupt_remapping_iommufd_says") else { return };
    let seen = scenario.iommu("intel,intremap=off".parse().unwrap()).disk("nvme:64M").run(
        "nvme=$(of_class 0x010802)
         try skep run --memory 64M --kernel /lab/guest/vmlinux --assign $nvme
         given_back $nvme nvme",
    );
    seen.ended_with(&[1]);
    let said = seen.after("host: said ").join(" ");
    assert!(said.contains("load iommufd with allow_unsafe_interrupts=1"), "{seen}");
}

#[test]
fn a_kernel_without_iommufd_is_said_before_a_device_is_taken_and_auto_does_without() {
    let seen = Scenario::new().disk("nvme:64M,serial=ONE").run(
        "nvme=$(of_class 0x010802)
         try skep run --memory 64M --kernel /lab/guest/vmlinux --assign $nvme --dma iommufd
         given_back $nvme nvme
         guest 'sums nvme0n1' --assign $nvme --dma auto
         given_back $nvme nvme",
    );
    seen.ended_with(&[1, 0]);
    let said = seen.after("host: said ").join(" ");
    assert!(said.contains("/dev/iommu: cannot open it") && said.contains("--dma type1"), "{seen}");
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("ONE")));
}

#[test]
fn type1_is_had_when_asked_for_where_there_is_iommufd_too() {
    let Some(scenario) = Scenario::with_iommufd("type1_is_had_when_asked_for") else { return };
    let seen = scenario.disk("nvme:64M,serial=ONE").run(&format!(
        "{WATCH}
         nvme=$(of_class 0x010802)
         watch &
         guest 'sums nvme0n1' --assign $nvme --dma type1
         wait
         sed 's/^/host: open /' /tmp/open
         given_back $nvme nvme"
    ));
    seen.ended_with(&[0]);
    seen.expect("host: open /dev/vfio/vfio");
    assert_eq!(seen.count("host: open /dev/iommu"), 0, "{seen}");
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("ONE")));
}
