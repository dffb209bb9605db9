//! How fast a disk reads, and loads of so many transfers between the marks of those who count.

use std::time::{Duration, Instant};

use lab::count::{LOAD_BEGINS, LOAD_ENDS, mark};

use crate::aio::Queue;
use crate::buffer::Pages;
use crate::device::Device;
use crate::{mix, number, size};

/// Reads blocks from anywhere on the disk.
pub fn random(path: &str, block: &str, depth: &str, seconds: &str, seed: &str) -> Result<String, String> {
    let load = Load::new(path, block, depth, Direction::Read)?;
    load.run(Goal::seconds(seconds)?, anywhere(number("seed", seed)?))
}

/// Reads block after block, from the start again after the last.
pub fn sequential(path: &str, block: &str, depth: &str, seconds: &str) -> Result<String, String> {
    Load::new(path, block, depth, Direction::Read)?.run(Goal::seconds(seconds)?, one_after_the_other())
}

/// Moves so many blocks, between the marks of a load.
pub fn counted(kind: &str, path: &str, block: &str, depth: &str, times: &str) -> Result<String, String> {
    let direction = if kind.ends_with("write") { Direction::Write } else { Direction::Read };
    let load = Load::new(path, block, depth, direction)?;
    let goal = Goal::Transfers(number("times", times)?);
    mark::<LOAD_BEGINS>();
    let done = match kind {
        "randread" | "randwrite" => load.run(goal, anywhere(1)),
        "seqread" | "seqwrite" => load.run(goal, one_after_the_other()),
        _ => Err(format!("there is no load {kind:?}")),
    };
    mark::<LOAD_ENDS>();
    done
}

/// Blocks from anywhere, in an order that follows from the seed.
fn anywhere(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut count = 0;
    move |blocks| {
        count += 1;
        mix(seed ^ mix(count)) % blocks
    }
}

/// Block after block, from the start again after the last.
fn one_after_the_other() -> impl FnMut(u64) -> u64 {
    let mut next = 0;
    move |blocks| {
        next += 1;
        (next - 1) % blocks
    }
}

/// When a load is over.
#[derive(Clone, Copy)]
enum Goal {
    Time(Duration),
    Transfers(u64),
}

impl Goal {
    fn seconds(text: &str) -> Result<Goal, String> {
        let seconds: f64 = number("time", text)?;
        if !(0.0..=1e6).contains(&seconds) {
            return Err(format!("{seconds} s is no time for a load"));
        }
        Ok(Goal::Time(Duration::from_secs_f64(seconds)))
    }

    fn is_reached(self, start: Instant, begun: u64) -> bool {
        match self {
            Goal::Time(time) => start.elapsed() >= time,
            Goal::Transfers(number) => begun >= number,
        }
    }
}

/// Which way the blocks go.
#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// Transfers of blocks, several at once.
struct Load<'a> {
    words: [&'a str; 3],
    device: Device,
    direction: Direction,
    block: u64,
    // Dropped before the buffers: io_destroy waits for what is in flight.
    queue: Queue,
    buffers: Vec<Pages>,
}

impl<'a> Load<'a> {
    fn new(path: &'a str, block: &'a str, depth: &'a str, direction: Direction) -> Result<Load<'a>, String> {
        let words = [path, block, depth];
        let device = Device::open(path, matches!(direction, Direction::Write))?;
        let block = size(block)?;
        let depth: usize = number("depth", depth)?;
        if device.size.checked_div(block).unwrap_or(0) == 0 || depth == 0 {
            return Err(format!("blocks of {block}, depth {depth} on {} bytes: no work", device.size));
        }
        let length = usize::try_from(block).map_err(|_| "blocks are too large".to_owned())?;
        let buffers: Result<Vec<Pages>, _> = (0..depth).map(|_| Pages::new(length)).collect();
        let buffers = buffers.map_err(|e| format!("cannot get memory: {e}"))?;
        let queue = Queue::new(device.fd(), depth).map_err(|e| format!("cannot set up a queue: {e}"))?;
        Ok(Load { words, device, direction, block, queue, buffers })
    }

    /// Keeps all buffers in flight until the goal is reached; what came of it, in one line.
    fn run(mut self, goal: Goal, mut next: impl FnMut(u64) -> u64) -> Result<String, String> {
        let (blocks, length) = (self.device.size / self.block, self.block as usize);
        let start = Instant::now();
        let (mut idle, mut begun, mut done) = ((0..self.buffers.len()).collect::<Vec<_>>(), 0u64, 0u64);
        loop {
            while let Some(slot) = idle.pop_if(|_| !goal.is_reached(start, begun)) {
                self.begin(slot, length, next(blocks) * self.block)?;
                begun += 1;
            }
            if begun == done {
                break;
            }
            for (slot, result) in self.queue.reap().map_err(|e| format!("cannot wait for transfers: {e}"))? {
                match result {
                    Ok(n) if n == length => {}
                    Ok(n) => return Err(format!("a transfer of {length} bytes ended after {n}")),
                    Err(error) => return Err(format!("a transfer failed: {error}")),
                }
                idle.push(slot);
                done += 1;
            }
        }
        let took = start.elapsed().as_secs_f64();
        let (megabytes, rate) = ((done * self.block) as f64 / took / 1e6, done as f64 / took);
        let words = self.words.join(" ");
        Ok(format!("{words}: {done} ios, {megabytes:.1} MB/s, {rate:.0} IOPS, {took:.3} s"))
    }

    fn begin(&mut self, slot: usize, length: usize, at: u64) -> Result<(), String> {
        let buffer = self.buffers[slot].address();
        // SAFETY: the slot's buffer has `length` bytes, outlives the queue, is not looked at and not changed.
        let begun = unsafe {
            match self.direction {
                Direction::Read => self.queue.read(slot, buffer, length, at),
                Direction::Write => self.queue.write(slot, buffer, length, at),
            }
        };
        begun.map_err(|e| format!("a transfer at offset {at} could not be started: {e}"))
    }
}
