//! `skep events`: what happened to a VM.

use std::io::Write;

use clap::Args;
use control::Client;
use control::api::{After, Event};
use serde_json::json;

use crate::ask::{self, Failure, Whom};
use crate::table::plain;

/// Seconds that one question waits for news.
const WAIT: u64 = 30;

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    /// Keep showing new events until the VM ends
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one event per line
    #[arg(long)]
    json: bool,
    /// Show only the events after event number N
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    tell(&mut arguments.whom.connect()?, arguments, output)
}

fn tell(client: &mut Client, arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let mut after = arguments.after;
    loop {
        let wait = if arguments.follow { WAIT } else { 0 };
        let events = match client.events(&After { after, wait }) {
            // That is what was waited for.
            Err(error) if arguments.follow && error.is_gone() => return Ok(()),
            events => events?,
        };
        if events.lost > 0 {
            let text = if arguments.json {
                ask::json_line(&json!({ "lost": events.lost }))
            } else {
                lost(events.lost)
            };
            output.write_all(text.as_bytes())?;
        }
        for event in &events.events {
            let text = if arguments.json { ask::json_line(event) } else { line(event) };
            output.write_all(text.as_bytes())?;
        }
        output.flush()?;
        after = events.next_after;
        if events.ended || (!arguments.follow && events.events.is_empty()) {
            return Ok(());
        }
    }
}

fn lost(number: u64) -> String {
    format!("({number} events that happened before these are no longer kept)\n")
}

fn line(event: &Event) -> String {
    format!("{}  {:<7}  {}\n", event.time, event.kind.to_string(), plain(&event.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::EventKind;
    use control::fake::FakeVm;
    use control::{Folder, KEPT, Server, Source};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// What was printed so far, for others to see.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Running {
        vm: Arc<FakeVm>,
        server: Server,
        folder: Folder,
        _place: tempfile::TempDir,
    }

    fn running() -> Running {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("vm"));
        let vm = Arc::new(FakeVm::new("web"));
        let server = Server::start(folder.claim(&"web".parse().unwrap()).unwrap(), vm.clone()).unwrap();
        Running { vm, server, folder, _place: place }
    }

    fn print(folder: &Folder, follow: bool, json: bool, mut output: Output) {
        let arguments = Arguments { whom: Whom::called("web"), follow, json, after: 0 };
        tell(&mut arguments.whom.connect_in(folder).unwrap(), &arguments, &mut output).unwrap();
    }

    #[test]
    fn an_event_is_a_line_and_what_is_no_longer_kept_is_said() {
        let running = running();
        for number in 0..KEPT + 2 {
            running.vm.journal().record(EventKind::Trouble, &format!("Trouble\x1b {number}"));
        }
        let output = Output::default();
        print(&running.folder, false, false, output.clone());
        let text = output.text();
        assert_eq!(text.lines().count(), KEPT + 1);
        assert!(text.starts_with("(2 events that happened before these are no longer kept)\n"));
        assert!(
            text.ends_with(&format!("Z  trouble  Trouble? {}\n", KEPT + 1)),
            "{}",
            &text[text.len() - 80..]
        );
    }

    #[test]
    fn following_goes_on_until_the_vm_ends_and_misses_nothing() {
        let Running { vm, server, folder, _place } = running();
        let output = Output::default();
        std::thread::scope(|scope| {
            let following = scope.spawn(|| print(&folder, true, true, output.clone()));
            vm.journal().record(EventKind::Life, "one");
            while output.text().is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            vm.journal().record(EventKind::Life, "two");
            drop(server);
            following.join().unwrap();
        });
        let text = output.text();
        let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().text);
        assert_eq!(events.collect::<Vec<_>>(), ["one", "two"]);
    }
}
