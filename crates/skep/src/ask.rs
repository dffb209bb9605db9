//! What all commands share that ask a running VM: how they reach it, and how they end.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use config::VmName;
use control::{Client, ClientError, Folder, FolderError};
use serde::Serialize;

use crate::exit::Exit;
use crate::report;

/// The section about exit statuses in the help of these commands.
pub const HELP: &str = "\
Exit status:
  0  done
  1  there is no such VM, or it could not be reached
  2  the command line is wrong
  4  the VM or the host refused";

// Which VM is meant.
#[derive(Args)]
pub struct Whom {
    /// The VM's name, as `skep list` shows it
    #[arg(value_name = "VM")]
    name: VmName,
}

impl Whom {
    /// The VM of this name.
    #[cfg(test)]
    pub fn called(name: &str) -> Whom {
        Whom { name: name.parse().expect("a name") }
    }

    /// Its name.
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// Connects to it.
    pub fn connect(&self) -> Result<Client, Failure> {
        self.connect_in(&Folder::of_this_user()?)
    }

    /// Connects to it by its socket in this folder.
    pub fn connect_in(&self, folder: &Folder) -> Result<Client, Failure> {
        Ok(Client::connect(folder, &self.name)?)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// There is no place where VMs could be looked for.
    Folder(FolderError),
    /// The VM could not be asked, or refused.
    Vm(ClientError),
    /// Standard output takes no more.
    Output(io::Error),
    /// Something else, in a sentence with a hint.
    Other(String),
}

impl From<FolderError> for Failure {
    fn from(error: FolderError) -> Failure {
        Failure::Folder(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Vm(error)
    }
}

impl From<io::Error> for Failure {
    fn from(cause: io::Error) -> Failure {
        Failure::Output(cause)
    }
}

impl Failure {
    /// A failure in words.
    pub fn other(what: impl Display) -> Failure {
        Failure::Other(what.to_string())
    }
}

/// Says what failed; the process's exit status.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    let (text, exit) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        // Whoever reads the output has read enough (`skep dma vm | head`).
        Err(Failure::Output(cause)) if cause.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(Failure::Output(cause)) => (
            format!("cannot write to standard output: {cause}. If it is a file, its disk may be full."),
            Exit::Failed,
        ),
        Err(Failure::Folder(error)) => (error.to_string(), Exit::CouldNotStart),
        Err(Failure::Vm(error @ ClientError::Refused { .. })) => (error.to_string(), Exit::Failed),
        Err(Failure::Vm(error)) => (error.to_string(), Exit::CouldNotStart),
        Err(Failure::Other(text)) => (text, Exit::Failed),
    };
    report::error(text);
    exit.into()
}

/// A path for a VM, which may run in another folder.
pub fn absolute(file: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(file).map_err(|cause| {
        Failure::other(format_args!(
            "cannot tell where {} is: {cause}. Write its whole path.",
            file.display()
        ))
    })?;
    path.into_os_string().into_string().map_err(|path| {
        Failure::other(format_args!("the path {path:?} is not UTF-8, as JSON has to be. Use a link to it."))
    })
}

/// A value as JSON for people and programs: indented, with a line feed at its end.
pub fn json(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).expect("types of the API are JSON by construction"))
}

/// A value as JSON on one line.
pub fn json_line(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::to_string(value).expect("types of the API are JSON by construction"))
}
