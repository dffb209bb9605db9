//! The benches: skep and QEMU side by side in one boot of the emulated host, as ratios. What is measured is in
//! the lab's program `lab-bench`; here are the bars, the table and the record.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{build, host_bench, instructions};

const USAGE: &str = "\
cargo xtask bench [--rounds N] [--only KIND] [--seconds S] [--kernel debian|lab|PATH]
  --rounds   how often each of skep and QEMU is booted for each kind of sample [10]
  --only     one kind of sample: boot, virtio-blk, ahci, nvme, assigned, driver; or firmware (OVMF to the kernel; it must be
             installed), which the others are without; or host, which is none of QEMU but the disk path on this very
             machine, without a VM
  --seconds  how long each load runs [1]
  --kernel   that of the emulated host and of its guests [debian]
  --instructions  counts instead of times; --instructions --help says how";

const DEFAULT_ROUNDS: &str = "10";

/// What a metric has to reach.
enum Bar {
    /// The ratio of skep to QEMU, at most.
    RatioAtMost(f64),
    /// The ratio of skep to the better QEMU, at least.
    RatioAtLeast(f64),
    /// The ratio at least, and the ratio of exits for each I/O at most.
    RatioAndExits(f64, f64),
    /// skep's own value, at most.
    AtMost(f64),
    /// None: it helps to read the others.
    None,
}

/// The metrics in the order of the table.
const BARS: [(&str, Bar); 20] = [
    ("boot, ms", Bar::RatioAtMost(0.75)),
    ("boot, exits", Bar::AtMost(3300.0)),
    ("boot, exits but the clock's", Bar::None),
    ("firmware, ms", Bar::RatioAtMost(0.8)),
    ("firmware, exits", Bar::RatioAtMost(0.5)),
    ("firmware, exits but the clock's", Bar::None),
    ("memory beside RAM, KiB", Bar::AtMost(6.0 * 1024.0)),
    ("virtio-blk 4 KiB random at depth 1, IOPS", Bar::RatioAndExits(1.2, 0.7)),
    ("virtio-blk 4 KiB random at depth 16, IOPS", Bar::RatioAndExits(1.2, 0.7)),
    ("virtio-blk 1 MiB seq, MB/s", Bar::RatioAndExits(1.2, 0.7)),
    ("ahci 4 KiB random at depth 1, IOPS", Bar::RatioAndExits(1.5, 0.7)),
    ("ahci 4 KiB random at depth 16, IOPS", Bar::RatioAndExits(1.5, 0.7)),
    ("ahci 1 MiB seq, MB/s", Bar::RatioAndExits(1.5, 0.7)),
    ("nvme 4 KiB random at depth 1, IOPS", Bar::RatioAndExits(1.5, 0.7)),
    ("nvme 4 KiB random at depth 16, IOPS", Bar::RatioAndExits(1.5, 0.7)),
    ("nvme 1 MiB seq, MB/s", Bar::RatioAndExits(1.5, 0.7)),
    ("assigned 4 KiB random at depth 16, IOPS", Bar::RatioAtLeast(0.95)),
    ("assigned 1 MiB seq, MB/s", Bar::RatioAtLeast(0.95)),
    ("driver 4 KiB random at depth 1, IOPS", Bar::RatioAndExits(1.3, 0.7)),
    ("driver 4 KiB random at depth 16, IOPS", Bar::RatioAndExits(1.3, 0.7)),
];

/// The samples of one monitor for one metric.
#[derive(Default)]
struct Samples {
    values: Vec<f64>,
    exits_per_io: Vec<f64>,
}

/// By metric, then by monitor.
type Results = BTreeMap<String, BTreeMap<String, Samples>>;

/// Runs the benches; an error when a bar is missed.
pub fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    if arguments.iter().any(|word| word == "--instructions") {
        return instructions::run(&arguments);
    }
    if arguments.iter().any(|word| word == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let (kernel, plan) = arguments_of_lab(&arguments)?;
    let words = format!("cargo xtask bench {}", arguments.join(" "));
    if value(&plan, "--only") == Some("host") {
        let number = |flag, usual| match value(&plan, flag) {
            None => Ok(usual),
            Some(text) => text.parse().with_context(|| format!("{flag} {text} is no number")),
        };
        return host_bench::run(words.trim(), number("--rounds", 10)?, number("--seconds", 1)?);
    }
    build::run()?;
    let before = load();
    let results = measure(&kernel, &plan)?;
    let rows: Vec<Row> =
        BARS.iter().filter_map(|(metric, bar)| Row::of(metric, bar, results.get(*metric)?)).collect();
    ensure!(!rows.is_empty(), "nothing was measured");
    let table = table(&rows);
    let title = format!("`{}`, {}, load {before} before and {} after", words.trim(), today()?, load());
    println!("\n{title}\n\n{table}");
    keep(&title, &table, &report(&results))?;
    let missed: Vec<&str> = rows.iter().filter(|row| !row.met).map(|row| row.metric).collect();
    if missed.is_empty() {
        return Ok(());
    }
    bail!("missed: {}", missed.join("; "))
}

/// The kernel, and what `lab-bench` is told.
fn arguments_of_lab(arguments: &[String]) -> Result<(String, Vec<String>)> {
    let (mut kernel, mut plan) = ("debian".to_owned(), Vec::new());
    for pair in arguments.chunks(2) {
        match pair {
            [flag, value] if flag == "--kernel" => kernel.clone_from(value),
            [flag, value] if ["--rounds", "--only", "--seconds"].contains(&flag.as_str()) => {
                plan.extend([flag.clone(), value.clone()]);
            }
            _ => bail!("cannot make sense of {}.\n{USAGE}", pair.join(" ")),
        }
    }
    Ok((kernel, plan))
}

/// What follows a flag.
fn value<'a>(plan: &'a [String], flag: &str) -> Option<&'a str> {
    plan.chunks(2).find(|pair| pair[0] == flag).map(|pair| pair[1].as_str())
}

/// What the lab ends with when the emulated host died, or never came up.
const HOST_DIED: i32 = 125;
/// An emulated CPU loses its host now and then, as it loses guests. So many hosts are booted at most.
const MOST_BOOTS: usize = 4;

/// Runs `lab-bench` until it has done all rounds, in another emulated host where one died. A round in which that
/// happened is not counted.
fn measure(kernel: &str, plan: &[String]) -> Result<Results> {
    let rounds = value(plan, "--rounds").unwrap_or(DEFAULT_ROUNDS);
    let mut left: u64 = rounds.parse().with_context(|| format!("--rounds {rounds} is no number"))?;
    let others: Vec<&[String]> = plan.chunks(2).filter(|pair| pair[0] != "--rounds").collect();
    let mut results = Results::new();
    for _ in 0..MOST_BOOTS {
        let plan = [others.concat(), vec!["--rounds".to_owned(), left.to_string()]].concat();
        let (samples, status) = boot(kernel, &plan)?;
        let whole = whole_rounds(&samples, status.success());
        add(&mut results, samples.iter().filter(|sample| round_of(sample) <= Some(whole)));
        if status.success() {
            return Ok(results);
        }
        ensure!(status.code() == Some(HOST_DIED), "the lab ended with {status}");
        left -= whole;
        eprintln!("The emulated host died; another one does the {left} rounds that are left.");
    }
    bail!("{MOST_BOOTS} emulated hosts died, one after the other")
}

/// How many rounds were done. In the last one the host died, if it did.
fn whole_rounds(samples: &[Value], ended_well: bool) -> u64 {
    let last = samples.iter().filter_map(round_of).max().unwrap_or_default();
    if ended_well { last } else { last.saturating_sub(1) }
}

fn round_of(sample: &Value) -> Option<u64> {
    sample["round"].as_u64()
}

fn add<'a>(results: &mut Results, samples: impl Iterator<Item = &'a Value>) {
    for sample in samples {
        let text = |key: &str| sample[key].as_str().unwrap_or_default().to_owned();
        let samples = results.entry(text("metric")).or_default().entry(text("vmm")).or_default();
        samples.values.extend(sample["value"].as_f64());
        samples.exits_per_io.extend(sample["exits_per_io"].as_f64());
    }
}

/// Runs `lab-bench` in an emulated host, which sees this machine's QEMU: its samples, and how the lab ended.
fn boot(kernel: &str, plan: &[String]) -> Result<(Vec<Value>, ExitStatus)> {
    let program = fs::canonicalize(build::program("lab-bench")).context("cannot find lab-bench")?;
    let root = fs::canonicalize(".")?;
    let inside = program.strip_prefix(&root).context("the target folder is not in the workspace")?;
    let firmware = value(plan, "--only") == Some("firmware");
    // With two CPUs the emulator loses guests that run firmware; see docs/lab.md.
    let cpus = if firmware { "1" } else { "2" };
    let mut lab = Command::new(build::program("skep"))
        .args(["lab", "exec", "--cpus", cpus, "--memory", "2G", "--host-root", "--kernel", kernel])
        // As the record has it.
        .args(["--append", "mitigations=auto"])
        .args(["--disk", "ahci:128M", "--disk", "nvme:128M", "--timeout", "7200"])
        .args(firmware.then_some("--guest-firmware"))
        .arg("--")
        .arg(format!("/tree/{}", inside.display()))
        .args(plan)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start skep")?;
    let mut samples = Vec::new();
    let output = lab.stdout.take().context("the lab has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read the lab's output")?;
        match serde_json::from_str::<Value>(&line) {
            Ok(sample) if round_of(&sample).is_some() => samples.push(sample),
            _ => eprintln!("{line}"),
        }
    }
    Ok((samples, lab.wait().context("cannot wait for skep")?))
}

/// A line of the table.
struct Row {
    metric: &'static str,
    skep: Summary,
    qemu: Option<(String, Summary)>,
    bar: String,
    met: bool,
}

/// Samples in short.
struct Summary {
    median: f64,
    /// The middle half of the samples lies between these.
    quarters: (f64, f64),
    exits_per_io: Option<f64>,
}

impl Row {
    fn of(metric: &'static str, bar: &Bar, monitors: &BTreeMap<String, Samples>) -> Option<Row> {
        let skep = Summary::of(monitors.get("skep")?)?;
        let qemus = monitors.iter().filter(|(name, _)| *name != "skep");
        let qemus = qemus.filter_map(|(name, samples)| Some((name.clone(), Summary::of(samples)?)));
        // The better one, as the bar sees it.
        let more_is_better = matches!(bar, Bar::RatioAtLeast(_) | Bar::RatioAndExits(..));
        let qemu = qemus.reduce(
            |one, other| {
                if (other.1.median > one.1.median) == more_is_better { other } else { one }
            },
        );
        let ratio = qemu.as_ref().map(|(_, qemu)| skep.median / qemu.median);
        let (bar, met) = match *bar {
            Bar::RatioAtMost(most) => (format!("ratio ≤ {most}"), ratio? <= most),
            Bar::RatioAtLeast(least) => (format!("ratio ≥ {least}"), ratio? >= least),
            Bar::RatioAndExits(least, most) => {
                let exits = skep.exits_per_io? / qemu.as_ref()?.1.exits_per_io?;
                let bar = format!("ratio ≥ {least}, of exits ≤ {most}");
                (bar, ratio? >= least && exits <= most)
            }
            Bar::AtMost(most) => (format!("≤ {most}"), skep.median <= most),
            Bar::None => (String::new(), true),
        };
        Some(Row { metric, skep, qemu, bar, met })
    }
}

impl Summary {
    fn of(samples: &Samples) -> Option<Summary> {
        let at = |part| quantile(&samples.values, part);
        let exits_per_io = quantile(&samples.exits_per_io, 0.5);
        Some(Summary { median: at(0.5)?, quarters: (at(0.25)?, at(0.75)?), exits_per_io })
    }

    fn exits(&self) -> String {
        self.exits_per_io.map_or(String::new(), |exits| format!("{exits:.2}"))
    }

    fn text(&self) -> String {
        format!("{:.0} ({:.0}-{:.0})", self.median, self.quarters.0, self.quarters.1)
    }
}

/// The value below which this part of the values lies, between neighbours in proportion.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        ["metric", "skep", "QEMU", "ratio", "bar", "", "exits/IO skep", "QEMU", "QEMU's back end"]
            .map(str::to_owned),
    ];
    for row in rows {
        let qemu = row.qemu.as_ref();
        let of_qemu = |text: fn(&Summary) -> String| qemu.map_or(String::new(), |(_, qemu)| text(qemu));
        let back_end = qemu.and_then(|(name, _)| name.strip_prefix("qemu-"));
        lines.push([
            row.metric.to_owned(),
            row.skep.text(),
            of_qemu(Summary::text),
            qemu.map_or(String::new(), |(_, qemu)| format!("{:.2}", row.skep.median / qemu.median)),
            row.bar.clone(),
            if row.met { "ok" } else { "MISS" }.to_owned(),
            row.skep.exits(),
            of_qemu(Summary::exits),
            back_end.filter(|_| row.skep.exits_per_io.is_some()).unwrap_or_default().to_owned(),
        ]);
    }
    format(&lines.into_iter().map(Vec::from).collect::<Vec<_>>())
}

/// A table in Markdown, of which the first line is the head.
pub fn format(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if index == 0 {
            let rules = widths.iter().map(|width| "-".repeat(*width));
            let _infallible = writeln!(text, "| {} |", rules.collect::<Vec<_>>().join(" | "));
        }
    }
    text
}

/// Samples by metric and monitor.
fn report(results: &Results) -> Value {
    let of = |samples: &Samples| json!({"values": samples.values, "exits_per_io": samples.exits_per_io});
    let monitors = |monitors: &BTreeMap<String, Samples>| -> Value {
        monitors
            .iter()
            .map(|(name, samples)| (name.clone(), of(samples)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    results
        .iter()
        .map(|(metric, all)| (metric.clone(), monitors(all)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Leaves all samples in `target/bench.json` and adds the table to the record.
pub fn keep(title: &str, table: &str, samples: &Value) -> Result<()> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let report = json!({"run": title, "samples": samples});
    let json = format!("{target}/bench.json");
    fs::write(&json, format!("{report:#}\n")).with_context(|| format!("cannot write {json}"))?;
    append(title, table)
}

/// Adds tables to the record.
pub fn append(title: &str, tables: &str) -> Result<()> {
    let record = "benches/record.md";
    let mut file =
        fs::File::options().append(true).open(record).with_context(|| format!("cannot open {record}"))?;
    write!(file, "\n## {title}\n\n{tables}").with_context(|| format!("cannot write {record}"))
}

/// The machine's load of the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

pub fn today() -> Result<String> {
    let output =
        Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().context("cannot run date")?;
    Ok(String::from_utf8(output.stdout).context("date's answer is no text")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples { values: values.to_vec(), exits_per_io: Vec::new() }
    }

    #[test]
    fn a_round_in_which_the_host_died_is_not_counted() {
        let sample =
            |round: u64| json!({"metric": "m", "vmm": "skep", "round": round, "value": round as f64});
        let samples: Vec<Value> = [1, 1, 2, 2, 3].into_iter().map(sample).collect();
        assert_eq!((whole_rounds(&samples, true), whole_rounds(&samples, false)), (3, 2));
        assert_eq!(whole_rounds(&[], false), 0);
        let mut results = Results::new();
        add(&mut results, samples.iter().filter(|sample| round_of(sample) <= Some(2)));
        assert_eq!(results["m"]["skep"].values, [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), Some(2.5));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.25), Some(1.5));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn skep_is_compared_with_the_better_qemu() {
        let monitors = |skep, native, uring| {
            [("skep", skep), ("qemu-native", native), ("qemu-io_uring", uring)]
                .map(|(name, value)| (name.to_owned(), samples(&[value])))
                .into()
        };
        let row = Row::of("m", &Bar::RatioAtLeast(1.0), &monitors(100.0, 90.0, 110.0)).unwrap();
        assert!(!row.met && row.qemu.unwrap().0 == "qemu-io_uring");
        let row = Row::of("m", &Bar::RatioAtMost(0.75), &monitors(80.0, 100.0, 110.0)).unwrap();
        assert!(!row.met && row.qemu.unwrap().0 == "qemu-native");
        let with_exits = |value, exits| Samples { values: vec![value], exits_per_io: vec![exits] };
        let both: BTreeMap<_, _> =
            [("skep".to_owned(), with_exits(140.0, 3.0)), ("qemu".to_owned(), with_exits(100.0, 4.0))].into();
        assert!(!Row::of("m", &Bar::RatioAndExits(1.3, 0.7), &both).unwrap().met);
        assert!(Row::of("m", &Bar::RatioAndExits(1.3, 0.8), &both).unwrap().met);
        assert!(Row::of("m", &Bar::AtMost(80.0), &monitors(80.0, 1.0, 1.0)).unwrap().met);
    }
}
