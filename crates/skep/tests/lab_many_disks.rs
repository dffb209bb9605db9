//! Eight disks on each controller at once, each with its own contents: on controllers as the order of the description makes
//! them, and on one that has a name. And more disks than the bus has device numbers.

mod scenario;

use std::collections::BTreeSet;

use scenario::Scenario;

#[test]
fn eight_disks_of_each_model_keep_their_own_contents_in_one_guest_and_40_have_their_places_in_another() {
    let seen = Scenario::quick().memory(lab::Size::mib(1536)).run(
        r#"
        MODELS="virtio-blk ahci nvme"
        FLAGS=
        for model in $MODELS; do
            for n in 0 1 2 3 4 5 6 7; do
                file=/tmp/$model.$n
                dd if=/dev/urandom of=$file bs=64k count=$((16 + n)) 2> /dev/null
                say "before $model $n $(sha256sum < $file | cut -c 1-16)"
                FLAGS="$FLAGS --disk path=$file,model=$model,serial=DISK-$model-$n"
            done
        done
        guest '
            of() { disk_of "DISK$(echo $1 | tr -cd "[:alnum:]")$2"; }
            each() { for model in virtio-blk ahci nvme; do for n in 0 1 2 3 4 5 6 7; do "$@" $model $n; done; done; }
            there() { [ -n "$(of $1 $2)" ]; }
            each wait_for 60 there
            before() {
                at=/dev/$(of $1 $2)
                say "before $1 $2 $(sha256sum < $at | cut -c 1-16)"
                say "size $1 $2 $(cat /sys/block/${at#/dev/}/size)"
            }
            each before
            after() {
                at=/dev/$(of $1 $2)
                dd if=/dev/urandom of=$at bs=64k count=16 seek=$2 oflag=direct conv=notrunc 2> /dev/null
            }
            write() { after $1 $2 & }
            each write
            wait
            told() { say "after $1 $2 $(sha256sum < /dev/$(of $1 $2) | cut -c 1-16)"; }
            echo 3 > /proc/sys/vm/drop_caches
            each told
            say "controllers $(ls -d /sys/bus/pci/drivers/ahci/0000:* | wc -l)"
        ' --cpus 2 $FLAGS
        # Without messages every function has its pin, and each is wired as the tables say.
        GUEST="$GUEST pci=nomsi"
        guest '
            all() { set -- /sys/block/vd*; [ $# = 40 ]; }
            wait_for 60 all
            for disk in /sys/block/vd*; do
                # There is no end of line.
                read serial < $disk/serial || true
                dd if=/dev/zero of=/dev/${disk##*/} bs=64k count=1 oflag=direct 2> /dev/null
                device=$(readlink -f $disk/device/..)
                read irq < $device/irq
                say "place ${serial#MANY} ${device##*/} $irq"
            done
        ' $(for n in $(seq 10 49); do echo "--disk ram=1M,serial=MANY$n"; done)
        for model in $MODELS; do
            for n in 0 1 2 3 4 5 6 7; do say "after $model $n $(sha256sum < /tmp/$model.$n | cut -c 1-16)"; done
        done"#,
    );
    seen.ended_with(&[0, 0]);
    // 30 have device numbers of their own, the rest are functions beside the last of them.
    let own = (2..32).map(|device| (device, 0));
    let addresses = own.chain((1..8).map(|function| (31, function))).chain([(30, 1), (30, 2), (30, 3)]);
    let places = (10..50).zip(addresses).map(|(n, (device, function))| {
        format!("{n} 0000:00:{device:02x}.{function} {}", 16 + (device + function % 4) % 8)
    });
    let mut found = seen.after("guest: place ");
    found.sort_unstable();
    assert_eq!(found, places.collect::<Vec<_>>(), "{seen}");
    for when in ["before", "after"] {
        let mut host = seen.after(&format!("host: {when} "));
        let mut guest = seen.after(&format!("guest: {when} "));
        assert_eq!(guest.len(), 24, "{seen}");
        host.sort_unstable();
        guest.sort_unstable();
        assert_eq!(host, guest, "{seen}");
        let sums: BTreeSet<_> = guest.iter().map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(sums.len(), 24, "no two disks hold the same\n{seen}");
    }
    for model in ["virtio-blk", "ahci", "nvme"] {
        for n in 0..8 {
            seen.expect(&format!("guest: size {model} {n} {}", (16 + n) * 128));
        }
    }
    // All SATA disks share one controller.
    seen.expect("guest: controllers 1");
}

#[test]
fn eight_namespaces_of_one_controller_are_disks_of_their_own_and_show_what_they_are_said_to_be() {
    let seen = Scenario::quick().programs().memory(lab::Size::mib(1536)).run(
        r#"
        FLAGS=
        for n in 1 2 3 4 5 6 7 8; do
            dd if=/dev/urandom of=/tmp/ns.$n bs=64k count=$((16 + n)) 2> /dev/null
            say "before $n $(sha256sum < /tmp/ns.$n | cut -c 1-16)"
            FLAGS="$FLAGS --disk path=/tmp/ns.$n,model=nvme,controller=eight"
        done
        for name in one two three; do truncate -s 1M /tmp/$name; done
        touch /tmp/seen
        (until grep -q grow /tmp/seen; do sleep 0.2; done; truncate -s 4M /tmp/ns.5) &
        MEMORY=320M guest '
            # Linux counts namespaces as it finds them, several at a time.
            ns() { for at in /sys/block/nvme0n*; do [ "$(cat $at/nsid)" != $1 ] || echo ${at##*/}; done; }
            there() { [ -n "$(ns $1)" ]; }
            for n in 1 2 3 4 5 6 7 8; do wait_for 60 there $n; done
            each() { for n in 1 2 3 4 5 6 7 8; do "$@" /dev/$(ns $n) $n; done; }
            size() { cat /sys/block/$(ns $1)/size; }
            before() { say "before $2 $(sha256sum < $1 | cut -c 1-16)"; }
            each before
            write() { dd if=/dev/urandom of=$1 bs=64k count=16 seek=$2 oflag=direct conv=notrunc 2> /dev/null & }
            each write
            wait
            echo 3 > /proc/sys/vm/drop_caches
            after() { say "after $2 $(sha256sum < $1 | cut -c 1-16)"; }
            each after
            say "controllers $(ls /sys/class/nvme | wc -l) namespaces $(ls -d /sys/block/nvme0n* | wc -l)"
            nvme list -v 2>&1 | sed "s/^/list: /"
            nvme id-ctrl /dev/nvme0 | grep -E "^(sn|mn|fr|nn) " | sed "s/^/id: /"
            of() { echo /dev/$(disk_of $1); }
            wait_for 60 test -b $(of ONE)
            hdparm -I $(of ONE) | grep -E "Model|Firmware" | sed "s/^/ata: /"
            say "sata $(ls -d /sys/bus/pci/drivers/ahci/0000:* | wc -l) $(cat /sys/block/sr0/device/model) $(cat /sys/block/sr0/device/rev)"
            say grow
            grown() { [ $(size 5) = 8192 ]; }
            wait_for 60 grown
            say "sizes $(size 4) $(size 5) $(size 6)"
        ' --cpus 2 $FLAGS,serial=EIGHT,product=Eight,firmware=8.0 \
            --disk path=/tmp/one,model=ahci,controller=a,serial=ONE,product=A-SATA-disk,firmware=1.2.3 \
            --disk path=/tmp/two,model=ahci-cd,controller=a,product=A-drive,firmware=4.5 \
            --disk path=/tmp/three,model=ahci --report /tmp/report | tee /tmp/seen
        for n in 1 2 3 4 5 6 7 8; do say "after $n $(head -c $((65536 * (16 + n))) /tmp/ns.$n | sha256sum | cut -c 1-16)"; done
        grep -E '"(name|bytes_written)"' /tmp/report | tr -d ' ,"\n' | sed 's/bytes_written:/\n/g' > /tmp/lines
        echo >> /tmp/lines
        sed 's/^/host: report /' /tmp/lines
        "#,
    );
    seen.ended_with(&[0]);
    for when in ["before", "after"] {
        let mut host = seen.after(&format!("host: {when} "));
        let mut guest = seen.after(&format!("guest: {when} "));
        host.sort_unstable();
        guest.sort_unstable();
        assert_eq!((host.len(), &host), (8, &guest), "{seen}");
        let sums: BTreeSet<_> = guest.iter().map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(sums.len(), 8, "no two namespaces hold the same\n{seen}");
    }
    seen.expect("guest: controllers 1 namespaces 8");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let list: Vec<String> = seen.after("list: ").into_iter().map(words).collect();
    let controller = list.iter().find(|line| line.starts_with("nvme0 ")).unwrap_or_else(|| panic!("{seen}"));
    for word in ["EIGHT", "Eight", "8.0"] {
        assert!(controller.contains(word), "{controller}\n{seen}");
    }
    let shown: BTreeSet<&str> =
        controller.split([' ', ',']).filter(|word| word.starts_with("nvme0n")).collect();
    assert_eq!(shown.len(), 8, "{controller}\n{seen}");
    let shown: Vec<String> = seen.after("id: ").into_iter().map(words).collect();
    assert_eq!(shown, ["sn : EIGHT", "mn : Eight", "fr : 8.0", "nn : 8"], "{seen}");
    let shown: Vec<String> = seen.after("ata: ").into_iter().map(words).collect();
    assert_eq!(shown, ["Model Number: A-SATA-disk", "Firmware Revision: 1.2.3"], "{seen}");
    // One has a name, the other is for disks that name none.
    let sata = seen.after("guest: sata ").concat();
    assert_eq!(words(&sata), "2 A-drive 4.5", "{seen}");
    // Of namespace 5 alone the guest was told that it has grown.
    seen.expect(&format!("guest: sizes {} 8192 {}", 20 * 128, 22 * 128));
    for n in 1..=8 {
        // 16 pieces of 64 KiB, and all of them its own.
        let report = format!("1048576name:/tmp/ns.{n}");
        assert!(seen.after("host: report ").contains(&report.as_str()), "{report}\n{seen}");
    }
}
