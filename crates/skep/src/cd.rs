//! `skep cd`: the disc in a VM's CD drive, changed from outside.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use control::Client;
use control::api::{Drive, Eject, Insert};

use crate::ask::{self, Failure, Whom};
use crate::report;

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    /// The drive: cd0, cd1 ... in the order of the VM's description, or what is in it; `skep stats` shows both
    #[arg(value_name = "DISK")]
    drive: String,
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Subcommand)]
enum Deed {
    /// Take out the disc. Does nothing if the drive is empty
    Eject {
        #[command(flatten)]
        tray: Tray,
    },
    /// Insert a disc. It replaces the one in the drive
    Insert {
        /// What holds the disc's data: a file or a block device
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        tray: Tray,
    },
}

#[derive(Args)]
struct Tray {
    /// Take the disc even if the guest has locked the tray, as it does while it uses the disc. Programs in the guest that
    /// still read it get errors
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let drive = change(&mut arguments.whom.connect()?, arguments)?;
    if let Some(leaving) = &drive.leaving {
        report::error(format_args!(
            "{leaving} is out of the drive and still open: a request of the guest is under way. It is closed when that \
             ends."
        ));
    }
    Ok(())
}

fn change(client: &mut Client, arguments: &Arguments) -> Result<Drive, Failure> {
    let drive = arguments.drive.clone();
    Ok(match &arguments.deed {
        Deed::Eject { tray } => client.eject(&Eject { drive, force: tray.force })?,
        Deed::Insert { file, tray } => {
            client.insert(&Insert { drive, disc: ask::absolute(file)?, force: tray.force })?
        }
    })
}
