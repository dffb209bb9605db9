//! The demo: an emulated host, and in it a guest with an assigned NVMe controller and a physical AHCI disk, at
//! once. The steps are shown as they happen; the table at the end says what was read and written where.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{build, setup};

/// What runs in the emulated host. Lines that begin with `@` are for the demo: `@step TEXT` is shown, `@fact NAME
/// VALUE` is kept for the table.
const HOST: &str = include_str!("demo/host.sh");
/// What runs in the guest.
const GUEST: &str = include_str!("demo/guest.sh");

/// Runs the demo.
pub fn run() -> Result<()> {
    setup::lab()?;
    build::run()?;
    let scene = Scene { start: Instant::now(), colour: std::io::stdout().is_terminal() };
    scene.step("starting an emulated host: QEMU emulates its CPU, IOMMU and disks; nothing of this machine is touched");
    let share = tempdir()?;
    std::fs::write(format!("{share}/guest.sh"), GUEST).context("cannot write the guest's script")?;
    let mut lab = Command::new(build::program("skep"))
        .args(["lab", "exec", "--timeout", "240", "--share", &share, "--", "sh", "-c", HOST])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start skep")?;
    let mut facts = HashMap::new();
    let mut noise = Vec::new();
    let output = lab.stdout.take().context("the lab has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read the lab's output")?;
        let line = line.trim_end();
        // The guest's console may put what the kernel says in front.
        match line.find('@').and_then(|at| line[at..].split_once(' ')) {
            Some(("@step", text)) => scene.step(text),
            Some(("@fact", fact)) => {
                let (name, value) = fact.split_once(' ').unwrap_or((fact, ""));
                facts.insert(name.to_owned(), value.to_owned());
            }
            _ => noise.push(line.to_owned()),
        }
    }
    let status = lab.wait().context("cannot wait for skep")?;
    std::fs::remove_dir_all(&share).with_context(|| format!("cannot remove {share}"))?;
    finish(&scene, &facts, &noise, status)
}

fn finish(
    scene: &Scene,
    facts: &HashMap<String, String>,
    noise: &[String],
    status: ExitStatus,
) -> Result<()> {
    let fact = |name: &str| facts.get(name).map_or("?", String::as_str);
    let equal = |one: &str, other: &str| fact(one) != "?" && fact(one) == fact(other);
    let verdict = |good: bool| if good { "equal" } else { "DIFFERENT" };
    let sums = [("disk", "sda"), ("NVMe", "nvme")];
    println!();
    let mut good = status.success();
    for (what, key) in sums {
        for (when, one, other) in
            [("before", "host-before", "guest-before"), ("after", "guest-after", "host-after")]
        {
            let (one, other) = (format!("{one}-{key}"), format!("{other}-{key}"));
            let same = equal(&one, &other);
            good &= same;
            let direction =
                if when == "before" { "host wrote, guest read" } else { "guest wrote, host read" };
            println!("  {what:<5} {direction:<23} {}  {}", short(fact(&one)), verdict(same));
        }
    }
    println!();
    println!(
        "  {:<22} {:<36} {:>12} {:>12} {:>8}",
        "device", "how the guest has it", "read", "written", "copied"
    );
    println!(
        "  {:<22} {:<36} {:>12} {:>12} {:>8}",
        "/dev/sda (AHCI)",
        "virtio-blk, io_uring on guest RAM",
        fact("sda-read"),
        fact("sda-written"),
        fact("sda-copied")
    );
    println!(
        "  {:<22} {:<36} {:>12} {:>12} {:>8}",
        format!("{} (NVMe)", fact("nvme-address")),
        "assigned: its own driver, own DMA",
        fact("nvme-read"),
        fact("nvme-written"),
        "0"
    );
    println!("\n  DMA faults: {}", fact("dma-faults"));
    good &= fact("dma-faults") == "0" && fact("sda-copied") == "0";
    if !good {
        for line in noise.iter().rev().take(40).rev() {
            eprintln!("  | {line}");
        }
        bail!("the demo did not end well ({status}); above are the last lines of what it said");
    }
    scene.step("done: one guest used both, and this host has them back");
    Ok(())
}

/// The beginning of a checksum, enough to compare by eye.
fn short(sum: &str) -> &str {
    sum.get(..24).unwrap_or(sum)
}

struct Scene {
    start: Instant,
    colour: bool,
}

impl Scene {
    fn step(&self, text: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        if self.colour {
            println!("\x1b[2m{seconds:6.1} s\x1b[0m  {text}");
        } else {
            println!("{seconds:6.1} s  {text}");
        }
    }
}

fn tempdir() -> Result<String> {
    let output = Command::new("mktemp")
        .args(["-d", "-t", "skep-demo.XXXXXX"])
        .output()
        .context("cannot run mktemp")?;
    Ok(String::from_utf8(output.stdout).context("mktemp's answer is no text")?.trim().to_owned())
}
