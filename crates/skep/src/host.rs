//! `skep host`: what VMs that were killed left on this host (devices bound, probes in the kernel), and giving it back.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use ::host::{BindError, Host, Leftover, PciAddress};
use clap::{Args, Subcommand};
use faults::Leftover as Tracing;
use serde_json::{Value, json};

use crate::{rehearse, report};

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Give devices back to the drivers they had. Without addresses, also remove the DMA fault probes that were left
    GiveBack(GiveBack),
    /// Take devices as a VM would, map RAM for them, reset them, and give them back
    Rehearse(Rehearse),
}

#[derive(Args)]
struct Rehearse {
    /// The devices, as lspci -D prints them
    #[arg(value_name = "ADDRESS", required = true)]
    addresses: Vec<PciAddress>,
    /// How many times
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    times: u32,
}

#[derive(Args)]
struct GiveBack {
    /// The devices, as lspci -D prints them [default: all that are left]
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<PciAddress>,
}

const HELP: &str = "\
Without a command: lists what killed VMs left behind: PCI devices bound to vfio-pci, and the probes by which skep learns
of DMA faults (tracefs; only root sees them). The next `skep run` gives them back; `skep host give-back` does it now.
Neither touches a device that a process uses, nor the other devices of its IOMMU group. `skep host rehearse` shows
whether devices survive being given to a VM: it takes them from their drivers for a moment. It refuses devices that are
in use.

Exit status: 0 when all went well (also when nothing is left), 1 when something failed, 2 for wrong flags.";

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    let host = Host::here();
    let answer = match &arguments.command {
        None => list(&host, &tracing()),
        Some(Command::GiveBack(which)) if which.addresses.is_empty() => give_back(&host, &[], &tracing()),
        Some(Command::GiveBack(which)) => give_back(&host, &which.addresses, &[]),
        Some(Command::Rehearse(what)) => rehearse(&host, what),
    };
    answer.print(arguments.json)
}

fn tracing() -> Vec<Tracing> {
    Tracing::all(Path::new("/"))
}

const NOTHING: &str = "No killed VM has left anything behind.";

/// What the command has to say.
struct Answer {
    text: Vec<String>,
    errors: Vec<String>,
    json: Value,
}

impl Answer {
    fn print(self, json: bool) -> ExitCode {
        let text = match json {
            true => format!("{:#}\n", self.json),
            false => self.text.iter().map(|line| format!("{line}\n")).collect(),
        };
        if !json {
            self.errors.iter().for_each(report::error);
        }
        if let Err(cause) = std::io::stdout().write_all(text.as_bytes()) {
            report::error(format_args!("cannot write to standard output: {cause}."));
            return ExitCode::FAILURE;
        }
        if self.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn list(host: &Host, tracing: &[Tracing]) -> Answer {
    let (left, errors) = leftovers(host);
    let devices = left.iter().map(|left| {
        let was = match &left.driver {
            Some(name) => format!("driver {name} had it"),
            None => "no driver had it".into(),
        };
        format!("{} left by process {}, which is gone; {was}", left.address, left.pid)
    });
    let traced = tracing.iter().map(|left| {
        format!("probes on DMA faults ({}) left by process {}, which is gone", left.name, left.pid)
    });
    let mut text: Vec<String> = devices.chain(traced).collect();
    if text.is_empty() && errors.is_empty() {
        text.push(NOTHING.to_owned());
    }
    let left: Vec<Value> = left.iter().map(facts).collect();
    let traced: Vec<Value> = tracing.iter().map(traced_facts).collect();
    let json = json!({ "leftovers": left, "tracing": traced, "errors": &errors });
    Answer { text, errors, json }
}

/// Gives the devices at these addresses back, or all that are left if there are none, and removes probes.
fn give_back(host: &Host, addresses: &[PciAddress], tracing: &[Tracing]) -> Answer {
    let (mut left, mut errors) = leftovers(host);
    let unknown = addresses.iter().filter(|address| !left.iter().any(|left| left.address == **address));
    errors.extend(unknown.map(|address| {
        format!(
            "PCI device {address} was not left by a VM that was killed. `skep host` lists those that were."
        )
    }));
    left.retain(|left| addresses.is_empty() || addresses.contains(&left.address));
    let (mut text, mut given) = (Vec::new(), Vec::new());
    for left in &left {
        match host.give_back_leftover(left) {
            Ok(()) => {
                let whom = left.driver.as_ref().map_or(String::new(), |name| format!(" to {name}"));
                text.push(format!("gave {} back{whom}", left.address));
                given.push(facts(left));
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    let mut removed = Vec::new();
    for left in tracing {
        match left.remove() {
            Ok(()) => {
                text.push(format!("removed the probes on DMA faults of process {} ({})", left.pid, left.name));
                removed.push(traced_facts(left));
            }
            Err(error) => errors.push(format!(
                "cannot remove the probes on DMA faults of process {}, {error}. Somebody may be reading them; try \
                 again when nobody does, or restart the host.",
                left.pid
            )),
        }
    }
    if text.is_empty() && errors.is_empty() {
        text.push(NOTHING.to_owned());
    }
    let json = json!({ "given_back": given, "removed_tracing": removed, "errors": &errors });
    Answer { text, errors, json }
}

/// Takes devices and gives them back.
fn rehearse(host: &Host, what: &Rehearse) -> Answer {
    let mut rounds = Vec::new();
    let done = rehearse::rehearse(host, &what.addresses, what.times, |_, took| rounds.push(took.as_millis()));
    let errors: Vec<String> = done.err().iter().map(ToString::to_string).collect();
    let slowest = rounds.iter().max().copied().unwrap_or(0);
    let text = match errors.is_empty() {
        true => vec![format!(
            "Taken and given back {} times, at most {slowest} ms each; no file is left open and no page pinned.",
            rounds.len()
        )],
        false => Vec::new(),
    };
    let json = json!({ "rounds": rounds.len(), "slowest_ms": slowest as u64, "errors": &errors });
    Answer { text, errors, json }
}

fn leftovers(host: &Host) -> (Vec<Leftover>, Vec<String>) {
    let (left, errors): (Vec<_>, Vec<_>) = host.try_leftovers().into_iter().partition(Result::is_ok);
    let errors = errors.into_iter().filter_map(Result::err);
    (left.into_iter().flatten().collect(), errors.map(|error: BindError| error.to_string()).collect())
}

fn facts(left: &Leftover) -> Value {
    json!({ "address": left.address.to_string(), "driver": left.driver, "process": left.pid })
}

fn traced_facts(left: &Tracing) -> Value {
    json!({ "name": left.name, "process": left.pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A host on which a process that is gone had a device that is gone, too, and another record is damaged.
    fn host(records: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/skep")).unwrap();
        for (address, text) in records {
            fs::write(root.path().join(format!("run/skep/vfio-{address}.json")), text).unwrap();
        }
        let host = Host::at(root.path());
        (root, host)
    }

    fn record(address: &str) -> String {
        let record =
            json!({ "address": address, "driver": "nvme", "driver_override": null, "pid": 7, "started": 1 });
        record.to_string()
    }

    #[test]
    fn what_a_killed_vm_left_is_listed_with_the_driver_it_goes_back_to() {
        let (_root, host) = host(&[("0000:01:00.0", &record("0000:01:00.0"))]);
        let answer = list(&host, &[]);
        assert_eq!(answer.text, ["0000:01:00.0 left by process 7, which is gone; driver nvme had it"]);
        assert_eq!(
            answer.json["leftovers"][0],
            json!({ "address": "0000:01:00.0", "driver": "nvme", "process": 7 })
        );
    }

    #[test]
    fn nothing_left_is_said_and_no_error() {
        let (_root, host) = host(&[]);
        for answer in [list(&host, &[]), give_back(&host, &[], &[])] {
            assert_eq!((answer.text.len(), answer.errors.len()), (1, 0));
        }
    }

    #[test]
    fn only_the_devices_asked_for_are_given_back() {
        let [one, other] = ["0000:01:00.0", "0000:02:00.0"];
        let (_root, host) = host(&[(one, &record(one)), (other, &record(other))]);
        let answer = give_back(&host, &[other.parse().unwrap()], &[]);
        assert_eq!((answer.text, answer.errors.len()), (vec![format!("gave {other} back to nvme")], 0));
        assert_eq!(list(&host, &[]).json["leftovers"].as_array().unwrap().len(), 1);
        let answer = give_back(&host, &[other.parse().unwrap()], &[]);
        assert!(answer.errors[0].contains("0000:02:00.0 was not left"), "{:?}", answer.errors);
        assert_eq!(give_back(&host, &[], &[]).json["given_back"][0]["address"], one);
    }

    #[test]
    fn a_damaged_record_is_an_error_and_hides_no_other() {
        let (_root, host) = host(&[("0000:01:00.0", "{"), ("0000:02:00.0", &record("0000:02:00.0"))]);
        let answer = list(&host, &[]);
        assert_eq!((answer.text.len(), answer.errors.len()), (1, 1));
        assert!(answer.errors[0].contains("vfio-0000:01:00.0.json"), "{:?}", answer.errors);
        assert_eq!(give_back(&host, &[], &[]).text.len(), 1);
    }

    #[test]
    fn probes_of_a_killed_vm_are_listed_and_removed_and_those_of_a_live_one_stay() {
        let (root, host) = host(&[]);
        let instances = root.path().join("sys/kernel/tracing/instances");
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::create_dir_all(root.path().join("proc/7")).unwrap();
        let stat = format!("7 (skep) S{} 100 0", " 0".repeat(18));
        fs::write(root.path().join("proc/7/stat"), stat).unwrap();
        for name in ["skep_7_100_0", "skep_7_99_0"] {
            fs::create_dir_all(instances.join(name)).unwrap();
        }
        let left = Tracing::all(root.path());
        let answer = list(&host, &left);
        assert_eq!(answer.text, ["probes on DMA faults (skep_7_99_0) left by process 7, which is gone"]);
        assert_eq!(answer.json["tracing"][0], json!({ "name": "skep_7_99_0", "process": 7 }));
        let answer = give_back(&host, &[], &left);
        assert_eq!((answer.text.len(), answer.errors.len()), (1, 0), "{:?}", answer.errors);
        assert!(instances.join("skep_7_100_0").exists() && !instances.join("skep_7_99_0").exists());
        assert!(Tracing::all(root.path()).is_empty());
    }

    #[test]
    fn probes_that_cannot_be_removed_are_an_error() {
        let (root, host) = host(&[]);
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let busy = root.path().join("sys/kernel/tracing/instances/skep_7_99_0/busy");
        fs::create_dir_all(busy).unwrap();
        let answer = give_back(&host, &[], &Tracing::all(root.path()));
        assert_eq!((answer.text.len(), answer.errors.len()), (0, 1));
        assert!(answer.errors[0].contains("skep_7_99_0: "), "{}", answer.errors[0]);
    }
}
