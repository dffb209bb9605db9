//! `skep run`: a VM, from its description to its end.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint};
use config::{Description, File, Key, Kind, Vm};

use crate::escape;
use crate::exit::Exit;
use crate::outputs::Beside;
use crate::report;
use crate::start;

#[derive(Args)]
pub struct Arguments {
    /// A TOML file that describes the VM; its keys are the flags below, without dashes. Flags win over the file;
    /// --disk and --assign add to it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the VM that flags and file describe, as TOML, and exit
    #[arg(long)]
    check_config: bool,
    /// When the VM has ended, write to FILE, as JSON, how it ended and, for each disk, how much was read and written, how
    /// much of that was copied, and why
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// The flags of the table of keys with their values, in its order. The description checks the values, so that flags and file
/// get the same errors, all at once.
struct Flags(Vec<(Key, String)>);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(Key::ALL.iter().map(|key| flag(*key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let values = |key: Key| matches.get_many::<String>(key.name()).into_iter().flatten();
        let given = Key::ALL.iter().flat_map(|key| values(*key).map(|value| (*key, value.clone())));
        Ok(Flags(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Flags::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A key's flag, without what only people need.
fn flag(key: Key) -> Arg {
    let flag = Arg::new(key.name()).long(key.name());
    match key.row().kind {
        Kind::Switch | Kind::SwitchOrTable(_) => flag.num_args(0..=1).default_missing_value("on"),
        // These have their own words for what begins with a dash.
        Kind::Number(_) | Kind::Size | Kind::Line(_) => flag.allow_hyphen_values(true),
        Kind::Tables(..) => flag.action(ArgAction::Append),
        Kind::Text(_) | Kind::Texts(_) => flag,
    }
}

/// The command with all that people and shells need. It is not made for a start that has nothing to say.
pub fn explained(command: Command) -> Command {
    let command = Arguments::augment_args(command).after_help(help());
    Key::ALL.iter().fold(command, |command, key| {
        let takes = key.row().kind.takes();
        command.mut_arg(key.name(), |flag| flag.help(key.help()).value_name(takes).help_heading("The VM"))
    })
}

/// The command for a shell that completes it: the words and files that values can be, and a line about each flag.
pub fn completed(command: Command) -> Command {
    Key::ALL.iter().fold(explained(command), |command, key| {
        let row = key.row();
        let hint = if row.kind.is_path() { ValueHint::AnyPath } else { ValueHint::Unknown };
        let words: Vec<&str> = row.kind.words().collect();
        command.mut_arg(key.name(), |flag| match &words[..] {
            [] => flag.help(row.help).value_hint(hint),
            _ => flag.help(row.help).value_hint(hint).value_parser(words),
        })
    })
}

fn help() -> String {
    format!(
        "With --console stdio, when standard input is a terminal:\n{}\n\
         SIGTERM, SIGINT and SIGHUP press the VM's power button; a second one stops the VM now.\n\n{}",
        escape::HELP,
        Exit::help()
    )
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Exit {
    let flags = &arguments.flags.0;
    let (description, file) = match arguments.config.as_ref().map(|path| (path, std::fs::read(path))) {
        None => (Description::read(None, flags), Ok(())),
        Some((path, Ok(bytes))) => {
            let name = path.display().to_string();
            (Description::read(Some(File { name: &name, bytes: &bytes }), flags), Ok(()))
        }
        Some((path, Err(cause))) => {
            let path = path.display();
            let why = format!("cannot read the description {path}: {cause}. Check the path after --config.");
            (Description::read_without_file(flags), Err(why))
        }
    };
    let draft = description.draft.clone();
    let beside = Beside { config: arguments.config.as_deref(), report: arguments.report.as_deref() };
    match (file, description.vm()) {
        (Ok(()), Ok(vm)) if arguments.check_config => print(&vm),
        (Ok(()), Ok(vm)) => start::start(&vm, beside),
        (file, vm) => {
            file.err().into_iter().for_each(report::error);
            vm.err().into_iter().for_each(report::error);
            if !arguments.check_config {
                // What is right in it is compared with this host all the same: all is said at once.
                start::say_findings(&draft, beside);
            }
            Exit::Usage
        }
    }
}

fn print(vm: &Vm) -> Exit {
    match std::io::stdout().write_all(vm.to_toml().as_bytes()) {
        Ok(()) => Exit::PoweredOff,
        Err(cause) => {
            report::error(format_args!("cannot write the description to standard output: {cause}."));
            Exit::Failed
        }
    }
}
