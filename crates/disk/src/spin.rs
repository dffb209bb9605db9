//! Looking for a while before sleeping.

use std::time::{Duration, Instant};

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

/// Adaptive polling goes on no longer than this without anything coming.
const LONGEST: Duration = Duration::from_millis(1);
/// Where it begins.
const FIRST: Duration = Duration::from_micros(20);

/// How long to look, by what came of it lately. Where what came would have come within [`LONGEST`], the time grows
/// beyond that; where it did not, looking was for nothing, and the time shrinks.
pub(crate) struct Spinner {
    poll: Poll,
    window: Duration,
}

impl Spinner {
    pub fn new(poll: Poll) -> Spinner {
        Spinner { poll, window: FIRST }
    }

    /// How long to look now; `None` without end. Zero is not to look at all.
    pub fn window(&self) -> Option<Duration> {
        match self.poll {
            Poll::Off => Some(Duration::ZERO),
            Poll::Adaptive => Some(self.window),
            Poll::On => None,
        }
    }

    /// After looking and sleeping, something came that had been waited for since `begin`.
    pub fn slept_since(&mut self, begin: Instant) {
        if self.poll != Poll::Adaptive {
            return;
        }
        let waited = begin.elapsed();
        self.window = if waited <= LONGEST {
            (waited * 2).max(self.window).max(FIRST).min(LONGEST)
        } else if self.window > FIRST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_pays_when_things_come_soon_and_stops_when_they_do_not() {
        let mut spinner = Spinner::new(Poll::Adaptive);
        let ago = |micros| Instant::now() - Duration::from_micros(micros);
        spinner.slept_since(ago(200));
        assert!(spinner.window().unwrap() >= Duration::from_micros(400));
        spinner.slept_since(ago(900));
        assert_eq!(spinner.window(), Some(LONGEST));
        for _ in 0..8 {
            spinner.slept_since(ago(1_000_000));
        }
        assert_eq!(spinner.window(), Some(Duration::ZERO));
        spinner.slept_since(ago(100));
        assert!(spinner.window().unwrap() > FIRST);
        assert_eq!(
            (Spinner::new(Poll::Off).window(), Spinner::new(Poll::On).window()),
            (Some(Duration::ZERO), None)
        );
    }
}
