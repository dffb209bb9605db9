//! `skep`: virtual machines with assigned PCI devices and physical disks, side by side.
//!
//! One module per command; this file only says which there are.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::stdout;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use exit::Exit;

mod ask;
mod cd;
mod completions;
mod console;
mod disk;
mod disks;
mod dma;
mod escape;
mod events;
mod exit;
mod footprint;
mod host;
mod lab;
mod list;
mod meant;
mod memory;
mod outputs;
mod rehearse;
mod report;
mod report_file;
mod run;
mod serve;
mod signals;
mod start;
mod state;
mod stats;
mod stop;
mod summary;
mod table;
mod terminal;
mod view;

/// Virtual machines with assigned PCI devices and physical disks, side by side.
#[derive(Parser)]
#[command(name = "skep", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

// Deferred: a start makes the flags of its own command only. Their structs have no documentation: its text would take the place
// of the command's in the help.
#[derive(Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a VM
    Run(Box<run::Arguments>),
    /// List the running VMs
    List(list::Arguments),
    /// Show what a VM's devices reach: its DMA domains, their mappings and faults
    Dma(dma::Arguments),
    /// List this host's disks: what is on them, who uses them, and how to give one to a VM
    Disks(disks::Arguments),
    /// Read a VM's RAM
    Memory(memory::Arguments),
    /// Show what happened to a VM
    Events(events::Arguments),
    /// Show how much went through a VM's disks
    Stats(stats::Arguments),
    /// Change the disc in a VM's CD drive
    Cd(cd::Arguments),
    /// Plug a disk into a running VM, or unplug one
    Disk(disk::Arguments),
    /// Pause a VM: its vCPUs stop until it is resumed
    Pause(state::Pause),
    /// Resume a paused VM. Disk requests that failed are tried again first
    Resume(state::Resume),
    /// Press a VM's power button, or end it now
    Stop(state::Stop),
    /// List or give back what killed VMs left behind; rehearse taking devices
    Host(host::Arguments),
    /// Try things in an emulated host, away from the real machine
    Lab(Box<lab::Arguments>),
    /// Print what lets a shell complete commands and flags
    Completions(completions::Arguments),
}

/// The command line, with `run` as this makes it.
fn with_run(run: fn(clap::Command) -> clap::Command) -> clap::Command {
    Arguments::command().mut_subcommands(|command| match command.get_name() {
        "run" => command.defer(run),
        _ => command,
    })
}

/// The arguments. The texts about the flags of `run` are made only where they are needed: for help and errors.
fn parse() -> Result<Arguments, clap::Error> {
    Arguments::try_parse().or_else(|_| {
        let matches = with_run(run::explained).try_get_matches()?;
        Arguments::from_arg_matches(&matches)
    })
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(mut error) => {
            meant::only_near(&mut error);
            if std::env::args_os().nth(1).is_some_and(|command| command == "run") {
                meant::of_others(&mut error);
            }
            report::usage(&error);
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.status()));
        }
    };
    match arguments.command {
        Command::Run(arguments) => run::run(&arguments).into(),
        Command::List(arguments) => ask::finish(list::run(&arguments, &mut stdout())),
        Command::Dma(arguments) => ask::finish(dma::run(&arguments, &mut stdout())),
        Command::Disks(arguments) => ask::finish(disks::run(&arguments, &mut stdout())),
        Command::Memory(arguments) => ask::finish(memory::run(&arguments, &mut stdout())),
        Command::Events(arguments) => ask::finish(events::run(&arguments, &mut stdout())),
        Command::Stats(arguments) => ask::finish(stats::run(&arguments, &mut stdout())),
        Command::Cd(arguments) => ask::finish(cd::run(&arguments)),
        Command::Disk(arguments) => ask::finish(disk::run(&arguments)),
        Command::Pause(arguments) => ask::finish(state::pause(&arguments)),
        Command::Resume(arguments) => ask::finish(state::resume(&arguments)),
        Command::Stop(arguments) => ask::finish(state::stop(&arguments)),
        Command::Host(arguments) => host::run(&arguments),
        Command::Lab(arguments) => lab::run(*arguments),
        Command::Completions(arguments) => {
            ask::finish(completions::run(&arguments, with_run(run::completed), &mut stdout()))
        }
    }
}
