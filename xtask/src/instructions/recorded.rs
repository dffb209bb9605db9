//! The recorded counts, in `benches/instructions.json`, and what is worse than they are.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::rows::{Measure, Row, Rows, amount};

const PATH: &str = "benches/instructions.json";

/// So much more than what was recorded is no regression.
pub const TOLERATED_PERCENT: f64 = 3.0;

/// What is compared. Times follow from these, and of memory there are bars. The host kernel's instructions and the system
/// calls of all its programs move by some in a hundred with where its clock ticks, from start to start.
const COMPARED: [Measure; 3] = [Measure::Exits, Measure::Monitor, Measure::GuestKernel];

/// So many exits of a start are chance: a tick of the host's clock is one, and a start has few.
const EXITS_BY_CHANCE: f64 = 3.0;

/// The counts that are compared with what was recorded are skep's.
const OURS: &str = "skep";

/// By the kernel's release, as counts are its as well.
pub struct Recorded(Map<String, Value>);

impl Recorded {
    /// Reads the file; there may be none yet.
    pub fn read() -> Result<Recorded> {
        match fs::read_to_string(PATH) {
            Ok(text) => Recorded::parse(&text).with_context(|| format!("cannot understand {PATH}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Recorded(Map::new())),
            Err(error) => Err(error).context(format!("cannot read {PATH}")),
        }
    }

    fn parse(text: &str) -> Result<Recorded> {
        Ok(Recorded(serde_json::from_str(text)?))
    }

    /// Records these rows in place of those of the same name, and writes the file.
    pub fn put(&mut self, kernel: &str, emulator: &str, rows: &Rows) -> Result<()> {
        self.merge(kernel, emulator, rows);
        let text = format!("{:#}\n", Value::Object(self.0.clone()));
        fs::write(PATH, text).with_context(|| format!("cannot write {PATH}"))
    }

    fn merge(&mut self, kernel: &str, emulator: &str, rows: &Rows) {
        let mut all = match self.0.remove(kernel) {
            // Counts by another emulator are not those of this one.
            Some(old) if old["emulator"] == emulator => old["rows"].as_object().cloned().unwrap_or_default(),
            _ => Map::new(),
        };
        for (what, monitors) in rows.all() {
            all.insert(what.to_owned(), of_monitors(monitors));
        }
        self.0.insert(kernel.to_owned(), json!({ "emulator": emulator, "rows": all }));
    }

    /// What of skep's is worse than recorded by more than is tolerated, a sentence each.
    ///
    /// A sample may lie anywhere in the recorded range; the median has to be above the most of it.
    pub fn worse(&self, kernel: &str, emulator: &str, rows: &Rows) -> Result<Vec<String>> {
        let Some(recorded) = self.0.get(kernel) else {
            bail!(
                "nothing is recorded in {PATH} for Linux {kernel}. Record it with --record, or use a kernel that is there"
            )
        };
        let by = recorded["emulator"].as_str().unwrap_or("nothing");
        if by != emulator {
            bail!(
                "what is recorded in {PATH} was counted by {by}, and this is {emulator}. Record it anew with --record"
            );
        }
        let mut worse = Vec::new();
        for (what, monitors) in rows.all() {
            let old = &recorded["rows"][what][OURS];
            let Some(row) = monitors.get(OURS) else {
                worse.push(format!("{what}: {OURS} was not counted, since its starts failed"));
                continue;
            };
            if old.is_null() {
                bail!("{what} of {OURS} is not recorded in {PATH}. Record it with --record");
            }
            for measure in COMPARED {
                let now = row.get(&measure).and_then(super::rows::Samples::median);
                let most = old[measure.name()]["most"].as_f64();
                let (Some(now), Some(most)) = (now, most) else {
                    bail!("{what}: {} are not both recorded and counted", measure.name());
                };
                // Exits of loads are for each of many transfers.
                let is_few = measure == Measure::Exits && row.contains_key(&Measure::VirtualMilliseconds);
                let chance = if is_few { EXITS_BY_CHANCE } else { 0.0 };
                if now > most * (1.0 + TOLERATED_PERCENT / 100.0) + chance {
                    let (name, now, most) = (measure.name(), amount(now), amount(most));
                    worse.push(format!("{what}: {now} {name}, and at most {most} are recorded"));
                }
            }
        }
        Ok(worse)
    }
}

fn of_monitors(monitors: &BTreeMap<String, Row>) -> Value {
    let of_row = |row: &Row| -> Map<String, Value> {
        let entries = row.iter().filter_map(|(measure, samples)| {
            let (median, (least, most)) = (samples.median()?, samples.range()?);
            // Three decimals are more than any of them is exact to.
            let [median, least, most] = [median, least, most].map(|value| (value * 1e3).round() / 1e3);
            Some((measure.name().to_owned(), json!({ "median": median, "least": least, "most": most })))
        });
        entries.collect()
    };
    monitors.iter().map(|(monitor, row)| (monitor.clone(), of_row(row).into())).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::boots;
    use super::*;

    fn recorded(rounds: &[(f64, u64)]) -> Recorded {
        let mut recorded = Recorded(Map::new());
        recorded.merge("6.12", "QEMU 7.2", &boots(rounds));
        // As it is read from the file.
        Recorded::parse(&Value::Object(recorded.0).to_string()).unwrap()
    }

    #[test]
    fn three_in_a_hundred_more_are_tolerated_and_four_are_not() {
        let recorded = recorded(&[(1000.0, 1_000_000)]);
        let worse = |exits, instructions| {
            recorded.worse("6.12", "QEMU 7.2", &boots(&[(exits, instructions)])).unwrap()
        };
        assert!(worse(1033.0, 1_030_000).is_empty());
        assert!(worse(500.0, 500_000).is_empty());
        assert_eq!(worse(1040.0, 1_030_000), ["boot: 1040 exits, and at most 1000 are recorded"]);
        assert_eq!(
            worse(1000.0, 1_040_000),
            ["boot: 1.04 M VMM instructions, and at most 1.00 M are recorded"]
        );
    }

    #[test]
    fn one_tick_more_in_a_start_of_few_exits_is_no_regression() {
        let recorded = recorded(&[(11.0, 1)]);
        let worse = |exits| recorded.worse("6.12", "QEMU 7.2", &boots(&[(exits, 1)])).unwrap();
        assert!(worse(12.0).is_empty());
        assert_eq!(worse(15.0).len(), 1);
    }

    #[test]
    fn what_was_as_much_when_it_was_recorded_is_no_worse() {
        let recorded = recorded(&[(1000.0, 1), (1200.0, 1), (1100.0, 1)]);
        let worse = |exits| recorded.worse("6.12", "QEMU 7.2", &boots(&[(exits, 1)])).unwrap();
        assert!(worse(1200.0).is_empty());
        assert_eq!(worse(1240.0).len(), 1);
    }

    #[test]
    fn counts_of_another_kernel_or_emulator_or_of_nothing_are_not_compared() {
        let recorded = recorded(&[(1000.0, 1)]);
        for (kernel, emulator) in [("6.1", "QEMU 7.2"), ("6.12", "QEMU 9.0")] {
            assert!(recorded.worse(kernel, emulator, &boots(&[(1.0, 1)])).is_err());
        }
        let nothing = Recorded::parse(r#"{"6.12": {"emulator": "QEMU 7.2", "rows": {}}}"#).unwrap();
        assert!(nothing.worse("6.12", "QEMU 7.2", &boots(&[(1.0, 1)])).is_err());
    }

    #[test]
    fn what_is_recorded_anew_replaces_its_own_row_and_no_other() {
        let mut recorded = Recorded::parse(
            r#"{"6.12": {"emulator": "QEMU 7.2", "rows": {"boot": {}, "start": {"skep": {}}}}, "6.1": {}}"#,
        )
        .unwrap();
        recorded.merge("6.12", "QEMU 7.2", &boots(&[(7.0, 1)]));
        assert_eq!(recorded.0["6.12"]["rows"]["boot"]["skep"]["exits"]["median"], 7.0);
        assert!(recorded.0["6.12"]["rows"]["start"]["skep"].is_object() && recorded.0.contains_key("6.1"));
        recorded.merge("6.12", "QEMU 9.0", &boots(&[(7.0, 1)]));
        assert!(recorded.0["6.12"]["rows"]["start"].is_null(), "another emulator counted it");
    }
}
