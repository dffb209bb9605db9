//! A lying NVMe controller against the host driver: identify data and completions of any kind. The driver must not
//! panic or hang, must answer every request once, and must leave nothing mapped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::nvme::model::{Fault, Model, Namespace};
use disk::nvme::{NvmeController, NvmeOptions};
use disk::{Disk, DiskQueue, Durability, Event, Operation, Request, SectorRange, Sectors, Unmap};
use dma::Kind;
use dma::fake::FakeIommu;
use memory::{Buffers, Gpa, GpaRange, MemoryMap, Ram};

use crate::steps::Steps;

const RAM: u64 = 1 << 20;
const DEPTH: u16 = 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let iommu = FakeIommu::new();
    let domain = iommu.domain("host", Kind::Host);
    let ram = Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("1 MiB");
    let map = MemoryMap::new(Arc::new(ram));
    map.attach(domain.clone()).expect("an empty domain takes the RAM");
    let block = if steps.u8() & 1 == 0 { 512 } else { 4096 };
    let model = Model::new(&iommu, vec![Namespace { bytes: 256 << 10, block }]);
    for which in [None, Some(1)] {
        // Identify data: as it should be, but for some bytes, or what the input says.
        if steps.u8() & 3 == 3 {
            let data: Vec<u8> = (0..600).map(|_| steps.u8()).collect();
            model.set_identify(which, &data);
        }
    }
    let options = NvmeOptions {
        queues: 2,
        admin_timeout: Duration::from_millis(100),
        io_timeout: Duration::from_millis(16),
        ..NvmeOptions::new(Arc::new(|trouble| drop(trouble.to_string())))
    };
    if let Ok(controller) = NvmeController::over(model.function(), &domain, options)
        && let Ok(namespace) = controller.namespace(1)
    {
        let disk = Disk::new("nvme", Box::new(namespace));
        if let Ok(queue) = disk.prepare_queue(DEPTH) {
            let queue = queue.start().expect("any thread may start it");
            drive(&mut steps, &model, &map, queue);
        }
    }
    assert_eq!(domain.mappings().len(), 1, "only the RAM is mapped in the end");
}

fn drive(steps: &mut Steps<'_>, model: &Model, map: &MemoryMap, mut queue: DiskQueue) {
    let (mut sent, mut answered, mut silent) = (0u64, Vec::new(), 0);
    let mut left = 60;
    while let Some(step) = steps.next_step() {
        match step & 0x3f {
            0..8 => {
                let mut bytes = [0; 16];
                bytes.iter_mut().for_each(|byte| *byte = steps.u8());
                if step & 0x40 == 0 {
                    bytes[13] = 0;
                }
                model.inject([Fault::Garbage(bytes)]);
            }
            8..14 => model.inject([Fault::Status(steps.u16() & 0x7fff)]),
            14..16 if silent < 3 => {
                silent += 1;
                model.inject([if step & 0x40 == 0 { Fault::Silence } else { Fault::Deafness }]);
            }
            16 => model.inject([Fault::Removal]),
            17 => model.ask_back(),
            18..26 => model.inject([Fault::None]),
            26..32 => queue.poll(&mut answered).expect("the kernel's part works"),
            _ => {
                let mut buffers = Buffers::new(map.ram());
                for _ in 0..1 + steps.u8() % 3 {
                    let (at, len) =
                        (u64::from(steps.u16()) * 8 + u64::from(step >> 7), u64::from(steps.u16()));
                    // What is outside is nobody's concern here.
                    buffers.push(Gpa(at), len & !(u64::from(steps.u8() & 1) * 511)).ok();
                }
                let at = Sectors(steps.u8().into());
                let range = SectorRange { start: at, count: Sectors(steps.u8().into()) };
                let operation = match steps.u8() % 8 {
                    0..3 => Operation::Read { at },
                    3..5 => Operation::Write { at, durability: Durability::Stable },
                    5 => Operation::Flush,
                    6 => Operation::Discard(range),
                    _ => Operation::WriteZeroes(range, Unmap::Allowed),
                };
                sent += u64::from(queue.submit(Request { tag: sent, operation, buffers }).is_ok());
            }
        }
        left -= 1;
        if left == 0 {
            break;
        }
    }
    let begin = Instant::now();
    while queue.under_way() > 0 {
        assert!(begin.elapsed() < PATIENCE, "{} requests are not answered", queue.under_way());
        queue.wait(&mut answered).expect("the kernel's part works");
    }
    let mut tags: Vec<u64> = answered
        .iter()
        .filter_map(|event| if let Event::Done { tag, .. } = event { Some(*tag) } else { None })
        .collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..sent).collect::<Vec<_>>(), "each request is answered once");
}
