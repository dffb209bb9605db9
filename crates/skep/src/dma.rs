//! `skep dma`: what a VM's devices reach.

mod dot;
mod graph;
#[cfg(test)]
mod sample;
mod svg;
mod text;

use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use control::Client;
use control::api::{Audit, Dma};

use crate::ask::{self, Failure, Whom};
use crate::report;

/// How often `--watch` looks.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    /// Print JSON; with --watch, a line whenever something changes
    #[arg(long)]
    json: bool,
    /// Show it again whenever something changes, until the VM ends
    #[arg(long)]
    watch: bool,
    /// Write a picture to FILE: devices, the domains they are in, the memory these reach
    #[arg(long, value_name = "FILE.svg|FILE.dot", conflicts_with_all = ["json", "watch"], value_parser = Picture::parse)]
    graph: Option<Picture>,
}

const HELP: &str = "\
IOVA is what a device puts on the bus, GPA what the guest calls the same memory. A domain's audit compares its
mappings with the VM's memory map, at the moment of the question.

Exit status:
  0  done, and every domain holds what the memory map says
  1  there is no such VM, or it could not be reached
  2  the command line is wrong
  4  a domain differs from the memory map, or the picture could not be written";

/// Where a picture goes, and in which language.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Picture {
    path: PathBuf,
    language: Language,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Svg,
    Dot,
}

impl Picture {
    fn parse(text: &str) -> Result<Picture, String> {
        let language = match Path::new(text).extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Language::Svg,
            Some("dot" | "gv") => Language::Dot,
            _ => return Err("a picture's name ends with .svg, or with .dot for Graphviz".to_owned()),
        };
        Ok(Picture { path: text.into(), language })
    }

    fn draw(&self, name: &str, dma: &Dma) -> String {
        let graph = graph::Graph::of(dma);
        match self.language {
            Language::Svg => svg::draw(name, &graph),
            Language::Dot => dot::draw(name, &graph),
        }
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let mut client = arguments.whom.connect()?;
    if arguments.watch {
        return watch(&mut client, arguments, output);
    }
    let dma = client.dma()?;
    if let Some(picture) = &arguments.graph {
        std::fs::write(&picture.path, picture.draw(arguments.whom.name().as_str(), &dma)).map_err(
            |cause| {
                let path = picture.path.display();
                Failure::other(format_args!(
                    "cannot write the picture {path}: {cause}. Check the path after --graph."
                ))
            },
        )?;
    } else {
        let text = if arguments.json { ask::json(&dma) } else { text::tables(&dma) };
        output.write_all(text.as_bytes())?;
    }
    same(&dma)
}

/// An error when a domain does not hold what the memory map says.
fn same(dma: &Dma) -> Result<(), Failure> {
    let differs = |domain: &&control::api::Domain| domain.audit != Audit::Same;
    let names: Vec<&str> = dma.domains.iter().filter(differs).map(|domain| domain.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Failure::other(format_args!(
        "not what the memory map says: DMA domain {}. This is a fault in skep; stop the VM, and report it with the output \
         of `skep dma --json`.",
        names.join(", ")
    )))
}

/// Shows it whenever it is new; the end of the VM is the end of the watch.
fn watch(client: &mut Client, arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let clears = !arguments.json && stdout().is_terminal();
    let mut last = None;
    loop {
        let dma = match client.dma() {
            Err(error) if error.is_gone() => {
                report::error(format_args!("the VM {} has ended.", arguments.whom.name()));
                return Ok(());
            }
            dma => dma?,
        };
        if last.as_ref() != Some(&dma) {
            let text = match (arguments.json, clears, &last) {
                (true, ..) => ask::json_line(&dma),
                // From the terminal's first line, with everything old cleared away.
                (false, true, _) => format!("\x1b[H\x1b[2J{}", text::tables(&dma)),
                (false, false, None) => text::tables(&dma),
                (false, false, Some(_)) => format!("\n{}", text::tables(&dma)),
            };
            output.write_all(text.as_bytes())?;
            output.flush()?;
            last = Some(dma);
        }
        std::thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::fake::FakeVm;
    use control::{Folder, Server};
    use std::sync::Arc;

    #[test]
    fn the_kind_of_picture_follows_from_its_name() {
        assert_eq!(Picture::parse("a/b.svg").unwrap().language, Language::Svg);
        assert_eq!(Picture::parse("b.dot").unwrap().language, Language::Dot);
        assert!(Picture::parse("svg").is_err() && Picture::parse("b.png").is_err());
    }

    #[test]
    fn a_domain_that_differs_is_an_error_that_names_it() {
        let mut dma = sample::dma();
        assert!(same(&dma).is_ok());
        dma.domains[1].audit = Audit::Differs { how: "RAM 0x0-0xfff is missing at 0x0-0xfff".into() };
        let Err(Failure::Other(text)) = same(&dma) else { panic!() };
        assert!(text.contains("DMA domain host."), "{text}");
    }

    #[test]
    fn watching_shows_what_changes_and_ends_when_the_vm_goes() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().join("vm"));
        let claim = folder.claim(&"web".parse().unwrap()).unwrap();
        let server = Server::start(claim, Arc::new(FakeVm::new("web"))).unwrap();
        let whom = Whom::called("web");
        let mut client = whom.connect_in(&folder).unwrap();
        let arguments = Arguments { whom, json: true, watch: true, graph: None };
        let mut output = Vec::new();
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&mut client, &arguments, &mut output));
            std::thread::sleep(PERIOD + PERIOD / 2);
            drop(server);
            watching.join().unwrap().unwrap();
        });
        let text = String::from_utf8(output).unwrap();
        assert_eq!(text.lines().count(), 1, "nothing changed, so it was shown once");
        let dma: Dma = serde_json::from_str(&text).unwrap();
        assert_eq!(dma.domains.len(), 2);
    }
}
