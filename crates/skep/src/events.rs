//! `skep events`: what happened to a VM.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use control::Client;
use control::api::Event;
use serde_json::json;

use crate::ask::{self, Failure, Whom};
use crate::table::plain;

/// How long one question waits for news.
const WAIT: Duration = Duration::from_secs(30);

/// What follows `skep events`.
#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    /// Go on with what happens from now on, until the VM ends
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, an event a line
    #[arg(long)]
    json: bool,
    /// Begin behind the event of this number
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
        let wait = if arguments.follow { WAIT } else { Duration::ZERO };
        let events = match client.events(after, wait) {
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
    use std::sync::Arc;

    fn events(vm: &Arc<FakeVm>, follow: bool, json: bool, meanwhile: impl FnOnce(Server)) -> String {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("vm"));
        let server = Server::start(folder.claim(&"web".parse().unwrap()).unwrap(), vm.clone()).unwrap();
        let arguments = Arguments { whom: Whom::called("web"), follow, json, after: 0 };
        let mut client = arguments.whom.connect_in(&folder).unwrap();
        let mut output = Vec::new();
        std::thread::scope(|scope| {
            let telling = scope.spawn(|| tell(&mut client, &arguments, &mut output));
            meanwhile(server);
            telling.join().unwrap().unwrap();
        });
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn an_event_is_a_line_and_what_is_no_longer_kept_is_said() {
        let vm = Arc::new(FakeVm::new("web"));
        for number in 0..KEPT + 2 {
            vm.journal().record(EventKind::Trouble, &format!("Trouble\x1b {number}"));
        }
        let mut keep = None;
        let text = events(&vm, false, false, |server| keep = Some(server));
        assert_eq!(text.lines().count(), KEPT + 1);
        assert!(text.starts_with("(2 events that happened before these are no longer kept)\n"));
        assert!(
            text.ends_with(&format!("Z  trouble  Trouble? {}\n", KEPT + 1)),
            "{}",
            &text[text.len() - 80..]
        );
    }

    #[test]
    fn following_goes_on_until_the_vm_ends() {
        let vm = Arc::new(FakeVm::new("web"));
        let journal = vm.journal();
        let text = events(&vm, true, true, |server| {
            journal.record(EventKind::Life, "one");
            std::thread::sleep(Duration::from_millis(50));
            journal.record(EventKind::Life, "two");
            drop(server);
        });
        let texts: Vec<String> =
            text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().text).collect();
        assert_eq!(texts, ["one", "two"]);
    }
}
