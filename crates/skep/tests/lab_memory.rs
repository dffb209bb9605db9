//! Guest RAM that the host does not give or takes away, devices that it wants back, and what a guest's CPUs can do.

mod scenario;

use lab::Size;
use scenario::tiny::{CRASH, DEAF, written_to};
use scenario::{Scenario, Seen};

/// There is a line of skep's with all these parts.
#[track_caller]
fn says(seen: &Seen, parts: &[&str]) {
    let mut said = seen.after("host: said skep: ").into_iter();
    assert!(said.any(|line| parts.iter().all(|part| line.contains(part))), "no line has {parts:?}\n{seen}");
}

/// Runs a command in the cgroup /cg/x.
const CGROUP: &str = r#"
    mkdir /cg
    mount -t cgroup2 none /cg
    echo '+hugetlb +memory' > /cg/cgroup.subtree_control
    mkdir /cg/x
    within() { sh -c 'echo $$ > /cg/x/cgroup.procs; exec "$@"' sh "$@"; }
    limit() { echo $2 > /cg/x/$1; }
    free() { cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages; }
"#;

#[test]
fn ram_that_the_host_does_not_give_is_a_finding_and_once_the_guest_runs_an_orderly_end() {
    let crash = written_to("/tmp/crash", &CRASH);
    let mib = |mib: u64| mib << 20;
    let (small, most) = (mib(64), mib(128));
    let memory: Size = "1G".parse().unwrap();
    // Debian's kernel, for the limits. The guest fills what the host has promised it and does not have any more; a guest
    // with a device loses RAM that was there.
    let seen = Scenario::new().memory(memory).hugepages(192).run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         {CGROUP}
         limit hugetlb.2MB.max {small}
         for wire in off on; do
             try within skep run --memory 256M --hugepages 2M --wire $wire --kernel /tmp/crash --assign $NVME
         done
         limit hugetlb.2MB.max max
         limit memory.max {most}
         try within skep run --memory 256M --kernel /tmp/crash
         try within skep run --memory 128M --wire on --kernel /tmp/crash
         limit memory.max max
         given_back $NVME nvme
         say free $(free)

         {START}
         story 'mkdir -p /ram; mount -t tmpfs -o size=100% none /ram
             say up; read line; dd if=/dev/zero of=/ram/fill bs=1M; say filled' \\
             --hugepages 2M --disk /dev/sda
         limit hugetlb.2MB.max $(cat /cg/x/hugetlb.2MB.current)
         end_story
         limit hugetlb.2MB.max max
         say free $(free)

         story 'say up; read line; while true; do cat /dev/vda /dev/nvme0n1 > /dev/null; done' \\
             --disk /dev/sda --assign $NVME
         for file in /proc/$(pidof skep)/fd/*; do
             case $(readlink $file) in /#*) truncate -c -s 0 $file; say shorter;; esac
         done
         end_story
         given_back $NVME nvme
         disk_is_back nvme0n1
         sums nvme0n1
         lab-io fill /dev/sda 0 1M 64K 1"
    ));
    seen.ended_with(&[1, 1, 1, 1, 4, 4]);
    says(&seen, &["takes 256 MiB of huge pages of 2 MiB", "limit of 64 MiB (/cg/x/hugetlb.2MB.max)"]);
    says(&seen, &["takes 256 MiB, and the cgroup", "limit of 128 MiB (/cg/x/memory.max)", "MemoryMax="]);
    says(&seen, &["takes 128 MiB, and the cgroup", "(/cg/x/memory.max), of which ", " MiB are in use"]);
    says(
        &seen,
        &["no huge page of 2 MiB left for guest RAM at 0x", "(segment 0x0-0xfffffff)", "hugetlb.*.max"],
    );
    says(&seen, &["made the file behind the segment shorter", "(segment 0x0-0xfffffff)"]);
    assert_eq!(seen.after("host: free "), ["192", "192"], "{seen}");
    assert_eq!(seen.count("guest: filled"), 0, "{seen}");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}

/// story SCRIPT ARGUMENTS...: starts a guest in the cgroup and waits until it is up. end_story: has it go on, and waits for
/// the end.
const START: &str = r#"
    story() {
        { echo 'say() { echo "guest: $*"; }'; echo "$1"; } > /tmp/script
        shift
        lab-initrd /tmp/script /tmp/initrd
        rm -f /tmp/console /tmp/heard
        within skep run --memory 256M --kernel /lab/guest/vmlinux --initrd /tmp/initrd --cmdline "$GUEST" \
            --console socket:/tmp/console --report /tmp/report "$@" > /tmp/tried 2>&1 < /dev/null & vm=$!
        wait_for 60 test -S /tmp/console
        (until [ -e /tmp/go ]; do sleep 0.2; done; while sleep 1; do echo go; done) \
            | lab-io talk /tmp/console > /tmp/heard & talk=$!
        wait_for 200 grep -q 'guest: up' /tmp/heard
    }
    end_story() {
        touch /tmp/go
        wait $vm && ended=0 || ended=$?
        sed 's/^/host: said /' /tmp/tried
        grep guest: /tmp/heard
        say reported $(tr -d '\n' < /tmp/report | cut -c 1-200)
        say "skep ended with $ended"
        kill $talk 2> /dev/null || true
        rm -f /tmp/go
    }
"#;

#[test]
fn a_device_that_the_host_wants_back_is_told_of_once_and_ends_the_vm_only_if_it_is_to() {
    let deaf = written_to("/tmp/deaf", &DEAF);
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {deaf}
         # The kernel asks again every ten seconds.
         for answer in report stop; do
             skep run --memory 64M --kernel /tmp/deaf --assign $NVME,on-request=$answer > /tmp/tried 2>&1 < /dev/null & vm=$!
             wait_for 120 eval '[ -S /run/skep/vm/vm.sock ] && skep list | grep -q running'
             echo $NVME > /sys/bus/pci/drivers/vfio-pci/unbind & unbind=$!
             [ $answer = stop ] || {{ sleep 25; skep events vm > /tmp/events; skep stop --now vm; }}
             wait $vm && ended=0 || ended=$?
             wait $unbind
             sed \"s/^/host: said $answer /\" /tmp/tried
             sed 's/^/host: event /' /tmp/events
             say \"skep ended with $ended\"
             skep host give-back || true
             say driver $(driver $NVME)
             [ $(driver $NVME) = nvme ] || echo $NVME > /sys/bus/pci/drivers_probe
             disk_is_back nvme0n1
         done
         sums nvme0n1"
    ));
    seen.ended_with(&[5, 5]);
    let told = |answer: &str| {
        let said = seen.after(&format!("host: said {answer} skep: "));
        said.into_iter().filter(|line| line.contains("wants the assigned device 0000:01:00.0 back")).count()
    };
    assert_eq!((told("report"), told("stop")), (1, 1), "{seen}");
    let events = seen.after("host: event ");
    assert_eq!(
        events.iter().filter(|line| line.contains("life") && line.contains("back")).count(),
        2,
        "{seen}"
    );
    assert!(!events.iter().any(|line| line.contains("  fault  ")), "{seen}");
    // The unbind holds the device, which is no failure of the VM.
    assert_eq!(seen.count("host: driver nvme"), 2, "{seen}");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}

#[test]
fn a_guest_can_run_vms_of_its_own_only_if_it_is_to() {
    let look = "say svm $(grep -c -w svm /proc/cpuinfo)";
    let seen = Scenario::quick().run(&format!("guest '{look}'\nguest '{look}' --nested"));
    seen.ended_with(&[0, 0]);
    assert_eq!(seen.after("guest: svm "), ["0", "1"], "{seen}");
}
