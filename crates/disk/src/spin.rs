//! Looking for a while before sleeping.

use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

/// Whether a queue's thread looks for what comes before it sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Poll {
    /// It sleeps at once.
    #[default]
    Off,
    /// It looks as long as that has paid lately.
    Adaptive,
    /// It never sleeps, and takes a CPU for itself.
    On,
}

/// Looking may take as long as so many system calls, for sleeping costs this thread and the guest several of them,
/// an exit or two, and a wake-up ...
const CALLS: u32 = 1024;
/// ... within these bounds: a host of our days, and an emulated one.
const LIMITS: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(4));
/// An interrupt takes the guest out of its work, into the host and back, which costs it as much as so many system calls.
const INTERRUPT: u32 = 32;
/// On a host where that would be longer, something else was measured.
const LONGEST_GATHERING: Duration = Duration::from_micros(50);
/// Where it begins.
const FIRST: Duration = Duration::from_micros(20);

/// How long to look, by what came of it lately. Where what came would have come within the longest look, the time
/// grows beyond that; where it did not, looking was for nothing, and the time shrinks.
///
/// What a disk takes for a request and what a guest takes to make the next are times apart, each with a window of
/// its own.
pub(crate) struct Spinner {
    poll: Poll,
    longest: Duration,
    /// How long to look for more once something has ended.
    gathering: Duration,
    windows: [Duration; 2],
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
        Spinner { poll, longest, gathering, windows: [FIRST; 2] }
    }

    /// One that gathers for so long, on whatever host.
    #[cfg(test)]
    pub fn gathering_for(poll: Poll, gathering: Duration) -> Spinner {
        Spinner { gathering, ..Spinner::new(poll) }
    }

    /// How long what has ended may wait for what ends next, to go to the guest with it.
    pub fn gathering(&self) -> Duration {
        if self.poll == Poll::Off { Duration::ZERO } else { self.gathering }
    }

    /// How long to look now; `None` without end. Zero is not to look at all.
    pub fn window(&self, awaited: Awaited) -> Option<Duration> {
        match self.poll {
            Poll::Off => Some(Duration::ZERO),
            Poll::Adaptive => Some(self.windows[awaited as usize]),
            Poll::On => None,
        }
    }

    /// After looking and sleeping, something came that had been waited for since `begin`.
    pub fn slept_since(&mut self, begin: Instant, awaited: Awaited) {
        if self.poll != Poll::Adaptive {
            return;
        }
        let waited = begin.elapsed();
        let window = &mut self.windows[awaited as usize];
        *window = if waited <= self.longest {
            (waited * 2).max(*window).max(FIRST).min(self.longest)
        } else if *window > FIRST {
            *window / 2
        } else {
            Duration::ZERO
        };
    }
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
    use super::*;

    #[test]
    fn looking_pays_when_things_come_soon_and_stops_when_they_do_not() {
        let mut spinner = Spinner { longest: Duration::from_millis(1), ..Spinner::new(Poll::Adaptive) };
        let ago = |micros| Instant::now() - Duration::from_micros(micros);
        let which = Awaited::Completions;
        spinner.slept_since(ago(200), which);
        assert!(spinner.window(which).unwrap() >= Duration::from_micros(400));
        spinner.slept_since(ago(900), which);
        assert_eq!(spinner.window(which), Some(spinner.longest));
        for _ in 0..8 {
            spinner.slept_since(ago(1_000_000), which);
        }
        assert_eq!(spinner.window(which), Some(Duration::ZERO));
        assert_eq!(spinner.window(Awaited::Requests), Some(FIRST), "the other has its own");
        spinner.slept_since(ago(100), which);
        assert!(spinner.window(which).unwrap() > FIRST);
        assert_eq!(Spinner::new(Poll::Off).window(which), Some(Duration::ZERO));
        assert_eq!(Spinner::new(Poll::On).window(which), None);
    }

    #[test]
    fn the_longest_look_is_bounded_whatever_this_host_is() {
        let longest = Spinner::new(Poll::Adaptive).longest;
        assert!((LIMITS.0..=LIMITS.1).contains(&longest), "{longest:?}");
    }
}
