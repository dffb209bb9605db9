//! How `skep run` ends.

use std::fmt::Write;
use std::process::ExitCode;

/// How `skep run` ended; the process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off, or nothing but a check was asked for and it went well.
    PoweredOff,
    /// The VM could not start: something about this host stands against it. The host is as it was.
    CouldNotStart,
    /// The flags or the file are wrong, whatever the host.
    Usage,
    /// The guest crashed: a triple fault.
    GuestCrashed,
    /// The host or skep failed while the VM was running.
    Failed,
    /// The VM was stopped by a second signal (or key) before its guest powered off.
    Stopped,
}

impl Exit {
    const ALL: [Exit; 6] =
        [Exit::PoweredOff, Exit::CouldNotStart, Exit::Usage, Exit::GuestCrashed, Exit::Failed, Exit::Stopped];

    /// The number the process ends with.
    pub fn status(self) -> u8 {
        match self {
            Exit::PoweredOff => 0,
            Exit::CouldNotStart => 1,
            Exit::Usage => 2,
            Exit::GuestCrashed => 3,
            Exit::Failed => 4,
            Exit::Stopped => 5,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Exit::PoweredOff => "the guest powered off",
            Exit::CouldNotStart => "the VM could not start; the host is as it was",
            Exit::Usage => "the flags or the file are wrong",
            Exit::GuestCrashed => "the guest crashed (triple fault)",
            Exit::Failed => "the host or skep failed while the VM was running",
            Exit::Stopped => "the VM was stopped on request before its guest powered off",
        }
    }

    /// The section about exit statuses in the help.
    pub fn help() -> String {
        let mut text = String::from("Exit status:\n");
        for exit in Exit::ALL {
            writeln!(text, "  {}  {}", exit.status(), exit.meaning()).expect("a String takes all text");
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.status())
    }
}
