//! An assigned NVMe controller and a physical AHCI disk in one guest: what one side wrote, the other reads.

mod scenario;

use lab::{Iommu, Size};
use scenario::{Scenario, Seen, together};

/// The guest's part: whole disks as they are, then patterns on both.
const READ_ALL_AND_WRITE: &str = "
    GUEST_PART='
        sums vda nvme0n1
        patterns fill /dev/vda 1
        patterns fill /dev/nvme0n1 2
        patterns check /dev/vda 1
        patterns check /dev/nvme0n1 2
        say cpus $(nproc)
    '
    NVME=$(of_class 0x010802 | head -n 1)
";

/// The host's part after it: the controller is with its own driver again, and both disks hold the patterns.
const READ_WHAT_THE_GUEST_WROTE: &str = "
    given_back $NVME nvme
    disk_is_back nvme0n1
    patterns check /dev/sda 1
    patterns check /dev/nvme0n1 2
";

fn in_one_guest(scenario: Scenario, environment: &str, flags: &str) -> Seen {
    let seen = scenario.run(&format!(
        "{READ_ALL_AND_WRITE}
        {environment} guest \"$GUEST_PART\" --disk /dev/sda --assign $NVME {flags}
        {READ_WHAT_THE_GUEST_WROTE}"
    ));
    both_sides_agree(&seen);
    seen.ended_with(&[0]);
    seen
}

fn both_sides_agree(seen: &Seen) {
    seen.expect(&format!("guest: sum vda {}", seen.sum("AHCI0")));
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("NVME0")));
    for line in [
        "guest: check /dev/vda 1 ok",
        "guest: check /dev/nvme0n1 2 ok",
        "host: check /dev/sda 1 ok",
        "host: check /dev/nvme0n1 2 ok",
        "lab: exit 0",
    ] {
        seen.expect(line);
    }
}

fn a_guest_and_its_host_read_what_the_other_wrote_on_both_disks() {
    let seen = Scenario::new().run(&format!(
        "{READ_ALL_AND_WRITE}
        guest \"$GUEST_PART\" --disk /dev/sda --assign $NVME
        {READ_WHAT_THE_GUEST_WROTE}
        patterns fill /dev/sda 3
        patterns fill /dev/nvme0n1 4
        guest 'patterns check /dev/vda 3 && patterns check /dev/nvme0n1 4' --disk /dev/sda --assign $NVME
        given_back $NVME nvme"
    ));
    both_sides_agree(&seen);
    seen.expect("guest: check /dev/vda 3 ok");
    seen.expect("guest: check /dev/nvme0n1 4 ok");
    seen.ended_with(&[0, 0]);
}

#[test]
fn a_guest_with_two_cpus_shares_both_disks_with_its_host() {
    let seen = in_one_guest(Scenario::quick().two_cpus(), "", "--cpus 2");
    seen.expect("guest: cpus 2");
}

fn a_guest_that_boots_from_a_bzimage_shares_both_disks_with_its_host() {
    in_one_guest(Scenario::new(), "KERNEL=/lab/guest/vmlinuz", "");
}

#[test]
fn a_guest_behind_an_amd_iommu_shares_both_disks_with_its_host() {
    in_one_guest(Scenario::quick().iommu(Iommu::amd()), "", "");
}

#[test]
fn a_guest_of_6_gib_does_dma_to_ram_above_4_gib() {
    // The lab kernel does not count pages by their zone.
    let seen = Scenario::new().memory(Size::mib(8 << 10)).run(&format!(
        "{READ_ALL_AND_WRITE}
        GUEST_PART=\"$GUEST_PART\"'
            grep \"System RAM\" /proc/iomem | while read line; do say ram $line; done
            pages() {{ awk -v name=$1 \"\\$1 == name {{ print \\$2 }}\" /proc/vmstat; }}
            say high $(pages pgalloc_normal)
        '
        MEMORY=6G guest \"$GUEST_PART\" --disk /dev/sda --assign $NVME
        {READ_WHAT_THE_GUEST_WROTE}"
    ));
    both_sides_agree(&seen);
    seen.ended_with(&[0]);
    let ram = seen.after("guest: ram ").join("\n");
    assert!(ram.contains("-bfffffff : System RAM"), "low RAM ends at 3 GiB:\n{ram}");
    assert!(ram.contains("100000000-1bfffffff : System RAM"), "high RAM is 3 GiB from 4 GiB:\n{ram}");
    // Linux takes the page cache from above 4 GiB first; both disks went through it: 32768 pages.
    let high: u64 = seen.after("guest: high ")[0].parse().unwrap();
    assert!(high > 32_768, "only {high} pages came from above 4 GiB");
}

together::together! { stories_of_both_disks_in_one_host:
    a_guest_and_its_host_read_what_the_other_wrote_on_both_disks,
    a_guest_that_boots_from_a_bzimage_shares_both_disks_with_its_host,
}
