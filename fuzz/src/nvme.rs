//! A hostile driver against the NVMe controller, through registers, admin and I/O queues. It must not panic or hang,
//! must answer while it is treated well, may write to RAM only where it was told, and works again after a reset.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use devices::nvme::driver::{Guest, Queue, io};
use devices::nvme::spec::{self, Command, admin, register};
use devices::{Namespace, NvmeOptions};
use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};
use zerocopy::FromBytes;

use crate::steps::Steps;

const RAM: u64 = Guest::DATA.0 + (1 << 20);
/// PRP lists and SGLs lie in the first pages from [`Guest::DATA`] on; data behind them, up to here. Nothing is told to
/// write beyond.
const GUARD: u64 = Guest::DATA.0 + (512 << 10);
const LISTS: u64 = 0x4000;
/// What RAM holds where nobody wrote.
const UNTOUCHED: u8 = 0xa5;
const DISK: u64 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// The disks, for all inputs; and their files, to empty them.
fn disks() -> Vec<Arc<Disk>> {
    static SHARED: OnceLock<Vec<(Arc<Disk>, File)>> = OnceLock::new();
    let make = |_| {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(DISK).expect("room for the disk");
        let disk = Disk::open(&DiskOptions::new(file.path())).expect("a raw disk");
        // The name goes at once, the disk stays open.
        (Arc::new(disk), file.into_file())
    };
    let disks = SHARED.get_or_init(|| (0..2).map(make).collect());
    for (_, file) in disks {
        file.write_all_at(&[0; DISK as usize], 0).expect("room for the disk");
    }
    disks.iter().map(|(disk, _)| disk.clone()).collect()
}

/// A driver and what it knows of its controller.
struct Driver {
    guest: Guest,
    /// Admin queues and two pairs, when the controller was set up; with how many commands wait for an answer.
    queues: Vec<(Queue, u32)>,
    /// Set up as it should be and not meddled with since: it must answer.
    sane: bool,
    /// The controller was told to write anywhere.
    wild: bool,
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let namespaces = disks().into_iter().map(Namespace::new).collect();
    let ram = Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("3 MiB");
    ram.write(Gpa(GUARD), &vec![UNTOUCHED; (RAM - GUARD) as usize]).expect("RAM");
    let options = NvmeOptions { queues: 2, ..NvmeOptions::new("disk0") };
    let guest = Guest::new(namespaces, &options, Arc::new(ram));
    let mut driver = Driver { guest, queues: Vec::new(), sane: false, wild: false };
    // Each step may cost a system call or a thread.
    let mut left = 150;
    while let Some(step) = steps.next_step() {
        driver.step(step, &mut steps);
        left -= 1;
        if left == 0 {
            break;
        }
    }
    driver.end();
}

impl Driver {
    fn step(&mut self, step: u8, steps: &mut Steps<'_>) {
        match step {
            0..24 => self.set_up(step & 1 != 0),
            24..100 => self.io(steps),
            100..140 => self.admin(steps),
            140..160 => self.list(steps),
            160..176 => self.settle(),
            176..188 => {
                // A command of any bytes.
                let mut raw = [0; 64];
                let bytes = steps.bytes(64);
                raw[..bytes.len()].copy_from_slice(bytes);
                let command = Command::read_from_bytes(&raw).expect("as many bytes as a command has");
                let queue = usize::from(step) % 3;
                (self.sane, self.wild) = (false, true);
                self.submit(queue, command);
            }
            188..200 => {
                // A register.
                (self.sane, self.wild) = (false, true);
                let (offset, data) = (u64::from(steps.u8() % 0x40), steps.access());
                self.poke(Guest::BAR + offset, data);
            }
            200..216 => {
                // A doorbell. What is behind it are commands of before, or zeroes.
                self.sane = false;
                let (place, value) = (u64::from(steps.u8() % 8), u32::from(steps.u8() % 40));
                self.poke(Guest::BAR + register::DOORBELLS + 4 * place, &value.to_le_bytes());
            }
            216..224 => {
                // The pages of shadow doorbells.
                self.sane = false;
                let at = Gpa(0x8000 + u64::from(steps.u8() % 24) + u64::from(steps.u8() & 1) * 0x1000);
                self.put(at, steps.access());
            }
            224..232 => {
                let (offset, data) = (u64::from(steps.u16() % 0x1000), steps.access());
                self.poke(Guest::MSIX + offset, data);
            }
            232..244 => {
                let (offset, data) = (steps.u16() % 0x200, steps.access());
                self.sane = false;
                let written = self.guest.bus.write_config(self.guest.address, offset, data);
                written.expect("the services never fail");
            }
            244..250 => {
                let len = steps.access().len();
                let at = Guest::BAR + u64::from(steps.u16());
                self.guest.bus.read_memory(Gpa(at), &mut [0; 8][..len]);
            }
            250..252 => self.guest.nvme.namespace_changed(steps.u8().into()),
            252..254 => {
                // Off, and at once on again or not.
                self.sane = false;
                self.poke(Guest::BAR + register::CC, &[0; 4]);
                if step & 1 != 0 {
                    self.poke(Guest::BAR + register::CC, &0x0046_0001u32.to_le_bytes());
                }
            }
            _ => self.reset(),
        }
    }

    fn put(&self, at: Gpa, bytes: &[u8]) {
        self.guest.ram.write(at, bytes).expect("the places of this driver are RAM");
    }

    /// Writes to a BAR, if one is there.
    fn poke(&self, at: u64, data: &[u8]) {
        if let Some(Err(why)) = self.guest.bus.write_memory(Gpa(at), data) {
            panic!("a service failed that never does: {why}");
        }
    }

    fn reset(&mut self) {
        self.sane = false;
        self.queues.clear();
        let errors = self.guest.bus.reset();
        assert!(errors.is_empty(), "{errors:?}");
        for (register, bar) in [(0x10, Guest::BAR), (0x18, Guest::MSIX)] {
            self.guest.config_write(register, &bar.to_le_bytes());
        }
        self.guest.config_write(4, &[6, 0]);
    }

    /// Everything that a driver does first, as it should.
    fn set_up(&mut self, shadow: bool) {
        if self.wild {
            // Who knows what is written where meanwhile.
            return;
        }
        self.reset();
        let guest = &self.guest;
        let mut admin = guest.enable();
        let pages = shadow.then(|| guest.share_doorbells(&mut admin));
        let mut pair = |id| {
            let mut queue = guest.create_pair(&mut admin, id, 16, Some(id)).expect("a possible pair");
            queue.shadow = pages;
            (queue, 0)
        };
        let pairs = [pair(1), pair(2)];
        self.queues = vec![(admin, 0)];
        self.queues.extend(pairs);
        self.sane = true;
    }

    /// Submits a command, if there is room.
    fn submit(&mut self, queue: usize, command: Command) {
        let Some((queue, waiting)) = self.queues.get_mut(queue) else { return };
        if *waiting + 1 >= queue.entries {
            return;
        }
        if self.sane {
            self.guest.submit(queue, command);
            *waiting += 1;
        } else {
            let at = Gpa(queue.submission.0 + 64 * u64::from(command.cid.get() % 16));
            self.guest.ram.write_obj(at, &command).expect("RAM");
            let doorbell = Guest::BAR + register::DOORBELLS + 8 * u64::from(queue.id);
            let tail = u32::from(command.cid.get() % 16 + 1) % queue.entries;
            self.poke(doorbell, &tail.to_le_bytes());
        }
    }

    /// An address: of data or of lists, or of anything.
    fn address(&mut self, steps: &mut Steps<'_>) -> u64 {
        let (data, size) = (Guest::DATA.0, GUARD - Guest::DATA.0);
        match steps.u8() % 32 {
            0..12 => data + LISTS + u64::from(steps.u8()) % ((size - LISTS) / 4096) * 4096,
            12..22 => data + u64::from(steps.u16()) % LISTS / 8 * 8,
            22..31 => data + LISTS + u64::from(steps.u16()) * 4 % (size - LISTS - 0x2000),
            _ => {
                self.wild = true;
                steps.u64()
            }
        }
    }

    fn io(&mut self, steps: &mut Steps<'_>) {
        let opcode = steps.pick(&[
            spec::io::READ,
            spec::io::WRITE,
            spec::io::COMPARE,
            spec::io::WRITE_ZEROES,
            spec::io::DATASET_MANAGEMENT,
            spec::io::FLUSH,
            0x0c,
        ]);
        let choice = steps.u8();
        let nsid = [1, 2, 1, 2, 0, 3, u32::MAX, 1][usize::from(choice & 7)];
        let lba = if choice & 8 == 0 { u64::from(steps.u16() % 512) } else { steps.u64() };
        let blocks = if choice & 16 == 0 { u32::from(steps.u8()) + 1 } else { u32::from(steps.u16()) + 1 };
        let prps = [self.address(steps), self.address(steps)];
        let mut command = io(opcode, nsid, lba, blocks, prps);
        if choice & 32 != 0 {
            // A scatter gather list: data, or a segment in the lists.
            command.flags = 1 << 6;
            let kind = steps.pick(&[0u64, 0x20, 0x30]);
            let len = u64::from(steps.u16() % 0x1000);
            command.dptr[1] = (len | kind << 56).into();
        }
        if choice & 64 != 0 {
            command.cdw12 = (command.cdw12.get() | steps.u32() & 0xffff_0000).into();
        }
        command.cdw13 = 0.into();
        if opcode == spec::io::DATASET_MANAGEMENT {
            command.cdw10 = u32::from(steps.u8()).into();
            command.cdw11 = u32::from(choice >> 5 & 7).into();
        }
        self.submit(1 + usize::from(choice >> 7), command);
    }

    fn admin(&mut self, steps: &mut Steps<'_>) {
        let opcode = steps.pick(&[
            admin::IDENTIFY,
            admin::GET_LOG_PAGE,
            admin::GET_FEATURES,
            admin::SET_FEATURES,
            admin::ABORT,
            admin::ASYNC_EVENT,
            admin::CREATE_CQ,
            admin::CREATE_SQ,
            admin::DELETE_SQ,
            admin::DELETE_CQ,
            admin::DOORBELL_BUFFER,
            admin::KEEP_ALIVE,
        ]);
        // Queues that come and go, and events that come late, are answered or not.
        if opcode >= admin::DOORBELL_BUFFER || opcode <= admin::CREATE_CQ && opcode != admin::GET_LOG_PAGE {
            self.sane = false;
            // They lie wherever the input says.
            self.wild |= !matches!(opcode, admin::DELETE_CQ | admin::DELETE_SQ);
        }
        if opcode == admin::ASYNC_EVENT {
            self.sane = false;
        }
        let dptr = [self.address(steps).into(), self.address(steps).into()];
        let command = Command {
            opcode,
            cid: u16::from(steps.u8()).into(),
            nsid: u32::from(steps.u8() % 4).into(),
            dptr,
            cdw10: steps.u32().into(),
            cdw11: u32::from(steps.u16()).into(),
            cdw12: u32::from(steps.u16()).into(),
            ..Command::default()
        };
        self.submit(0, command);
    }

    /// Writes an entry of a list: an address, or the other half of an SGL descriptor.
    fn list(&mut self, steps: &mut Steps<'_>) {
        let at = Gpa(Guest::DATA.0 + u64::from(steps.u16()) % LISTS / 8 * 8);
        let entry = match steps.u8() & 3 {
            0..3 => self.address(steps),
            _ => u64::from(steps.u16() % 0x1000) | u64::from(steps.pick(&[0u8, 0x20, 0x30])) << 56,
        };
        self.put(at, &entry.to_le_bytes());
        // What is written here while a list is walked, and what a disk's data may look like, are entries too.
        self.wild |= !self.queues.is_empty() && self.queues.iter().any(|(_, waiting)| *waiting > 0);
    }

    /// Waits for all answers, if the controller owes any.
    fn settle(&mut self) {
        if !self.sane || self.wild {
            return;
        }
        for (queue, waiting) in &mut self.queues {
            let start = Instant::now();
            while *waiting > 0 {
                if self.guest.take(queue).is_some() {
                    *waiting -= 1;
                    continue;
                }
                assert!(start.elapsed() < PATIENCE, "queue {}: {waiting} commands unanswered", queue.id);
                std::thread::yield_now();
            }
        }
    }

    /// Looks at what the controller wrote, and whether it can still be used.
    fn end(mut self) {
        self.settle();
        self.reset();
        if !self.wild {
            let mut guard = vec![0; (RAM - GUARD) as usize];
            self.guest.ram.read(Gpa(GUARD), &mut guard).expect("RAM");
            let stray = guard.iter().position(|byte| *byte != UNTOUCHED);
            assert_eq!(stray.map(|at| Gpa(GUARD + at as u64)), None, "written without having been given");
        }
        self.wild = false;
        self.set_up(false);
        let (queue, _) = &mut self.queues[1];
        let (status, _) = self.guest.run(queue, io(spec::io::READ, 2, 0, 1, [Guest::DATA.0, 0]));
        assert_eq!(status, 0, "the controller does not work any more");
    }
}
