//! `skep pause`, `skep resume` and `skep stop`.

use std::time::Duration;

use clap::Args;
use control::Client;
use control::api::State;

use crate::ask::{self, Failure, Whom};

/// How long one question waits for the end.
const WAIT: Duration = Duration::from_secs(30);

/// What follows `skep pause`.
#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Pause {
    #[command(flatten)]
    whom: Whom,
}

/// What follows `skep resume`.
#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Resume {
    #[command(flatten)]
    whom: Whom,
}

/// What follows `skep stop`.
#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Stop {
    #[command(flatten)]
    whom: Whom,
    /// End the VM now, whatever its guest does, instead of pressing the power button
    #[arg(long)]
    now: bool,
    /// Return when the VM has ended; a guest that does not listen to the button may never end
    #[arg(long)]
    wait: bool,
}

/// Runs `skep pause`.
pub fn pause(arguments: &Pause) -> Result<(), Failure> {
    let done = arguments.whom.connect()?.pause()?;
    expect(State::Paused, done.state, &arguments.whom)
}

/// Runs `skep resume`.
pub fn resume(arguments: &Resume) -> Result<(), Failure> {
    let done = arguments.whom.connect()?.resume()?;
    expect(State::Running, done.state, &arguments.whom)
}

fn expect(wanted: State, state: State, whom: &Whom) -> Result<(), Failure> {
    if state == wanted {
        return Ok(());
    }
    Err(Failure::other(format_args!(
        "the VM {} is {state}, not {wanted}. See `skep events {0}`.",
        whom.name()
    )))
}

/// Runs `skep stop`.
pub fn stop(arguments: &Stop) -> Result<(), Failure> {
    stop_vm(&mut arguments.whom.connect()?, arguments)
}

fn stop_vm(client: &mut Client, arguments: &Stop) -> Result<(), Failure> {
    let asked = if arguments.now { client.stop() } else { client.press_power_button() };
    match asked {
        // It may end sooner than it answers.
        Err(error) if arguments.now && error.is_gone() => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    if arguments.wait { wait_for_end(client) } else { Ok(()) }
}

fn wait_for_end(client: &mut Client) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        match client.events(after, WAIT) {
            Ok(events) if events.ended => return Ok(()),
            Ok(events) => after = events.next_after,
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::fake::FakeVm;
    use control::{Folder, Server, Source};
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn stopping_presses_the_button_and_waits_for_the_end_when_asked_to() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("vm"));
        let vm = Arc::new(FakeVm::new("web"));
        let server = Server::start(folder.claim(&"web".parse().unwrap()).unwrap(), vm.clone()).unwrap();
        let arguments = |now, wait| Stop { whom: Whom::called("web"), now, wait };
        let client = || Client::connect(&folder, &"web".parse().unwrap()).unwrap();
        stop_vm(&mut client(), &arguments(false, false)).unwrap();
        assert_eq!(vm.journal().after(0, Duration::ZERO).events[0].text, "The power button was pressed.");
        let (mut waiting, begun) = (client(), Instant::now());
        std::thread::scope(|scope| {
            let ended = scope.spawn(move || stop_vm(&mut waiting, &arguments(true, true)));
            std::thread::sleep(Duration::from_millis(100));
            drop(server);
            ended.join().unwrap().unwrap();
        });
        assert!(begun.elapsed() >= Duration::from_millis(100));
        assert_eq!(vm.info().state, State::Ending);
    }
}
