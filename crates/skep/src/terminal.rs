//! The terminal on standard input, handed to the guest's console key by key, and given back whatever happens.
//!
//! Given back means: when [`Terminal`] is dropped, when the process exits, panics, or dies by a signal that can be
//! caught. Nothing can be done about SIGKILL; `stty sane` mends the terminal then.
//!
//! Output keeps its processing (a line feed also returns to the line's start), so that skep's own messages stay
//! legible between those of the guest.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::escape::Escape;
use crate::signals;

const INPUT: libc::c_int = libc::STDIN_FILENO;

/// What the terminal's settings were before it was touched.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();

/// Whether the terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input as the guest's console, for as long as this lives.
#[derive(Debug)]
pub enum Terminal {
    /// A person types at a terminal; it is in raw mode.
    Raw,
    /// This process is in the background of a terminal (`skep run … &`), which belongs to another program. To
    /// read from it would stop the process.
    Background,
    /// There is no terminal: a pipe, a file, /dev/null.
    Absent,
}

impl Terminal {
    /// Puts the terminal into raw mode if standard input is one. The signals must have been taken over: their
    /// default action would end the process before the terminal is given back.
    pub fn open() -> io::Result<Terminal> {
        // SAFETY: asks about a file descriptor; touches no memory.
        if unsafe { libc::isatty(INPUT) } == 0 {
            return Ok(Terminal::Absent);
        }
        if in_background() {
            return Ok(Terminal::Background);
        }
        let before = settings()?;
        if BEFORE.set(before).is_ok() {
            give_back_at_every_end()?;
        }
        enter_raw()?;
        Ok(Terminal::Raw)
    }

    /// How to understand what is typed; `None` if standard input must not be read.
    pub fn escape(&self) -> Option<Escape> {
        match self {
            Terminal::Raw => Some(Escape::Plain),
            Terminal::Background => None,
            Terminal::Absent => Some(Escape::Off),
        }
    }

    /// Gives the terminal back and stops the process until it is continued; [`Terminal::resume`] then takes
    /// the terminal again.
    pub fn suspend(&self) {
        give_back();
        signals::suspend();
    }

    /// Gives the terminal back for good.
    pub fn close(&self) {
        give_back();
    }

    /// Takes the terminal again after the process was stopped and continued in the foreground.
    pub fn resume(&self) -> io::Result<()> {
        match self {
            Terminal::Raw if !in_background() => enter_raw(),
            Terminal::Raw | Terminal::Background | Terminal::Absent => Ok(()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn settings() -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the pointer is valid for writes.
    if unsafe { libc::tcgetattr(INPUT, settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded, so it has written the settings.
    Ok(unsafe { settings.assume_init() })
}

fn enter_raw() -> io::Result<()> {
    let Some(mut settings) = BEFORE.get().copied() else { return Ok(()) };
    let output = settings.c_oflag;
    // SAFETY: changes the settings behind a valid pointer.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    settings.c_oflag = output;
    // Set before the change: an end in between gives back what is still there, which harms nobody.
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: the settings are initialized.
    match unsafe { libc::tcsetattr(INPUT, libc::TCSANOW, &raw const settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the terminal back, if it was taken and is still ours. A signal handler may call this: it takes no lock
/// and allocates nothing.
fn give_back() {
    if let Some(before) = BEFORE.get()
        && RAW.swap(false, Ordering::SeqCst)
        && !in_background()
    {
        // If this fails the terminal is gone, and there is nothing left to give back.
        // SAFETY: the settings are initialized.
        unsafe { libc::tcsetattr(INPUT, libc::TCSANOW, before) };
    }
}

/// Whether another program has the terminal now. A terminal without job control, as a serial console often is,
/// belongs to whoever has it open.
fn in_background() -> bool {
    // SAFETY: asks about a file descriptor; touches no memory.
    let foreground = unsafe { libc::tcgetpgrp(INPUT) };
    // SAFETY: has no arguments.
    let ours = unsafe { libc::getpgrp() };
    foreground > 0 && foreground != ours
}

/// Signals whose default action ends the process, beside those that [`Signals`](crate::signals::Signals) takes over.
const FATAL: [libc::c_int; 12] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGQUIT,
    libc::SIGALRM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXCPU,
];

/// What had been the answer to each of [`FATAL`].
static ANSWERS: OnceLock<[libc::sigaction; FATAL.len()]> = OnceLock::new();

fn give_back_at_every_end() -> io::Result<()> {
    let panicked = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        give_back();
        panicked(panic);
    }));
    // SAFETY: the function takes no argument and does not unwind.
    if unsafe { libc::atexit(at_exit) } != 0 {
        return Err(io::Error::other("the C library takes no more functions to call at exit"));
    }
    // SAFETY: all zeroes is a valid value of this C structure: the default action, no flags, an empty mask.
    let mut answers: [libc::sigaction; FATAL.len()] = unsafe { std::mem::zeroed() };
    for (number, before) in FATAL.into_iter().zip(&mut answers) {
        // SAFETY: a null pointer asks for the present answer only; the other pointer is valid for writes.
        unsafe { libc::sigaction(number, std::ptr::null(), before) };
    }
    for (number, before) in FATAL.into_iter().zip(ANSWERS.get_or_init(|| answers)) {
        // A signal that somebody answers does not end the process, but for these two: Rust answers them to say
        // that a stack has overflowed, and then lets the process die.
        let ends = before.sa_sigaction == libc::SIG_DFL || matches!(number, libc::SIGSEGV | libc::SIGBUS);
        if !ends {
            continue;
        }
        // SAFETY: as above, zeroes are a valid value.
        let mut answer: libc::sigaction = unsafe { std::mem::zeroed() };
        answer.sa_sigaction = on_fatal as *const () as usize;
        // On the alternate stack where there is one: the cause may be that the stack has overflowed.
        answer.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
        // SAFETY: the handler has the form that SA_SIGINFO asks for, and only does what a handler may do.
        if unsafe { libc::sigaction(number, &raw const answer, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn at_exit() {
    give_back();
}

/// Gives the terminal back, then lets the signal do what it would have done.
extern "C" fn on_fatal(number: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    give_back();
    // SAFETY: the kernel passes a valid structure to a handler with SA_SIGINFO.
    let sent = unsafe { (*info).si_code } <= 0;
    let answers = ANSWERS.get().filter(|_| !sent);
    let answer =
        FATAL.iter().position(|fatal| *fatal == number).zip(answers).map(|(index, answers)| answers[index]);
    // SAFETY: all zeroes is the default action, which is to end.
    let answer = answer.unwrap_or_else(|| unsafe { std::mem::zeroed() });
    // SAFETY: sigaction may be called in a handler; the answer is the default or one that was in force.
    unsafe { libc::sigaction(number, &raw const answer, std::ptr::null_mut()) };
    // A fault comes again, with its true cause, when the handler returns to its instruction. What was sent by
    // kill or abort must be sent again.
    if sent {
        // SAFETY: raise may be called in a handler.
        unsafe { libc::raise(number) };
    }
}
