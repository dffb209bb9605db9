//! An interrupt for an emulated host whose emulator has lost one.
//!
//! In QEMU's SVM the thread of an emulated CPU changes its pending interrupts without a lock when a guest is entered or
//! left. What another thread adds in that moment is lost: the interrupt controller has the interrupt, and the CPU is not
//! told. If it was the timer's, nothing ever is again, and the host hangs as a whole. The next interrupt, of whatever
//! device, tells the CPU of all that are pending. `docs/lab.md` has what was seen.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::wire::Typed;

/// So many nudges fit into the longest silence.
const NUDGES: u32 = 6;

/// What a silent host is sent: typing of no keys, which nobody notices, but whose coming is an interrupt.
pub struct Nudge {
    wire: UnixStream,
    every: Duration,
    /// The silence after which the next one is due.
    due: Duration,
}

impl Nudge {
    /// Over this end of the wire, to a host that may be silent for so long.
    pub fn over(wire: UnixStream, limit: Duration) -> Nudge {
        let every = limit / NUDGES;
        Nudge { wire, every, due: every }
    }

    /// Nudges a host that has been silent for so long, when it is time. Whether it was.
    pub fn after(&mut self, silence: Duration) -> bool {
        if silence < self.every {
            self.due = self.every;
        }
        let is_time = silence >= self.due;
        if is_time {
            self.due = silence + self.every;
            self.send();
        }
        is_time
    }
}

impl Nudge {
    /// Sends it, unless there is no room on the wire: then something that is typed waits there, and is an interrupt itself
    /// once the host takes it.
    fn send(&mut self) {
        let mut room = libc::pollfd { fd: self.wire.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid structure, for the duration of the call, which does not wait.
        let has_room = unsafe { libc::poll(&mut room, 1, 0) } == 1 && room.revents & libc::POLLOUT != 0;
        if has_room {
            // A wire that is broken ends the boot elsewhere.
            let _broken = Typed::Bytes(Vec::new()).write(&mut self.wire);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_silent_host_gets_typing_of_no_keys_again_and_again_and_one_that_speaks_gets_none() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut nudge = Nudge::over(ours, Duration::from_secs(54));
        let seconds = |list: &[u64], nudge: &mut Nudge| -> Vec<bool> {
            list.iter().map(|silence| nudge.after(Duration::from_secs(*silence))).collect()
        };
        assert_eq!(
            seconds(&[1, 8, 9, 10, 17, 18, 60], &mut nudge),
            [false, false, true, false, false, true, true]
        );
        assert_eq!(
            seconds(&[1, 2, 8, 9, 10], &mut nudge),
            [false, false, false, true, false],
            "it spoke between"
        );
        drop(nudge);
        for _ in 0..4 {
            assert_eq!(Typed::read(&mut theirs).unwrap(), Typed::Bytes(Vec::new()));
        }
        assert!(Typed::read(&mut theirs).is_err());
    }

    #[test]
    fn a_wire_without_room_holds_up_nobody() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut full = ours.try_clone().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.write(&[0; 4096]).is_ok() {}
        full.set_nonblocking(false).unwrap();
        assert!(Nudge::over(ours, Duration::from_secs(6)).after(Duration::from_secs(2)));
    }
}
