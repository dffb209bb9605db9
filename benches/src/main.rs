//! `host-bench`: the samples of one way and one load as a line of JSON, or so many requests and nothing else, for a
//! tool that counts instructions.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use benches::{Clock, Load, Rig, Way};
use serde_json::json;

const USAGE: &str = "host-bench FILE WAY LOAD time SECONDS | host-bench FILE WAY LOAD count REQUESTS";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, way, load, what, number] = &words[..] else { bail!("{USAGE}") };
    let load: Load = load.parse()?;
    let number: u64 = number.parse().context(USAGE)?;
    let path = PathBuf::from(file);
    let mut rig = Rig::new(&path, Way::named(way)?)?;
    match what.as_str() {
        "time" => println!("{}", sample(&mut rig, load, number as f64)?),
        "count" => rig.run(load, number)?,
        _ => bail!("{USAGE}"),
    }
    drop(rig);
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Requests a second and CPU time, after a moment to warm up.
fn sample(rig: &mut Rig, load: Load, seconds: f64) -> Result<serde_json::Value> {
    let batch = 16 * u64::from(load.depth());
    rig.run(load, 8 * batch)?;
    let before = rig.counters();
    let clock = Clock::new();
    let mut requests = 0;
    let (wall, cpu) = loop {
        rig.run(load, batch)?;
        requests += batch;
        let (wall, cpu) = clock.read();
        if wall.as_secs_f64() >= seconds {
            break (wall, cpu);
        }
    };
    let mebibytes = (requests * load.bytes()) as f64 / f64::from(1 << 20);
    let after = rig.counters();
    Ok(json!({
        "requests_per_second": requests as f64 / wall.as_secs_f64(),
        "cpu_us_per_request": cpu.as_secs_f64() * 1e6 / requests as f64,
        "cpu_us_per_mib": cpu.as_secs_f64() * 1e6 / mebibytes,
        "bytes_bounced": after.bytes_bounced() - before.bytes_bounced(),
        "bytes_registered": after.bytes_registered - before.bytes_registered,
    }))
}
