//! skep's chores. `cargo xtask help` lists them.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("build") => build(),
        Some(other) => bail!("unknown chore {other:?}; there is: build"),
        None => bail!("which chore? there is: build"),
    }
}

/// Leaves the static release binary at `target/dist/skep`.
fn build() -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--package", "skep", "--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the release build failed");
    }
    std::fs::create_dir_all("target/dist")?;
    std::fs::copy(format!("target/{TARGET}/release/skep"), "target/dist/skep")?;
    Ok(())
}
