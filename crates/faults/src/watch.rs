//! One thread that listens to all sources.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::account::{Account, SETTLED};
use crate::bursts::Bursts;
use crate::fault::{Count, Fault, Source};
use crate::inbox::{FaultReporter, Inbox};
use crate::kmsg::Entry;
use crate::line::{Line, Report, parse_line};
use crate::place::Place;
use crate::requester::Requester;
use crate::sources::{Inputs, Sources};
use crate::tally::Tally;
use crate::tracing::Trace;
use dma::Iova;

/// While faults come, the sources that cannot wake the thread are read this often.
const BUSY: Duration = Duration::from_millis(50);
/// After the last fault the thread stays busy for so long: longer than the kernel withholds reports (5 s).
const AFTERMATH: Duration = Duration::from_secs(10);
/// Otherwise: if a source wakes the thread at the first fault, or if none can.
const IDLE: Duration = Duration::from_secs(5);
const IDLE_WITHOUT_WAKING: Duration = Duration::from_millis(100);
/// The shortest time between two reports of overwritten records of the log.
const LOSSES: Duration = Duration::from_secs(1);
/// Entries read from a source before the others have their turn.
const TURN: usize = 1024;

/// A device of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Its address on this host.
    pub device: Requester,
    /// The domain by which it translates.
    pub domain: String,
}

/// Says what lies at an IOVA in the VM's memory map, for a device of this domain.
pub type Classify = Box<dyn Fn(&str, Iova) -> Place + Send>;

/// Receives faults. Called on the watch's thread, which waits for it.
pub type Tell = Box<dyn FnMut(Fault) + Send>;

/// Watches for DMA faults of a VM's devices until it is dropped. A fault is reported within 200 ms. Faults that follow it
/// closely are reported as one burst, at most once a second.
#[derive(Debug)]
pub struct Watch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    devices: Arc<Mutex<Vec<Watched>>>,
    inbox: Arc<Inbox>,
    sources: Sources,
    tally: Tally,
}

impl Watch {
    /// Starts to watch. Earlier faults are not reported.
    pub fn start(inputs: Inputs, devices: Vec<Watched>, classify: Classify, tell: Tell) -> io::Result<Watch> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let end = stop.try_clone()?;
        let sources = inputs.sources().clone();
        let devices = Arc::new(Mutex::new(devices));
        let (inbox, tally) = (Arc::new(Inbox::new()?), Tally::default());
        let now = Instant::now();
        let mut round = Round {
            inputs,
            devices: devices.clone(),
            inbox: inbox.clone(),
            classify,
            tell,
            account: Account::default(),
            bursts: Bursts::counted_by(tally.clone()),
            tally: tally.clone(),
            stirred: now,
            counted: now,
            lost: 0,
            lost_told: None,
        };
        // From here on interrupts count, whenever the thread begins.
        round.count_interrupts(now);
        let thread = std::thread::Builder::new().name("faults".into()).spawn(move || {
            while round.wait(&end) {
                round.go();
            }
            round.last();
        })?;
        Ok(Watch { stop, thread: Some(thread), devices, inbox, sources, tally })
    }

    /// The sources that are watched.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Counts all faults that are reported.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// A way to report faults that skep itself met. They are reported like all others: those of a watched device with
    /// its domain and place, in bursts.
    pub fn reporter(&self) -> FaultReporter {
        FaultReporter::new(self.inbox.clone())
    }

    /// Watches one more device, or knows that it has another domain.
    pub fn add(&self, device: Watched) {
        let mut devices = self.devices.lock();
        devices.retain(|other| other.device != device.device);
        devices.push(device);
    }

    /// Stops watching a device.
    pub fn remove(&self, device: Requester) {
        self.devices.lock().retain(|other| other.device != device);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let told = self.stop.write(1);
        debug_assert!(told.is_ok(), "an eventfd that nobody wrote to takes a 1");
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Round {
    inputs: Inputs,
    devices: Arc<Mutex<Vec<Watched>>>,
    inbox: Arc<Inbox>,
    classify: Classify,
    tell: Tell,
    account: Account,
    bursts: Bursts,
    tally: Tally,
    /// When something last concerned faults.
    stirred: Instant,
    counted: Instant,
    lost: u64,
    lost_told: Option<Instant>,
}

impl Round {
    /// Waits until there is something to do; false when it is time to end.
    fn wait(&self, stop: &EventFd) -> bool {
        let log = self.inputs.log.as_ref().map(|log| log.as_fd().as_raw_fd());
        let tracing = self.inputs.tracing.as_ref().map(|tracing| tracing.as_fd().as_raw_fd());
        let mut fds: Vec<libc::pollfd> = [stop.as_raw_fd(), self.inbox.wake().as_raw_fd()]
            .into_iter()
            .chain(log)
            .chain(tracing)
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect();
        let busy = self.stirred.elapsed() < AFTERMATH
            || self.bursts.are_open()
            || self.account.is_settling()
            || self.lost > 0;
        let patience = match (busy, fds.len()) {
            (true, _) => BUSY,
            (false, 2) => IDLE_WITHOUT_WAKING,
            (false, _) => IDLE,
        };
        // SAFETY: the array is ours and as long as said.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, patience.as_millis() as i32) };
        fds[0].revents == 0
    }

    /// Reads everything there is and reports what is due.
    fn go(&mut self) {
        // The probe notes a fault before the log has it, and knows more.
        self.read_traces();
        self.read_log();
        let now = Instant::now();
        self.take_inbox(now);
        if now.duration_since(self.counted) >= SETTLED {
            self.count_interrupts(now);
        }
        self.add_nameless(now);
        self.tell_losses(now);
        self.bursts.due(now).into_iter().for_each(&mut self.tell);
    }

    /// The last round, after which nothing settles any more.
    fn last(&mut self) {
        self.count_interrupts(Instant::now());
        self.go();
        for _ in 0..2 {
            if self.account.is_settling() {
                std::thread::sleep(SETTLED);
                self.count_interrupts(Instant::now());
                self.go();
            }
        }
        self.bursts.rest(Instant::now()).into_iter().for_each(&mut self.tell);
    }

    fn read_log(&mut self) {
        for _ in 0..TURN {
            let Some(log) = &mut self.inputs.log else { return };
            match log.read() {
                Ok(None) => return,
                Ok(Some(Entry::Lost(records))) => self.lost += records,
                Ok(Some(Entry::Record(record))) => {
                    if let Some(line) = parse_line(&record.text) {
                        self.line(line);
                    }
                }
                Err(error) => {
                    self.inputs.log = None;
                    self.blind(Source::Log, format!("the kernel's log can be read no more: {error}"));
                }
            }
        }
    }

    fn line(&mut self, line: Line) {
        self.stirred = Instant::now();
        match line {
            Line::Handling { .. } => self.account.announced(),
            Line::IntelSuppressed(calls) => self.account.intel_withheld(calls),
            Line::AmdSuppressed(reports) => self.account.amd_withheld(reports),
            Line::AmdOverflow => {}
            Line::Intel(report) => {
                self.account.intel_reported();
                self.fault(report, SystemTime::now(), Source::Log);
            }
            Line::Amd(report) => {
                self.account.amd_reported();
                self.fault(report, SystemTime::now(), Source::Log);
            }
        }
    }

    fn read_traces(&mut self) {
        for _ in 0..TURN {
            let Some(tracing) = &mut self.inputs.tracing else { return };
            match tracing.read() {
                Ok(None) => return,
                Ok(Some((stamp, Trace::Fault(report)))) => {
                    self.stirred = Instant::now();
                    self.account.traced();
                    self.fault(report, since_boot(stamp), Source::Tracepoint);
                }
                Ok(Some((stamp, Trace::Records(faults)))) => {
                    self.stirred = Instant::now();
                    self.account.probed();
                    for report in faults {
                        self.fault(report, since_boot(stamp), Source::Probe);
                    }
                }
                Err(error) => {
                    self.inputs.tracing = None;
                    self.blind(Source::Tracepoint, format!("the trace can be read no more: {error}"));
                }
            }
        }
    }

    /// An observer reports a fault. Faults of devices that are not this VM's are ignored.
    fn fault(&mut self, report: Report, time: SystemTime, observer: Source) {
        let devices = self.devices.lock();
        let watched = devices.iter().find(|one| one.device.may_be(report.device)).cloned();
        let Some(Watched { device, domain }) = watched else { return };
        // Devices come and go, and what was seen of those that went is of no use.
        self.account.keep(|device| devices.iter().any(|one| one.device == device));
        drop(devices);
        if !self.account.is_new(device, observer) {
            return;
        }
        let place = report.iova.map(|iova| (self.classify)(&domain, iova));
        let fault =
            Fault { device: Some(device), domain: Some(domain), place, ..report.fault(time, observer) };
        self.bursts.add(Instant::now(), fault);
    }

    /// What parts of skep have reported. It concerns this VM, even if the device is no longer watched.
    fn take_inbox(&mut self, now: Instant) {
        for fault in self.inbox.take() {
            let devices = self.devices.lock();
            let named = fault.device.and_then(|device| devices.iter().find(|one| one.device.may_be(device)));
            let domain = named.map(|one| one.domain.clone());
            drop(devices);
            let place = fault.iova.zip(domain.as_ref()).map(|(iova, domain)| (self.classify)(domain, iova));
            self.bursts.add(now, Fault { domain, place, ..fault });
        }
    }

    fn count_interrupts(&mut self, now: Instant) {
        let Some(interrupts) = &self.inputs.interrupts else { return };
        self.counted = now;
        match interrupts.read() {
            Ok(calls) => self.account.interrupts(calls),
            Err(error) => {
                self.inputs.interrupts = None;
                self.blind(Source::Interrupts, format!("/proc/interrupts can be read no more: {error}"));
            }
        }
    }

    fn add_nameless(&mut self, now: Instant) {
        let unattributed = self.account.unattributed(now);
        if unattributed > 0 {
            self.stirred = now;
            let count = Count { known: 0, unattributed, complete: false };
            let fault = Fault::new(Source::Interrupts, "the kernel withheld the reports");
            self.bursts.add_nameless(now, Fault { count, ..fault });
        }
    }

    fn tell_losses(&mut self, now: Instant) {
        let late = self.lost_told.is_none_or(|told| now.duration_since(told) >= LOSSES);
        if self.lost > 0 && late {
            let lost = std::mem::take(&mut self.lost);
            self.lost_told = Some(now);
            self.blind(
                Source::Log,
                format!(
                    "at least {lost} records of the kernel's log were overwritten before they could be read; faults \
                     may be among them"
                ),
            );
        }
    }

    /// Reports that faults may be missed.
    fn blind(&mut self, source: Source, reason: String) {
        let count = Count { known: 0, unattributed: 0, complete: false };
        self.tally.add(None, count);
        (self.tell)(Fault { count, ..Fault::new(source, reason) });
    }
}

/// The time of so many microseconds after boot, by CLOCK_MONOTONIC.
fn since_boot(micros: u64) -> SystemTime {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    let ago = now.saturating_sub(Duration::from_micros(micros));
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Direction;
    use crate::interrupts::Interrupts;
    use crate::kmsg::tests::pipe;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc::{Receiver, channel};

    /// A host whose kernel is this test.
    struct Host {
        log: File,
        number: u64,
        interrupts: File,
        watch: Watch,
        events: Receiver<(Fault, Instant)>,
    }

    impl Host {
        fn new() -> Host {
            let (input, log) = pipe();
            // SAFETY: the name is a C string; the descriptor is new and ours.
            let interrupts = unsafe {
                use std::os::fd::FromRawFd;
                File::from_raw_fd(libc::memfd_create(c"interrupts".as_ptr(), libc::MFD_CLOEXEC))
            };
            let counts = Interrupts::over(interrupts.try_clone().unwrap());
            let (sender, events) = channel();
            let device = Watched { device: "0000:00:09.0".parse().unwrap(), domain: "guest".into() };
            let classify = |_: &str, iova: Iova| if iova.0 < 1 << 28 { Place::Hole } else { Place::Beyond };
            set(&interrupts, 40);
            let watch = Watch::start(
                Inputs::over(input, counts),
                vec![device],
                Box::new(classify),
                Box::new(move |event| drop(sender.send((event, Instant::now())))),
            );
            Host { log, number: 1, interrupts, watch: watch.unwrap(), events }
        }

        fn log(&mut self, line: &str) {
            self.number += 1;
            self.log.write_all(format!("3,{},1,-;{line}\n", self.number).as_bytes()).unwrap();
        }

        fn faults(&mut self, count: u64, device: &str) {
            for _ in 0..count {
                self.log("DMAR: DRHD: handling fault status reg 2");
                self.log(&format!(
                    "DMAR: [DMA Write NO_PASID] Request device [{device}] fault addr 0x200000 [fault reason 0x05] x"
                ));
            }
        }

        fn next(&self) -> (Fault, Instant) {
            self.events.recv_timeout(Duration::from_secs(5)).unwrap()
        }
    }

    fn set(interrupts: &File, count: u64) {
        interrupts.write_all_at(format!("24: {count:10} 0 DMAR-MSI 0-edge dmar0\n").as_bytes(), 0).unwrap();
    }

    #[test]
    fn a_fault_is_told_at_once_with_device_domain_direction_address_and_place() {
        let mut host = Host::new();
        std::thread::sleep(Duration::from_millis(120));
        let before = Instant::now();
        host.faults(1, "00:09.0");
        set(&host.interrupts, 41);
        let (event, at) = host.next();
        // On a machine with nothing else to do it takes a millisecond; the lab looks closer.
        assert!(at.duration_since(before) < Duration::from_secs(2));
        assert_eq!(event.device, Some("0000:00:09.0".parse().unwrap()));
        assert_eq!((event.direction, event.iova), (Some(Direction::Write), Some(Iova(0x20_0000))));
        assert_eq!((event.domain.as_deref(), event.place), (Some("guest"), Some(Place::Hole)));
        assert_eq!(event.count, Count { known: 1, unattributed: 0, complete: false });
        drop(host.watch);
        assert!(host.events.recv().is_err(), "one fault is one event");
    }

    #[test]
    fn a_burst_of_which_most_is_withheld_is_counted_whole() {
        let mut host = Host::new();
        host.faults(3, "00:09.0");
        host.log("DMAR: DRHD: handling fault status reg 2");
        set(&host.interrupts, 1040);
        let (first, _) = host.next();
        let mut last = first.clone();
        while last.count.known + last.count.unattributed < 1000 {
            let (event, _) = host.next();
            assert_eq!(event.burst, first.burst);
            assert!(
                event.count.known >= last.count.known && event.count.unattributed >= last.count.unattributed
            );
            last = event;
        }
        assert_eq!(last.count, Count { known: 3, unattributed: 997, complete: false });
        let counts = host.watch.tally().read();
        assert_eq!((counts.of("guest").known, counts.except(|name| name == "guest").unattributed), (3, 997));
    }

    #[test]
    fn faults_of_others_are_no_events_but_withheld_ones_might_be_ours() {
        let mut host = Host::new();
        host.faults(2, "03:00.0");
        set(&host.interrupts, 42);
        std::thread::sleep(Duration::from_millis(200));
        set(&host.interrupts, 47);
        let (event, _) = host.next();
        assert_eq!((event.device, event.source), (None, Source::Interrupts));
        assert_eq!(event.count, Count { known: 0, unattributed: 5, complete: false });
    }

    #[test]
    fn overwritten_records_are_told_and_what_waits_at_the_end_too() {
        let mut host = Host::new();
        host.log("usb 1-1: something else");
        host.number += 70;
        host.log("usb 1-1: something else");
        let (event, _) = host.next();
        assert!(event.reason.contains("70 records"), "{event}");
        host.faults(1, "00:09.0");
        set(&host.interrupts, 51);
        drop(host.watch);
        let told: Vec<Fault> = host.events.iter().map(|(event, _)| event).collect();
        let last = told.last().unwrap();
        assert_eq!(last.count, Count { known: 1, unattributed: 10, complete: false });
    }
}
