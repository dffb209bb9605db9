//! The static programs.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::quiet;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What goes into `target/dist`: skep, and the lab's programs for the emulated host.
const PROGRAMS: [&str; 6] = ["skep", "lab-init", "lab-io", "lab-edu", "lab-count", "lab-bench"];

/// Leaves the static release programs in `target/dist`.
pub fn run() -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args([
            "build",
            "--release",
            "--package",
            "skep",
            "--package",
            "lab",
            "--bins",
            "--features",
            "lab/inside",
        ])
        .args(["--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    quiet::run("building the static programs", "build", cargo)?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    fs::create_dir_all(format!("{target}/dist"))?;
    for program in PROGRAMS {
        install(&format!("{target}/{TARGET}/release/{program}"), &self::program(program))?;
    }
    Ok(())
}

/// Where [`run`] leaves a program.
pub fn program(name: &str) -> String {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    format!("{target}/dist/{name}")
}

/// Puts a program in place whole: one that runs may not be written to. What did not change is left alone.
fn install(built: &str, place: &str) -> Result<()> {
    let fresh = fs::read(built).with_context(|| format!("cannot read {built}"))?;
    if fs::read(place).is_ok_and(|old| old == fresh) {
        return Ok(());
    }
    let unfinished = format!("{place}.new");
    fs::copy(built, &unfinished).with_context(|| format!("cannot write {unfinished}"))?;
    fs::rename(&unfinished, place).with_context(|| format!("cannot write {place}"))
}
