//! What the guest sees of disks: AHCI and NVMe, over the host's devices and over controllers that skep drives; and
//! images behind them.

mod scenario;

use scenario::{EMPTY_QCOW2, Scenario, together};

#[test]
fn a_guest_and_its_host_share_a_sata_disk_and_a_disc_is_read_in_a_drive() {
    let seen = Scenario::new().run(
        "
        guest '
            wait_for 60 test -b /dev/sda
            wait_for 60 test -b /dev/sr0
            sums sda sr0
            say serial $(dd if=/sys/block/sda/device/vpd_pg80 bs=1 skip=4 2> /dev/null)
            patterns fill /dev/sda 1
            patterns check /dev/sda 1
            say controllers $(ls -d /sys/bus/pci/drivers/ahci/0000:* | wc -l)
        ' --disk /dev/sda,model=ahci,serial=SEEN-BY-GUEST --disk /dev/nvme0n1,model=ahci-cd
        patterns check /dev/sda 1",
    );
    seen.ended_with(&[0]);
    seen.expect(&format!("guest: sum sda {}", seen.sum("AHCI0")));
    seen.expect(&format!("guest: sum sr0 {}", seen.sum("NVME0")));
    assert!(seen.after("guest: serial ").concat().contains("SEEN-BY-GUEST"), "{seen}");
    for line in
        ["guest: controllers 1", "guest: check /dev/sda 1 ok", "host: check /dev/sda 1 ok", "lab: exit 0"]
    {
        seen.expect(line);
    }
}

fn a_guest_and_its_host_share_an_nvme_disk_whoever_drives_the_real_one() {
    let seen = Scenario::quick().run(
        "
        DRIVEN=$(function_of $(disk_of NVME1))
        guest '
            wait_for 60 test -b /dev/nvme1n1
            of_serial() { echo /sys/class/nvme/*/serial | tr \" \" \"\\n\" | while read at; do
                [ $(cat $at) != $1 ] || echo $(basename $(dirname $at))n1; done; }
            FILE=$(of_serial FROM-SDA)
            DIRECT=$(of_serial NVME1)
            say sum of file $(sha256sum < /dev/$FILE | cut -d \" \" -f 1)
            say sum of driven $(sha256sum < /dev/$DIRECT | cut -d \" \" -f 1)
            patterns fill /dev/$FILE 1
            patterns check /dev/$FILE 1
            patterns fill /dev/$DIRECT 2
            patterns check /dev/$DIRECT 2
        ' --disk /dev/sda,model=nvme,queues=2,serial=FROM-SDA --disk nvme=$DRIVEN,model=nvme
        given_back $DRIVEN nvme
        disk_is_back nvme1n1
        patterns check /dev/sda 1
        patterns check /dev/$(disk_of NVME1) 2",
    );
    seen.ended_with(&[0]);
    seen.expect(&format!("guest: sum of file {}", seen.sum("AHCI0")));
    seen.expect(&format!("guest: sum of driven {}", seen.sum("NVME1")));
    seen.expect("host: check /dev/sda 1 ok");
    for (who, checks) in [("guest", 2), ("host", 2)] {
        let ok = seen.after(&format!("{who}: check ")).iter().filter(|line| line.ends_with(" ok")).count();
        assert_eq!(ok, checks, "checks of the {who}\n{seen}");
    }
}

fn a_guest_keeps_what_it_wrote_into_a_qcow2_image_unless_changes_are_thrown_away() {
    let seen = Scenario::quick().run(&format!(
        "{EMPTY_QCOW2}
        image /tmp/a.qcow2
        disk=path=/tmp/a.qcow2,format=qcow2
        guest '
            say size $(cat /sys/block/vda/size)
            patterns fill /dev/vda 1
            patterns check /dev/vda 1
        ' --disk $disk
        say grown $(($(stat -c %s /tmp/a.qcow2) > 4194304))
        TMPDIR=/tmp guest '
            patterns check /dev/vda 1
            patterns fill /dev/vda 2
            patterns check /dev/vda 2
        ' --disk $disk,snapshot=on
        guest 'say third; patterns check /dev/vda 1' --disk $disk,readonly=on"
    ));
    seen.ended_with(&[0, 0, 0]);
    seen.expect("guest: size 131072");
    seen.expect("host: grown 1");
    seen.expect("guest: check /dev/vda 2 ok");
    assert_eq!(seen.count("guest: check /dev/vda 1 ok"), 3, "{seen}");
}

fn a_file_that_looks_like_an_image_is_refused_until_its_format_is_given() {
    let seen = Scenario::quick().run(&format!(
        "{EMPTY_QCOW2}
        image /tmp/a.qcow2
        try skep run --kernel /lab/guest/vmlinux --disk /tmp/a.qcow2"
    ));
    assert!(seen.after("host: said ").concat().contains("format=qcow2"), "{seen}");
}

/// Controllers with a word for it tell their driver; a SATA disk has to be looked at anew.
fn a_running_guest_sees_disks_of_all_models_grow() {
    let seen = Scenario::quick().run(
        "
        for name in a b c; do truncate -s 64M /tmp/$name.img; done
        touch /tmp/seen
        (until grep -q before /tmp/seen; do sleep 1; done; truncate -s 96M /tmp/a.img /tmp/b.img /tmp/c.img) &
        guest '
            wait_for 60 test -b /dev/nvme0n1
            wait_for 60 test -b /dev/sda
            say before $(cat /sys/block/vda/size /sys/block/nvme0n1/size /sys/block/sda/size)
            grown() { [ $(cat /sys/block/$1/size) = 196608 ]; }
            wait_for 60 grown vda
            wait_for 60 grown nvme0n1
            again() {
                echo 1 > /sys/block/sda/device/delete
                for host in /sys/class/scsi_host/*/scan; do echo - - - > $host; done
                wait_for 20 test -b /dev/sda
                grown sda
            }
            wait_for 60 again
            patterns fill /dev/vda 1
            for disk in nvme0n1 sda; do
                lab-io fill /dev/$disk 80M 2M 64K 2 scattered > /dev/null
                say sum $(dd if=/dev/$disk bs=1M skip=80 count=2 2> /dev/null | sha256sum)
            done
            say after $(cat /sys/block/vda/size /sys/block/nvme0n1/size /sys/block/sda/size)
        ' --disk /tmp/a.img --disk /tmp/b.img,model=nvme --disk /tmp/c.img,model=ahci | tee /tmp/seen
        for file in b c; do say sum $(dd if=/tmp/$file.img bs=1M skip=80 count=2 2> /dev/null | sha256sum); done
        say zeroes $(dd if=/dev/zero bs=1M count=2 2> /dev/null | sha256sum)",
    );
    seen.ended_with(&[0]);
    seen.expect("guest: before 131072 131072 131072");
    seen.expect("guest: after 196608 196608 196608");
    assert_eq!(seen.after("guest: sum "), seen.after("host: sum "), "{seen}");
    assert!(!seen.after("host: sum ").contains(&seen.after("host: zeroes ")[0]), "{seen}");
}

/// As a kernel does before it starts another one, and as some drivers do: the bit goes off under load, and on again.
fn a_guest_that_switches_bus_mastering_off_and_on_while_it_reads_and_writes_loses_nothing() {
    let seen = Scenario::quick().run(
        r#"
        for name in a b c; do dd if=/dev/urandom of=/tmp/$name.img bs=1M count=24 2> /dev/null; done
        for name in a b c; do say image $name $(sha256sum < /tmp/$name.img | cut -d " " -f 1); done
        guest '
            function_of_disk() {
                at=$(readlink -f /sys/block/$1/device)
                while [ ! -e $at/config ]; do at=${at%/*}; done
                echo $at/config
            }
            put() { printf $2 | dd of=$1 bs=1 seek=4 count=1 conv=notrunc 2> /dev/null; }
            toggle() {
                count=0
                while [ ! -e /tmp/over ]; do
                    put $1 "\002"
                    put $1 "\006"
                    count=$((count + 1))
                    sleep 0.05
                done
                [ $count -lt 5 ] || say toggled $2
            }
            wait_for 60 test -b /dev/sda
            wait_for 60 test -b /dev/nvme0n1
            for disk in vda nvme0n1 sda; do
                rm -f /tmp/over
                toggle $(function_of_disk $disk) $disk &
                sums $disk
                patterns fill /dev/$disk 1
                patterns check /dev/$disk 1
                touch /tmp/over
                wait
            done
        ' --disk /tmp/a.img --disk /tmp/b.img,model=nvme --disk /tmp/c.img,model=ahci
        for name in a b c; do patterns check /tmp/$name.img 1; done"#,
    );
    seen.ended_with(&[0]);
    for (image, disk) in [("a", "vda"), ("b", "nvme0n1"), ("c", "sda")] {
        let sum = seen.after(&format!("host: image {image} ")).concat();
        seen.expect(&format!("guest: sum {disk} {sum}"));
        seen.expect(&format!("guest: check /dev/{disk} 1 ok"));
        seen.expect(&format!("guest: toggled {disk}"));
        seen.expect(&format!("host: check /tmp/{image}.img 1 ok"));
    }
}

together::together! { stories_of_models_in_one_host:
    a_guest_and_its_host_share_an_nvme_disk_whoever_drives_the_real_one,
    a_guest_keeps_what_it_wrote_into_a_qcow2_image_unless_changes_are_thrown_away,
    a_file_that_looks_like_an_image_is_refused_until_its_format_is_given,
    a_running_guest_sees_disks_of_all_models_grow,
    a_guest_that_switches_bus_mastering_off_and_on_while_it_reads_and_writes_loses_nothing,
}
