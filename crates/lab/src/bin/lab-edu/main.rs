//! `lab-edu`: makes QEMU's `edu` device do DMA to any address, in the emulated host or in a guest that was given
//! it, and watches over memory that such DMA must not reach.

mod device;
mod markers;
mod memory;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use device::{Edu, Way};

const USAGE: &str = "\
usage:
  lab-edu find                          the PCI addresses of the edu devices here
  lab-edu read   ADDRESS [LENGTH]       has the device read memory, and says what it got: zeros, nothing or data
  lab-edu write  ADDRESS [LENGTH]       has the device write a pattern of its own to memory
  lab-edu burst  read|write ADDRESS N   N requests of four bytes, one by each command, ten in a second
  lab-edu storm  read|write ADDRESS     one command of 4088 bytes, which the emulated bus makes 1022 requests
  lab-edu series read|write ADDRESS N SECONDS
                                        N single requests, so far apart
  lab-edu markers SIZE SEED FILE        fills SIZE of memory with a pattern, says where its highest page is, waits
                                        for FILE to appear, and says whether the pattern is unchanged; ends with 1
                                        if it is not
  lab-edu stamp                         passes lines on, each with the seconds since boot before it; says at the end
                                        for how many milliseconds nothing ran here, at most
Addresses and numbers in decimal or with 0x, sizes with K, M or G. LENGTH is 64 when not given, 4088 at most.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["find"] => device::addresses().map(|all| all.join("\n")),
        ["read", address] => read(address, "64"),
        ["read", address, length] => read(address, length),
        ["write", address] => write(address, "64"),
        ["write", address, length] => write(address, length),
        ["burst", way, address, count] => series(way, address, count, "0"),
        ["storm", way, address] => storm(way, address),
        ["series", way, address, count, seconds] => series(way, address, count, seconds),
        ["stamp"] => return stamp(),
        ["markers", size, seed, file] => markers::watch(size, seed, file),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lab-edu {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn read(address: &str, length: &str) -> Result<String, String> {
    let (at, length) = (number(address)?, number(length)?);
    let mut edu = Edu::open()?;
    edu.fill(0xa5)?;
    edu.dma(Way::Read, at, length)?;
    let got = edu.contents(length)?;
    let what = match got.as_slice() {
        all if all.iter().all(|byte| *byte == 0xa5) => "nothing".to_owned(),
        all if all.iter().all(|byte| *byte == 0) => "zeros".to_owned(),
        all => {
            let start: String = all.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            format!("data {start}")
        }
    };
    Ok(format!("read {at:#x} {length} {what}"))
}

fn write(address: &str, length: &str) -> Result<String, String> {
    let (at, length) = (number(address)?, number(length)?);
    let mut edu = Edu::open()?;
    edu.fill(0x5c)?;
    edu.dma(Way::Write, at, length)?;
    Ok(format!("write {at:#x} {length} done"))
}

fn storm(way: &str, address: &str) -> Result<String, String> {
    let at = number(address)?;
    Edu::open()?.dma(way.parse()?, at, device::BUFFER)?;
    Ok(format!("storm {way} {at:#x} done"))
}

fn series(way: &str, address: &str, count: &str, seconds: &str) -> Result<String, String> {
    let (direction, at, count, apart) = (way.parse()?, number(address)?, number(count)?, number(seconds)?);
    let mut edu = Edu::open()?;
    for index in 0..count {
        if index > 0 {
            thread::sleep(Duration::from_secs(apart));
        }
        edu.dma(direction, at, 4)?;
    }
    Ok(format!("series {way} {at:#x} {count} done"))
}

/// How often it is looked whether this program gets the CPU.
const TICK: Duration = Duration::from_millis(5);

/// Stamps lines with CLOCK_MONOTONIC. At the end, says for how long this host gave a program no CPU that wanted little.
fn stamp() -> ExitCode {
    static STALL: AtomicU64 = AtomicU64::new(0);
    thread::spawn(|| {
        loop {
            let start = Instant::now();
            thread::sleep(TICK);
            let late = start.elapsed().saturating_sub(TICK);
            // Milliseconds of a program's life fit 64 bits.
            STALL.fetch_max(late.as_millis() as u64, Ordering::Relaxed);
        }
    });
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { return ExitCode::FAILURE };
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is ours, and this clock always exists.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        println!("at {}.{:06} {line}", now.tv_sec, now.tv_nsec / 1000);
    }
    println!("stall {}", STALL.load(Ordering::Relaxed));
    ExitCode::SUCCESS
}

/// A number in decimal, with 0x, or with K, M or G.
fn number(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok().or_else(|| text.parse::<lab::Size>().ok().map(lab::Size::as_bytes)),
    };
    read.ok_or_else(|| format!("{text:?} is no number"))
}
