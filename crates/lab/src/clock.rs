//! The clock that the emulated CPU counts by.

use std::thread;
use std::time::{Duration, Instant};

/// How long the clock is watched, and how often it is tried, since somebody else may have the CPU meanwhile.
const WATCHED: Duration = Duration::from_millis(20);
const TRIES: usize = 3;

/// The frequency of the emulated CPU's time stamp counter when its clock counts instructions: a tick is one, and that is a
/// nanosecond.
pub const TSC_KHZ_BY_INSTRUCTIONS: u64 = 1_000_000;

/// The frequency of the emulated CPU's time stamp counter in kHz, which is this machine's: QEMU's TCG passes it
/// through. `None` when it is not constant here.
///
/// A kernel that is told needs not measure: on a busy machine it measures wrong, and then KVM, which believes the
/// first result, runs guests whose timers never fire once the kernel has found a better one.
pub fn tsc_khz() -> Option<u64> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let constant = cpu.split_whitespace().any(|flag| flag == "constant_tsc");
    constant.then(measure).filter(|khz| *khz > 0)
}

/// The median of several measurements.
fn measure() -> u64 {
    let mut results: Vec<u64> = (0..TRIES)
        .map(|_| {
            let (ticks, at) = now();
            thread::sleep(WATCHED);
            let (later, end) = now();
            let nanoseconds = (end - at).as_nanos().max(1);
            // Ticks of some milliseconds, in kHz: far below 2^64.
            (u128::from(later.wrapping_sub(ticks)) * 1_000_000 / nanoseconds) as u64
        })
        .collect();
    results.sort_unstable();
    results[TRIES / 2]
}

/// The counter and the time at the same moment: of several pairs the one that took the least.
fn now() -> (u64, Instant) {
    let pair = || {
        let before = ticks();
        let at = Instant::now();
        let took = ticks().wrapping_sub(before);
        (took, before.wrapping_add(took / 2), at)
    };
    let (_, ticks, at) = (0..8).map(|_| pair()).min_by_key(|(took, ..)| *took).unwrap_or_else(pair);
    (ticks, at)
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_is_the_same_whenever_it_is_measured() {
        let Some(first) = tsc_khz() else { return };
        let second = tsc_khz().unwrap();
        assert!(first.abs_diff(second) * 100 < first, "{first} and {second} kHz differ by more than 1 %");
    }
}
