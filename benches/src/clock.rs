//! CPU time of everybody but the driver.

use std::time::{Duration, Instant};

/// Wall time, and the CPU time of this process but for the calling thread: of the model's thread, and of threads that
/// the kernel runs for its ring.
pub struct Clock {
    begin: Instant,
    cpu: Duration,
}

impl Clock {
    /// Starts now. It is read by the same thread.
    #[expect(clippy::new_without_default, reason = "a clock is started")]
    pub fn new() -> Clock {
        Clock { begin: Instant::now(), cpu: others() }
    }

    /// Wall time, and others' CPU time.
    pub fn read(&self) -> (Duration, Duration) {
        (self.begin.elapsed(), others().saturating_sub(self.cpu))
    }
}

fn others() -> Duration {
    cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(cpu_time(libc::CLOCK_THREAD_CPUTIME_ID))
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. These clocks are always there.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
