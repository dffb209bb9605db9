//! What skep says on standard error: lines that begin with `skep: `.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use clap::error::ErrorKind;
use control::Journal;
use control::api::EventKind;
use machine::{Answer, Life, Notice, Press};

use crate::view;

/// Says an error. Each line of it is a line of its own, so several findings are several lines.
pub fn error(error: impl Display) {
    write(&lines(&error.to_string(), coloured()));
}

/// Says something that is no error, on a line of its own.
pub fn note(text: &str) {
    write(&lines(text, false));
}

/// Shows what somebody at the terminal asked for: no error, so no prefix and no colour.
pub fn answer(text: &str) {
    write(text);
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
    // Help that nobody asked for, since the command is missing, is help all the same.
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        write(&text);
        return;
    }
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

/// Notices that wait at most for an output that is slow.
const WAITING: usize = 256;
/// Of these, what the guest can cause as often as it likes.
const PROVOKED: usize = 32;

/// Says troubles on a thread of its own, so that an error output that is blocked (a terminal after Ctrl-S, a pipe
/// that nobody reads) holds nobody up. What finds no room is counted, and the count is said.
pub struct Troubles {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
    provoked: Arc<AtomicUsize>,
    done: Receiver<()>,
}

/// What waits to be said.
enum Line {
    /// The guest caused it, and can cause more.
    Provoked(String),
    /// Anything else.
    Other(String),
}

impl Troubles {
    /// Starts the thread.
    pub fn new() -> std::io::Result<Troubles> {
        Troubles::said_by(|text| error(text))
    }

    fn said_by(mut say: impl FnMut(&str) + Send + 'static) -> std::io::Result<Troubles> {
        let (lines, taken) = sync_channel::<Line>(WAITING);
        let (finished, done) = sync_channel::<()>(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let not_said = dropped.clone();
        let provoked = Arc::new(AtomicUsize::new(0));
        let waiting = provoked.clone();
        std::thread::Builder::new().name("troubles".into()).spawn(move || {
            taken.iter().for_each(|line| match line {
                Line::Provoked(text) => {
                    waiting.fetch_sub(1, Ordering::SeqCst);
                    say(&text);
                }
                Line::Other(text) => say(&text),
            });
            let count = not_said.load(Ordering::SeqCst);
            if count > 0 {
                say(&format!(
                    "{count} more messages of this VM are not shown here, for standard error took none at the time. \
                     While a VM runs, `skep events` has them."
                ));
            }
            // Dropping it wakes whoever waits.
            drop(finished);
        })?;
        Ok(Troubles { lines, dropped, provoked, done })
    }

    /// How to say one, and have it recorded.
    pub fn reporter(&self, journal: Arc<Journal>) -> machine::Reporter {
        let (lines, dropped, provoked) = (self.lines.clone(), self.dropped.clone(), self.provoked.clone());
        // What was provoked has few places only, so that there is room for the rest.
        let send = move |line: Line| match line {
            line @ Line::Other(_) => lines.try_send(line).is_ok(),
            line @ Line::Provoked(_) => {
                let enters =
                    provoked.fetch_add(1, Ordering::SeqCst) < PROVOKED && lines.try_send(line).is_ok();
                if !enters {
                    provoked.fetch_sub(1, Ordering::SeqCst);
                }
                enters
            }
        };
        Box::new(move |notice| {
            let text = notice.to_string();
            match notice {
                Notice::Life(_) => journal.record(EventKind::Life, &text),
                Notice::Fault(fault) => journal.record_fault(&text, view::fault(fault)),
                Notice::Disk(failure) => journal.record_disk(&text, view::disk_error(failure)),
                Notice::Trouble(_) => journal.record(EventKind::Trouble, &text),
                Notice::Provoked(_) => journal.record_provoked(&text),
            };
            // What is held makes the VM pause, which is said with the reason.
            let said_by_the_pause = matches!(notice, Notice::Disk(failure) if failure.answer == Answer::Held);
            let line = if matches!(notice, Notice::Provoked(_)) { Line::Provoked } else { Line::Other };
            // That it was started is no news to who started it, nor is a press of the power button that the guest gets,
            // nor a reset to the guest's user; how it ended is said by `skep run` itself, and how things were made is for
            // those who ask (`skep events`).
            if !said_by_the_pause
                && !matches!(notice, Notice::Life(life) if is_for_the_journal_alone(life))
                && !send(line(text))
            {
                dropped.fetch_add(1, Ordering::SeqCst);
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

fn is_for_the_journal_alone(life: &Life) -> bool {
    match life {
        Life::Made(_)
        | Life::Started
        | Life::Restarted
        | Life::PowerButton(Press::Shown)
        | Life::Ending(_)
        | Life::Ended(_) => true,
        Life::Preparing(_)
        | Life::Kept(_)
        | Life::Paused(_)
        | Life::Resumed
        | Life::DisksChanged(_)
        | Life::DeviceRequested(..)
        | Life::PowerButton(Press::Waits)
        | Life::PowerButtonHeard => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::Outcome;

    #[test]
    fn every_finding_is_a_line_with_the_prefix() {
        assert_eq!(lines("a\nb", false), "skep: a\nskep: b\n");
    }

    #[test]
    fn what_a_slow_output_had_no_room_for_is_counted_and_the_count_is_said() {
        let (go, wait) = sync_channel::<()>(0);
        let said = Arc::new(std::sync::Mutex::new(Vec::new()));
        let to = said.clone();
        let troubles = Troubles::said_by(move |text| {
            // It stands still until the test has told everything, and runs on when the test has let go.
            assert!(wait.recv().is_err());
            to.lock().unwrap().push(text.to_owned());
        })
        .unwrap();
        let reporter = troubles.reporter(Arc::new(Journal::new()));
        for _ in 0..1000 {
            reporter(&Notice::Trouble("again".to_owned()));
        }
        drop((reporter, go));
        troubles.finish();
        let said = said.lock().unwrap();
        let (last, shown) = said.split_last().unwrap();
        // One may have been taken, and be at the output, while the others wait.
        assert!((WAITING..=WAITING + 1).contains(&shown.len()), "{}", shown.len());
        assert!(last.starts_with(&format!("{} more messages", 1000 - shown.len())), "{last}");
    }

    #[test]
    fn what_a_guest_provokes_leaves_room_for_the_rest_while_an_output_stands_still() {
        let (go, wait) = sync_channel::<()>(0);
        let said = Arc::new(std::sync::Mutex::new(Vec::new()));
        let to = said.clone();
        let troubles = Troubles::said_by(move |text| {
            assert!(wait.recv().is_err());
            to.lock().unwrap().push(text.to_owned());
        })
        .unwrap();
        let journal = Arc::new(Journal::new());
        let reporter = troubles.reporter(journal.clone());
        reporter(&Notice::Trouble("first".to_owned()));
        for _ in 0..10_000 {
            reporter(&Notice::Provoked("again".to_owned()));
        }
        reporter(&Notice::Trouble("the flush failed".to_owned()));
        drop((reporter, go));
        troubles.finish();
        let said = said.lock().unwrap();
        assert_eq!(said.iter().filter(|line| *line == "again").count(), PROVOKED);
        assert!(said.iter().any(|line| line == "the flush failed"), "{said:?}");
        let kept = journal.after(0, Duration::ZERO);
        assert_eq!(
            (kept.events[0].text.as_str(), kept.lost > 0),
            ("first", true),
            "nor is the journal full of it"
        );
    }

    #[test]
    fn each_press_of_the_button_and_the_end_are_events_and_only_a_press_that_waits_is_said() {
        let said = Arc::new(std::sync::Mutex::new(Vec::new()));
        let to = said.clone();
        let troubles = Troubles::said_by(move |text| to.lock().unwrap().push(text.to_owned())).unwrap();
        let journal = Arc::new(Journal::new());
        let reporter = troubles.reporter(journal.clone());
        let lives = [
            Life::PowerButton(Press::Waits),
            Life::PowerButtonHeard,
            Life::PowerButton(Press::Shown),
            Life::Ending(Outcome::PoweredOff),
            Life::Ended(Outcome::Failed("a device stayed".to_owned())),
        ];
        lives.into_iter().for_each(|life| reporter(&Notice::Life(life)));
        drop(reporter);
        troubles.finish();
        let events = journal.after(0, Duration::ZERO).events;
        let texts: Vec<&str> = events.iter().map(|event| event.text.as_str()).collect();
        assert!(events.iter().all(|event| event.kind == EventKind::Life), "{events:?}");
        assert_eq!(texts[2..4], ["the power button was pressed", "the VM ends: the guest powered off"]);
        assert_eq!(texts[4], "the VM has ended: a device stayed");
        assert_eq!(*said.lock().unwrap(), texts[..2]);
        assert!(texts[0].contains("does not listen to it yet"), "{texts:?}");
    }

    #[test]
    fn colour_is_around_the_prefix_only() {
        assert_eq!(lines("a", true), "\x1b[1;31mskep:\x1b[0m a\n");
    }
}
