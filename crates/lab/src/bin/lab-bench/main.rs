//! `lab-bench`: skep and QEMU side by side in the emulated host, on the same kernel, initrd and disks.
//!
//! Each round boots every monitor once, one after the other and in another order each time, so that what slows
//! the machine down for a while slows all of them down. A sample is a line of JSON on standard output:
//! `{"metric", "vmm", "round", "value", …}`; what is going on goes to standard error.

mod boot;
mod guest;
mod host;
mod loads;
mod vmm;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use vmm::{Hardware, Vmm};

/// The host's disk that a guest reads through the host's kernel.
const DISK: &str = "/dev/sda";

const USAGE: &str = "\
usage: lab-bench [--rounds N] [--only boot|disk|nvme|driver] [--seconds S]
  --rounds   how often each monitor is booted for each kind of sample [10]
  --only     one kind of sample
  --seconds  how long each load runs [1]";

/// What is measured, and how often.
struct Plan {
    rounds: u32,
    boot: bool,
    disk: bool,
    nvme: bool,
    driver: bool,
    seconds: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(plan) = Plan::read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Plan {
    fn read(arguments: &[String]) -> Option<Plan> {
        let mut plan = Plan { rounds: 10, boot: true, disk: true, nvme: true, driver: true, seconds: 1.0 };
        for pair in arguments.chunks(2) {
            let [flag, value] = pair else { return None };
            match (flag.as_str(), value.as_str()) {
                ("--rounds", value) => plan.rounds = value.parse().ok()?,
                ("--seconds", value) => plan.seconds = value.parse().ok()?,
                ("--only", only @ ("boot" | "disk" | "nvme" | "driver")) => {
                    (plan.boot, plan.disk) = (only == "boot", only == "disk");
                    (plan.nvme, plan.driver) = (only == "nvme", only == "driver");
                }
                _ => return None,
            }
        }
        Some(plan)
    }
}

fn run(plan: &Plan) -> io::Result<()> {
    let nvme = if plan.nvme || plan.driver { Some(host::nvme()?) } else { None };
    let nvme = nvme.as_deref();
    let loads =
        Hardware { disk: plan.disk.then_some(DISK), assigned: nvme.filter(|_| plan.nvme), driven: None };
    let driver = Hardware { driven: nvme, ..Hardware::default() };
    let start = Instant::now();
    // The first start of a program reads it from its disk, which is not what is measured.
    if plan.boot {
        for vmm in Vmm::FOR_BOOT {
            boot::measure(vmm)?;
        }
    }
    let mut failed = 0;
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}, {:.0} s", plan.rounds, start.elapsed().as_secs_f64());
        if plan.boot {
            for vmm in rotated(&Vmm::FOR_BOOT, round) {
                failed += samples(boot::measure(vmm), vmm, round);
            }
        }
        if plan.disk || plan.nvme {
            for vmm in rotated(&Vmm::FOR_LOADS, round) {
                failed += samples(loads::measure(vmm, &loads, plan.seconds), vmm, round);
            }
        }
        if plan.driver {
            for vmm in rotated(&Vmm::FOR_DRIVERS, round) {
                failed += samples(loads::measure(vmm, &driver, plan.seconds), vmm, round);
            }
        }
    }
    if failed > plan.rounds / 3 {
        return Err(io::Error::other(format!("{failed} guests failed")));
    }
    Ok(())
}

/// Passes on what was measured, or says why nothing was; how many guests failed. An emulated CPU loses a guest
/// now and then, whoever runs it, and the other rounds are as good without it.
fn samples(measured: io::Result<Vec<Sample>>, vmm: Vmm, round: u32) -> u32 {
    match measured {
        Ok(samples) => {
            samples.iter().for_each(|sample| tell(sample, vmm, round));
            0
        }
        Err(error) => {
            eprintln!("lab-bench: {} in round {round}: {error}", vmm.name());
            1
        }
    }
}

/// All of them, beginning elsewhere each round.
fn rotated(vmms: &[Vmm], round: u32) -> impl Iterator<Item = Vmm> {
    let first = round as usize % vmms.len();
    vmms.iter().cycle().skip(first).take(vmms.len()).copied()
}

/// One measured value.
struct Sample {
    metric: String,
    value: f64,
    /// KVM exits for each I/O while it was measured.
    exits_per_io: Option<f64>,
}

impl Sample {
    fn new(metric: impl Into<String>, value: f64) -> Sample {
        Sample { metric: metric.into(), value, exits_per_io: None }
    }
}

fn tell(sample: &Sample, vmm: Vmm, round: u32) {
    let line = serde_json::json!({
        "metric": sample.metric,
        // How QEMU reaches the host's disks is nothing to a controller that it drives or assigns: there it is one
        // and the same monitor.
        "vmm": if sample.metric.starts_with("disk") { vmm.name() } else { vmm.family() },
        "round": round,
        "value": sample.value,
        "exits_per_io": sample.exits_per_io,
    });
    // Nobody may be listening; the lab's time-out ends us then.
    let _unheard = writeln!(io::stdout(), "{line}");
}
