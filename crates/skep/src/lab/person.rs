//! A person who works in the emulated host from this terminal.
//!
//! From the moment the host is up, every key goes to the command there, Ctrl-C and Ctrl-Z as well. One key is for the lab:
//! Ctrl-] ends the emulated host, also when nothing in it answers any more.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};
use std::thread;

use lab::wire::ScreenSize;

use crate::signals::{self, Signal, Signals};
use crate::terminal::Terminal;

/// What is said when the keys begin to go to the emulated host.
pub const GREETING: &str = "the emulated host is up. Ctrl-] ends it.";

/// The exit status of a lab that was stopped.
const STOPPED: i32 = 124;

const CTRL_CLOSING_BRACKET: u8 = 0x1d;

/// The size of a terminal that does not say its own.
const USUAL: ScreenSize = ScreenSize { rows: 24, columns: 80 };

/// The person: their terminal as the emulated host has it, and as it is here once it was taken.
pub struct Person {
    there: lab::Terminal,
    here: Arc<OnceLock<Terminal>>,
}

impl Person {
    /// The person at standard input. To be called before the first thread starts, for the signals.
    pub fn at_standard_input() -> Result<Person, String> {
        if !io::stdin().is_terminal() {
            return Err(
                "--interactive needs a terminal on standard input. Run a script without --interactive".into(),
            );
        }
        let signals = Signals::take_over().map_err(|cause| format!("cannot take over signals: {cause}"))?;
        let kind = std::env::var("TERM").unwrap_or_else(|_| "dumb".into());
        let person = Person { there: lab::Terminal::new(&kind, size()), here: Arc::default() };
        let (there, here) = (person.there.clone(), person.here.clone());
        thread::spawn(move || listen(&signals, &there, &here));
        Ok(person)
    }

    /// What the emulated host is to have.
    pub fn terminal(&self) -> &lab::Terminal {
        &self.there
    }

    /// The host is up: takes the terminal, and from now on passes on what is typed.
    pub fn begin(&self) -> Result<(), String> {
        let terminal = Terminal::open().map_err(|cause| format!("cannot take the terminal: {cause}"))?;
        if !matches!(terminal, Terminal::Raw) {
            return Err(
                "--interactive needs the terminal, which another program has. Run it in the foreground (fg)"
                    .into(),
            );
        }
        let (there, here) = (self.there.clone(), self.here.clone());
        // There is one beginning: a host that did come up is not started again.
        drop(here.set(terminal));
        thread::spawn(move || type_on(&there, &here));
        Ok(())
    }

    /// Gives the terminal back.
    pub fn end(&self) {
        close(&self.here);
    }
}

fn close(here: &OnceLock<Terminal>) {
    if let Some(terminal) = here.get() {
        terminal.close();
    }
}

/// Passes on what is typed, until the person ends the host.
fn type_on(there: &lab::Terminal, here: &OnceLock<Terminal>) {
    let mut bytes = [0; 4096];
    loop {
        match io::stdin().lock().read(&mut bytes) {
            // The terminal was hung up.
            Ok(0) => stop(here, "the terminal is gone"),
            Ok(n) if bytes[..n].contains(&CTRL_CLOSING_BRACKET) => stop(here, "stopped by Ctrl-]"),
            Ok(n) => there.typed(&bytes[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => stop(here, &format!("cannot read what is typed: {error}")),
        }
    }
}

fn listen(signals: &Signals, there: &lab::Terminal, here: &OnceLock<Terminal>) {
    loop {
        match (signals.wait(), here.get()) {
            (Ok(Signal::Stop), _) => stop(here, "stopped by a signal"),
            (Ok(Signal::Resized), _) => there.resized(size()),
            (Ok(Signal::Suspend), Some(terminal)) => terminal.suspend(),
            (Ok(Signal::Suspend), None) => signals::suspend(),
            (Ok(Signal::Continue), Some(terminal)) => {
                if let Err(cause) = terminal.resume() {
                    stop(here, &format!("cannot take the terminal again: {cause}"));
                }
            }
            (Ok(Signal::Continue), None) => {}
            (Err(cause), _) => stop(here, &format!("cannot wait for signals any more: {cause}")),
        }
    }
}

/// Ends this process, and with it the emulated host.
fn stop(here: &OnceLock<Terminal>, why: &str) -> ! {
    close(here);
    // The terminal may be gone.
    drop(writeln!(io::stderr(), "\nskep lab: {why}"));
    std::process::exit(STOPPED)
}

/// The size of the terminal on standard input.
fn size() -> ScreenSize {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the pointer is valid for writes.
    let known = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) } == 0;
    // SAFETY: zeroes are a valid value, and the kernel wrote another or none.
    let size = unsafe { size.assume_init() };
    match (known, size.ws_row, size.ws_col) {
        (true, rows @ 1.., columns @ 1..) => ScreenSize { rows, columns },
        _ => USUAL,
    }
}
