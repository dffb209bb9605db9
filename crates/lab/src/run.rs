//! A run of the lab: boot, listen, end in time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::places::Places;
use crate::system::System;
use crate::{Lab, LabError, process};

mod boot;
mod console;
mod emulator;
mod lines;
mod models;
mod nudge;

#[cfg(test)]
pub(crate) use boot::BIG_LOCK;
pub(crate) use emulator::known;

use boot::{Boot, Failed};
use emulator::Deadline;
use lines::Lines;

/// Which output of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// What happens during a run, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The emulator starts.
    Booting,
    /// The first boot did not come up, for this reason; there is a second one.
    Retrying(&'a str),
    /// The host is not up yet, after so long. Comes about once a second.
    StillBooting(Duration),
    /// The emulated host is set up, and the command starts.
    Up,
    /// The command wrote something.
    Output(Stream, &'a [u8]),
    /// Something that is worth a line when one looks closely.
    Note(&'a str),
}

/// A line that the command wrote, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where to.
    pub stream: Stream,
    /// The text, with what is no UTF-8 replaced.
    pub text: String,
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command's exit status; 128 + N when signal N ended it.
    pub status: i32,
    /// What the command wrote to standard output, when it was collected.
    pub output: String,
    /// What the command wrote to standard error, when it was collected.
    pub errors: String,
    /// The end of what the emulated host's kernel wrote to its console.
    pub console: String,
    /// What the emulator itself said; VT-d's faults are among it.
    pub emulator: String,
    /// The kernel that ran, as it calls itself.
    pub kernel: String,
    /// From the start of the emulator to the start of the command.
    pub boot: Duration,
    /// From the call to the end.
    pub total: Duration,
    /// How many boots it took: 1, or 2.
    pub boots: u32,
    /// The table of disks: an array of objects with bus, serial, size, sha256, logical and physical.
    pub disks: serde_json::Value,
}

impl Outcome {
    /// Whether the command ended well.
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

impl Lab {
    /// Boots the host, runs a command in it, and hands each line it writes to `on_line`, as it is written.
    /// The outcome has the whole output as well.
    ///
    /// # Errors
    /// When the lab fails or its time is over; a command that fails is no error.
    pub fn run(&self, command: &[&str], mut on_line: impl FnMut(&Line)) -> Result<Outcome, LabError> {
        let mut stdout = Lines::new(Stream::Stdout);
        let mut stderr = Lines::new(Stream::Stderr);
        let result = self.stream(command, |event| match event {
            Event::Output(Stream::Stdout, bytes) => stdout.take(bytes, &mut on_line),
            Event::Output(Stream::Stderr, bytes) => stderr.take(bytes, &mut on_line),
            Event::Retrying(why) => eprintln!("lab: {why}; starting again"),
            Event::Booting | Event::StillBooting(_) | Event::Up | Event::Note(_) => {}
        });
        let (output, errors) = (stdout.finish(&mut on_line), stderr.finish(&mut on_line));
        result.map(|outcome| Outcome { output, errors, ..outcome })
    }

    /// Boots the host, runs a command in it, and hands out what happens, as it happens. The outcome has no output.
    ///
    /// # Errors
    /// When the lab fails or its time is over; a command that fails is no error.
    pub fn stream(&self, command: &[&str], mut on_event: impl FnMut(Event<'_>)) -> Result<Outcome, LabError> {
        let start = Instant::now();
        let places = Places::find()?;
        let qemu = find_qemu()?;
        models::check(self, &qemu)?;
        let system = System::prepare(&self.kernel, &places)?;
        let deadline = self.timeout.map(|limit| Deadline { at: start + limit.time(), limit });
        let mut boots = 0;
        loop {
            boots += 1;
            on_event(Event::Booting);
            let boot = Boot::start(self, command, &places, &qemu, &system, boots)?;
            match boot.follow(deadline, self.silence, &mut on_event) {
                Ok(outcome) => return Ok(Outcome { total: start.elapsed(), boots, ..outcome }),
                Err(Failed::Retry { why, .. }) if boots == 1 => on_event(Event::Retrying(&why)),
                Err(Failed::Retry { why, console }) => return Err(LabError::NoBoot { why, console }),
                Err(Failed::Final(error)) => return Err(error),
            }
        }
    }
}

/// The emulator: `$SKEP_LAB_QEMU`, else Debian's.
fn find_qemu() -> Result<PathBuf, LabError> {
    let name = std::env::var("SKEP_LAB_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    process::find(&name).ok_or(LabError::Missing {
        program: name,
        purpose: "it emulates the host",
        command: "apt-get install -y qemu-system-x86 (as root)",
    })
}
