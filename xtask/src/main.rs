//! skep's chores. `cargo xtask help` lists them.

use std::process::ExitCode;

use anyhow::{Result, bail};

mod apt;
mod bench;
mod build;
mod demo;
mod fuzz;
mod host_bench;
mod instructions;
mod lab_kernel;
mod progress;
mod quiet;
mod setup;
mod test;

const CHORES: &str = "\
  build       the static programs in target/dist
  test        every test there is, and what they need; --quick: without the lab; --only PATTERN: some of them
  fuzz        hostile input for queues, BARs, kernels …: [TARGET] [--seconds N]
  setup       what the lab needs: QEMU, busybox, Debian's kernel in the cache; with the word tests, also
              what the tests' guests run: fio, nvme-cli and others
  lab-kernel  the lab's own kernel with iommufd, from Debian's kernel source
  demo        a guest with an assigned device and a physical disk, in an emulated host
  bench       skep beside QEMU in the emulated host, against the bars; --only host: the disk path without a VM;
              --instructions: counted instructions and exits, against the recorded ones";

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
        Some("build") => build::run(),
        Some("test") => test::run(std::env::args().skip(2)),
        Some("fuzz") => fuzz::run(std::env::args().skip(2)),
        Some("setup") if std::env::args().any(|word| word == "tests") => setup::tests(),
        Some("setup") => setup::lab(),
        Some("lab-kernel") => lab_kernel::run(),
        Some("bench") => bench::run(),
        Some("demo") => demo::run(),
        Some("help" | "--help") => {
            println!("cargo xtask CHORE, where the chore is one of:\n{CHORES}");
            Ok(())
        }
        Some(other) => bail!("there is no chore {other:?}. There is:\n{CHORES}"),
        None => bail!("which chore? There is:\n{CHORES}"),
    }
}
