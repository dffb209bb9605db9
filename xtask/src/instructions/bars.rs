//! The bars: what skep is to reach, and whether it does.

use super::rows::{Measure, Rows, amount};
use crate::bench;

const SKEP: &str = "skep";
const BOOT: &str = "boot";
const START: &str = "start";
const MANY_VCPUS: &str = "start, 64 vCPUs";
const DEPTH_1: &str = "disk, 4 KiB read, depth 1";
const DEPTH_16: &str = "disk, 4 KiB read, depth 16";
const LARGE_WRITE: &str = "disk, 1 MiB write, depth 4";

/// A bar: its name, the most that meets it, and what there is. Firecracker's counts and a little less, measured by the same
/// plugin with the same kernel.
type Bar = (&'static str, f64, Option<f64>);

/// The bars of what was counted, as a table.
pub fn table(rows: &Rows, debian: bool) -> String {
    let bars = if debian { of_debians_kernel(rows) } else { of_the_lab_kernel(rows) };
    let head = ["bar", "at most", "skep", ""].map(str::to_owned).to_vec();
    let lines = bars.into_iter().filter_map(|(name, most, there)| {
        let there = there?;
        let met = if there <= most { "met" } else { "missed" };
        Some(vec![name.to_owned(), amount(most), amount(there), met.to_owned()])
    });
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(lines).collect();
    if lines.len() > 1 { bench::format(&lines) } else { String::new() }
}

fn of_the_lab_kernel(rows: &Rows) -> Vec<Bar> {
    let of = |what, measure| rows.median(what, SKEP, measure);
    // What 63 more of them take.
    let each_vcpu = |measure| Some((of(MANY_VCPUS, measure)? - of(START, measure)?) / 63.0);
    vec![
        ("boot, VMM instructions", 1.4e6, of(BOOT, Measure::Monitor)),
        ("boot, exits", 3100.0, of(BOOT, Measure::Exits)),
        ("boot, virtual ms", 632.0, of(BOOT, Measure::VirtualMilliseconds)),
        ("boot, KiB beside RAM", 3.8 * 1024.0, of(BOOT, Measure::Resident)),
        ("a vCPU, system calls", 30.0, each_vcpu(Measure::SystemCalls)),
        ("a vCPU, VMM instructions", 0.2e6, each_vcpu(Measure::Monitor)),
        ("a vCPU, KiB", 20.0, each_vcpu(Measure::Resident)),
        ("64 vCPUs, virtual ms", 20.0, of(MANY_VCPUS, Measure::VirtualMilliseconds)),
        ("4 KiB read, depth 1, exits", 5.4, of(DEPTH_1, Measure::Exits)),
        ("4 KiB read, depth 1, VMM instructions", 3300.0, of(DEPTH_1, Measure::Monitor)),
        ("4 KiB read, depth 16, exits", 0.58, of(DEPTH_16, Measure::Exits)),
        ("4 KiB read, depth 16, VMM instructions", 1500.0, of(DEPTH_16, Measure::Monitor)),
        ("1 MiB write, exits", 3.1, of(LARGE_WRITE, Measure::Exits)),
    ]
}

fn of_debians_kernel(rows: &Rows) -> Vec<Bar> {
    let time = |monitor| rows.median(BOOT, monitor, Measure::VirtualMilliseconds);
    vec![
        ("boot, exits", 5300.0, rows.median(BOOT, SKEP, Measure::Exits)),
        (
            "boot, virtual ms beside QEMU's",
            0.8,
            time(SKEP).zip(time("qemu")).map(|(ours, theirs)| ours / theirs),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::boots;
    use super::*;

    #[test]
    fn bars_of_what_was_counted_are_met_or_missed_and_the_others_are_not_shown() {
        let table = table(&boots(&[(3101.0, 1_400_000)]), false);
        let line = |name: &str| table.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
        assert!(line("boot, VMM instructions").contains("| met"), "{table}");
        assert!(line("boot, exits").contains("| missed"), "{table}");
        assert!(!table.contains("vCPU"), "{table}");
    }
}
