//! A disk that is driven by hand.

use disk::{DiskError, DiskQueue};

use super::*;

/// A disk with a queue, and RAM for its requests.
pub struct Bench {
    pub ram: Arc<Ram>,
    pub disk: Disk,
    pub queue: DiskQueue,
}

impl Subject {
    pub fn bench(&self) -> Bench {
        self.bench_with(Access::ReadWrite)
    }

    pub fn bench_with(&self, access: Access) -> Bench {
        let ram = ram(16 << 20);
        Bench::over(self.open(&ram, access), ram)
    }
}

pub fn ram(bytes: u64) -> Arc<Ram> {
    Arc::new(Ram::new(&[GpaRange::new(Gpa(0), bytes).unwrap()]).unwrap())
}

impl Bench {
    pub fn open(options: &DiskOptions) -> Bench {
        Bench::over(Disk::open(options).unwrap(), ram(16 << 20))
    }

    pub fn over(disk: Disk, ram: Arc<Ram>) -> Bench {
        let queue = disk.prepare_queue(32).unwrap().start().unwrap();
        Bench { ram, disk, queue }
    }

    pub fn buffers(&self, pieces: &[(u64, u64)]) -> Buffers {
        let mut buffers = Buffers::new(self.ram.clone());
        pieces.iter().for_each(|(gpa, len)| buffers.push(Gpa(*gpa), *len).unwrap());
        buffers
    }

    pub fn run(&mut self, operation: Operation, pieces: &[(u64, u64)]) -> Result<(), DiskError> {
        let buffers = self.buffers(pieces);
        if let Err(refused) = self.queue.submit(Request { tag: 7, operation, buffers }) {
            return Err(refused.error);
        }
        let mut events = Vec::new();
        self.wait(&mut events);
        match events.pop() {
            Some(Event::Done { tag: 7, result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until there is an event. Signals, and what a ring that ended on this thread leaves to do, may end a single
    /// wait without any.
    pub fn wait(&mut self, events: &mut Vec<Event>) {
        while events.is_empty() {
            self.queue.wait(events).unwrap();
        }
    }

    pub fn fill(&self, gpa: u64, len: usize, seed: u8) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 512 + i) as u8 ^ seed).collect();
        self.ram.write(Gpa(gpa), &bytes).unwrap();
        bytes
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }
}

pub fn read(at: u64) -> Operation {
    Operation::Read { at: Sectors(at) }
}

pub fn write(at: u64) -> Operation {
    Operation::Write { at: Sectors(at), durability: Durability::Cached }
}
