//! `host-bench`: what one load costs in one way, as a line of JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use benches::{Clock, Load, Rig, Stepped, Way};
use serde_json::{Value, json};

const USAGE: &str = "\
host-bench FILE WAY LOAD DO NUMBER
  FILE  is made, and removed at the end
  WAY   plain, registered, bounce=always or poll=adaptive
  LOAD  random-1, random-16 or sequential-4
  DO    time       requests a second and CPU time, over NUMBER seconds
        count      instructions of the queue's thread for a request, over NUMBER requests
        addresses  the same, and how often the thread was at each address of the program";

/// Who is stepped: the model's thread.
const THREAD: &str = "vq-";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, way, load, what, number] = &words[..] else { bail!("{USAGE}") };
    let load: Load = load.parse()?;
    let number: u64 = number.parse().context(USAGE)?;
    let path = PathBuf::from(file);
    match what.as_str() {
        "time" => println!("{}", time(&mut Rig::new(&path, Way::named(way)?)?, load, number as f64)?),
        "count" | "addresses" => println!("{}", count(&words, number, what == "addresses")?),
        "be-stepped" => return be_stepped(Rig::new(&path, Way::named(way)?)?, load, number),
        _ => bail!("{USAGE}"),
    }
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Requests a second and CPU time, after a moment to warm up.
fn time(rig: &mut Rig, load: Load, seconds: f64) -> Result<Value> {
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

/// Has another process carry the requests out, and counts.
fn count(words: &[String], requests: u64, addresses: bool) -> Result<Value> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut child = Command::new(program)
        .args(&words[..3])
        .args(["be-stepped", &requests.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start this program")?;
    let (mut tell, answers) = child.stdin.take().zip(child.stdout.take()).context("there are no pipes")?;
    let mut answers = BufReader::new(answers).lines();
    let ready = answers.next().transpose()?;
    ensure!(ready.as_deref() == Some("ready"), "the other process did not get ready");
    let stepped = Stepped::stop(child.id(), THREAD)?;
    writeln!(tell, "go").context("cannot talk to the other process")?;
    let steps = stepped.to_the_end(addresses)?;
    let base = answers.next().transpose()?.context("the other process did not end well")?;
    let status = child.wait()?;
    ensure!(status.success(), "the other process ended with {status}");
    let base: u64 = base.parse()?;
    let at = |(address, count): (&u64, &u64)| (format!("{:#x}", address.wrapping_sub(base)), json!(count));
    Ok(json!({
        "instructions_per_request": steps.instructions as f64 / requests as f64,
        "addresses": steps.addresses.iter().map(at).collect::<serde_json::Map<_, _>>(),
    }))
}

/// The other process: warms up, carries the requests out when it is told to, and is gone.
fn be_stepped(mut rig: Rig, load: Load, requests: u64) -> Result<()> {
    rig.run(load, 8 * u64::from(load.depth()))?;
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    rig.run(load, requests)?;
    println!("{}", load_address()?);
    // At once: what the thread does at its end is not to count.
    std::process::exit(0)
}

/// Where this program lies in memory.
fn load_address() -> Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    let program = std::env::current_exe()?.display().to_string();
    let line = maps.lines().find(|line| line.ends_with(&program)).context("the program is not in memory")?;
    let start = line.split('-').next().unwrap_or_default();
    Ok(u64::from_str_radix(start, 16)?)
}
