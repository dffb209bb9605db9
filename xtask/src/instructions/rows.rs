//! What was counted, as rows: for each thing that was started and each monitor, the measures, over all rounds.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::parse::{Counts, Start};
use crate::bench;

/// What is measured, in the order of the tables. Of disk I/O all are for each transfer, and the last three and the time are
/// not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// By the emulated host's clock, which counts instructions.
    VirtualMilliseconds,
    /// KVM exits.
    Exits,
    /// Instructions of the monitor, outside the kernel.
    Monitor,
    /// Instructions of the host's kernel.
    HostKernel,
    /// Instructions of the guest's kernel.
    GuestKernel,
    /// The monitor's system calls.
    SystemCalls,
    /// KiB of the monitor's memory that are there, beside the guest's RAM.
    Resident,
    /// KiB of them that are no file's.
    Anonymous,
}

impl Measure {
    /// All of them.
    pub const ALL: [Measure; 8] = [
        Measure::VirtualMilliseconds,
        Measure::Exits,
        Measure::Monitor,
        Measure::HostKernel,
        Measure::GuestKernel,
        Measure::SystemCalls,
        Measure::Resident,
        Measure::Anonymous,
    ];

    /// Its name in tables and in the record.
    pub fn name(self) -> &'static str {
        match self {
            Measure::VirtualMilliseconds => "virtual ms",
            Measure::Exits => "exits",
            Measure::Monitor => "VMM instructions",
            Measure::HostKernel => "host kernel instructions",
            Measure::GuestKernel => "guest kernel instructions",
            Measure::SystemCalls => "system calls",
            Measure::Resident => "KiB beside RAM",
            Measure::Anonymous => "of them anonymous",
        }
    }
}

/// All samples of one measure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// The middle one.
    pub fn median(&self) -> Option<f64> {
        bench::quantile(&self.0, 0.5)
    }

    /// The least and the most of them.
    pub fn range(&self) -> Option<(f64, f64)> {
        Some((bench::quantile(&self.0, 0.0)?, bench::quantile(&self.0, 1.0)?))
    }
}

/// The measures of one monitor.
pub type Row = BTreeMap<Measure, Samples>;

/// What was counted, by what was started, then by monitor.
#[derive(Debug, Default)]
pub struct Rows {
    rows: BTreeMap<String, BTreeMap<String, Row>>,
    /// What was started, in this order.
    order: Vec<String>,
}

impl Rows {
    /// Adds starts, and what `lab-bench` said of each.
    pub fn add(&mut self, starts: &[Start], said: &[Value]) -> Result<()> {
        ensure!(
            starts.len() == said.len(),
            "the plugin saw {} starts, and lab-bench made {}",
            starts.len(),
            said.len()
        );
        for (start, said) in starts.iter().zip(said) {
            let text =
                |key: &str| said[key].as_str().with_context(|| format!("lab-bench says no {key}: {said}"));
            let (what, monitor, found) = (text("counted")?, text("vmm")?, &said["found"]);
            if found["failed"].is_string() {
                continue;
            }
            if found["loads"].is_null() {
                self.add_start(what, monitor, start, found)?;
            } else {
                self.add_loads(what, monitor, start, found)?;
            }
        }
        ensure!(!self.rows.is_empty(), "nothing was counted: every start failed");
        Ok(())
    }

    fn add_start(&mut self, what: &str, monitor: &str, start: &Start, found: &Value) -> Result<()> {
        let counts = start.life.with_context(|| format!("the guest of {monitor} ({what}) set no mark"))?;
        let number =
            |key: &str| found[key].as_f64().with_context(|| format!("lab-bench says no {key}: {found}"));
        let seen = [
            (Measure::VirtualMilliseconds, number("virtual_ms")?),
            (Measure::Exits, number("exits")?),
            (Measure::Resident, number("resident")?),
            (Measure::Anonymous, number("anonymous")?),
        ];
        self.put(what, monitor, seen.into_iter().chain(counted(&counts, 1.0)));
        Ok(())
    }

    fn add_loads(&mut self, what: &str, monitor: &str, start: &Start, found: &Value) -> Result<()> {
        let loads = found["loads"].as_array().context("the loads are no list")?;
        ensure!(
            loads.len() == start.loads.len(),
            "{monitor} ran {} loads of {}",
            start.loads.len(),
            loads.len()
        );
        for (load, counts) in loads.iter().zip(&start.loads) {
            let (name, times) = load[0].as_str().zip(load[1].as_f64()).context("a load has no name")?;
            ensure!(times > 0.0, "the load {name} has no transfers");
            let exits = (Measure::Exits, counts.entries as f64 / times);
            let values = counted(counts, times).into_iter().chain([exits]);
            self.put(&format!("{what}, {name}"), monitor, values);
        }
        Ok(())
    }

    fn put(&mut self, what: &str, monitor: &str, values: impl IntoIterator<Item = (Measure, f64)>) {
        if !self.order.iter().any(|known| known == what) {
            self.order.push(what.to_owned());
        }
        let row = self.rows.entry(what.to_owned()).or_default().entry(monitor.to_owned()).or_default();
        for (measure, value) in values {
            row.entry(measure).or_default().0.push(value);
        }
    }

    /// What was started, with the monitors, in the order in which it was.
    pub fn all(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, Row>)> {
        self.order.iter().filter_map(|what| Some((what.as_str(), self.rows.get(what)?)))
    }

    /// A median.
    pub fn median(&self, what: &str, monitor: &str, measure: Measure) -> Option<f64> {
        self.rows.get(what)?.get(monitor)?.get(&measure)?.median()
    }

    /// The tables: of starts, and of loads.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for of_loads in [false, true] {
            let measures: Vec<Measure> = Measure::ALL
                .into_iter()
                .filter(|measure| {
                    self.all().any(|(what, rows)| {
                        is_load(what) == of_loads && rows.values().any(|row| row.contains_key(measure))
                    })
                })
                .collect();
            let head = if of_loads { "for each transfer" } else { "from the start" };
            let head = [head, "VMM"].into_iter().chain(measures.iter().map(|measure| measure.name()));
            let mut lines = vec![head.map(str::to_owned).collect::<Vec<_>>()];
            for (what, rows) in self.all().filter(|(what, _)| is_load(what) == of_loads) {
                for (monitor, row) in rows {
                    let cells = measures.iter().map(|measure| row.get(measure).map_or(String::new(), cell));
                    lines.push([what.to_owned(), monitor.clone()].into_iter().chain(cells).collect());
                }
            }
            if lines.len() > 1 {
                text += &format!("{}\n", bench::format(&lines));
            }
        }
        text
    }
}

fn is_load(what: &str) -> bool {
    what.starts_with("disk,")
}

/// What the plugin counts beside exits, for each of so many transfers.
fn counted(counts: &Counts, times: f64) -> [(Measure, f64); 4] {
    [
        (Measure::Monitor, counts.host_user as f64 / times),
        (Measure::HostKernel, counts.host_kernel as f64 / times),
        (Measure::GuestKernel, counts.guest_kernel as f64 / times),
        (Measure::SystemCalls, counts.system_calls as f64 / times),
    ]
}

/// The median, and how far the samples lie apart where that shows.
fn cell(samples: &Samples) -> String {
    let (Some(median), Some((least, most))) = (samples.median(), samples.range()) else {
        return String::new();
    };
    let median = amount(median);
    let (least, most) = (amount(least), amount(most));
    if least == most { median } else { format!("{median} ({least}-{most})") }
}

/// A number in three digits or so.
pub fn amount(value: f64) -> String {
    match value {
        _ if value >= 999_500.0 => format!("{:.2} M", value / 1e6),
        _ if value >= 9_999.5 => format!("{:.1} k", value / 1e3),
        _ if value >= 99.95 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// Rows with one start of skep, with these exits and instructions in each round.
    pub fn boots(rounds: &[(f64, u64)]) -> Rows {
        let mut rows = Rows::default();
        for (exits, host_user) in rounds {
            let start = Start {
                life: Some(Counts { host_user: *host_user, ..Counts::default() }),
                ..Start::default()
            };
            let found = json!({"virtual_ms": 1.0, "exits": exits, "resident": 2, "anonymous": 1});
            rows.add(&[start], &[json!({"counted": "boot", "vmm": "skep", "found": found})]).unwrap();
        }
        rows
    }

    #[test]
    fn the_nth_word_of_lab_bench_belongs_to_the_nth_start_whether_it_failed_or_not() {
        let life =
            |host_user| Start { life: Some(Counts { host_user, ..Counts::default() }), ..Start::default() };
        let well = json!({"virtual_ms": 1, "exits": 2, "resident": 3, "anonymous": 4});
        let said = [("skep", json!({"failed": "it died"})), ("qemu", well)]
            .map(|(vmm, found)| json!({"counted": "boot", "vmm": vmm, "found": found}));
        let mut rows = Rows::default();
        rows.add(&[Start::default(), life(70)], &said).unwrap();
        assert_eq!(rows.median("boot", "qemu", Measure::Monitor), Some(70.0));
        assert_eq!(rows.median("boot", "skep", Measure::Monitor), None);
        assert!(rows.add(&[life(1)], &said).is_err());
        assert!(Rows::default().add(&[Start::default()], &said[..1]).is_err(), "all failed");
    }

    #[test]
    fn loads_are_counted_for_each_transfer() {
        let start = Start {
            loads: vec![Counts { host_user: 1000, entries: 50, system_calls: 5, ..Counts::default() }],
            ..Start::default()
        };
        let said = |loads: Value| json!({"counted": "disk", "vmm": "skep", "found": {"loads": loads}});
        let mut rows = Rows::default();
        rows.add(std::slice::from_ref(&start), &[said(json!([["4 KiB read, depth 1", 10]]))]).unwrap();
        let median = |measure| rows.median("disk, 4 KiB read, depth 1", "skep", measure);
        assert_eq!((median(Measure::Exits), median(Measure::Monitor)), (Some(5.0), Some(100.0)));
        assert!(
            rows.tables().contains("| disk, 4 KiB read, depth 1 | skep | 5.00  | 100 "),
            "{}",
            rows.tables()
        );
        assert!(Rows::default().add(&[start], &[said(json!([["a", 1], ["b", 1]]))]).is_err());
    }

    #[test]
    fn a_cell_shows_how_far_samples_lie_apart() {
        assert_eq!(cell(&Samples(vec![3.0, 1.0, 2.0])), "2.00 (1.00-3.00)");
        assert_eq!(cell(&Samples(vec![34_400_000.0])), "34.40 M");
        assert_eq!([999_499.0, 9_999.0, 99.9].map(amount), ["999.5 k", "9999", "99.90"]);
    }
}
