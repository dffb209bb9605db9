//! `skep list`: the VMs that run.

use std::io::Write;

use clap::Args;
use control::api::{Drive, Info};
use control::{Client, ClientError, Folder};
use serde::Serialize;

use crate::ask::{self, Failure};
use crate::report;
use crate::stats;
use crate::table::{Side, Table, plain};

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

/// A VM that runs.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    info: Info,
    /// Its CD drives. It has none any more while it is being taken apart.
    drives: Vec<Drive>,
}

impl Listed {
    fn of(client: &mut Client) -> Result<Listed, ClientError> {
        let info = client.info()?;
        let drives = match client.stats() {
            Ok(stats) => stats.drives,
            Err(ClientError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Listed { info, drives })
    }
}

/// What each VM says about itself. Sockets that killed VMs left are passed over; what else is in the way is said.
fn vms(folder: &Folder) -> Result<Vec<Listed>, Failure> {
    let mut vms = Vec::new();
    for name in folder.names()? {
        match Client::connect(folder, &name).and_then(|mut client| Listed::of(&mut client)) {
            Ok(vm) => vms.push(vm),
            Err(error) if error.is_gone() => {}
            Err(error) => report::error(error),
        }
    }
    Ok(vms)
}

fn table(vms: &[Listed]) -> String {
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
        let Info { name, state, pid, since, version, .. } = &vm.info;
        table.row([name.clone(), state.to_string(), pid.to_string(), since.clone(), version.clone()]);
    }
    // Whole sentences find no place in a column.
    let mut text = table.to_string();
    for Listed { info: Info { name, reason, .. }, drives } in vms {
        if let Some(reason) = reason {
            text.push_str(&format!("{name} is paused: {}.\n", plain(reason)));
        }
        for line in stats::drives(drives).lines() {
            text.push_str(&format!("{name}: {line}\n"));
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
        assert_eq!((lines[2][0], lines.len()), ("web", 5));
        assert!(text.ends_with("\nweb: CD drive cd0 holds /images/a.iso.\n"), "{text}");
    }

    #[test]
    fn a_vm_that_stands_still_is_listed_with_the_reason() {
        let info = FakeVm::new("web").info().unwrap();
        let info = Info { state: State::Paused, reason: Some("disk a: no space".to_owned()), ..info };
        assert!(
            table(&[Listed { info, drives: Vec::new() }]).ends_with("\nweb is paused: disk a: no space.\n")
        );
    }

    #[test]
    fn where_no_vm_ever_ran_the_list_is_empty() {
        let none = vms(&Folder::at("/nowhere/at/all")).unwrap();
        assert_eq!((none.len(), table(&none).as_str()), (0, "No VM runs.\n"));
    }
}
