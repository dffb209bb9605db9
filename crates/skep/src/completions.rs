//! `skep completions`: what lets a shell complete the command line of skep.

use std::io::Write;

use clap::{Args, Command, ValueEnum};
use clap_complete::{generate, shells};

use crate::ask::Failure;

/// The help behind the flags.
const HELP: &str = "\
Load them in the shell that you use:
  bash  source <(skep completions bash)
  zsh   source <(skep completions zsh)
  fish  skep completions fish | source";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Runs the command: prints what completes this command line.
pub fn run(arguments: &Arguments, mut command: Command, out: &mut impl Write) -> Result<(), Failure> {
    let mut script = Vec::new();
    match arguments.shell {
        Shell::Bash => generate(shells::Bash, &mut command, "skep", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "skep", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "skep", &mut script),
    }
    Ok(out.write_all(&script)?)
}
