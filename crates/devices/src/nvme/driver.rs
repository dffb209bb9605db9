//! The guest's side: a small NVMe driver, for tests of the controller and for fuzzing.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use ::pci::fake::FakeServices;
use ::pci::{Address, Bus, DeviceNumber, Windows};
use memory::{Buffers, Gpa, GpaRange, Ram};
use parking_lot::Mutex;

use super::spec::{Command, Completion, PAGE, Status, admin, register};
use super::{Namespace, Nvme, NvmeOptions, data};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A machine with a controller in it, and what its driver knows.
pub struct Guest {
    /// The bus the controller sits on.
    pub bus: Bus,
    /// Where on the bus.
    pub address: Address,
    /// The guest's RAM, from address 0 on.
    pub ram: Arc<Ram>,
    /// The machine's side.
    pub services: Arc<FakeServices>,
    /// The controller itself.
    pub nvme: Arc<Nvme>,
    reports: Arc<Mutex<Vec<String>>>,
    next_cid: Cell<u16>,
}

impl Guest {
    /// Where the registers are.
    pub const BAR: u64 = 0x40_0000_0000;
    /// Where the MSI-X table is.
    pub const MSIX: u64 = Self::BAR + 0x10000;
    /// A page for data of admin commands.
    pub const PAGE: Gpa = Gpa(0x5000);
    /// From here on RAM is free for data; below lie queues.
    pub const DATA: Gpa = Gpa(0x20_0000);

    /// Plugs a controller in and enables its BARs. RAM is to reach beyond [`Guest::DATA`].
    pub fn new(namespaces: Vec<Namespace>, options: &NvmeOptions, ram: Arc<Ram>) -> Guest {
        let windows = Windows {
            memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
            memory64: GpaRange::new(Gpa(Self::BAR), 0x10_0000_0000),
            ports: (0xc000, 0xffff),
        };
        let services = Arc::new(FakeServices::default());
        let reports: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = reports.clone();
        let report = Arc::new(move |report: virtio::Message| sink.lock().push(report.to_string()));
        let bus = Bus::new(&windows);
        let address = bus.free_address(DeviceNumber::Shared).unwrap();
        let nvme = Nvme::new(namespaces, options, address, ram.clone(), services.clone(), &windows, report);
        let nvme = Arc::new(nvme.unwrap());
        bus.add(address, nvme.clone()).unwrap();
        let guest = Guest { bus, address, ram, services, nvme, reports, next_cid: Cell::new(0) };
        for (register, bar) in [(0x10, Self::BAR), (0x18, Self::MSIX)] {
            guest.config_write(register, &bar.to_le_bytes());
        }
        guest.config_write(4, &[6, 0]);
        guest
    }

    /// Writes configuration space.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        self.bus.write_config(self.address, offset, data).unwrap();
    }

    /// Reads configuration space.
    pub fn config_read<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read_config(self.address, offset, &mut data);
        data
    }

    /// Turns MSI-X on, with a message for each of the first `vectors` vectors.
    pub fn enable_msix(&self, vectors: u16) {
        let mut at = u16::from(self.config_read::<1>(0x34)[0]);
        while self.config_read::<1>(at)[0] != 0x11 {
            at = u16::from(self.config_read::<1>(at + 1)[0]);
            assert!(at != 0, "the function has no MSI-X");
        }
        for vector in 0..u64::from(vectors) {
            let entry = Self::MSIX + 16 * vector;
            self.write(entry, 0xfee0_0000u64.to_le_bytes());
            self.write(entry + 8, (0x4000 + vector).to_le_bytes());
        }
        self.config_write(at + 2, &0x8000u16.to_le_bytes());
    }

    /// Writes to a BAR.
    pub fn write<const N: usize>(&self, at: u64, data: [u8; N]) {
        self.bus.write_memory(Gpa(at), &data).unwrap().unwrap();
    }

    /// Writes a register of 32 bits.
    pub fn set(&self, register: u64, value: u32) {
        self.write(Self::BAR + register, value.to_le_bytes());
    }

    /// Reads a register of 32 bits.
    pub fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.bus.read_memory(Gpa(Self::BAR + register), &mut data));
        u32::from_le_bytes(data)
    }

    /// Waits until the bits of a register are as wanted.
    pub fn await_bits(&self, register: u64, mask: u32, value: u32) {
        let start = Instant::now();
        while self.get(register) & mask != value {
            assert!(start.elapsed() < ANSWER_LIMIT, "register {register:#x} stays {:#x}", self.get(register));
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Disables the controller and waits for that.
    pub fn disable(&self) {
        self.set(register::CC, 0);
        self.await_bits(register::CSTS, 1, 0);
    }

    /// Enables the controller with admin queues of 32 entries.
    pub fn enable(&self) -> Queue {
        let queue = Queue::at(0, 32);
        self.ram.zero(queue.submission, 0x2000).unwrap();
        self.ram.zero(queue.completion, 0x1000).unwrap();
        self.set(register::AQA, 31 << 16 | 31);
        for (register, at) in [(register::ASQ, queue.submission), (register::ACQ, queue.completion)] {
            self.write(Self::BAR + register, at.0.to_le_bytes());
        }
        self.set(register::CC, 4 << 20 | 6 << 16 | 1);
        self.await_bits(register::CSTS, 3, 1);
        queue
    }

    /// Puts a command into a queue, and rings the doorbell if that is wanted. Returns its identifier.
    pub fn submit(&self, queue: &mut Queue, command: Command) -> u16 {
        let cid = self.next_cid.get();
        self.next_cid.set(cid.wrapping_add(1) & 0x7fff);
        self.submit_as(queue, Command { cid: cid.into(), ..command });
        cid
    }

    /// The same with the identifier that the command has.
    pub fn submit_as(&self, queue: &mut Queue, command: Command) {
        let place = Gpa(queue.submission.0 + 64 * u64::from(queue.tail));
        self.ram.write_obj(place, &command).unwrap();
        let before = queue.tail;
        queue.tail = (queue.tail + 1) % queue.entries;
        let (after, register) = (queue.tail, register::DOORBELLS + 8 * u64::from(queue.id));
        self.ring(queue, before, after, register, 2 * u64::from(queue.id));
    }

    fn ring(&self, queue: &mut Queue, before: u32, after: u32, register: u64, place: u64) {
        if let Some((doorbells, events)) = queue.shadow {
            self.ram.write_obj(Gpa(doorbells.0 + 4 * place), &after).unwrap();
            fence(Ordering::SeqCst);
            let event: u32 = self.ram.read_obj(Gpa(events.0 + 4 * place)).unwrap();
            let passed =
                (after.wrapping_sub(event).wrapping_sub(1) as u16) < (after.wrapping_sub(before) as u16);
            if !passed {
                return;
            }
        }
        queue.rung += 1;
        self.set(register, after);
    }

    /// Takes the next completion, if there is one.
    pub fn take(&self, queue: &mut Queue) -> Option<Completion> {
        let completion = self.look(queue)?;
        let before = queue.head;
        queue.head += 1;
        if queue.head == queue.entries {
            (queue.head, queue.phase) = (0, queue.phase ^ 1);
        }
        let (after, register) = (queue.head, register::DOORBELLS + 8 * u64::from(queue.id) + 4);
        self.ring(queue, before, after, register, 2 * u64::from(queue.id) + 1);
        Some(completion)
    }

    /// The next completion without taking it.
    pub fn look(&self, queue: &Queue) -> Option<Completion> {
        let place = Gpa(queue.completion.0 + 16 * u64::from(queue.head));
        let status: u16 = self.ram.read_obj(Gpa(place.0 + 14)).unwrap();
        if status & 1 != queue.phase {
            return None;
        }
        fence(Ordering::SeqCst);
        Some(self.ram.read_obj(place).unwrap())
    }

    /// Waits for the next completion and takes it.
    pub fn wait(&self, queue: &mut Queue) -> Completion {
        let start = Instant::now();
        loop {
            if let Some(completion) = self.take(queue) {
                return completion;
            }
            assert!(start.elapsed() < ANSWER_LIMIT, "no completion in queue {}", queue.id);
            std::thread::yield_now();
        }
    }

    /// Submits a command and waits for its completion; returns status and dword 0.
    pub fn run(&self, queue: &mut Queue, command: Command) -> (u16, u32) {
        let cid = self.submit(queue, command);
        let completion = self.wait(queue);
        assert_eq!(completion.cid.get(), cid, "the answer to another command");
        (completion.status.get() >> 1 & 0x7ff, completion.result.get())
    }

    /// Runs an admin command with a page of data, and returns status and page.
    pub fn ask(&self, queue: &mut Queue, command: Command) -> (u16, Vec<u8>) {
        self.ram.write(Self::PAGE, &[0xa5; PAGE as usize]).unwrap();
        let command = Command { dptr: [Self::PAGE.0.into(), 0.into()], ..command };
        let (status, _) = self.run(queue, command);
        let mut page = vec![0; PAGE as usize];
        self.ram.read(Self::PAGE, &mut page).unwrap();
        (status, page)
    }

    /// Creates an I/O queue pair with number `id` (1 to 64) and up to 128 entries, with interrupts on vector `id`
    /// if that is wanted. Returns the first status that is no success.
    pub fn create_pair(
        &self,
        admin: &mut Queue,
        id: u16,
        entries: u32,
        vector: Option<u16>,
    ) -> Result<Queue, u16> {
        let queue = Queue::at(id, entries);
        self.ram.zero(queue.submission, 0x2000).unwrap();
        self.ram.zero(queue.completion, 0x1000).unwrap();
        let flags = vector.map_or(1, |vector| u32::from(vector) << 16 | 3);
        let create = |opcode, at: Gpa, flags: u32| Command {
            opcode,
            dptr: [at.0.into(), 0.into()],
            cdw10: (u32::from(id) | (entries - 1) << 16).into(),
            cdw11: flags.into(),
            ..Command::default()
        };
        for command in [
            create(admin::CREATE_CQ, queue.completion, flags),
            create(admin::CREATE_SQ, queue.submission, u32::from(id) << 16 | 1),
        ] {
            match self.run(admin, command).0 {
                0 => {}
                status => return Err(status),
            }
        }
        Ok(queue)
    }

    /// Runs an admin command that is all in dword 10 and 11.
    pub fn admin(&self, queue: &mut Queue, opcode: u8, cdw10: u32, cdw11: u32) -> (u16, u32) {
        let command = Command { opcode, cdw10: cdw10.into(), cdw11: cdw11.into(), ..Command::default() };
        self.run(queue, command)
    }

    /// Lets the controller look for doorbells of I/O queues in memory.
    pub fn share_doorbells(&self, admin: &mut Queue) -> (Gpa, Gpa) {
        let (doorbells, events) = (Gpa(0x8000), Gpa(0x9000));
        self.ram.zero(doorbells, 2 * PAGE).unwrap();
        let dptr = [doorbells.0.into(), events.0.into()];
        let command = Command { opcode: admin::DOORBELL_BUFFER, dptr, ..Command::default() };
        assert_eq!(self.run(admin, command).0, 0);
        (doorbells, events)
    }

    /// Where it is kept what is reported to people, for whoever outlives the guest.
    #[cfg(test)]
    pub(super) fn told(&self) -> &Arc<Mutex<Vec<String>>> {
        &self.reports
    }

    /// What was reported to people so far.
    pub fn reports(&self) -> Vec<String> {
        self.reports.lock().clone()
    }
}

/// A queue pair as its driver sees it.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Number.
    pub id: u16,
    /// Entries in each of the two.
    pub entries: u32,
    /// Where the submission queue lies.
    pub submission: Gpa,
    /// Where the completion queue lies.
    pub completion: Gpa,
    /// Pages with doorbells and event indices, if they are used.
    pub shadow: Option<(Gpa, Gpa)>,
    /// Doorbell registers written.
    pub rung: u64,
    tail: u32,
    head: u32,
    phase: u16,
}

impl Queue {
    /// The pair `id` at its place in RAM, at its beginning.
    pub fn at(id: u16, entries: u32) -> Queue {
        let base = if id == 0 { 0x1000 } else { 0x1_0000 + 0x4000 * u64::from(id) };
        Queue {
            id,
            entries,
            submission: Gpa(base),
            completion: Gpa(base + 0x2000),
            shadow: None,
            rung: 0,
            tail: 0,
            head: 0,
            phase: 1,
        }
    }
}

/// Makes buffers of what a command names as its data, as the controller does; or the status that it would answer.
pub fn gather(command: &Command, bytes: u64, ram: &Arc<Ram>) -> Result<Buffers, Status> {
    let mut buffers = Buffers::new(ram.clone());
    data::gather(command, bytes, ram, &mut buffers)?;
    Ok(buffers)
}

/// A read, write, compare or write of zeroes, with data by two PRPs.
pub fn io(opcode: u8, nsid: u32, lba: u64, blocks: u32, prps: [u64; 2]) -> Command {
    Command {
        opcode,
        nsid: nsid.into(),
        dptr: prps.map(Into::into),
        cdw10: (lba as u32).into(),
        cdw11: ((lba >> 32) as u32).into(),
        cdw12: (blocks - 1).into(),
        ..Command::default()
    }
}
