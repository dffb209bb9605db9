//! Every test there is.

use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, must};
use crate::{build, fuzz};

/// Formatting, lints, tests from unit to lab, documentation.
pub fn run() -> Result<()> {
    setup::tests()?;
    nextest()?;
    cargo("the formatting", &["fmt", "--all", "--check"]).context("mend it with: cargo fmt --all")?;
    cargo("the lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    build::run()?;
    cargo("the tests", &["nextest", "run", "--workspace"])?;
    println!("--- inputs that fuzzing found worth keeping");
    fuzz::replay()?;
    cargo("the examples in the documentation", &["test", "--workspace", "--doc", "--quiet"])
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
