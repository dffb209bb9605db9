//! Every test there is.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::{self, must};
use crate::{build, fuzz, progress};

const USAGE: &str = "\
cargo xtask test [--quick] [--only PATTERN]
  --quick         without the lab: formatting, lints, documentation and the tests that need no emulated host
  --only PATTERN  only tests that have PATTERN in their names, and nothing else";

/// Tests that boot an emulated host, for nextest.
const LAB: &str = "binary(/^lab_/)";

/// How tests are called that play several stories in one emulated host. Each story is an ignored test below it.
const TOGETHER: &str = "_in_one_host";

/// How many of the lab's tests may fail and get a second try. More than these are no accident of a busy machine.
const SECOND_TRIES: usize = 3;

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

    /// The tests as nextest is to run them.
    fn choose(&self) -> Result<Choice> {
        let quick = format!("not {LAB}");
        Ok(match self {
            Wish::Everything => Choice::all_of("all()".to_owned(), list(&["-E", "all()"])?),
            Wish::Quick => Choice::all_of(quick.clone(), list(&["-E", &quick])?),
            Wish::Only(pattern, lab) => {
                // A name is words, underscores and colons; nextest would take other characters for its own.
                let filter = format!("test(~{pattern}) and {}", if *lab { "all()" } else { &quick });
                let alone = format!("{filter} and test(/{TOGETHER}::/)");
                let stories = list(&["--run-ignored", "only", "-E", &alone])?;
                Choice::some(list(&["-E", &filter])?, stories)
            }
        })
    }
}

/// What nextest is to run.
struct Choice {
    arguments: Vec<String>,
    /// What that is, as `BINARY TEST`.
    tests: Vec<String>,
}

impl Choice {
    fn all_of(filter: String, tests: Vec<String>) -> Choice {
        Choice { arguments: vec!["-E".to_owned(), filter], tests }
    }

    /// These tests, and these stories, each alone, unless all that share a host are played anyway.
    fn some(mut tests: Vec<String>, stories: Vec<String>) -> Choice {
        let group = |story: &str| story.rsplit_once("::").map(|(group, _)| group.to_owned());
        let alone =
            stories.into_iter().filter(|story| group(story).is_none_or(|group| !tests.contains(&group)));
        let alone: Vec<String> = alone.collect();
        tests.extend(alone);
        let exactly = |test: &String| {
            let (binary, name) = test.split_once(' ').unwrap_or((test, ""));
            format!("(binary_id(={binary}) and test(={name}))")
        };
        let filter = tests.iter().map(exactly).collect::<Vec<_>>().join(" or ");
        let arguments = ["--run-ignored", "all", "-E", &filter].map(str::to_owned).to_vec();
        Choice { arguments, tests }
    }
}

/// Formatting, lints, documentation, tests from unit to lab; or the part of it that was asked for.
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
        let lints =
            ["clippy", "--workspace", "--all-targets", "--features", "lab/inside", "--", "-D", "warnings"];
        cargo("the lints", &lints)?;
        documentation()?;
    }
    println!("--- the tests");
    let choice = wish.choose()?;
    ensure!(!choice.tests.is_empty(), "no test has that in its name");
    if choice.tests.iter().any(|test| is_lab(test)) {
        setup::tests()?;
        build::run()?;
    }
    let failed = progress::run(&choice.arguments, &choice.tests, progress::at_once())?;
    if !failed.is_empty() {
        let again = if wish == Wish::Everything { again(&failed) } else { None };
        let again = again.context("tests failed; try one again with: cargo xtask test --only NAME")?;
        second_try(&again)?;
    }
    if !matches!(wish, Wish::Only(..)) {
        println!("--- inputs that fuzzing found worth keeping");
        fuzz::replay()?;
        cargo("the examples in the documentation", &["test", "--workspace", "--doc", "--quiet"])?;
    }
    Ok(())
}

/// These tests once more, if a busy machine may be why they failed: they are few, and all wait for machines that are emulated.
fn again(failed: &BTreeSet<String>) -> Option<Choice> {
    let accident = failed.len() <= SECOND_TRIES && failed.iter().all(|test| is_lab(test));
    accident.then(|| Choice::some(failed.iter().cloned().collect(), Vec::new()))
}

/// Runs them one at a time, with nothing beside them, and says which passed only so. What they failed by has been printed.
fn second_try(choice: &Choice) -> Result<()> {
    println!("--- of the lab's tests {} failed; each is tried once more, alone", choice.tests.len());
    let failed = progress::run(&choice.arguments, &choice.tests, 1)?;
    ensure!(failed.is_empty(), "tests failed twice; try one again with: cargo xtask test --only NAME");
    println!("--- passed only on the second try (the cause of the first stands above; it is worth a look):");
    choice.tests.iter().for_each(|test| println!("---   {test}"));
    Ok(())
}

/// The names of the tests that nextest lists for these arguments, as `BINARY TEST`. Builds them.
fn list(arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["nextest", "list", "--workspace", "--message-format", "oneline"])
        .args(arguments)
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

/// The documentation of all crates, without a warning: each link of what is public leads somewhere.
fn documentation() -> Result<()> {
    let words = ["doc", "--workspace", "--no-deps", "--quiet"];
    println!("--- the documentation: cargo {}", words.join(" "));
    must(Command::new(env!("CARGO")).args(words).env("RUSTDOCFLAGS", "-D warnings"))
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
    fn what_is_asked_for_is_understood() {
        for (words, wanted) in [
            ("", Wish::Everything),
            ("--quick", Wish::Quick),
            ("--only a_disk", Wish::Only("a_disk".into(), true)),
            ("--only a_disk --quick", Wish::Only("a_disk".into(), false)),
        ] {
            assert_eq!(wish(words).unwrap(), wanted);
        }
    }

    #[test]
    fn a_story_is_played_alone_unless_all_of_its_host_are() {
        let words = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let stories = ["skep::lab_life life_in_one_host::a_vm", "skep::lab_cd cds_in_one_host::a_vm"];
        let choice = Choice::some(words(&["skep::lab_life life_in_one_host"]), words(&stories));
        assert_eq!(choice.tests, ["skep::lab_life life_in_one_host", "skep::lab_cd cds_in_one_host::a_vm"]);
        let filter = choice.arguments.concat();
        assert!(filter.contains("(binary_id(=skep::lab_cd) and test(=cds_in_one_host::a_vm))"), "{filter}");
        assert!(filter.starts_with("--run-ignoredall"), "{filter}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_usage() {
        for words in ["--only", "--fast", "a_disk"] {
            let error = wish(words).unwrap_err().to_string();
            assert!(error.contains("--only"), "{error}");
        }
    }

    #[test]
    fn a_few_of_the_labs_tests_get_a_second_try_and_no_other_does() {
        let failed = |tests: &[&str]| tests.iter().map(|test| (*test).to_owned()).collect::<BTreeSet<_>>();
        let labs = ["skep::lab_cd a", "skep::lab_cd b", "lab::lab_exec c", "skep::lab_pc d"];
        let few = again(&failed(&labs[..SECOND_TRIES])).unwrap();
        assert_eq!(few.tests.len(), SECOND_TRIES);
        assert!(few.arguments.concat().contains("(binary_id(=lab::lab_exec) and test(=c))"));
        assert!(again(&failed(&labs)).is_none());
        assert!(again(&failed(&["skep::lab_cd a", "dma ledger::tests::b"])).is_none());
    }

    #[test]
    fn labs_are_known_by_their_binaries() {
        assert!(is_lab("skep::lab_cd a_disc_is_changed") && is_lab("lab::lab_exec a_command"));
        assert!(!is_lab("lab spec::tests::a_disk") && !is_lab("skep::cli the_lab_::lab_is_named"));
    }
}
