//! `skep pause`, `skep resume` and `skep stop`.

use std::time::{Duration, Instant};

use clap::Args;
use control::Client;
use control::api::{After, State};

use crate::ask::{self, Failure, Whom};
use crate::report;

/// How long one question waits for the end.
const WAIT: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Pause {
    #[command(flatten)]
    whom: Whom,
}

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Resume {
    #[command(flatten)]
    whom: Whom,
}

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Stop {
    #[command(flatten)]
    whom: Whom,
    /// End the VM now, whatever its guest does, instead of pressing the power button
    #[arg(long)]
    now: bool,
    /// Wait until the VM has ended. A guest that ignores the button may never end. Without --now, the button is pressed
    /// again from time to time once the guest listens: a guest that is still starting misses the first press
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
    if arguments.now {
        match client.stop() {
            // It may end sooner than it answers.
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    } else {
        client.press_power_button()?;
        let listens = match client.info() {
            // The guest was quick.
            Err(error) if error.is_gone() => return Ok(()),
            info => info?.listens_to_button,
        };
        if !listens {
            let name = arguments.whom.name();
            report::error(format_args!(
                "the guest of {name} does not listen to the power button yet (it has not enabled the ACPI event), and \
                 gets the press when it does. `skep stop --now {name}` ends the VM all the same."
            ));
        }
    }
    match (arguments.wait, arguments.now) {
        (false, _) => Ok(()),
        (true, true) => wait_for_end(client, None),
        (true, false) => wait_for_end(client, Some(Presses::GuestIsDeaf)),
    }
}

/// Waits for the VM's end, and presses the power button again when it is time for it.
fn wait_for_end(client: &mut Client, mut presses: Option<Presses>) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        let wait = presses.as_ref().map_or(WAIT, |presses| presses.next_look(Instant::now()));
        match client.events(&After { after, wait: wait.as_secs() }) {
            Ok(events) if events.ended => return Ok(()),
            Ok(events) => after = events.next_after,
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let Some(presses) = &mut presses else { continue };
        let pressed = match client.info() {
            Ok(info) if info.state == State::Ending => continue,
            Ok(info) if !presses.is_due(info.listens_to_button, Instant::now()) => continue,
            Ok(_) => client.press_power_button(),
            Err(error) => Err(error),
        };
        match pressed {
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
}

/// When the power button is pressed again. A guest's kernel enables the button long before the program starts that acts
/// on it, and what comes in between is lost without a trace. So it is pressed again, and less and less often, for who
/// acts on it has heard it already and takes its time.
enum Presses {
    /// The guest does not listen. When it does, it gets the press that waits.
    GuestIsDeaf,
    /// It listens.
    Again {
        /// When the next press is due.
        due: Instant,
        /// How long after it comes the one behind it.
        pause: Duration,
    },
}

impl Presses {
    /// How often a guest that does not listen is looked at.
    const LOOK: Duration = Duration::from_secs(1);
    const FIRST: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_secs(60);

    /// How long to wait until there is something to do.
    fn next_look(&self, now: Instant) -> Duration {
        match self {
            Presses::GuestIsDeaf => Presses::LOOK,
            Presses::Again { due, .. } => due.saturating_duration_since(now),
        }
    }

    /// Whether to press now, for a guest that listens or does not.
    fn is_due(&mut self, listens: bool, now: Instant) -> bool {
        match self {
            _ if !listens => {
                *self = Presses::GuestIsDeaf;
                false
            }
            Presses::GuestIsDeaf => {
                *self = Presses::Again { due: now + Presses::FIRST, pause: 2 * Presses::FIRST };
                false
            }
            Presses::Again { due, .. } if now < *due => false,
            Presses::Again { due, pause } => {
                *due = now + *pause;
                *pause = (2 * *pause).min(Presses::LONGEST);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::fake::FakeVm;
    use control::{Folder, Server, Source};
    use std::sync::Arc;

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
        assert_eq!(vm.info().unwrap().state, State::Ending);
    }

    #[test]
    fn the_button_is_pressed_again_less_and_less_often_once_the_guest_listens() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut presses = Presses::GuestIsDeaf;
        let pressed = |presses: &mut Presses, from: u64, to: u64, listens| {
            (from..to).filter(|second| presses.is_due(listens, at(*second))).collect::<Vec<u64>>()
        };
        assert_eq!(pressed(&mut presses, 0, 100, false), [0; 0], "it gets the first when it listens");
        assert_eq!(pressed(&mut presses, 100, 300, true), [105, 115, 135, 175, 235, 295]);
        // It starts afresh.
        assert_eq!(pressed(&mut presses, 300, 310, false), [0; 0]);
        assert_eq!(pressed(&mut presses, 310, 320, true), [315]);
        assert!(presses.next_look(at(320)) <= Presses::LONGEST);
    }

    #[test]
    fn waiting_presses_again_for_a_guest_that_listens_late() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("vm"));
        let vm = Arc::new(FakeVm::new("web"));
        vm.set_listens_to_button(false);
        let server = Server::start(folder.claim(&"web".parse().unwrap()).unwrap(), vm.clone()).unwrap();
        let mut client = Client::connect(&folder, &"web".parse().unwrap()).unwrap();
        let presses = || {
            let events = vm.journal().after(0, Duration::ZERO).events;
            events.iter().filter(|event| event.text.contains("button")).count()
        };
        std::thread::scope(|scope| {
            let arguments = Stop { whom: Whom::called("web"), now: false, wait: true };
            let waiting = scope.spawn(move || stop_vm(&mut client, &arguments));
            std::thread::sleep(Presses::LOOK);
            vm.set_listens_to_button(true);
            let begun = Instant::now();
            while presses() < 2 && begun.elapsed() < 4 * Presses::FIRST {
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(presses(), 2);
            drop(server);
            waiting.join().unwrap().unwrap();
        });
    }
}
