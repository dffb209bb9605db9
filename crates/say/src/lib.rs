//! Standard error, for errors that there is nobody else to report to: those of a `Drop` that undoes something.
//!
//! `eprintln!` panics where standard error is a closed pipe, and a release build ends at a panic: devices would stay
//! bound, memory mapped. It also waits for ever where nobody reads. [`error`] does neither, and the lints of the crates
//! of the VM process forbid the macros.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long an output that takes nothing (a terminal after Ctrl-S, a pipe that is full) is waited for.
const OUTPUT_LIMIT: Duration = Duration::from_millis(200);

/// Bytes that a pipe takes whole once it takes any at all (PIPE_BUF, pipe(7)).
const PIECE: usize = 4096;

/// Writes an error to standard error, each line of it behind `skep: `. What standard error does not take is lost: the
/// caller undoes something, and that must go on.
pub fn error(what: impl Display) {
    let text: String = what.to_string().lines().map(|line| format!("skep: {line}\n")).collect();
    // If standard error is gone, there is no place left to report it.
    drop(write(&mut io::stderr(), text.as_bytes(), OUTPUT_LIMIT));
}

/// Writes as long as the output takes something within the time given.
fn write(output: &mut (impl Write + AsRawFd), text: &[u8], patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    for piece in text.chunks(PIECE) {
        if !takes_more(output, until.saturating_duration_since(Instant::now())) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        output.write_all(piece)?;
    }
    Ok(())
}

/// Whether the output takes something within the time given. One that is broken does: it takes the error.
fn takes_more(output: &impl AsRawFd, patience: Duration) -> bool {
    let mut poll = libc::pollfd { fd: output.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one structure of ours.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_closed_pipe_ends_neither_the_process_nor_the_sentence() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        let failed = write(&mut writer, b"lost", OUTPUT_LIMIT).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let begin = Instant::now();
        let failed = write(&mut writer, &[b'x'; 1 << 20], OUTPUT_LIMIT).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < 20 * OUTPUT_LIMIT, "{:?}", begin.elapsed());
        let mut some = [0; 10];
        reader.read_exact(&mut some).unwrap();
        assert_eq!(&some, b"xxxxxxxxxx");
    }
}
