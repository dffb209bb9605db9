//! DMA that goes where it may not: blocked, told, and counted.

mod scenario;

use lab::Size;
use scenario::{Scenario, Seen, together};

/// A device that does DMA as it is told, to any address.
const EDU: &str = "edu,dma_mask=0x7fffffffff";

/// Where the RAM of a guest with 192 MiB is over, and that of one with 256 MiB is not.
const BEYOND: &str = "0xf000000";

/// What the guest and the host do to know the truth. The kernel's tracing notes when VT-d's handler runs; what skep
/// says is stamped by the same clock.
const HOST: &str = "
    edu=$(lab-edu find)
    say edu $edu
    truth() {
        cd /sys/kernel/tracing
        echo 'p:truth/dmar dmar_fault' >> kprobe_events
        mkdir instances/truth
        echo mono > instances/truth/trace_clock
        echo 1 > instances/truth/events/truth/dmar/enable
        cd /
    }
    tell_truth() {
        grep -o '[0-9.]*: dmar:' /sys/kernel/tracing/instances/truth/trace | sed 's/^/host: truth /;s/: dmar://'
    }
    counted() { awk '/dmar0/ { print $2 + $3 }' /proc/interrupts; }
    # stamped SCRIPT ARGUMENTS...: a guest, with what skep says on lines of their own, stamped.
    stamped() {
        mkfifo /tmp/said
        lab-edu stamp < /tmp/said > /tmp/stamped & stamper=$!
        before=$(counted)
        guest \"$@\" 2> /tmp/said
        say interrupts $(($(counted) - before))
        wait $stamper
        say left $(ls /sys/kernel/tracing/instances | grep -c skep_) $(grep -c skep_ /sys/kernel/tracing/kprobe_events)
        sed 's/^/host: said /' /tmp/stamped
    }
";

/// An event as skep told it.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    /// Seconds since boot.
    at: f64,
    /// `None` when nobody knows.
    device: Option<String>,
    domain: Option<String>,
    write: bool,
    iova: u64,
    place: String,
    known: u64,
    unattributed: u64,
}

/// A number that follows `before`.
fn number(text: &str, before: &str) -> Option<u64> {
    let (_, rest) = text.split_once(before)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

impl Told {
    fn read(line: &str) -> Option<Told> {
        let (at, line) = line.split_once(' ')?;
        let at: f64 = at.parse().ok()?;
        let unknown = line.split_once("an unknown device failed: ");
        if let Some((_, rest)) = unknown {
            let unattributed = number(rest, "at least ")?;
            let nobody = Told {
                at,
                device: None,
                domain: None,
                write: false,
                iova: 0,
                place: String::new(),
                known: 0,
                unattributed,
            };
            return Some(nobody);
        }
        let (front, rest) = line.split_once(" (DMA domain ")?;
        let (domain, rest) = rest.split_once(") could not ")?;
        let (way, rest) = rest.split_once(" IOVA 0x")?;
        let (iova, rest) = rest.split_once(", ")?;
        let (place, rest) = rest.split_once(": ")?;
        Some(Told {
            at,
            device: front.split(' ').next_back().map(str::to_owned),
            domain: Some(domain.to_owned()),
            write: way == "write",
            iova: u64::from_str_radix(iova, 16).ok()?,
            place: place.to_owned(),
            known: number(rest, "at least ")?,
            unattributed: number(rest, ", and ").unwrap_or(0),
        })
    }
}

/// All events, in their order.
fn told(seen: &Seen) -> Vec<Told> {
    seen.after("host: said at ").into_iter().filter_map(Told::read).collect()
}

/// The first telling of each burst.
fn bursts(told: &[Told]) -> Vec<&Told> {
    told.iter().filter(|event| event.known == 1 || event.known == 0).collect()
}

/// What all events together count: each burst by its last telling.
fn total(told: &[Told]) -> (u64, u64) {
    let (mut known, mut unattributed) = (0, 0);
    for (index, event) in told.iter().enumerate() {
        let same = |later: &&Told| {
            (&later.device, later.write, later.iova) == (&event.device, event.write, event.iova)
        };
        let next = told[index + 1..].iter().find(same);
        if next.is_none_or(|next| next.known <= event.known && next.unattributed <= event.unattributed) {
            (known, unattributed) = (known + event.known, unattributed + event.unattributed);
        }
    }
    (known, unattributed)
}

/// When VT-d's handler ran, in seconds since boot.
fn truth(seen: &Seen) -> Vec<f64> {
    seen.after("host: truth ").iter().map(|at| at.parse().unwrap()).collect()
}

/// How long after the fault each of these was told, in milliseconds, rising.
fn delays(told: &[&Told], truth: &[f64]) -> Vec<u64> {
    let since = |event: &&Told| {
        let fault = truth.iter().rfind(|at| **at <= event.at).expect("no event comes before its fault");
        ((event.at - fault) * 1000.0) as u64
    };
    let mut all: Vec<u64> = told.iter().map(since).collect();
    all.sort_unstable();
    all
}

/// How late an event may be told, in milliseconds; and later, if nothing ran in the emulated host for a while, for this
/// machine had other things to do: three threads pass an event on, and each may have waited so long.
fn in_time(seen: &Seen) -> u64 {
    200 + 3 * seen.after("host: said stall ")[0].parse::<u64>().unwrap()
}

fn edu(seen: &Seen) -> String {
    seen.after("host: edu ")[0].to_owned()
}

fn lab() -> Scenario {
    Scenario::new().memory(Size::mib(1536)).device(EDU)
}

fn a_device_reaches_its_guests_ram_and_neither_another_vm_nor_the_host_nor_what_was_ram_once() {
    // The other VM and the host hold marked memory, and so does the guest beside the page that the device uses.
    let seen = lab().run_into_faults(&format!(
        "{HOST}
         truth
         lab-edu markers 64M 3 /tmp/end > /tmp/host & host=$!
         wait_for 60 grep -q at /tmp/host
         inhost=$(sed 's/.* at //' /tmp/host)
         [ $((inhost)) -gt $((0xc000000)) ]
         start 'lab-edu markers 128M 2 /tmp/done & read line; touch /tmp/done; wait $! || say changed' \\
             --name other --console socket:/tmp/console & other=$!
         wait_for 60 test -S /tmp/console
         (until [ -e /tmp/end ]; do sleep 1; done
          until grep -q 'lab: exit' /tmp/heard; do echo end; sleep 1; done) \\
              | lab-io talk /tmp/console > /tmp/heard &
         wait_for 120 grep -q 'markers 2 at 0x[0-9a-f]*[[:cntrl:]]' /tmp/heard
         theirs=$(grep -o 'markers 2 at 0x[0-9a-f]*' /tmp/heard | sed 's/.* at //')
         say the other guest has its markers at $theirs
         [ $((theirs)) -ge $((0xc000000)) ]
         MEMORY=192M stamped \"
             lab-edu markers 32M 1 /tmp/done > /tmp/own & wait_for 60 grep -q at /tmp/own
             own=\\$(sed 's/.* at //' /tmp/own)
             say own \\$(lab-edu read \\$own | cut -d ' ' -f 4)
             for at in $theirs $inhost {BEYOND} 0xd0000000 0x7000000000; do
                 lab-edu write \\$at 8
                 say \\$(lab-edu read \\$at 8)
                 sleep 1
             done
             lab-edu storm write $theirs
             touch /tmp/done; wait; cat /tmp/own
         \" --assign $edu
         touch /tmp/end
         wait $host && say the host is unchanged
         cat /tmp/host
         wait $other
         grep -e markers -e changed /tmp/heard
         tell_truth"
    ));
    seen.ended_with(&[0]);
    let device = edu(&seen);
    seen.expect("guest: own data");
    for markers in
        ["markers 1 unchanged", "markers 2 unchanged", "markers 3 unchanged", "host: the host is unchanged"]
    {
        seen.expect(markers);
    }
    assert!(seen.after("guest: read ").iter().all(|read| !read.contains("data")), "{seen}");
    assert_eq!(seen.after("guest: read ").len(), 5, "{seen}");
    let told = told(&seen);
    let whose =
        |event: &Told| event.device.as_deref() == Some(device.as_str()) && event.place.contains("beyond");
    assert!(told.iter().all(whose), "{told:#?}\n{seen}");
    for (write, iova) in
        [(true, 0xf00_0000), (false, 0xf00_0000), (true, 0xd000_0000), (false, 0x70_0000_0000)]
    {
        let count = told.iter().filter(|event| (event.write, event.iova) == (write, iova)).count();
        assert_eq!(count, 1, "{write} {iova:#x}\n{seen}");
    }
    let (delays, faults) = (delays(&bursts(&told), &truth(&seen)), truth(&seen).len());
    println!("{faults} faults, {} events, told after {delays:?} ms", told.len());
    assert_eq!((told.len(), faults), (11, 11), "{seen}");
    assert!(delays.last() < Some(&in_time(&seen)), "{delays:?}\n{seen}");
}

#[test]
fn the_same_dma_is_no_fault_where_the_guest_has_ram() {
    let seen = lab().run(&format!(
        "{HOST}
         MEMORY=256M stamped 'lab-edu write {BEYOND} 8; say $(lab-edu read {BEYOND} 8)' --assign $edu"
    ));
    seen.ended_with(&[0]);
    seen.expect("guest: read 0xf000000 8 data 5c5c5c5c5c5c5c5c");
    assert_eq!(told(&seen), []);
}

fn a_fault_can_end_the_vm_or_have_it_stand_still_and_may_do_so_for_one_device_alone() {
    let seen = lab().run_into_faults(&format!(
        "{HOST}
         stamped 'lab-edu write 0x1f000000 8; sleep 5; say still there' --assign $edu,on-fault=stop
         start 'n=0; lab-edu write 0x1f000000 8 & while true; do n=$((n + 1)); say tick $n; sleep 1; done' \\
             --on-fault pause --assign $edu > /tmp/out 2> /tmp/errors & vm=$!
         wait_for 120 grep -q 'the VM is paused' /tmp/errors
         sleep 1
         ticks=$(grep -c tick /tmp/out)
         sleep 4
         say $(($(grep -c tick /tmp/out) - ticks)) ticks while paused, after $ticks
         sed 's/^/host: said at 0 /' /tmp/errors
         kill -KILL $(pidof skep)
         wait $vm || true"
    ));
    seen.ended_with(&[4]);
    assert_eq!(seen.count("guest: still there"), 0, "{seen}");
    let said = |words: &str| seen.after("host: said at ").iter().any(|line| line.contains(words));
    assert!(said("beyond this VM's RAM") && said("as on-fault asks"), "{seen}");
    assert!(said("the VM is paused: ") && seen.after("host: 0 ticks while paused").len() == 1, "{seen}");
}

/// Single faults and bursts, told one by one and in time.
fn singles_and_bursts(singles: u64, bursts_of_many: u64) -> Seen {
    // A process that was killed left its tracing behind; the next one removes it.
    let seen = lab().run_into_faults(&format!(
        "{HOST}
         truth
         mkdir /sys/kernel/tracing/instances/skep_99999999_1_0
         echo 'p:skep_99999999_1_0/dmar_220 dmar_fault' >> /sys/kernel/tracing/kprobe_events
         MEMORY=192M stamped '
             sleep 1
             lab-edu series write {BEYOND} {singles} 1
             sleep 2
             for burst in $(seq {bursts_of_many}); do lab-edu storm read 0xe000000; sleep 1; done
         ' --assign $edu
         tell_truth"
    ));
    seen.ended_with(&[0]);
    let device = edu(&seen);
    let (told, truth) = (told(&seen), truth(&seen));
    for (write, iova, count) in [(true, 0xf00_0000, singles), (false, 0xe00_0000, bursts_of_many)] {
        let right = |event: &&Told| {
            (event.device.as_deref(), event.domain.as_deref()) == (Some(device.as_str()), Some("guest"))
                && (event.write, event.iova, event.known) == (write, iova, 1)
        };
        assert_eq!(told.iter().filter(right).count() as u64, count, "{write} {iova:#x}\n{told:#?}\n{seen}");
    }
    assert_eq!(told.len() as u64, singles + bursts_of_many, "{told:#?}\n{seen}");
    let delays = delays(&told.iter().collect::<Vec<_>>(), &truth);
    let p99 = delays[(delays.len() * 99).div_ceil(100) - 1];
    println!(
        "{} events of {} interrupts; median {} ms, p99 {p99} ms, worst {} ms",
        told.len(),
        truth.len(),
        delays[delays.len() / 2],
        delays[delays.len() - 1]
    );
    assert!(p99 < in_time(&seen), "{delays:?}\n{seen}");
    seen
}

fn single_faults_and_bursts_are_events_with_device_address_and_direction_within_200_ms() {
    let seen = singles_and_bursts(3, 2);
    seen.expect("host: left 0 0");
}

#[test]
#[ignore = "takes three minutes"]
fn a_hundred_single_faults_and_twenty_bursts_are_events_with_device_address_and_direction_within_200_ms() {
    let _seen = singles_and_bursts(100, 20);
}

/// A burst of so many commands, of which the kernel's log shows about three in five seconds. Without tracing there
/// is nothing else that names a device.
fn burst(commands: u64, tracing: bool) {
    let hide = if tracing {
        ""
    } else {
        "mount -t tmpfs none /sys/kernel/tracing; mount -t tmpfs none /sys/kernel/debug"
    };
    let seen = lab().run_into_faults(&format!(
        "{HOST}
         {hide}
         MEMORY=192M stamped 'lab-edu burst write {BEYOND} {commands}; sleep 2' --assign $edu"
    ));
    seen.ended_with(&[0]);
    let interrupts: u64 = seen.after("host: interrupts ")[0].parse().unwrap();
    let told = told(&seen);
    let (known, unattributed) = total(&told);
    println!(
        "{commands} commands, {interrupts} interrupts, {known} faults known, {unattributed} unattributed"
    );
    // A fault that meets an unread one of the same requester may be one with it (VT-d specification, primary fault logging):
    // then nobody on the host can know of it, and every count says that it is a least.
    assert!(interrupts <= commands && interrupts >= commands - commands / 50, "{seen}");
    assert_eq!(known + unattributed, interrupts, "{told:#?}\n{seen}");
    let mut events = seen.after("host: said at ").into_iter().filter(|line| line.contains(" could not "));
    assert!(events.all(|line| line.contains("at least")), "{seen}");
    assert!(if tracing { unattributed == 0 } else { known >= 3 }, "{told:#?}\n{seen}");
}

fn a_burst_is_counted_whole_though_the_log_shows_little_of_it() {
    burst(40, true);
}

fn without_tracing_what_the_log_withholds_is_counted_as_nobodys() {
    burst(40, false);
}

#[test]
#[ignore = "takes two minutes"]
fn a_burst_of_a_thousand_is_counted_whole() {
    burst(1000, true);
}

together::together! { stories_of_blocked_dma_in_one_host:
    a_device_reaches_its_guests_ram_and_neither_another_vm_nor_the_host_nor_what_was_ram_once,
    a_fault_can_end_the_vm_or_have_it_stand_still_and_may_do_so_for_one_device_alone,
    single_faults_and_bursts_are_events_with_device_address_and_direction_within_200_ms,
    a_burst_is_counted_whole_though_the_log_shows_little_of_it,
    without_tracing_what_the_log_withholds_is_counted_as_nobodys,
}
