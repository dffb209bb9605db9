//! The bench without a VM: what a request to a virtio block device costs on this machine, from the queue in guest RAM
//! through the model to a file in memory and back. What is measured is in the program `host-bench`; here is the table.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench;

/// The ways that are compared, which host-bench knows by these names.
const WAYS: [&str; 4] = ["plain", "registered", "bounce=always", LOOKING];
/// The way that looks before it sleeps. How many instructions that takes is a matter of time, and counting them takes
/// all the time there is.
const LOOKING: &str = "poll=adaptive";

/// The loads: host-bench's name, that in the table, and how many requests the instructions are counted over. Copying a
/// mebibyte takes many.
const LOADS: [(&str, &str, u64); 3] = [
    ("random-1", "4 KiB random at depth 1", 128),
    ("random-16", "4 KiB random at depth 16", 256),
    ("sequential-4", "1 MiB sequential at depth 4", 2),
];

/// What one way costs under one load.
struct Cost {
    requests: Vec<f64>,
    cpu: Vec<f64>,
    instructions: Option<f64>,
}

/// Runs the bench: rounds of all ways, interleaved, for the times, and one count of instructions each.
pub fn run(words: &str, rounds: u64, seconds: u64) -> Result<()> {
    let mut cargo = Command::new("cargo");
    let built = cargo.args(["build", "--release", "-p", "benches", "--bin", "host-bench"]).status();
    ensure!(built.context("cannot start cargo")?.success(), "host-bench does not build");
    let before = bench::load();
    let mut lines = vec![
        [
            "load",
            "way",
            "requests/s",
            "CPU µs/request",
            "CPU µs/MiB",
            "instructions/request",
            "instructions/MiB",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut samples = serde_json::Map::new();
    for (load, name, requests) in LOADS {
        let mut costs = WAYS.map(|_| Cost { requests: Vec::new(), cpu: Vec::new(), instructions: None });
        for round in 0..rounds {
            eprintln!("{name}: round {} of {rounds}", round + 1);
            for (way, cost) in WAYS.iter().zip(&mut costs) {
                let sample = host_bench(way, load, "time", seconds)?;
                cost.requests.push(number(&sample, "requests_per_second")?);
                cost.cpu.push(number(&sample, "cpu_us_per_request")?);
            }
        }
        eprintln!("{name}: counting instructions");
        for (way, cost) in WAYS.iter().zip(&mut costs) {
            if *way != LOOKING {
                let counted = host_bench(way, load, "count", requests)?;
                cost.instructions = Some(number(&counted, "instructions_per_request")?);
            }
            lines.push(row(name, way, cost, if load.starts_with("seq") { 1.0 } else { 256.0 })?);
            samples.insert(
                format!("{load} {way}"),
                json!({"requests_per_second": cost.requests, "cpu_us_per_request": cost.cpu,
                       "instructions_per_request": cost.instructions}),
            );
        }
    }
    let table = bench::format(&lines);
    let title = format!("`{words}`, {}, load {before} before and {} after", bench::today()?, bench::load());
    println!("\n{title}\n\n{table}");
    bench::keep(&title, &table, &Value::Object(samples))
}

/// A line of the table; so many requests are a mebibyte.
fn row(load: &str, way: &str, cost: &Cost, in_a_mebibyte: f64) -> Result<Vec<String>> {
    let median = |values: &[f64]| bench::quantile(values, 0.5).context("there were no rounds");
    let (requests, cpu) = (median(&cost.requests)?, median(&cost.cpu)?);
    Ok(vec![
        load.to_owned(),
        way.to_owned(),
        format!("{requests:.0}"),
        format!("{cpu:.2}"),
        format!("{:.0}", cpu * in_a_mebibyte),
        cost.instructions.map(|count| format!("{count:.0}")).unwrap_or_default(),
        cost.instructions.map(|count| format!("{:.0}", count * in_a_mebibyte)).unwrap_or_default(),
    ])
}

fn host_bench(way: &str, load: &str, what: &str, amount: u64) -> Result<Value> {
    let file = format!("/dev/shm/skep-host-bench-{}", std::process::id());
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let output = Command::new(format!("{target}/release/host-bench"))
        .args([&file, way, load, what, &amount.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start host-bench")?;
    if !output.status.success() {
        // What a failure leaves behind is memory of this machine.
        std::fs::remove_file(&file).unwrap_or_default();
        bail!("host-bench {way} {load} {what} ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("cannot understand host-bench")
}

fn number(sample: &Value, key: &str) -> Result<f64> {
    sample[key].as_f64().with_context(|| format!("host-bench says no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_medians_and_what_they_are_for_a_mebibyte() {
        let cost = Cost { requests: vec![10.0, 30.0, 20.0], cpu: vec![2.0], instructions: Some(1000.0) };
        let row = row("load", "way", &cost, 256.0).unwrap();
        assert_eq!(row, ["load", "way", "20", "2.00", "512", "1000", "256000"]);
    }
}
