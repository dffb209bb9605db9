//! The bench that counts: instructions and exits of starts and of disk I/O, skep beside QEMU, in an emulated host whose
//! every instruction is counted by a plugin (`lab::count`). Counts do not depend on this machine's load, and hardly on the
//! machine, so they are compared with the recorded ones: more by 3 % fails.
//!
//! What is started is in the lab's program `lab-bench`; here are the plan, the tables, the bars and the record.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::count::{Clock, Count};
use lab::{Kernel, Lab, LabError, Size, Stream};

use crate::{bench, build};

mod bars;
mod parse;
mod places;
mod recorded;
mod rows;

use recorded::Recorded;
use rows::Rows;

const USAGE: &str = "\
cargo xtask bench --instructions [--only boot|start|disk] [--quick] [--kernel lab|debian|PATH] [--record] [--places]
  --only     one kind of start: boot (to the guest's init), start (to its first instruction), disk (I/O)
  --quick    each start once, and of the sizes the largest
  --kernel   that of the emulated host and of its guests [lab]
  --record   make what was counted the recorded counts (benches/instructions.json), and add the tables to benches/record.md,
             instead of comparing
  --places   show in which functions skep spent its instructions up to the guest's init; needs symbols:
             CARGO_PROFILE_RELEASE_STRIP=none";

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Boot,
    Start,
    Disk,
}

/// What is to be done.
struct Plan {
    kinds: Vec<Kind>,
    extent: Extent,
    kernel: Kernel,
    then: Then,
    places: Places,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    Quick,
}

/// What is done with the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Compare,
    Record,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Places {
    Shown,
    Left,
}

/// An emulated host loses its life now and then, and what was counted in it. So many are booted at most.
const MOST_BOOTS: u32 = 3;

/// How long an emulated host may be silent: while it counts, three of its seconds may be a minute here.
const SILENCE: Duration = Duration::from_secs(1200);

/// Runs it; an error when something is worse than recorded. Missed bars are shown, and no error.
pub fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|word| word == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let plan = Plan::read(arguments)?;
    build::run()?;
    let mut rows = Rows::default();
    let mut kernel = String::new();
    for kind in &plan.kinds {
        let counted = count(*kind, &plan)?;
        kernel = counted.kernel;
        let starts = parse::starts(&counted.record)?;
        if plan.places == Places::Shown && *kind == Kind::Boot {
            places::show(&starts, &counted.said, &build::program("skep"))?;
        }
        rows.add(&starts, &counted.said)?;
    }
    let emulator = emulator()?;
    let words = format!("cargo xtask bench {}", arguments.join(" "));
    let title = format!("`{}`, {}, Linux {kernel}, {emulator}", words.trim(), bench::today()?);
    let tables = format!("{}{}", rows.tables(), bars::table(&rows, matches!(plan.kernel, Kernel::Debian)));
    println!("\n{title}\n\n{tables}");
    let mut recorded = Recorded::read()?;
    match plan.then {
        Then::Record => {
            recorded.put(&kernel, &emulator, &rows)?;
            bench::append(&title, &tables)
        }
        Then::Compare => {
            let worse = recorded.worse(&kernel, &emulator, &rows)?;
            ensure!(worse.is_empty(), "worse than recorded:\n  {}", worse.join("\n  "));
            println!("Nothing is worse than recorded by more than {} %.", recorded::TOLERATED_PERCENT);
            Ok(())
        }
    }
}

impl Plan {
    fn read(arguments: &[String]) -> Result<Plan> {
        let mut plan = Plan {
            kinds: vec![Kind::Boot, Kind::Start, Kind::Disk],
            extent: Extent::All,
            kernel: Kernel::Lab,
            then: Then::Compare,
            places: Places::Left,
        };
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--instructions" => {}
                "--quick" => plan.extent = Extent::Quick,
                "--record" => plan.then = Then::Record,
                "--places" => plan.places = Places::Shown,
                "--only" => plan.kinds = vec![Kind::named(words.next().unwrap_or_default())?],
                "--kernel" => {
                    let name = words.next().with_context(|| format!("--kernel names none.\n{USAGE}"))?;
                    plan.kernel = name.parse().with_context(|| format!("--kernel {name}"))?;
                }
                _ => bail!("cannot make sense of {word}.\n{USAGE}"),
            }
        }
        // Quick counts are fewer, so the record would be worse by them.
        let quick_record = plan.then == Then::Record && plan.extent == Extent::Quick;
        ensure!(!quick_record, "--quick counts too little for the record: leave out --quick or --record");
        Ok(plan)
    }
}

impl Kind {
    fn named(name: &str) -> Result<Kind> {
        let all = [Kind::Boot, Kind::Start, Kind::Disk];
        let found = all.into_iter().find(|kind| kind.name() == name);
        found.with_context(|| format!("there is no kind {name:?} of start.\n{USAGE}"))
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Boot => "boot",
            Kind::Start => "start",
            Kind::Disk => "disk",
        }
    }

    /// How often everything is started.
    fn rounds(self, extent: Extent) -> &'static str {
        match (extent, self) {
            (Extent::Quick, _) => "1",
            (Extent::All, Kind::Start) => "2",
            (Extent::All, Kind::Boot) => "3",
            (Extent::All, Kind::Disk) => "5",
        }
    }

    /// Under a clock that counts instructions disks stall, and with one CPU the guest and the monitor's disk thread take
    /// turns in a way that no real host knows.
    fn clock(self) -> (Clock, u32) {
        if self == Kind::Disk { (Clock::Machine, 2) } else { (Clock::Instructions, 1) }
    }
}

/// What came of an emulated host.
struct Counted {
    /// What the plugin wrote.
    record: String,
    /// What `lab-bench` said, a JSON value for each start.
    said: Vec<serde_json::Value>,
    /// The kernel's release.
    kernel: String,
}

fn count(kind: Kind, plan: &Plan) -> Result<Counted> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let record = PathBuf::from(format!("{target}/instructions-{}.txt", kind.name()));
    let (clock, cpus) = kind.clock();
    // Debian's own setting, under which its kernel is measured.
    let huge_pages = if matches!(plan.kernel, Kernel::Debian) { "madvise" } else { "always" };
    let shapes = if plan.extent == Extent::Quick { "few" } else { "all" };
    let lab = Lab::builder()
        .cpus(cpus)
        .memory(Size::mib(2048))
        .kernel(plan.kernel.clone())
        .host_root(true)
        .disk("ahci:256M".parse()?)
        .silence(SILENCE)
        .append("norandmaps")
        .count(Count::new(&record, clock)?)
        .build();
    let program = fs::canonicalize(build::program("lab-bench")).context("cannot find lab-bench")?;
    let root = fs::canonicalize(".")?;
    let inside = program.strip_prefix(&root).context("the target folder is not in the workspace")?;
    let program = format!("/tree/{}", inside.display());
    let command = [&*program, "count", kind.name(), kind.rounds(plan.extent), huge_pages, shapes];
    for boot in 1..=MOST_BOOTS {
        eprintln!("counting {} in an emulated host …", kind.name());
        let mut said = Vec::new();
        let outcome = lab.run(&command, |line| match serde_json::from_str::<serde_json::Value>(&line.text) {
            Ok(value) if line.stream == Stream::Stdout && value["counted"].is_string() => {
                eprintln!("  {}, {}", value["counted"].as_str().unwrap_or_default(), value["vmm"]);
                said.push(value);
            }
            _ => eprintln!("{}", line.text),
        });
        match outcome {
            Ok(outcome) => {
                ensure!(outcome.success(), "lab-bench ended with {}", outcome.status);
                let text = fs::read_to_string(&record);
                let record = text.with_context(|| format!("cannot read {}", record.display()))?;
                return Ok(Counted { record, said, kernel: outcome.kernel });
            }
            Err(error @ (LabError::Died { .. } | LabError::Silent { .. })) if boot < MOST_BOOTS => {
                eprintln!("The emulated host died, and is booted again: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!("{MOST_BOOTS} emulated hosts died, one after the other")
}

/// The emulator's version, which is QEMU's row as well.
fn emulator() -> Result<String> {
    let program = std::env::var("SKEP_LAB_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    let output = Command::new(&program).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    Ok(format!("QEMU {}", version.with_context(|| format!("{program} says no version"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan> {
        Plan::read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_may_come_in_any_order_and_unknown_ones_are_errors() {
        let read = plan("--quick --only start --instructions --kernel debian").unwrap();
        assert_eq!((read.kinds, read.extent), (vec![Kind::Start], Extent::Quick));
        assert!(matches!(read.kernel, Kernel::Debian));
        for wrong in ["--only", "--only nvme", "--rounds 3", "--kernel", "boot"] {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_counted_quickly_is_not_recorded() {
        assert!(plan("--instructions --quick --record").is_err());
        assert_eq!(plan("--instructions --record").unwrap().then, Then::Record);
    }
}
