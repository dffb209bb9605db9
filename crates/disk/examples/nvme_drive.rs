//! Takes an NVMe controller from this host and drives it without a guest: for the lab.
//!
//! `nvme_drive ADDRESS [TIMES]`: reads the whole first namespace and prints its SHA-256, then opens the controller
//! TIMES times anew (12), writes patterns to it and reads them back, and gives it back to its driver. The patterns lie
//! in the first MiB.

use std::sync::Arc;
use std::time::Instant;

use disk::nvme::{NvmeController, NvmeOptions};
use disk::{Disk, DiskQueue, Durability, Event, Operation, Request, Sectors};
use dma::vfio::Group;
use dma::{Domain, Kind};
use host::{Host, PciAddress, PciDevice};
use memory::{Buffers, Gpa, MemoryMap, Ram, ram_ranges};
use sha2::{Digest, Sha256};

type Failure = Box<dyn std::error::Error>;

const CHUNK: u64 = 1 << 20;

struct Driver {
    ram: Arc<Ram>,
    disk: Disk,
    queue: DiskQueue,
}

impl Driver {
    fn open(
        domain: &Arc<Domain>,
        group: u32,
        address: PciAddress,
        ram: &Arc<Ram>,
    ) -> Result<Driver, Failure> {
        let device = domain.open_device(group, &address.to_string())?;
        let options = NvmeOptions::new(Arc::new(|trouble| println!("trouble: {trouble}")));
        let controller = NvmeController::new(&device, domain, options)?;
        println!("{:?}, namespaces {:?}", controller.data(), controller.namespaces()?);
        let disk = Disk::new(address.to_string(), Box::new(controller.namespace(1)?));
        let queue = disk.prepare_queue(64)?.start()?;
        Ok(Driver { ram: ram.clone(), disk, queue })
    }

    /// Runs operations of `len` bytes each, all at once, the data of number n at GPA n * `len`.
    fn run(&mut self, operations: &[Operation], len: u64) -> Result<(), Failure> {
        for (tag, operation) in (0..).zip(operations) {
            let mut buffers = Buffers::new(self.ram.clone());
            if len > 0 {
                buffers.push(Gpa(tag * len), len)?;
            }
            self.queue.submit(Request { tag, operation: *operation, buffers })?;
        }
        let mut events = Vec::new();
        while self.queue.under_way() > 0 {
            self.queue.wait(&mut events)?;
            for event in events.drain(..) {
                if let Event::Done { operation, result, .. } = event {
                    result.map_err(|error| format!("{operation}: {error}"))?;
                }
            }
        }
        Ok(())
    }

    fn sum(&mut self) -> Result<String, Failure> {
        let capacity = self.disk.geometry().capacity.0;
        let mut sum = Sha256::new();
        let mut bytes = vec![0; CHUNK as usize];
        for at in (0..capacity).step_by(CHUNK as usize / 512) {
            let len = CHUNK.min((capacity - at) * 512);
            self.run(&[Operation::Read { at: Sectors(at) }], len)?;
            self.ram.read(Gpa(0), &mut bytes[..len as usize])?;
            sum.update(&bytes[..len as usize]);
        }
        Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// 64 writes of 4 KiB at once with something that only this round writes, then the same to read.
    fn patterns(&mut self, round: u64) -> Result<(), Failure> {
        let bytes = |tag: u64| -> Vec<u8> {
            (0..512)
                .flat_map(|i| (i ^ tag << 20 ^ round << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
                .collect()
        };
        for tag in 0..64 {
            self.ram.write(Gpa(tag * 4096), &bytes(tag))?;
        }
        let places: Vec<Sectors> = (0..64).map(|tag| Sectors((tag * 37 + round) % 64 * 8)).collect();
        let durability = Durability::Cached;
        let writes: Vec<Operation> =
            places.iter().map(|at| Operation::Write { at: *at, durability }).collect();
        self.run(&writes, 4096)?;
        self.run(&[Operation::Flush], 0)?;
        self.ram.zero(Gpa(0), 64 * 4096)?;
        let reads: Vec<Operation> = places.iter().map(|at| Operation::Read { at: *at }).collect();
        self.run(&reads, 4096)?;
        for tag in 0..64 {
            let mut back = vec![0; 4096];
            self.ram.read(Gpa(tag * 4096), &mut back)?;
            if back != bytes(tag) {
                return Err(format!(
                    "round {round}: what was written to {} is not there",
                    places[tag as usize]
                )
                .into());
            }
        }
        Ok(())
    }

    fn speed(&mut self, depth: u64, reads: u64) -> Result<(), Failure> {
        let begin = Instant::now();
        for round in 0..reads / depth {
            let operations: Vec<Operation> = (0..depth)
                .map(|i| Operation::Read { at: Sectors((round * depth + i) * 7919 % 30000 * 8) })
                .collect();
            self.run(&operations, 4096)?;
        }
        println!(
            "{reads} reads of 4 KiB at depth {depth}: {:.0}/s",
            reads as f64 / begin.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address: PciAddress = arguments.next().ok_or("usage: nvme_drive ADDRESS [TIMES]")?.parse()?;
    let times: u64 = arguments.next().map_or(Ok(12), |times| times.parse())?;
    let host = Host::here();
    let device = PciDevice::open(&host, address)?;
    let group = device.group.ok_or("no IOMMU group")?;
    let bound = host.bind_to_vfio(&device)?;
    let ram = Arc::new(Ram::new(&ram_ranges(64 << 20))?);
    let map = MemoryMap::new(ram.clone());
    let domain = Domain::type1("host", Kind::Host, vec![Group::open(group)?])?;
    map.attach(domain.clone())?;
    for round in 0..times {
        let mut driver = Driver::open(&domain, group, address, &ram)?;
        if round == 0 {
            domain.mappings().iter().for_each(|row| println!("{row}"));
            println!("{:?}", driver.disk.geometry());
            println!("sum {}", driver.sum()?);
            driver.speed(1, 2000)?;
            driver.speed(16, 8000)?;
        }
        driver.patterns(round)?;
        println!("round {round}: {:?}", driver.disk.counters());
    }
    assert_eq!(domain.mappings().len(), 1, "the queues are unmapped");
    let mirror: Arc<dyn memory::Mirror> = domain.clone();
    map.detach(&mirror)?;
    drop((mirror, domain));
    bound.give_back()?;
    println!("given back: {}", PciDevice::open(&host, address)?);
    Ok(())
}
