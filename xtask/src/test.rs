//! Every test there is.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::{self, must};
use crate::{build, fuzz, progress};

const USAGE: &str = "\
cargo xtask test [--quick] [--only PATTERN]
  --quick         without the lab: formatting, lints and the tests that need no emulated host
  --only PATTERN  only tests that have PATTERN in their names, and nothing else";

/// Tests that boot an emulated host, for nextest.
const LAB: &str = "binary(/^lab_/)";

/// What is to be tested.
#[derive(Debug, PartialEq)]
enum Wish {
    Everything,
    Quick,
    /// Tests with this in their names; the second says whether the lab's are among them.
    Only(String, bool),
}

impl Wish {
    fn parse(words: impl Iterator<Item = String>) -> Result<Wish> {
        let (mut quick, mut only) = (false, None);
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => quick = true,
                "--only" => only = Some(words.next().context("--only needs a part of a test's name")?),
                _ => bail!("cannot make sense of {word:?}.\n{USAGE}"),
            }
        }
        Ok(match only {
            Some(pattern) => Wish::Only(pattern, !quick),
            None if quick => Wish::Quick,
            None => Wish::Everything,
        })
    }

    /// The tests as a filter of nextest.
    fn filter(&self) -> String {
        match self {
            Wish::Everything => "all()".to_owned(),
            Wish::Quick => format!("not {LAB}"),
            // A name is words and underscores; nextest would take other characters for its own.
            Wish::Only(pattern, true) => format!("test(~{pattern})"),
            Wish::Only(pattern, false) => format!("test(~{pattern}) and not {LAB}"),
        }
    }
}

/// Formatting, lints, tests from unit to lab, documentation; or the part of it that was asked for.
pub fn run(words: impl Iterator<Item = String>) -> Result<()> {
    let words: Vec<String> = words.collect();
    if words.iter().any(|word| word == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let wish = Wish::parse(words.into_iter())?;
    nextest()?;
    if !matches!(wish, Wish::Only(..)) {
        cargo("the formatting", &["fmt", "--all", "--check"]).context("mend it with: cargo fmt --all")?;
        cargo("the lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    }
    println!("--- the tests");
    let tests = list(&wish.filter())?;
    ensure!(!tests.is_empty(), "no test has that in its name");
    if tests.iter().any(|test| is_lab(test)) {
        setup::tests()?;
        build::run()?;
    }
    progress::run(&wish.filter(), &tests)?;
    if !matches!(wish, Wish::Only(..)) {
        println!("--- inputs that fuzzing found worth keeping");
        fuzz::replay()?;
        cargo("the examples in the documentation", &["test", "--workspace", "--doc", "--quiet"])?;
    }
    Ok(())
}

/// The names of the tests that a filter lets through, as `BINARY TEST`. Builds them.
fn list(filter: &str) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["nextest", "list", "--workspace", "--message-format", "oneline", "-E", filter])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Whether a test boots an emulated host.
pub fn is_lab(test: &str) -> bool {
    test.split(' ').next().is_some_and(|binary| binary.contains("::lab_"))
}

fn cargo(what: &str, words: &[&str]) -> Result<()> {
    println!("--- {what}: cargo {}", words.join(" "));
    must(Command::new(env!("CARGO")).args(words))
}

/// cargo-nextest runs each test in a process of its own, and few labs at once.
fn nextest() -> Result<()> {
    let there = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
    if there.is_ok_and(|out| out.status.success()) {
        return Ok(());
    }
    cargo("cargo-nextest is missing", &["install", "--locked", "cargo-nextest"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(words: &str) -> Result<Wish> {
        Wish::parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_asked_for_becomes_a_filter_of_tests() {
        let filter = |words| wish(words).unwrap().filter();
        assert_eq!(filter(""), "all()");
        assert_eq!(filter("--quick"), "not binary(/^lab_/)");
        assert_eq!(filter("--only a_disk"), "test(~a_disk)");
        assert_eq!(filter("--quick --only a_disk"), "test(~a_disk) and not binary(/^lab_/)");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_usage() {
        for words in ["--only", "--fast", "a_disk"] {
            let error = wish(words).unwrap_err().to_string();
            assert!(error.contains("--only"), "{error}");
        }
    }

    #[test]
    fn labs_are_known_by_their_binaries() {
        assert!(is_lab("skep::lab_cd a_disc_is_changed") && is_lab("lab::lab_exec a_command"));
        assert!(!is_lab("lab spec::tests::a_disk") && !is_lab("skep::cli the_lab_::lab_is_named"));
    }
}
