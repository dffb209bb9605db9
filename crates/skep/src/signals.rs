//! Signals from outside, received by one thread in the order in which they come.

use std::io;
use std::mem::MaybeUninit;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT or SIGHUP: the VM shall end.
    Stop,
    /// SIGTSTP: the process shall stop until it is continued.
    Suspend,
    /// SIGCONT: the process was continued.
    Continue,
    /// SIGWINCH: the terminal has another size.
    Resized,
}

const SIGNALS: [(libc::c_int, Signal); 6] = [
    (libc::SIGTERM, Signal::Stop),
    (libc::SIGINT, Signal::Stop),
    (libc::SIGHUP, Signal::Stop),
    (libc::SIGTSTP, Signal::Suspend),
    (libc::SIGCONT, Signal::Continue),
    (libc::SIGWINCH, Signal::Resized),
];

/// The signals, kept back from their default action (which would end the process) until somebody waits for them.
#[derive(Debug)]
pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Takes the signals over for this thread and for the threads it starts from now on: call it before the
    /// first thread is started.
    pub fn take_over() -> io::Result<Signals> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes the set behind the pointer, which is valid for writes.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for (number, _) in SIGNALS {
            // SAFETY: the set is initialized and the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, number) };
        }
        // SAFETY: the set is initialized; no old set is asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Signals { set }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for the next signal.
    pub fn wait(&self) -> io::Result<Signal> {
        loop {
            let mut number = 0;
            // SAFETY: the set is initialized and the number is valid for writes.
            match unsafe { libc::sigwait(&raw const self.set, &raw mut number) } {
                0 => {}
                libc::EINTR => continue,
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            if let Some((_, signal)) = SIGNALS.iter().find(|(known, _)| *known == number) {
                return Ok(*signal);
            }
        }
    }
}

/// Stops this process, all threads of it, until it is continued.
pub fn suspend() {
    // SAFETY: raising a signal touches no memory of ours.
    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
}
