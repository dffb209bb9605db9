//! Records in order on a disk: written until the end, which may come as a power cut, and looked for afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use lab::order::{self, Plan, SLOT};

use crate::aio::Queue;
use crate::buffer::Pages;
use crate::device::Device;
use crate::number;

/// More than two batches, of which one is under way while the other is flushed.
const DEPTH: usize = 64;

/// How often the writer says how far it is, at most: a serial console is slow.
const SAY: Duration = Duration::from_millis(100);

/// Writes for some seconds, or until a write fails. Says `flushed NAME NUMBER` when a record has been flushed.
pub fn write(path: &str, run: &str, seconds: &str) -> Result<String, String> {
    let end = Instant::now() + Duration::from_secs(number("seconds", seconds)?);
    let device = Device::open(path, true)?;
    let plan = plan(run, &device)?;
    let mut writer = Writer::new(&device, plan)?;
    let name = Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy());
    let (mut next, mut flushed, mut said) = (1, 0, Instant::now());
    let mut batch = next..next + plan.batch(next);
    writer.begin(batch.clone(), flushed)?;
    while Instant::now() < end {
        writer.finish()?;
        // The next ones are under way while these are flushed.
        let done = batch.end - 1;
        next = batch.end;
        batch = next..next + plan.batch(next);
        writer.begin(batch.clone(), flushed)?;
        device.flush_data()?;
        flushed = done;
        if said.elapsed() >= SAY {
            println!("flushed {name} {flushed}");
            said = Instant::now();
        }
    }
    writer.finish()?;
    device.flush_data()?;
    println!("flushed {name} {}", next + plan.batch(next) - 1);
    Ok(format!("{path} {run}: {} records", next + plan.batch(next) - 1))
}

/// Looks whether everything is there that was flushed.
pub fn check(path: &str, run: &str, flushed: &str) -> Result<String, String> {
    let device = Device::open_anyhow(path)?;
    let plan = plan(run, &device)?;
    let told = number("record", flushed)?;
    let mut pages = Pages::new(SLOT).map_err(|error| format!("cannot get memory: {error}"))?;
    let verdict = order::check(&plan, told, |slot, place| {
        device.read_at(pages.bytes_mut(), slot * SLOT as u64)?;
        place.copy_from_slice(pages.bytes());
        Ok::<(), String>(())
    });
    match verdict? {
        Ok(verdict) => {
            Ok(format!("{path} {run} {told}: {} flushed, {} newest: ok", verdict.flushed, verdict.newest))
        }
        Err(finding) => Err(finding.to_string()),
    }
}

fn plan(run: &str, device: &Device) -> Result<Plan, String> {
    let run = number("run", run)?;
    Plan::new(run, device.size).ok_or_else(|| format!("a disk of {} bytes is too small", device.size))
}

/// Records under way.
struct Writer {
    plan: Plan,
    pages: Pages,
    queue: Queue,
    idle: Vec<usize>,
    /// What is to be written out of each slot, in bytes.
    lengths: [usize; DEPTH],
}

impl Writer {
    fn new(device: &Device, plan: Plan) -> Result<Writer, String> {
        let pages = Pages::new(DEPTH * SLOT).map_err(|error| format!("cannot get memory: {error}"))?;
        let queue =
            Queue::new(device.fd(), DEPTH).map_err(|error| format!("cannot make a queue: {error}"))?;
        Ok(Writer { plan, pages, queue, idle: (0..DEPTH).collect(), lengths: [0; DEPTH] })
    }

    /// Begins to write these records, of which there are no more than slots idle.
    fn begin(&mut self, records: std::ops::Range<u64>, flushed: u64) -> Result<(), String> {
        for number in records {
            let slot = self.idle.pop().ok_or("too many records at once")?;
            let length = self.plan.length(number);
            self.lengths[slot] = length;
            self.plan.fill(number, flushed, &mut self.pages.bytes_mut()[slot * SLOT..][..length]);
            let buffer = self.pages.address().wrapping_add(slot * SLOT);
            // SAFETY: the slot's part of the pages has the length and is changed again only when the slot is idle;
            // the queue, dropped before the pages, waits for what is under way.
            let begun = unsafe { self.queue.write(slot, buffer, length, self.plan.offset(number)) };
            begun.map_err(|error| format!("cannot begin to write record {number}: {error}"))?;
        }
        Ok(())
    }

    /// Waits until all have been written.
    fn finish(&mut self) -> Result<(), String> {
        while self.idle.len() < DEPTH {
            let done = self.queue.reap().map_err(|error| format!("cannot wait for writes: {error}"))?;
            for (slot, moved) in done {
                match moved {
                    Ok(bytes) if bytes == self.lengths[slot] => self.idle.push(slot),
                    Ok(bytes) => {
                        return Err(format!("a write of {} bytes ended after {bytes}", self.lengths[slot]));
                    }
                    Err(error) => return Err(format!("a write failed: {error}")),
                }
            }
        }
        Ok(())
    }
}
