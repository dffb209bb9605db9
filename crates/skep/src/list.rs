//! `skep list`: the VMs that run.

use std::io::Write;

use clap::Args;
use control::api::Info;
use control::{Client, Folder};

use crate::ask::{self, Failure};
use crate::report;
use crate::table::{Side, Table, plain};

/// What follows `skep list`.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// Print JSON: an array with what each VM says about itself
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Root sees the VMs that root runs, other users see their own.

Exit status:
  0  done, whether VMs run or not
  1  their folder cannot be read
  2  the command line is wrong";

/// Runs the command.
pub fn run(arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let vms = vms(&Folder::of_this_user()?)?;
    let text = if arguments.json { ask::json(&vms) } else { table(&vms) };
    Ok(output.write_all(text.as_bytes())?)
}

/// What each VM says about itself. Sockets that killed VMs left are passed over; what else is in the way is said.
fn vms(folder: &Folder) -> Result<Vec<Info>, Failure> {
    let mut vms = Vec::new();
    for name in folder.names()? {
        match Client::connect(folder, &name).and_then(|mut client| client.info()) {
            Ok(info) => vms.push(info),
            Err(error) if error.is_gone() => {}
            Err(error) => report::error(error),
        }
    }
    Ok(vms)
}

fn table(vms: &[Info]) -> String {
    if vms.is_empty() {
        return "No VM runs.\n".to_owned();
    }
    let mut table = Table::new([
        ("NAME", Side::Left),
        ("STATE", Side::Left),
        ("PROCESS", Side::Right),
        ("SINCE", Side::Left),
        ("SKEP", Side::Left),
    ]);
    for vm in vms {
        let Info { name, state, pid, since, version, .. } = vm;
        table.row([name.clone(), state.to_string(), pid.to_string(), since.clone(), version.clone()]);
    }
    // Whole sentences find no place in a column.
    let mut text = table.to_string();
    for Info { name, reason, .. } in vms {
        if let Some(reason) = reason {
            text.push_str(&format!("{name} is paused: {}.\n", plain(reason)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::api::State;
    use control::fake::FakeVm;
    use control::{Server, Source};
    use std::sync::Arc;

    #[test]
    fn vms_that_run_are_listed_and_dead_ones_are_not() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("vm"));
        let start = |name: &str| {
            let claim = folder.claim(&name.parse().unwrap()).unwrap();
            Server::start(claim, Arc::new(FakeVm::new(name))).unwrap()
        };
        let _servers = [start("web"), start("db")];
        drop(std::os::unix::net::UnixListener::bind(place.path().join("vm/dead.sock")).unwrap());
        let pid = std::process::id();
        let version = env!("CARGO_PKG_VERSION");
        let text = table(&vms(&folder).unwrap());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["NAME", "STATE", "PROCESS", "SINCE", "SKEP"]);
        let pid = pid.to_string();
        assert_eq!(lines[1], ["db", "running", &pid, "2026-11-22T20:30:55.000Z", version]);
        assert_eq!((lines[2][0], lines.len()), ("web", 3));
    }

    #[test]
    fn a_vm_that_stands_still_is_listed_with_the_reason() {
        let info = FakeVm::new("web").info();
        let paused = Info { state: State::Paused, reason: Some("disk a: no space".to_owned()), ..info };
        assert!(table(&[paused]).ends_with("\nweb is paused: disk a: no space.\n"));
    }

    #[test]
    fn where_no_vm_ever_ran_the_list_is_empty() {
        let none = vms(&Folder::at("/nowhere/at/all")).unwrap();
        assert_eq!((none.len(), table(&none).as_str()), (0, "No VM runs.\n"));
    }
}
