//! `skep disk`: SATA disks that are plugged into a VM that runs, and unplugged.

use clap::{Args, Subcommand};
use config::{Chain, DiskSource, FileDisk, ModelName};
use control::api::{NewDisk, Plug, Unplug};

use crate::ask::{self, Failure, Whom};
use crate::report;

#[derive(Args)]
#[command(after_help = ask::HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Subcommand)]
enum Deed {
    /// Plug a disk into a SATA controller of the VM. The guest notices it
    Plug {
        /// The disk, written as for --disk of `skep run`; its model is ahci: /dev/sdb,serial=A. It goes on the first free
        /// port of the controller named by controller=NAME, or else of the first controller with a free port
        #[arg(value_name = "SPEC", value_parser = described)]
        disk: Box<config::Disk>,
    },
    /// Unplug a SATA disk of the VM. Unmount it in the guest first: programs that still use it get errors, and data not yet
    /// written is lost. Afterwards this host can use the disk
    Unplug {
        /// The disk's name, as `skep stats` shows it
        #[arg(value_name = "NAME")]
        disk: String,
    },
}

fn described(text: &str) -> Result<Box<config::Disk>, String> {
    let disk = config::describe_disk("the disk", text, ModelName::Ahci);
    disk.map(Box::new).map_err(|findings| findings.to_string())
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut client = arguments.whom.connect()?;
    match &arguments.deed {
        Deed::Plug { disk } => {
            client.plug(&Plug { disk: NewDisk::from(&absolute(disk)?) })?;
        }
        Deed::Unplug { disk } => {
            let unplugged = client.unplug(&Unplug { disk: disk.clone() })?;
            if unplugged.leaving {
                report::error(format_args!(
                    "{disk} is gone for the guest and still open: a request is under way. It is closed when that ends."
                ));
            }
        }
    }
    Ok(())
}

/// The disk with its whole path.
fn absolute(disk: &config::Disk) -> Result<config::Disk, Failure> {
    let mut disk = disk.clone();
    if let DiskSource::File(FileDisk { path, chain, .. }) = &mut disk.source {
        let files = chain.iter_mut().filter_map(|allowed| match allowed {
            Chain::File(path) => Some(path),
            Chain::Follow => None,
        });
        for path in std::iter::once(path).chain(files) {
            *path = ask::absolute(path.as_path())?.parse().map_err(Failure::other)?;
        }
    }
    Ok(disk)
}
