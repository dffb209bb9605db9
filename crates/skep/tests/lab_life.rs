//! A VM from its first line to its end: console, reboot, power button, stop, crash, kill.

mod scenario;

use scenario::tiny::{CRASH, DEAF, written_to};
use scenario::{Scenario, together};

#[test]
fn a_guest_that_reboots_finds_its_assigned_device_and_its_disk_as_before() {
    let seen = Scenario::new().run(
        "NVME=$(of_class 0x010802 | head -n 1)
         guest '
             if lab-io check /dev/vda 63M 4K 4K 9 > /dev/null 2>&1; then
                 say second start with $(nproc) CPUs
                 patterns check /dev/vda 1
                 patterns check /dev/nvme0n1 2
             else
                 say first start with $(nproc) CPUs
                 sums nvme0n1
                 patterns fill /dev/vda 1
                 patterns fill /dev/nvme0n1 2
                 lab-io fill /dev/vda 63M 4K 4K 9 > /dev/null
                 reboot -f
                 sleep 100
             fi
         ' --cpus 2 --disk /dev/sda --assign $NVME
         given_back $NVME nvme
         disk_is_back nvme0n1
         patterns check /dev/sda 1
         patterns check /dev/nvme0n1 2",
    );
    seen.ended_with(&[0]);
    seen.expect(&format!("guest: sum nvme0n1 {}", seen.sum("NVME0")));
    for line in [
        "guest: first start with 2 CPUs",
        "guest: second start with 2 CPUs",
        "guest: check /dev/vda 1 ok",
        "guest: check /dev/nvme0n1 2 ok",
        "host: check /dev/sda 1 ok",
        "host: check /dev/nvme0n1 2 ok",
    ] {
        seen.expect(line);
    }
}

fn sigterm_presses_the_power_button_and_the_device_is_given_back() {
    let seen = Scenario::quick().run(
        "NVME=$(of_class 0x010802 | head -n 1)
         GUEST=$(echo $GUEST | sed 's/ quiet//')
         start 'say ready; sleep 10000' --name button --disk /dev/sda --assign $NVME --console file:/tmp/console &
         wait_for 300 grep -q 'guest: ready' /tmp/console
         kill -TERM $(pidof skep)
         wait $! && ended=0 || ended=$?
         say skep ended with $ended
         say first line $(head -n 1 /tmp/console)
         grep -o 'lab: power button' /tmp/console
         given_back $NVME nvme
         disk_is_back nvme0n1
         sums nvme0n1",
    );
    seen.ended_with(&[0]);
    seen.expect("lab: power button");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
    let first = seen.after("host: first line ");
    assert!(first[0].contains("Linux version"), "the console starts with the kernel's first line: {first:?}");
}

fn a_second_sigterm_stops_a_guest_that_does_not_listen() {
    let deaf = written_to("/tmp/deaf", &DEAF);
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {deaf}
         skep run --memory 64M --kernel /tmp/deaf --assign $NVME --disk /dev/sda < /dev/null &
         wait_for 120 runs vm
         kill -TERM $!
         sleep 1
         kill -0 $! && say it runs on
         kill -TERM $!
         wait $! && ended=0 || ended=$?
         say skep ended with $ended
         given_back $NVME nvme
         disk_is_back nvme0n1
         sums nvme0n1 sda"
    ));
    seen.ended_with(&[5]);
    seen.expect("host: it runs on");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
    seen.expect(&format!("host: sum sda {}", seen.sum("AHCI0")));
}

fn a_guest_that_crashes_ends_with_status_3_and_the_device_is_given_back() {
    let crash = written_to("/tmp/crash", &CRASH);
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {crash}
         try skep run --memory 64M --kernel /tmp/crash --assign $NVME
         given_back $NVME nvme
         disk_is_back nvme0n1
         sums nvme0n1"
    ));
    seen.ended_with(&[3]);
    seen.expect("host: said skep: the guest crashed: vCPU 0 met a triple fault at an unknown place, for KVM has reset its registers.");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
}

fn what_a_killed_skep_left_is_put_right_by_the_next() {
    let (deaf, crash) = (written_to("/tmp/deaf", &DEAF), written_to("/tmp/crash", &CRASH));
    // Killed at different moments of its start and of its life.
    let seen = Scenario::quick().run(&format!(
        "NVME=$(of_class 0x010802 | head -n 1)
         {deaf}
         {crash}
         for moment in 20 50 100 200 400 800 late; do
             skep run --memory 64M --kernel /tmp/deaf --assign $NVME --disk /dev/sda < /dev/null &
             case $moment in
                 late) wait_for 120 runs vm ;;
                 *) usleep ${{moment}}000 ;;
             esac
             kill -KILL $!
             wait $! || true
             say after $moment: driver $(driver $NVME)
             try skep run --memory 64M --kernel /tmp/crash --assign $NVME --disk /dev/sda
             given_back $NVME nvme
             disk_is_back nvme0n1
         done
         sums nvme0n1 sda"
    ));
    seen.ended_with(&[3; 7]);
    seen.expect("host: after late: driver vfio-pci");
    seen.expect(&format!("host: sum nvme0n1 {}", seen.sum("NVME0")));
    seen.expect(&format!("host: sum sda {}", seen.sum("AHCI0")));
}

fn the_console_can_be_a_socket() {
    let (deaf, crash) = (written_to("/tmp/deaf", &DEAF), written_to("/tmp/crash", &CRASH));
    let seen = Scenario::quick().run(&format!(
        "start 'say ready; while read line; do say heard $line; [ $line != end ] || exit 7; done' --console socket:/tmp/console &
         wait_for 30 test -S /tmp/console
         # What comes before the guest has opened its serial port is lost, as on any.
         (until grep -q 'guest: ready' /tmp/heard; do usleep 200000; done; echo hello; sleep 1; echo end
          until grep -q 'lab: exit' /tmp/heard; do sleep 1; done) \\
             | lab-io talk /tmp/console > /tmp/heard || true
         wait $! && ended=0 || ended=$?
         cat /tmp/heard
         say skep ended with $ended
         [ ! -e /tmp/console ] || say the socket is left
         # Of a VM that was killed it is left, and is nobody else's business meanwhile.
         {deaf}
         {crash}
         umask 0
         skep run --memory 64M --kernel /tmp/deaf --console socket:/tmp/console &
         wait_for 30 test -S /tmp/console
         say mode $(stat -c %a /tmp/console)
         try skep run --name other --memory 64M --kernel /tmp/crash --console socket:/tmp/console
         kill -KILL $!
         wait $! || true
         try skep run --memory 64M --kernel /tmp/crash --console socket:/tmp/console
         [ ! -e /tmp/console ] || say the socket is left"
    ));
    seen.ended_with(&[0, 1, 3]);
    seen.expect("host: mode 600");
    assert!(
        seen.after("host: said skep: ")
            .iter()
            .any(|line| line.contains("listens on the socket /tmp/console already")),
        "{seen}"
    );
    seen.expect("guest: heard hello");
    seen.expect("lab: exit 7");
    assert_eq!(seen.count("host: the socket is left"), 0, "{seen}");
}

fn a_press_that_the_guest_does_not_hear_is_said_and_waiting_presses_again_and_sees_the_end() {
    // The button's driver comes late, and the program that acts on it later still.
    let seen = Scenario::quick().run(
        "start 'say ready; sleep 10000' --name early > /tmp/console 2> /tmp/said &
         V=$!
         wait_for 60 test -S /run/skep/vm/early.sock
         skep events early --follow > /tmp/events & FOLLOWS=$!
         skep stop early --wait 2> /tmp/stop
         wait $V && ended=0 || ended=$?
         say skep ended with $ended
         wait $FOLLOWS
         sed 's/^/host: early /' /tmp/said /tmp/stop
         sed 's/^/host: event /' /tmp/events
         grep -o 'lab: power button' /tmp/console",
    );
    seen.ended_with(&[0]);
    seen.expect("lab: power button");
    for part in [
        "host: early skep: the guest of early does not listen to the power button yet",
        "the power button was pressed, but the guest does not listen to it yet",
        "the guest listens to the power button now",
        "the VM ends: the guest powered off",
        "the VM has ended: the guest powered off",
    ] {
        assert!(seen.to_string().contains(part), "{part}\n{seen}");
    }
}

together::together! { stories_of_a_vms_life_in_one_host:
    sigterm_presses_the_power_button_and_the_device_is_given_back,
    a_second_sigterm_stops_a_guest_that_does_not_listen,
    a_guest_that_crashes_ends_with_status_3_and_the_device_is_given_back,
    what_a_killed_skep_left_is_put_right_by_the_next,
    the_console_can_be_a_socket,
    a_press_that_the_guest_does_not_hear_is_said_and_waiting_presses_again_and_sees_the_end,
}
