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

/// The first step.
const START: &str =
    "starting an emulated host: QEMU emulates its CPU, IOMMU and disks; nothing of this machine is touched";

/// Runs the demo.
pub fn run() -> Result<()> {
    setup::lab()?;
    build::run()?;
    let scene = Scene { start: Instant::now(), colour: std::io::stdout().is_terminal() };
    scene.step(START);
    let share = tempdir()?;
    std::fs::write(format!("{share}/guest.sh"), GUEST).context("cannot write the guest's script")?;
    let mut lab = Command::new(build::program("skep"))
        .args(["lab", "exec", "--share", &share, "--", "sh", "-c", HOST])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start skep")?;
    let mut facts = Facts::default();
    let mut step = START.to_owned();
    let mut noise = Vec::new();
    let output = lab.stdout.take().context("the lab has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read the lab's output")?;
        let line = line.trim_end();
        // The guest's console may put what the kernel says in front.
        match line.find('@').and_then(|at| line[at..].split_once(' ')) {
            Some(("@step", text)) => {
                scene.step(text);
                text.clone_into(&mut step);
            }
            Some(("@fact", fact)) => {
                let (name, value) = fact.split_once(' ').unwrap_or((fact, ""));
                facts.0.insert(name.to_owned(), value.to_owned());
            }
            _ => noise.push(line.to_owned()),
        }
    }
    let status = lab.wait().context("cannot wait for skep")?;
    std::fs::remove_dir_all(&share).with_context(|| format!("cannot remove {share}"))?;
    print!("\n{}", facts.table());
    if !(status.success() && facts.good()) {
        for line in noise.iter().rev().take(40).rev() {
            eprintln!("  | {line}");
        }
        bail!("{}; above are the last lines of what it said", failure(status, &step));
    }
    scene.step("done: one guest used both, and this host has them back");
    Ok(())
}

/// What the emulated host and the guest said of themselves.
#[derive(Default)]
struct Facts(HashMap<String, String>);

impl Facts {
    /// A fact; `None` for what the demo did not come to, or could not read.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn shown(&self, name: &str) -> &str {
        self.get(name).unwrap_or("-")
    }

    /// Two sums of the same disk, compared.
    fn compare(&self, one: &str, other: &str) -> Verdict {
        match (self.get(one), self.get(other)) {
            (Some(one), Some(other)) if one == other => Verdict::Equal,
            (Some(_), Some(_)) => Verdict::Different,
            _ => Verdict::NotReached,
        }
    }

    fn good(&self) -> bool {
        SUMS.iter().all(|sums| self.compare(sums.one, sums.other) == Verdict::Equal)
            && self.get("dma-faults") == Some("0")
            && self.get("sda-copied") == Some("0")
    }

    /// The table at the end.
    fn table(&self) -> String {
        let mut lines = Vec::new();
        for Sums { disk, direction, one, other } in &SUMS {
            let sum = self.get(one).or(self.get(other)).map_or("-", short);
            lines.push(format!("  {disk:<5} {direction:<23} {sum:<24}  {}", self.compare(one, other).text()));
        }
        let mut row = |device: &str, how: &str, read: &str, written: &str, copied: &str| {
            lines.push(format!("  {device:<22} {how:<36} {read:>12} {written:>12} {copied:>8}"));
        };
        row("", "", "", "", "");
        row("device", "how the guest has it", "read", "written", "copied");
        let [read, written, copied] = ["sda-read", "sda-written", "sda-copied"].map(|name| self.shown(name));
        row("/dev/sda (AHCI)", "virtio-blk, io_uring on guest RAM", read, written, copied);
        let nvme = format!("{} (NVMe)", self.shown("nvme-address"));
        let [read, written] = ["nvme-read", "nvme-written"].map(|name| self.shown(name));
        // Nobody but the guest's own driver moves this data.
        row(&nvme, "assigned: its own driver, own DMA", read, written, "0");
        lines.push(String::new());
        lines.push(format!("  DMA faults: {}", self.get("dma-faults").unwrap_or(Verdict::NotReached.text())));
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// How two sums compare.
#[derive(Debug, PartialEq)]
enum Verdict {
    Equal,
    Different,
    /// One of them was never read.
    NotReached,
}

impl Verdict {
    fn text(&self) -> &'static str {
        match self {
            Verdict::Equal => "equal",
            Verdict::Different => "DIFFERENT",
            Verdict::NotReached => "not reached",
        }
    }
}

/// The facts that are sums of the same disk, read on both sides.
struct Sums {
    disk: &'static str,
    direction: &'static str,
    one: &'static str,
    other: &'static str,
}

const fn sums(disk: &'static str, direction: &'static str, one: &'static str, other: &'static str) -> Sums {
    Sums { disk, direction, one, other }
}

const SUMS: [Sums; 4] = [
    sums("disk", "host wrote, guest read", "host-before-sda", "guest-before-sda"),
    sums("disk", "guest wrote, host read", "guest-after-sda", "host-after-sda"),
    sums("NVMe", "host wrote, guest read", "host-before-nvme", "guest-before-nvme"),
    sums("NVMe", "guest wrote, host read", "guest-after-nvme", "host-after-nvme"),
];

/// Where a demo that did not end well was.
fn failure(status: ExitStatus, step: &str) -> String {
    match status.code() {
        Some(0) => {
            format!("the demo came to its end, but what it found is not as it should be (last step: {step})")
        }
        Some(124) => format!("the demo was stopped at this step: {step}"),
        _ => format!("the demo failed ({status}) at this step: {step}"),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// All facts of a demo that ended well.
    fn whole() -> Facts {
        let sums = SUMS.iter().flat_map(|sums| [sums.one, sums.other].map(|name| (name, "5e2f")));
        let others = [("dma-faults", "0"), ("sda-copied", "0"), ("sda-read", "64MiB")];
        Facts(sums.chain(others).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn a_demo_that_ended_well_has_equal_sums() {
        let table = whole().table();
        assert!(whole().good());
        assert_eq!(table.matches(" equal\n").count(), 4, "{table}");
        assert!(table.contains("64MiB") && table.contains("DMA faults: 0"), "{table}");
    }

    #[test]
    fn a_sum_that_was_never_read_is_not_reached_and_never_different() {
        for unread in ["guest-after-sda", "host-after-sda"] {
            for facts in [
                Facts(whole().0.into_iter().filter(|(name, _)| name != unread).collect()),
                Facts(whole().0.into_iter().chain([(unread.to_owned(), String::new())]).collect()),
            ] {
                let table = facts.table();
                assert!(!facts.good());
                assert_eq!(table.matches("not reached").count(), 1, "{table}");
                assert!(!table.contains("DIFFERENT"), "{table}");
            }
        }
        let table = Facts::default().table();
        assert_eq!(table.matches("not reached").count(), 5, "{table}");
    }

    #[test]
    fn two_sums_that_were_read_and_differ_are_different() {
        let mut facts = whole();
        facts.0.insert("host-after-nvme".into(), "0000".into());
        let table = facts.table();
        assert!(!facts.good());
        assert_eq!(
            (table.matches("DIFFERENT").count(), table.matches(" equal\n").count()),
            (1, 3),
            "{table}"
        );
    }

    #[test]
    fn a_copy_or_a_fault_spoils_the_demo() {
        for name in ["sda-copied", "dma-faults"] {
            let mut facts = whole();
            facts.0.insert(name.into(), "1".into());
            assert!(!facts.good());
            facts.0.remove(name);
            assert!(!facts.good());
        }
    }

    #[test]
    fn a_failure_names_the_step() {
        for (code, word) in [(0, "not as it should"), (124, "stopped"), (1, "failed")] {
            let text = failure(ExitStatus::from_raw(code << 8), "guest: powers off");
            assert!(text.contains(word) && text.contains("guest: powers off"), "{text}");
        }
    }
}
