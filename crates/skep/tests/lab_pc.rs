//! The machine as a kernel finds it: memory types, the clock and its interrupt, the CPUs' devices, and what the kernel's
//! log warns of. docs/pc.md says why it is so.

mod scenario;

use std::fs;

use scenario::warnings::{WARNINGS, unknown_warnings};
use scenario::{Scenario, packages, together};

#[test]
fn a_warning_that_is_not_on_the_list_is_unknown_wherever_it_stands() {
    let begins = "------------[ cut here ]------------";
    let xsave = "XSAVE consistency problem: size 832 != kernel_size 576";
    let ends = "---[ end trace 0000000000000000 ]---";
    assert_eq!(unknown_warnings(&["a", begins, xsave, "RIP: 0010:fpu", ends, "b"]), ["a", "b"]);
    assert_eq!(unknown_warnings(&[begins, "WARNING: CPU: 0", ends]), [begins, "WARNING: CPU: 0", ends]);
}

/// The clock's memory is not concerned by a reset, so a guest marks there that it was here.
fn memory_types_and_cpus_are_as_firmware_leaves_them_and_so_they_are_after_a_reboot() {
    let script = "
        nvram=/sys/bus/nvmem/devices/cmos_nvram0/nvmem
        mark() { dd if=$nvram bs=1 skip=66 count=5 2> /dev/null; }
        if [ \"$(mark)\" = START ]; then start=second; else start=first; fi
        pat=$(dmesg | grep -o 'x86/PAT: Configuration.*')
        say $start start with $(nproc) CPUs: $pat
        say $start start with $(nproc) CPUs: $(cat /proc/mtrr)
        say $start start with $(nproc) CPUs: processors $(ls -d /sys/bus/acpi/devices/ACPI0007:* | wc -l) \\
            driven $(ls -d /sys/devices/system/cpu/cpu[0-9]*/driver | wc -l) \\
            of node $(ls -d /sys/devices/system/cpu/cpu[0-9]*/firmware_node | wc -l)
        if [ $start = first ]; then
            printf START | dd of=$nvram bs=1 seek=66 conv=notrunc 2> /dev/null
            reboot -f
            sleep 100
        fi";
    let guest = script.replace('\'', r"'\''");
    let seen = Scenario::new()
        .programs()
        .run(&format!("MEMORY=512M\nfor cpus in 1 2; do guest '{guest}' --cpus $cpus; done"));
    seen.ended_with(&[0, 0]);
    for cpus in [1, 2] {
        for start in ["first", "second"] {
            let line = |what: &str| format!("guest: {start} start with {cpus} CPUs: {what}");
            seen.expect(&line("x86/PAT: Configuration [0-7]: WB WC UC- UC WB WP UC- WT"));
            seen.expect(&line("reg00: base=0x0c0000000 ( 3072MB), size= 1024MB, count=1: uncachable"));
            seen.expect(&line(&format!("processors {cpus} driven {cpus} of node {cpus}")));
        }
    }
}

fn the_clock_interrupts_at_the_next_second_and_hwclock_need_not_wait() {
    // Linux sets the clock's alarm to the next second. Where the second has begun before that is done, it answers without an interrupt, or
    // the interrupt is a day away: so hwclock may try again, from the beginning of a second on, where its last try ended.
    let seen = Scenario::new().programs().run(
        "MEMORY=512M
         guest '
             sleep 2
             for try in 1 2 3 4; do
                 began=$(cut -d . -f 1 /proc/uptime)
                 /bin/hwclock -r -v -f /dev/rtc0 --utc | sed \"s/^/guest: hwclock /\"
                 took=$(($(cut -d . -f 1 /proc/uptime) - began))
                 interrupts=$(grep rtc0 /proc/interrupts | tr -s \" \" | cut -d \" \" -f 3)
                 say try $try took $took s, interrupts $interrupts
                 [ $took -lt 8 ] && [ $interrupts -ge 1 ] && { say hwclock had its interrupt; break; }
             done
             say the times differ by $(($(cat /sys/class/rtc/rtc0/since_epoch) - $(date +%s))) s
         '",
    );
    seen.ended_with(&[0]);
    assert!(seen.after("guest: hwclock ").iter().any(|line| line.contains("got clock tick")), "{seen}");
    // Without interrupts it gives up after ten seconds.
    seen.expect("guest: hwclock had its interrupt");
    let differ =
        seen.after("guest: the times differ by ")[0].split(' ').next().unwrap().parse::<i64>().unwrap();
    assert!(differ.abs() <= 2, "{seen}");
}

/// The usual one, the cloud's and the real-time one.
#[test]
fn debians_kernels_warn_of_nothing_that_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    let mut others = Vec::new();
    for package in ["linux-image-cloud-amd64", "linux-image-rt-amd64"] {
        match packages::file(package, "./boot/vmlinuz-*") {
            Ok(kernel) => {
                fs::copy(kernel, folder.path().join(package)).unwrap();
                others.push(package);
            }
            Err(why) => println!("{package} was not tried, for it is not to be had: {why}"),
        }
    }
    let guest = WARNINGS.replace('\'', r"'\''");
    let boot = |kernel: &str| format!("KERNEL={kernel} guest '{guest}' --cpus 2\n");
    let boots: String = others.iter().map(|package| boot(&format!("/share/{package}"))).collect();
    // As people start them, with nothing left out.
    let script = format!("GUEST='console=ttyS0 panic=-1 quiet'\n{}{boots}", boot("/lab/guest/vmlinux"));
    let seen = Scenario::new().share(folder.path()).run(&script);
    seen.ended_with(&vec![0; 1 + others.len()]);
    let lines: Vec<&str> = seen.lines().collect();
    let guests = lines.split(|line| line.starts_with("guest: kernel ")).skip(1);
    let mut looked_at = 0;
    for guest in guests {
        let warnings: Vec<_> = guest.iter().filter_map(|line| line.strip_prefix("guest: warning ")).collect();
        let unknown = unknown_warnings(&warnings);
        assert!(unknown.is_empty(), "not on the list of docs/pc.md: {unknown:#?}\n{seen}");
        looked_at += 1;
    }
    assert_eq!(looked_at, 1 + others.len(), "{seen}");
}

together::together! { stories_of_the_machine_in_one_host:
    memory_types_and_cpus_are_as_firmware_leaves_them_and_so_they_are_after_a_reboot,
    the_clock_interrupts_at_the_next_second_and_hwclock_need_not_wait,
}
