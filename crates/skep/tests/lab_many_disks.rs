//! Eight disks on each controller at once, each with its own contents.

mod scenario;

use scenario::Scenario;

#[test]
fn eight_disks_of_each_model_keep_their_own_contents_in_one_guest() {
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
        for model in $MODELS; do
            for n in 0 1 2 3 4 5 6 7; do say "after $model $n $(sha256sum < /tmp/$model.$n | cut -c 1-16)"; done
        done"#,
    );
    seen.ended_with(&[0]);
    for when in ["before", "after"] {
        let mut host = seen.after(&format!("host: {when} "));
        let mut guest = seen.after(&format!("guest: {when} "));
        assert_eq!(guest.len(), 24, "{seen}");
        host.sort_unstable();
        guest.sort_unstable();
        assert_eq!(host, guest, "{seen}");
        let sums: std::collections::BTreeSet<_> = guest.iter().map(|line| line.rsplit(' ').next()).collect();
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
