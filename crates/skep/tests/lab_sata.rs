//! SATA disks as Linux sees them: queued TRIM, and a disk that has grown.

mod scenario;

use scenario::Scenario;

#[test]
fn a_guest_trims_by_queued_commands_and_finds_a_disk_that_has_grown() {
    let seen = Scenario::quick().run(
        "
        # The lab kernel would make a disk of its own the first.
        GUEST=\"$GUEST scsi_debug.add_host=0\"
        truncate -s 64M /tmp/a.img
        touch /tmp/seen
        (until grep -q before /tmp/seen; do sleep 0.2; done; truncate -s 96M /tmp/a.img) &
        guest '
            wait_for 60 test -b /dev/sda
            say trim $(cat /sys/class/ata_device/dev1.0/trim)
            lab-io fill /dev/sda 1M 8M 64K 1 > /dev/null
            blkdiscard -o 2097152 -l 4194304 /dev/sda
            lab-io check /dev/sda 1M 1M 64K 1 > /dev/null && say kept
            say trimmed $(dd if=/dev/sda bs=1M skip=2 count=4 2> /dev/null | tr -d \"\\000\" | wc -c)
            say before $(cat /sys/block/sda/size)
            # It has grown when it answers behind its old end, which the driver does not ask for: so wait.
            again() {
                echo 1 > /sys/block/sda/device/delete
                for host in /sys/class/scsi_host/host*; do echo \"- - -\" > $host/scan; done
                wait_for 30 test -b /dev/sda
                [ $(cat /sys/block/sda/size) = 196608 ]
            }
            wait_for 60 again
            say after $(cat /sys/block/sda/size)
            lab-io fill /dev/sda 80M 2M 64K 2 > /dev/null && lab-io check /dev/sda 80M 2M 64K 2 > /dev/null && say behind
        ' --disk /tmp/a.img,model=ahci 2> /tmp/errors | tee /tmp/seen
        sed \"s/^/host: error /\" /tmp/errors",
    );
    seen.ended_with(&[0]);
    for line in ["trim queued", "kept", "trimmed 0", "before 131072", "after 196608", "behind"] {
        seen.expect(&format!("guest: {line}"));
    }
    assert!(seen.after("host: error ").concat().contains("has 96 MiB now"), "people are told\n{seen}");
}
