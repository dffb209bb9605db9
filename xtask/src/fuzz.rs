//! Fuzzing: hostile input, for as long as there is time. The targets and what they promise are in `fuzz/src`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::must;

const USAGE: &str = "cargo xtask fuzz [TARGET] [--seconds N]";
const MANIFEST: &str = "fuzz/Cargo.toml";
const DEFAULT_SECONDS: u32 = 60;
/// An input that takes longer is a finding: it hangs.
const TIMEOUT: &str = "-timeout=20";
/// Longer inputs are of no use; and all lengths are tried from the start.
const LENGTHS: [&str; 2] = ["-max_len=1024", "-len_control=0"];

/// Runs one target, or all of them one after the other, for some seconds each.
pub fn run(words: impl Iterator<Item = String>) -> Result<()> {
    let (wanted, seconds) = parse(words)?;
    let all = targets()?;
    let chosen = match &wanted {
        None => all,
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target {name:?}. There is: {}", all.join(", ")),
    };
    cargo_fuzz()?;
    for target in chosen {
        println!("--- {target}: {seconds} s");
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {corpus}"))?;
        let limit = format!("-max_total_time={seconds}");
        // The sanitizer is an unstable flag of the stable compiler, which is the same compiler.
        let mut fuzz = Command::new(env!("CARGO"));
        fuzz.env("RUSTC_BOOTSTRAP", "1")
            .args(["fuzz", "run", &target, &corpus, &seeds, "--", &limit, TIMEOUT]);
        let words = format!("fuzz/dict/{target}");
        if fs::exists(&words).is_ok_and(|there| there) {
            fuzz.arg(format!("-dict={words}"));
        }
        must(fuzz.args(LENGTHS)).with_context(|| {
            format!("{target} found something. Mend it, and keep its input: copy it to {seeds} under a name that says what it broke")
        })?;
    }
    Ok(())
}

/// Replays the committed inputs, without a fuzzer.
pub fn replay() -> Result<()> {
    must(Command::new(env!("CARGO")).args(["test", "--manifest-path", MANIFEST, "--no-default-features"]))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<(Option<String>, u32)> {
    let (mut target, mut seconds) = (None, DEFAULT_SECONDS);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => {
                let number = words.next().context("--seconds needs a number")?;
                seconds = number.parse().with_context(|| format!("--seconds {number:?} is no number"))?;
            }
            _ if word.starts_with('-') || target.is_some() => bail!("{word:?} is too much: {USAGE}"),
            _ => target = Some(word),
        }
    }
    Ok((target, seconds))
}

/// Each target has a folder of inputs.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in
        fs::read_dir("fuzz/seeds").context("cannot read fuzz/seeds; run this where skep's Cargo.toml is")?
    {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn cargo_fuzz() -> Result<()> {
    let there = Command::new(env!("CARGO")).args(["fuzz", "--version"]).output();
    if there.is_ok_and(|out| out.status.success()) {
        return Ok(());
    }
    println!("--- cargo-fuzz is missing");
    must(Command::new(env!("CARGO")).args(["install", "--locked", "cargo-fuzz"]))
}
