//! `lab-bench`: skep and QEMU side by side in the emulated host, on the same kernel, initrd and disks.
//!
//! Each round boots every monitor once, one after the other and in another order each time, so that what slows
//! the machine down for a while slows all of them down. A sample is a line of JSON on standard output:
//! `{"metric", "vmm", "round", "value", …}`; what is going on goes to standard error.

mod boot;
mod count;
mod guest;
mod host;
mod loads;
mod mini;
mod vmm;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use vmm::{Hardware, Model, Vmm};

const USAGE: &str = "\
usage: lab-bench [--rounds N] [--only KIND] [--seconds S]
       lab-bench count boot|start|disk ROUNDS HUGE_PAGES all|few
  --rounds   how often each monitor is booted for each kind of sample [10]
  --only     one kind of sample: boot, virtio-blk, ahci, nvme, assigned, driver; or firmware, which the others are without
  --seconds  how long each load runs [1]
  count      starts between marks for a plugin that counts instructions, with transparent huge pages as given";

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// From the start to the guest's init.
    Boot,
    /// From the start to the kernel, by firmware.
    Firmware,
    /// Reads from a disk of the host behind a model.
    Disk(Model),
    /// Reads from an assigned NVMe controller.
    Assigned,
    /// Reads from an NVMe controller that the monitor drives.
    Driver,
}

/// What is measured, and how often.
struct Plan {
    rounds: u32,
    kinds: Vec<Kind>,
    seconds: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, kind, rounds, huge_pages, shapes] = arguments.as_slice()
        && let (true, Ok(rounds)) = (word == "count", rounds.parse())
    {
        return end(count::run(kind, rounds, huge_pages, shapes == "few"));
    }
    let Some(plan) = Plan::read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    end(run(&plan))
}

fn end(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Kind {
    fn all() -> impl Iterator<Item = Kind> {
        [Kind::Boot].into_iter().chain(Model::ALL.map(Kind::Disk)).chain([Kind::Assigned, Kind::Driver])
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Boot => "boot",
            Kind::Firmware => "firmware",
            Kind::Disk(model) => model.name(),
            Kind::Assigned => "assigned",
            Kind::Driver => "driver",
        }
    }

    /// Those that are compared. How QEMU reaches the host's disks is nothing to a controller that it drives or
    /// assigns, or to a guest without a disk.
    fn monitors(self) -> &'static [Vmm] {
        if matches!(self, Kind::Disk(_)) { &Vmm::ALL } else { &Vmm::ALL[..2] }
    }

    fn monitor_name(self, vmm: Vmm) -> &'static str {
        if matches!(self, Kind::Disk(_)) { vmm.name() } else { vmm.family() }
    }

    fn measure(self, vmm: Vmm, seconds: f64) -> io::Result<Vec<Sample>> {
        let nvme = if matches!(self, Kind::Assigned | Kind::Driver) { Some(host::nvme()?) } else { None };
        let (assigned, driven) = if self == Kind::Assigned { (nvme, None) } else { (None, nvme) };
        let sata = host::sata()?;
        let disk = if let Kind::Disk(model) = self { Some((&*sata, model)) } else { None };
        let hardware = Hardware { disk, assigned: assigned.as_deref(), driven: driven.as_deref() };
        match self {
            Kind::Boot => boot::measure(vmm),
            Kind::Firmware => boot::measure_firmware(vmm),
            _ => loads::measure(vmm, &hardware, seconds),
        }
    }
}

impl Plan {
    fn read(arguments: &[String]) -> Option<Plan> {
        let mut plan = Plan { rounds: 10, kinds: Kind::all().collect(), seconds: 1.0 };
        for pair in arguments.chunks(2) {
            let [flag, value] = pair else { return None };
            match flag.as_str() {
                "--rounds" => plan.rounds = value.parse().ok()?,
                "--seconds" => plan.seconds = value.parse().ok()?,
                "--only" => {
                    plan.kinds = vec![Kind::all().chain([Kind::Firmware]).find(|kind| kind.name() == value)?];
                }
                _ => return None,
            }
        }
        Some(plan)
    }
}

fn run(plan: &Plan) -> io::Result<()> {
    let start = Instant::now();
    // The first start of a program reads it from its disk, which is not what is measured.
    if plan.kinds.contains(&Kind::Boot) {
        for vmm in Kind::Boot.monitors() {
            boot::measure(*vmm)?;
        }
    }
    let mut failed = 0;
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}, {:.0} s", plan.rounds, start.elapsed().as_secs_f64());
        for kind in &plan.kinds {
            for vmm in rotated(kind.monitors(), round) {
                failed += samples(kind.measure(vmm, plan.seconds), kind.monitor_name(vmm), round);
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
fn samples(measured: io::Result<Vec<Sample>>, vmm: &str, round: u32) -> u32 {
    match measured {
        Ok(samples) => {
            samples.iter().for_each(|sample| tell(sample, vmm, round));
            0
        }
        Err(error) => {
            eprintln!("lab-bench: {vmm} in round {round}: {error}");
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

fn tell(sample: &Sample, vmm: &str, round: u32) {
    let line = serde_json::json!({
        "metric": sample.metric,
        "vmm": vmm,
        "round": round,
        "value": sample.value,
        "exits_per_io": sample.exits_per_io,
    });
    // Nobody may be listening; the lab's time-out ends us then.
    let _unheard = writeln!(io::stdout(), "{line}");
}
