//! How fast a disk reads.

use std::time::{Duration, Instant};

use crate::aio::Queue;
use crate::buffer::Pages;
use crate::device::Device;
use crate::{mix, number, size};

/// Reads blocks from anywhere on the disk.
pub fn random(path: &str, block: &str, depth: &str, seconds: &str, seed: &str) -> Result<String, String> {
    let seed: u64 = number("seed", seed)?;
    let mut count = 0;
    run(path, block, depth, seconds, move |blocks| {
        count += 1;
        mix(seed ^ mix(count)) % blocks
    })
}

/// Reads block after block, from the start again after the last.
pub fn sequential(path: &str, block: &str, depth: &str, seconds: &str) -> Result<String, String> {
    let mut next = 0;
    run(path, block, depth, seconds, move |blocks| {
        next += 1;
        (next - 1) % blocks
    })
}

/// Keeps `depth` reads in flight until the time is over; what came of it, in one line.
fn run(
    path: &str,
    block: &str,
    depth: &str,
    seconds: &str,
    mut next: impl FnMut(u64) -> u64,
) -> Result<String, String> {
    let device = Device::open(path, false)?;
    let block_size = size(block)?;
    let slots: usize = number("depth", depth)?;
    let seconds: f64 = number("time", seconds)?;
    let blocks = device.size.checked_div(block_size).unwrap_or(0);
    if blocks == 0 || slots == 0 || !(0.0..=1e6).contains(&seconds) {
        return Err(format!(
            "blocks of {block_size}, depth {slots}, {seconds} s on {} bytes: no work",
            device.size
        ));
    }
    let length = usize::try_from(block_size).map_err(|_| "blocks are too large".to_owned())?;
    let buffers: Result<Vec<Pages>, _> = (0..slots).map(|_| Pages::new(length)).collect();
    let buffers = buffers.map_err(|e| format!("cannot get memory: {e}"))?;
    // Declared after the buffers, so dropped before them: io_destroy waits for what is in flight.
    let mut queue = Queue::new(device.fd(), slots).map_err(|e| format!("cannot set up a queue: {e}"))?;

    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let (mut idle, mut flying, mut done) = ((0..slots).collect::<Vec<_>>(), 0, 0u64);
    loop {
        while let Some(slot) = idle.pop_if(|_| Instant::now() < end) {
            let at = next(blocks) * block_size;
            // SAFETY: the slot's buffer has `length` bytes, outlives the queue, and is not looked at.
            unsafe { queue.read(slot, buffers[slot].address(), length, at) }
                .map_err(|e| format!("a read at offset {at} could not be started: {e}"))?;
            flying += 1;
        }
        if flying == 0 {
            break;
        }
        for (slot, result) in queue.reap().map_err(|e| format!("cannot wait for reads: {e}"))? {
            match result {
                Ok(n) if n == length => {}
                Ok(n) => return Err(format!("a read of {length} bytes ended after {n}")),
                Err(error) => return Err(format!("a read failed: {error}")),
            }
            idle.push(slot);
            flying -= 1;
            done += 1;
        }
    }
    let took = start.elapsed().as_secs_f64();
    let (megabytes, rate) = ((done * block_size) as f64 / took / 1e6, done as f64 / took);
    Ok(format!("{path} {block} {depth}: {done} ios, {megabytes:.1} MB/s, {rate:.0} IOPS, {took:.3} s"))
}
