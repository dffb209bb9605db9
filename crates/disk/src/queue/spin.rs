//! Looking for a while before sleeping.

use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::contract::Poll;

/// To sleep and to be woken costs this thread, and the one that wakes it, as much as so many system calls: two switches
/// and an interrupt to another CPU. Looking may take as long as that. So it costs at most twice what the better of the two
/// would have cost, whenever the awaited comes (A. Karlin et al., Competitive randomized algorithms for non-uniform
/// problems, 1990) ...
const CALLS: u32 = 256;
/// ... within these bounds: a host of our days, and an emulated one.
const LIMITS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_micros(200));
/// An interrupt takes the guest out of its work, into the host and back, which costs it as much as so many system calls.
const INTERRUPT: u32 = 32;
/// On a host where that would be longer, something else was measured.
const LONGEST_GATHERING: Duration = Duration::from_micros(50);
/// Where it begins.
const FIRST: Duration = Duration::from_micros(10);
/// A look that takes so much longer than it may was interrupted by another thread on its CPU.
const PREEMPTED: Duration = Duration::from_micros(100);
/// How many sleeps pass until it is tried again whether looking pays.
const UNTIL_RETRY: u8 = 64;

/// How long to look, by what came of it lately.
///
/// What a disk takes for a request and what a guest takes to make the next are times apart, each with an account of its
/// own.
pub(crate) struct Spinner {
    poll: Poll,
    longest: Duration,
    /// How long to look for more once something has ended.
    gathering: Duration,
    accounts: [Account; 2],
    crowd: Crowd,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Awaited {
    /// Requests, none of which is under way.
    Requests,
    /// That requests end, or more of them.
    Completions,
}

impl Spinner {
    /// For this host, whose system calls it measures.
    pub fn new(poll: Poll) -> Spinner {
        let call = if poll == Poll::Off { None } else { system_call() };
        let longest = call.unwrap_or_default().saturating_mul(CALLS).clamp(LIMITS.0, LIMITS.1);
        let gathering = call.unwrap_or_default().saturating_mul(INTERRUPT).min(LONGEST_GATHERING);
        let crowd = if poll == Poll::Adaptive { Crowd::of_this_host() } else { Crowd::default() };
        Spinner { poll, longest, gathering, accounts: [Account::new(); 2], crowd }
    }

    /// One that gathers for so long, on whatever host.
    #[cfg(test)]
    pub fn gathering_for(poll: Poll, gathering: Duration) -> Spinner {
        Spinner { gathering, crowd: Crowd::default(), ..Spinner::new(poll) }
    }

    /// How long what has ended may wait for what ends next, to go to the guest with it. That is a look, too: there is none
    /// where a thread waited for a CPU lately.
    pub fn gathering(&self) -> Duration {
        if self.poll == Poll::Off || self.crowd.is_full { Duration::ZERO } else { self.gathering }
    }

    /// How long to look now; `None` without end. Zero is not to look at all.
    pub fn window(&mut self, awaited: Awaited) -> Option<Duration> {
        match self.poll {
            Poll::Off => Some(Duration::ZERO),
            Poll::Adaptive => {
                let window = self.accounts[awaited as usize].window();
                Some(if self.crowd.is_full() { Duration::ZERO } else { window })
            }
            Poll::On => None,
        }
    }

    /// Looking for so long brought something: a sleep and a wake-up are saved.
    pub fn found(&mut self, awaited: Awaited, took: Duration) {
        self.accounts[awaited as usize].earn(self.longest, took);
    }

    /// Looking for so long, in a window of that length, brought nothing.
    pub fn found_nothing(&mut self, awaited: Awaited, window: Duration, took: Duration) {
        if took >= window + PREEMPTED {
            self.accounts.iter_mut().for_each(Account::stop);
        } else {
            self.accounts[awaited as usize].pay(took, self.longest);
        }
    }

    /// After looking and sleeping, something came that had been waited for since `begin`.
    pub fn slept_since(&mut self, begin: Instant, awaited: Awaited) {
        if self.poll == Poll::Adaptive {
            self.accounts[awaited as usize].waited(begin.elapsed(), self.longest);
        }
    }
}

/// What looking has cost and brought lately.
#[derive(Clone, Copy)]
struct Account {
    window: Duration,
    /// CPU time that wake-ups would have taken, less what looking took, in nanoseconds. Looking stops below zero.
    balance: i64,
    /// Sleeps since it stopped.
    passed: u8,
}

impl Account {
    fn new() -> Account {
        Account { window: FIRST, balance: 0, passed: 0 }
    }

    /// How long to look now.
    fn window(&mut self) -> Duration {
        if self.balance >= 0 {
            return self.window;
        }
        self.passed += 1;
        if self.passed < UNTIL_RETRY {
            return Duration::ZERO;
        }
        // Of what was long ago nothing is known: one look, and what it brings decides.
        *self = Account { window: self.window.max(FIRST), ..Account::new() };
        self.window
    }

    /// A sleep and a wake-up of this cost are saved, by a look that took so long.
    fn earn(&mut self, saved: Duration, took: Duration) {
        let saved = nanoseconds(saved);
        self.balance = (self.balance + saved - nanoseconds(took)).clamp(-saved, 8 * saved);
    }

    fn pay(&mut self, took: Duration, saved: Duration) {
        self.balance = (self.balance - nanoseconds(took)).max(-nanoseconds(saved));
    }

    fn stop(&mut self) {
        (self.balance, self.passed) = (-1, 0);
    }

    /// Where what came would have come within the longest look, the window grows beyond that; where it did not, looking
    /// was for nothing, and the window shrinks.
    fn waited(&mut self, waited: Duration, longest: Duration) {
        self.window = if waited <= longest {
            (waited * 2).max(self.window).max(FIRST).min(longest)
        } else if self.window > FIRST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// Whether threads wait for a CPU, by how many of all can run (`/proc/loadavg`, proc(5)). A guest's vCPU that waits is one
/// of them.
#[derive(Default)]
struct Crowd {
    /// `None` where that is not known, and not asked.
    file: Option<File>,
    cpus: u64,
    is_full: bool,
    /// Looks until it is asked again.
    left: u8,
}

impl Crowd {
    const LOOKS: u8 = 64;

    fn of_this_host() -> Crowd {
        // With a single CPU for this process, whatever is looked for waits for that CPU.
        let alone = std::thread::available_parallelism().is_ok_and(|cpus| cpus == NonZero::<usize>::MIN);
        // SAFETY: no memory is touched.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        let cpus = u64::try_from(online).unwrap_or(1);
        let file = if alone { None } else { File::open("/proc/loadavg").ok() };
        Crowd { file, cpus, is_full: alone, left: 0 }
    }

    fn is_full(&mut self) -> bool {
        if self.left == 0
            && let Some(file) = &self.file
        {
            self.left = Crowd::LOOKS;
            // This thread is one of those that can run.
            self.is_full = running(file).is_some_and(|running| running > self.cpus);
        }
        self.left = self.left.saturating_sub(1);
        self.is_full
    }
}

/// How many threads can run: the number before the slash.
fn running(loadavg: &File) -> Option<u64> {
    let mut text = [0; 64];
    let len = loadavg.read_at(&mut text, 0).ok()?;
    let words = std::str::from_utf8(&text[..len]).ok()?;
    words.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

/// What a short system call takes here; the shortest of some, since others come in between.
fn system_call() -> Option<Duration> {
    let eventfd = EventFd::new(0).ok()?;
    let times = (0..16).filter_map(|_| {
        let begin = Instant::now();
        eventfd.write(1).ok()?;
        eventfd.read().ok()?;
        Some(begin.elapsed() / 2)
    });
    times.min()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LONGEST: Duration = Duration::from_micros(100);

    /// On a host whose loadavg says so.
    fn on(loadavg: &str) -> (Spinner, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(loadavg.as_bytes()).unwrap();
        let crowd = Crowd { file: Some(file.try_clone().unwrap()), cpus: 4, is_full: false, left: 0 };
        (Spinner { longest: LONGEST, crowd, ..Spinner::new(Poll::Adaptive) }, file)
    }

    #[test]
    fn looking_goes_on_when_things_come_soon_and_stops_when_they_do_not() {
        let mut spinner = on("0.00 0.01 0.05 1/213 99\n").0;
        let ago = |micros| Instant::now() - Duration::from_micros(micros);
        let which = Awaited::Completions;
        spinner.slept_since(ago(20), which);
        assert!(spinner.window(which).unwrap() >= Duration::from_micros(40));
        spinner.slept_since(ago(90), which);
        assert_eq!(spinner.window(which), Some(spinner.longest));
        for _ in 0..8 {
            spinner.slept_since(ago(1_000_000), which);
        }
        assert_eq!(spinner.window(which), Some(Duration::ZERO));
        assert_eq!(spinner.window(Awaited::Requests), Some(FIRST), "the other has its own");
        spinner.slept_since(ago(10), which);
        assert!(spinner.window(which).unwrap() > FIRST);
        assert_eq!(Spinner::new(Poll::Off).window(which), Some(Duration::ZERO));
        assert_eq!(Spinner::new(Poll::On).window(which), None);
    }

    #[test]
    fn looks_that_cost_more_than_the_wake_ups_they_save_stop_and_are_tried_again_later() {
        let mut spinner = on("0.00 0.01 0.05 1/213 99\n").0;
        let which = Awaited::Completions;
        let mut looked = 0;
        for _ in 0..1000 {
            let window = spinner.window(which).unwrap();
            if !window.is_zero() {
                looked += 1;
                spinner.found_nothing(which, window, window);
            }
        }
        assert!((10..=20).contains(&looked), "{looked} of 1000");
        while spinner.window(which).unwrap().is_zero() {}
        // One in two saves a wake-up, which costs more than the two looks.
        for _ in 0..100 {
            assert!(!spinner.window(which).unwrap().is_zero());
            spinner.found(which, FIRST);
            spinner.found_nothing(which, FIRST, FIRST);
        }
    }

    #[test]
    fn a_look_that_another_thread_interrupts_ends_looking_for_both_kinds() {
        let mut spinner = on("0.00 0.01 0.05 1/213 99\n").0;
        spinner.found_nothing(Awaited::Completions, FIRST, Duration::from_millis(3));
        for awaited in [Awaited::Completions, Awaited::Requests] {
            assert_eq!(spinner.window(awaited), Some(Duration::ZERO));
        }
    }

    #[test]
    fn nobody_looks_while_a_thread_waits_for_a_cpu() {
        let which = Awaited::Requests;
        assert_eq!(on("3.00 2.01 0.05 5/213 99\n").0.window(which), Some(Duration::ZERO));
        let (mut spinner, file) = on("3.00 2.01 0.05 4/213 99\n");
        assert_eq!((spinner.window(which), spinner.gathering()), (Some(FIRST), spinner.gathering));
        file.write_all_at(b"3.00 2.01 0.05 9/213 99\n", 0).unwrap();
        let looks = (0..1000).take_while(|_| !spinner.window(which).unwrap().is_zero()).count();
        assert!(looks <= usize::from(Crowd::LOOKS), "{looks}");
        assert_eq!(spinner.gathering(), Duration::ZERO);
        let one_cpu = Crowd { is_full: true, ..Crowd::default() };
        let mut spinner = Spinner { crowd: one_cpu, ..Spinner::new(Poll::Adaptive) };
        assert_eq!(spinner.window(which), Some(Duration::ZERO));
    }

    #[test]
    fn the_longest_look_is_bounded_whatever_this_host_is() {
        let longest = Spinner::new(Poll::Adaptive).longest;
        assert!((LIMITS.0..=LIMITS.1).contains(&longest), "{longest:?}");
    }
}
