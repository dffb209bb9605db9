//! Disks of the host that fail: each error is seen as what it is in the guest, and what waits for better times goes well
//! then.

mod scenario;

use scenario::{EMPTY_QCOW2, Scenario, Seen, together};

/// Disks that fail on purpose, each a part of 32 MiB of /dev/sda: `dm NAME TABLE` makes one or changes it, and says its
/// path.
const MAPPER: &str = "
    modprobe -a dm-mod dm-flakey dm-delay 2> /dev/null || true
    dm() { lab-io dm $1 \"$2\" | cut -d ' ' -f 2; }
    # broken NUMBER: 8 sectors from 8192 on can be neither read nor written.
    broken() {
        at=$(($1 * 65536))
        dm broken$1 \"0 8192 linear /dev/sda $at; 8192 8 error; 8200 57336 linear /dev/sda $((at + 8200))\"
    }
    # flaky NUMBER UP DOWN: it works for UP seconds, and then fails for DOWN seconds.
    flaky() { dm flaky$1 \"0 65536 flakey /dev/sda $(($1 * 65536)) $2 $3\"; }
";

/// In the guest: `$SATA` is its SATA disk. The lab kernel has another one, in memory.
const SATA: &str = "
    for disk in vda nvme0n1 sda; do wait_for 60 test -b /dev/$disk; done
    find_sata() {
        for disk in /sys/block/sd*; do
            if readlink -f $disk | grep -q /ata; then SATA=${disk##*/}; return 0; fi
        done
        return 1
    }
    wait_for 60 find_sata
";

/// A host with room for four such parts.
fn host() -> Scenario {
    Scenario::quick().disk("ahci:128M")
}

/// What skep said on standard error.
fn said(seen: &Seen) -> Vec<&str> {
    seen.after("host: said skep: ")
}

fn a_broken_place_is_a_medium_error_for_every_driver_and_a_slow_disk_is_none() {
    let seen = host().run(&format!(
        "{MAPPER}
        A=$(broken 0) B=$(broken 1) C=$(broken 2)
        SLOW=$(dm slow '0 16384 delay /dev/sda 196608 100')
        say slow $SLOW $(dd if=$SLOW bs=64k count=16 iflag=direct 2> /dev/null | sha256sum | cut -c 1-16)
        guest '{SATA}
            for disk in vda $SATA nvme0n1; do
                name=$(echo $disk | sed s/$SATA/sata/)
                say first $name $(dd if=/dev/$disk bs=4k count=1024 iflag=direct 2> /dev/null | wc -c)
                say read $name: $(dd if=/dev/$disk of=/dev/null bs=4k skip=1024 count=1 iflag=direct 2>&1 | head -n 1)
                say write $name: $(dd if=/dev/zero of=/dev/$disk bs=4k seek=1024 count=1 oflag=direct 2>&1 | head -n 1)
                say after $name $(dd if=/dev/$disk bs=4k skip=1025 count=16 iflag=direct 2> /dev/null | wc -c)
            done
            begin=$(cut -d . -f 1 /proc/uptime)
            say slow $(dd if=/dev/vdb bs=64k count=16 iflag=direct 2> /dev/null | sha256sum | cut -c 1-16)
            say took $(($(cut -d . -f 1 /proc/uptime) - begin))
            dmesg | grep -o \"[a-zA-Z/ ]* error, dev .*\" | sed s/$SATA/sata/ | while read line; do say log $line; done
            say uncorrectable $(dmesg | grep -c \"error: {{ UNC }}\")
        ' --disk $A --disk $B,model=ahci --disk $C,model=nvme --disk $SLOW --report /tmp/report 2> /tmp/errors
        sed 's/^/host: said /' /tmp/errors
        say report $(tr -d ' \\n' < /tmp/report)"
    ));
    seen.ended_with(&[0]);
    let every = [
        ("vda", "Input/output error", "I/O error"),
        ("sata", "Input/output error", "I/O error"),
        ("nvme0n1", "No data available", "critical medium error"),
    ];
    let log = seen.after("guest: log ");
    for (disk, error, logged) in every {
        seen.expect(&format!("guest: first {disk} 4194304"));
        seen.expect(&format!("guest: after {disk} 65536"));
        for (way, operation) in [("read", "0x0:(READ)"), ("write", "0x1:(WRITE)")] {
            let errors = seen.after(&format!("guest: {way} {disk}: "));
            assert!(errors[0].ends_with(error), "{seen}");
            let logged = format!("{logged}, dev {disk}, sector 8192 op {operation}");
            assert!(log.iter().any(|line| line.starts_with(&logged)), "{logged}\n{log:#?}\n{seen}");
        }
    }
    // Linux says of a SATA disk's kind of error what the device said, one line for each.
    seen.expect("guest: uncorrectable 2");
    let said = said(&seen);
    for disk in 0..3 {
        let first = format!(
            "disk /dev/dm-{disk}: read of 4096 bytes at sector 8192 failed: the medium failed (Input/output error"
        );
        assert!(said.iter().any(|line| line.starts_with(&first)), "{first} {said:#?}\n{seen}");
    }
    assert!(!said.iter().any(|line| line.contains("/dev/dm-3")), "{said:#?}");
    let slow = seen.after("host: slow ")[0];
    assert_eq!(slow.split_once(' ').unwrap().1, seen.after("guest: slow ")[0], "{seen}");
    assert!(
        seen.after("guest: took ")[0].parse::<u32>().unwrap() >= 1,
        "sixteen requests, 100 ms each\n{seen}"
    );
    let report: serde_json::Value = serde_json::from_str(&seen.after("host: report ").concat()).unwrap();
    for disk in 0..3 {
        assert!(report["disks"][disk]["errors"].as_u64().unwrap() >= 2, "{report}");
    }
    assert_eq!(report["disks"][3]["errors"], 0, "{report}");
}

/// Waits until the VM is paused, and says what is said of it.
const LOOK_AT_THE_PAUSE: &str = "
    paused() { skep list | grep -q ' paused '; }
    look() {
        wait_for 120 paused || { cat /tmp/console /tmp/errors; false; }
        skep list | sed 's/^/host: list /'
        skep stats $1 | sed 's/^/host: stats /'
    }
";

fn a_guest_whose_disks_fail_for_a_while_stands_still_and_sees_nothing_of_it_afterwards() {
    let seen = host().run(&format!(
        "{MAPPER}{LOOK_AT_THE_PAUSE}
        A=$(flaky 0 1000 0) B=$(flaky 1 1000 0) C=$(flaky 2 1000 0)
        start '{SATA}
            say go
            for disk in vda $SATA nvme0n1; do lab-io fill /dev/$disk 1M 24M 64K 7 > /dev/null & done
            wait
            for disk in vda $SATA nvme0n1; do patterns fill /dev/$disk 1; patterns check /dev/$disk 1; done
            say errors $(dmesg | grep -c \"error\")
        ' --name held --disk $A,on-error=pause --disk $B,model=ahci,on-error=pause --disk $C,model=nvme,on-error=pause \\
            > /tmp/console 2> /tmp/errors & vm=$!
        wait_for 300 grep -q 'guest: go' /tmp/console || {{ cat /tmp/console /tmp/errors; false; }}
        for n in 0 1 2; do flaky $n 0 1000 > /dev/null; done
        look held
        # Too early.
        skep resume held 2>&1 | sed 's/^/host: resume /'
        paused
        for n in 0 1 2; do flaky $n 1000 0 > /dev/null; done
        skep resume held
        wait $vm && ended=0 || ended=$?
        cat /tmp/console
        say skep ended with $ended
        sed 's/^/host: said /' /tmp/errors
        for disk in $A $B $C; do patterns check $disk 1; done"
    ));
    seen.ended_with(&[0]);
    let checked = seen.after("guest: check /dev/").iter().filter(|line| line.ends_with(" 1 ok")).count();
    assert_eq!(checked, 3, "{seen}");
    for disk in 0..3 {
        seen.expect(&format!("host: check /dev/dm-{disk} 1 ok"));
    }
    seen.expect("guest: errors 0");
    let list = seen.after("host: list ").join("\n");
    assert!(
        list.contains("held is paused: disk /dev/dm-") && list.contains("the medium failed"),
        "{list}\n{seen}"
    );
    assert!(
        seen.after("host: stats ").join("\n").contains("held, to be tried again by `skep resume`"),
        "{seen}"
    );
    let resume = seen.after("host: resume ").join("\n");
    assert!(resume.contains("is still paused: disk /dev/dm-"), "{resume}\n{seen}");
    let said = said(&seen);
    let pauses = said.iter().filter(|line| line.starts_with("the VM is paused: disk /dev/dm-")).count();
    // Each disk asks once for what it holds, and once more when that fails again.
    assert!((2..=6).contains(&pauses), "{said:#?}");
    assert_eq!(said.last(), Some(&"the VM runs on"), "{said:#?}");
}

#[test]
fn a_vm_without_space_for_its_disk_waits_until_there_is_some() {
    let seen = Scenario::quick().run(&format!(
        "{LOOK_AT_THE_PAUSE}{EMPTY_QCOW2}
        truncate -s 48M /tmp/small
        mke2fs -F /tmp/small > /dev/null 2>&1
        mkdir /tmp/full
        mount -o loop /tmp/small /tmp/full
        dd if=/dev/zero of=/tmp/full/ballast bs=1M count=32 2> /dev/null
        truncate -s 32M /tmp/full/disk
        image /tmp/full/image
        # run DISK DISK: fills both, one after the other.
        run() {{ start \"
            for disk in $*; do patterns fill /dev/\\$disk 1; done
            for disk in $*; do patterns check /dev/\\$disk 1; done
            say errors \\$(dmesg | grep -c error)
        \" --name full --disk /tmp/full/disk --disk path=/tmp/full/image,format=qcow2 > /tmp/console 2> /tmp/errors; }}
        run vda vdb & vm=$!
        look full
        # It can be stopped as it is, and what it held is of no concern to the next.
        skep stop --now --wait full
        wait $vm && ended=0 || ended=$?
        say skep ended with $ended
        run vdb vda & vm=$!
        look full
        rm /tmp/full/ballast
        skep resume full
        wait $vm && ended=0 || ended=$?
        cat /tmp/console
        say skep ended with $ended
        sed 's/^/host: said /' /tmp/errors
        patterns check /tmp/full/disk 1"
    ));
    seen.ended_with(&[5, 0]);
    for disk in ["vda", "vdb"] {
        seen.expect(&format!("guest: check /dev/{disk} 1 ok"));
    }
    seen.expect("host: check /tmp/full/disk 1 ok");
    seen.expect("guest: errors 0");
    let list = seen.after("host: list ").join("\n");
    assert!(list.contains("full is paused: disk /tmp/full/disk: write of "), "{list}\n{seen}");
    assert!(list.contains("no space left behind the disk") && list.contains("Make room"), "{list}");
    assert!(list.contains("full is paused: disk /tmp/full/image: write of "), "{list}\n{seen}");
}

#[test]
fn a_disk_that_is_taken_away_is_gone_and_not_empty_or_full() {
    let seen = Scenario::quick().run(
        "
        NVME=/dev/nvme0n1
        start '
            wait_for 60 test -b /dev/nvme0n1
            say go
            gone() { ! dd if=/dev/$1 of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null; }
            wait_for 120 gone vda
            say write vda $(dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>&1 | head -n 1)
            wait_for 120 gone nvme0n1
            say both are gone
        ' --name gone --disk /dev/sda --disk $NVME,model=nvme > /tmp/console 2> /tmp/errors & vm=$!
        wait_for 300 grep -q 'guest: go' /tmp/console || { cat /tmp/console /tmp/errors; false; }
        echo 1 > /sys/block/sda/device/delete
        echo 1 > /sys/block/nvme0n1/device/device/remove
        wait $vm && ended=0 || ended=$?
        cat /tmp/console
        say skep ended with $ended
        sed 's/^/host: said /' /tmp/errors",
    );
    seen.ended_with(&[0]);
    seen.expect("guest: both are gone");
    let said = said(&seen);
    for disk in ["/dev/sda", "/dev/nvme0n1"] {
        let of_disk = format!("disk {disk}: ");
        let mut errors = said.iter().filter(|line| line.starts_with(&of_disk)).peekable();
        assert!(errors.peek().is_some(), "{said:#?}\n{seen}");
        assert!(errors.all(|line| line.contains("failed: the disk is gone")), "{said:#?}\n{seen}");
    }
}

/// Disks of every model that answer nothing any more, and an assigned device that the host is to have back all the same.
#[test]
fn disks_that_hang_hold_up_neither_the_vms_end_nor_the_return_of_its_devices() {
    let seen = host().disk("nvme:64M").run(&format!(
        "{MAPPER}
        ASSIGNED=$(function_of $(disk_of NVME0))
        hung() {{ dm hung$1 \"0 65536 linear /dev/sda $(($1 * 65536))\"; }}
        A=$(hung 0) B=$(hung 1) C=$(hung 2)
        start '{SATA}
            for disk in /dev/vda /dev/$SATA $(ls /dev/nvme*n1); do
                dd if=$disk of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null
                while dd if=$disk of=/dev/null bs=4k count=4096 iflag=direct 2> /dev/null; do :; done &
            done
            say go
            sleep 1000
        ' --name hung --disk $A --disk $B,model=ahci --disk $C,model=nvme --assign $ASSIGNED \\
            > /tmp/console 2> /tmp/errors & vm=$!
        wait_for 300 grep -q 'guest: go' /tmp/console || {{ cat /tmp/console /tmp/errors; false; }}
        # Each is read from by now.
        reads() {{ awk '{{ print $1 }}' /sys/block/$(basename $1)/stat; }}
        for disk in $A $B $C; do
            before=$(reads $disk)
            grew() {{ [ $(reads $disk) -gt $before ]; }}
            wait_for 60 grew
        done
        for n in 0 1 2; do lab-io dm hung$n suspend > /dev/null; done
        sleep 5
        begin=$(cut -d . -f 1 /proc/uptime)
        skep stop --now hung
        over() {{ ! skep list | grep -q hung; }}
        wait_for 120 over || {{ cat /tmp/console /tmp/errors; false; }}
        say took $(($(cut -d . -f 1 /proc/uptime) - begin))
        given_back $ASSIGNED nvme
        sed 's/^/host: said /' /tmp/errors
        # Only then may the kernel let go of the process.
        for n in 0 1 2; do hung $n > /dev/null; done
        wait $vm && ended=0 || ended=$?
        say skep ended with $ended"
    ));
    seen.ended_with(&[5]);
    let took: u32 = seen.after("host: took ")[0].parse().unwrap();
    assert!(took < 60, "{took} s\n{seen}");
    let said = said(&seen);
    for (start, middle) in [
        ("virtio-blk dm-0: ", "have not ended in 5 s"),
        ("ahci ", "left behind"),
        ("nvme dm-2: ", "left behind"),
    ] {
        let told = said.iter().any(|line| {
            line.starts_with(start) && (line.contains(middle) || line.contains("has not ended in 5 s"))
        });
        assert!(told, "{start}{middle}: {said:#?}\n{seen}");
    }
}

together::together! { stories_of_failing_disks_in_one_host:
    a_broken_place_is_a_medium_error_for_every_driver_and_a_slow_disk_is_none,
    a_guest_whose_disks_fail_for_a_while_stands_still_and_sees_nothing_of_it_afterwards,
}
