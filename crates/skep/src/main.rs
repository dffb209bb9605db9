//! `skep`: virtual machines with assigned PCI devices and physical disks, side by side.
//!
//! One module per command; this file only says which there are.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use exit::Exit;

mod console;
mod escape;
mod exit;
mod host;
mod lab;
mod report;
mod run;
mod signals;
mod start;
mod stop;
mod summary;
mod terminal;

/// Virtual machines with assigned PCI devices and physical disks, side by side.
#[derive(Parser)]
#[command(name = "skep", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a VM
    Run(Box<run::Arguments>),
    /// See, and give back, what VMs that were killed left bound
    Host(host::Arguments),
    /// Try things out in an emulated host, away from the real machine
    Lab(Box<lab::Arguments>),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            report::usage(&error);
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.status()));
        }
    };
    match arguments.command {
        Command::Run(arguments) => run::run(&arguments).into(),
        Command::Host(arguments) => host::run(&arguments),
        Command::Lab(arguments) => lab::run(*arguments),
    }
}
