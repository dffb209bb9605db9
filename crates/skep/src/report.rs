//! What skep says on standard error: lines that begin with `skep: `.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use control::api::EventKind;
use control::{Journal, view};
use machine::{Life, Notice};

/// Says an error. Each line of it is a line of its own, so several findings are several lines.
pub fn error(error: impl Display) {
    write(&lines(&error.to_string(), coloured()));
}

/// Says how a command line is wrong, with clap's words.
pub fn usage(error: &clap::Error) {
    // An answer to a question (--help, --version) is no error, and goes to standard output.
    if !error.use_stderr() {
        // Where nobody reads on, there is nobody to tell.
        drop(error.print());
        return;
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    write(&(lines(first, coloured()) + rest));
}

fn lines(text: &str, coloured: bool) -> String {
    let prefix = if coloured { "\x1b[1;31mskep:\x1b[0m " } else { "skep: " };
    text.lines().map(|line| format!("{prefix}{line}\n")).collect()
}

/// Colours belong on a terminal, and only if its owner has not said otherwise (NO_COLOR).
fn coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn write(text: &str) {
    // If standard error is gone there is no place left to say so.
    drop(std::io::stderr().write_all(text.as_bytes()));
}

/// Says troubles on a thread of its own, so that an error output that stands still (a terminal after Ctrl-S, a pipe
/// that nobody reads) holds nobody up.
pub struct Troubles {
    lines: SyncSender<String>,
    done: Receiver<()>,
}

impl Troubles {
    /// Starts the thread.
    pub fn new() -> std::io::Result<Troubles> {
        let (lines, taken) = sync_channel::<String>(256);
        let (finished, done) = sync_channel::<()>(1);
        std::thread::Builder::new().name("troubles".into()).spawn(move || {
            taken.iter().for_each(error);
            // Dropping it wakes whoever waits.
            drop(finished);
        })?;
        Ok(Troubles { lines, done })
    }

    /// How to say one, and have it recorded.
    pub fn reporter(&self, journal: Arc<Journal>) -> machine::Reporter {
        let lines = self.lines.clone();
        Box::new(move |notice| {
            let text = notice.to_string();
            match notice {
                Notice::Life(_) => journal.record(EventKind::Life, &text),
                Notice::Fault(event) => journal.record_fault(&text, view::fault(event)),
                Notice::Trouble(_) => journal.record(EventKind::Trouble, &text),
            };
            // That it was started is no news to who started it, nor is a reset to the guest's user; and how things
            // were made is for those who ask (`skep events`).
            if !matches!(notice, Notice::Life(Life::Made(_) | Life::Started | Life::Restarted)) {
                // What finds no room behind 256 others is for an output that takes nothing anyway.
                drop(lines.try_send(text));
            }
        })
    }

    /// Waits until all is said, but not for ever. All sayers must be gone.
    pub fn finish(self) {
        drop(self.lines);
        // Neither outcome changes anything: all is said, or the output takes nothing.
        self.done.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_a_line_with_the_prefix() {
        assert_eq!(lines("a\nb", false), "skep: a\nskep: b\n");
    }

    #[test]
    fn colour_is_around_the_prefix_only() {
        assert_eq!(lines("a", true), "\x1b[1;31mskep:\x1b[0m a\n");
    }
}
