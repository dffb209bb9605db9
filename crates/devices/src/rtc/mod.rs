//! The CMOS clock (Motorola MC146818A) at ports 0x70 and 0x71: the time of day in UTC, its interrupts, and 114 bytes that
//! the guest may keep things in.

mod alarm;
mod civil;
mod state;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use self::state::{Nanos, State};
use crate::ports::PortDevice;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Raises interrupt 8: an edge.
type Interrupt = Box<dyn Fn() + Send + Sync>;
/// Hears that the host has no thread for the interrupts that the guest wants.
type NoThread = Box<dyn Fn(io::Error) + Send + Sync>;

/// How much RAM a PC's firmware says there is, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct RamSizes {
    /// Below 4 GiB.
    pub low: u64,
    /// From 4 GiB on.
    pub high: u64,
}

/// The clock. From the first interrupt on that the guest wants, a thread waits for what it is to interrupt for, and sleeps
/// while there is nothing.
pub struct Rtc {
    shared: Arc<Shared>,
    no_thread: NoThread,
}

struct Shared {
    clock: Mutex<Clock>,
    changed: Condvar,
    interrupt: Interrupt,
}

struct Clock {
    state: State,
    /// Whether the interrupt's line was asserted when somebody last looked. The guest gets an edge when it rises, and no
    /// other one until it has read register C: so it never gets more of them than it asks for.
    asserted: bool,
    thread: Option<JoinHandle<()>>,
    /// Until when the thread sleeps; none is for good.
    sleeps_until: Option<Nanos>,
    ends: bool,
}

/// The host's clock may be set while the thread sleeps, so it looks again after this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

impl Rtc {
    /// A clock that shows the host's time in UTC.
    pub fn new(ram: RamSizes, interrupt: Interrupt, no_thread: NoThread) -> Rtc {
        let state = State::new(ram, host_time());
        let clock = Clock { state, asserted: false, thread: None, sleeps_until: None, ends: false };
        let shared = Arc::new(Shared { clock: Mutex::new(clock), changed: Condvar::new(), interrupt });
        Rtc { shared, no_thread }
    }

    /// Does what the guest asks for, and tells of what comes of it.
    fn with<T>(&self, ask: impl FnOnce(&mut State, Nanos) -> T) -> T {
        let mut clock = self.shared.lock();
        let now = host_time();
        clock.state.advance(now);
        let answer = ask(&mut clock.state, now);
        self.shared.settle(&mut clock);
        if let Some(next) = clock.state.next_interrupt() {
            if clock.thread.is_none() {
                let waits = self.shared.clone();
                let thread = std::thread::Builder::new().name("rtc".into());
                match thread.spawn(move || waits.wait_for_events()) {
                    Ok(thread) => clock.thread = Some(thread),
                    Err(error) => (self.no_thread)(error),
                }
            } else if clock.sleeps_until.is_none_or(|until| next < until) {
                self.shared.changed.notify_all();
            }
        }
        answer
    }
}

impl Drop for Rtc {
    fn drop(&mut self) {
        let mut clock = self.shared.lock();
        clock.ends = true;
        let thread = clock.thread.take();
        drop(clock);
        self.shared.changed.notify_all();
        if let Some(thread) = thread {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock()
    }

    fn settle(&self, clock: &mut Clock) {
        let asserted = clock.state.interrupts();
        if asserted && !clock.asserted {
            (self.interrupt)();
        }
        clock.asserted = asserted;
    }

    fn wait_for_events(&self) {
        let mut clock = self.lock();
        while !clock.ends {
            let now = host_time();
            clock.state.advance(now);
            self.settle(&mut clock);
            clock.sleeps_until = clock.state.next_interrupt();
            match clock.sleeps_until {
                None => self.changed.wait(&mut clock),
                Some(until) => {
                    let left = u64::try_from(until - now).map_or(LONGEST_SLEEP, Duration::from_nanos);
                    self.changed.wait_for(&mut clock, left.min(LONGEST_SLEEP));
                }
            }
        }
    }
}

impl PortDevice for Rtc {
    fn read(&self, offset: u16, data: &mut [u8]) {
        for (_, byte) in (offset..).zip(data).filter(|(offset, _)| *offset == 1) {
            *byte = self.with(State::read);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            match offset {
                // Nothing comes of that.
                0 => self.shared.lock().state.select(*byte),
                _ => self.with(|state, now| state.write(*byte, now)),
            }
        }
    }

    fn reset(&self) {
        self.with(State::reset);
    }
}

/// Nanoseconds since 1970 began.
fn host_time() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as Nanos
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const SECOND: Duration = Duration::from_secs(1);

    fn rtc() -> (Rtc, Receiver<()>) {
        let (sender, raised) = channel();
        // A test that is over needs no interrupts.
        let interrupt = Box::new(move || sender.send(()).unwrap_or_default());
        let no_thread = Box::new(|error| panic!("no thread: {error}"));
        (Rtc::new(RamSizes { low: 1 << 28, high: 0 }, interrupt, no_thread), raised)
    }

    fn write(rtc: &Rtc, register: u8, value: u8) {
        rtc.write(0, &[register, value]);
    }

    fn read(rtc: &Rtc, register: u8) -> u8 {
        rtc.write(0, &[register]);
        let mut byte = [0];
        rtc.read(1, &mut byte);
        byte[0]
    }

    #[test]
    fn the_clock_interrupts_every_second_if_it_is_asked_to_and_its_flags_are_read() {
        let (rtc, raised) = rtc();
        write(&rtc, 0x0b, 0x12);
        for _ in 0..2 {
            raised.recv_timeout(3 * SECOND).unwrap();
            assert_eq!(read(&rtc, 0x0c) & 0x90, 0x90);
        }
    }

    #[test]
    fn there_is_a_thread_once_the_guest_wants_an_interrupt_and_not_before() {
        let (rtc, raised) = rtc();
        let threads = || rtc.shared.lock().thread.is_some();
        // What Linux does with a clock that nobody uses: it reads the time, and leaves interrupts disabled.
        for register in 0..=0x0d {
            read(&rtc, register);
        }
        write(&rtc, 0x0b, 0x02);
        assert!(!threads());
        write(&rtc, 0x0b, 0x12);
        assert!(threads());
        raised.recv_timeout(3 * SECOND).unwrap();
    }

    #[test]
    fn a_guest_that_does_not_read_the_flags_gets_no_second_interrupt_and_the_thread_sleeps() {
        let (rtc, raised) = rtc();
        write(&rtc, 0x0a, 0x23);
        write(&rtc, 0x0b, 0x42);
        raised.recv_timeout(3 * SECOND).unwrap();
        assert!(
            raised.recv_timeout(Duration::from_millis(50)).is_err(),
            "8192 a second would come otherwise"
        );
        assert_eq!(rtc.shared.lock().sleeps_until, None);
        assert_eq!(read(&rtc, 0x0c) & 0xc0, 0xc0);
        raised.recv_timeout(3 * SECOND).unwrap();
    }

    #[test]
    fn a_clock_that_waits_for_an_alarm_ends_at_once() {
        let (rtc, _raised) = rtc();
        // At 24 o'clock, which never comes, and then at any time.
        for alarm in [0x24, 0xff] {
            write(&rtc, 5, alarm);
            write(&rtc, 0x0b, 0x22);
        }
        drop(rtc);
    }

    #[test]
    fn a_reset_ends_interrupts_and_keeps_what_the_guest_stored() {
        let (rtc, raised) = rtc();
        write(&rtc, 0x50, 0x5a);
        write(&rtc, 0x0a, 0x23);
        write(&rtc, 0x0b, 0x42);
        raised.recv_timeout(3 * SECOND).unwrap();
        PortDevice::reset(&rtc);
        assert_eq!([0x0a, 0x0b, 0x0d, 0x50].map(|at| read(&rtc, at)), [0x26, 0x02, 0x80, 0x5a]);
        // The divider goes on, so the periodic flag may be there again. No interrupt comes of it.
        assert_eq!(read(&rtc, 0x0c) & 0x80, 0);
        assert!(raised.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn nothing_a_guest_writes_stops_the_clock() {
        let (rtc, _raised) = rtc();
        for index in 0..=255u8 {
            for value in [0, 0x7f, 0xff] {
                rtc.write(0, &[index, value]);
                rtc.read(0, &mut [0; 2]);
            }
        }
    }
}
