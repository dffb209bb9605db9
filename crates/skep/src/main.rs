//! `skep`: virtual machines with assigned PCI devices and physical disks, side by side.
//!
//! One module per command; this file only says which there are.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod lab;

/// Virtual machines with assigned PCI devices and physical disks, side by side.
#[derive(Parser)]
#[command(name = "skep", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try things out in an emulated host, away from the real machine
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(arguments),
    }
}
