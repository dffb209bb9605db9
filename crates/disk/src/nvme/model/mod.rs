//! A controller in software, for tests: it obeys its registers, reaches memory only through a model of an IOMMU, and
//! fails where it is told to.

mod media;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dma::Iova;
use dma::fake::FakeIommu;
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::function::{Function, FunctionError};
use media::Media;
pub use media::Namespace;
use nvme_spec::{
    Capabilities, Command, Completion, Configuration, ControllerStatus, PAGE, Status, admin, register,
};

/// 1024 entries at most, contiguous, 500 ms.
const CAPABILITIES: u64 =
    0x3ff | Capabilities::CONTIGUOUS | 1 << Capabilities::TIMEOUT_SHIFT | Capabilities::NVM;

/// What goes wrong with the next I/O command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is answered with this status (SC, SCT and DNR, as [`super::Status`] has them) and not carried out.
    Status(u16),
    /// It is never answered, but can be aborted.
    Silence,
    /// It is never answered, and cannot be aborted.
    Deafness,
    /// These bytes are the completion, but for the phase tag.
    Garbage([u8; 16]),
    /// The device is pulled out.
    Removal,
    /// Its registers read as all ones from now on, although it is still there.
    Blindness,
}

/// What is wrong with the controller itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Defects {
    /// It never becomes ready.
    pub never_ready: bool,
    /// It ignores CC.EN = 0, but for a reset of the function.
    pub never_stops: bool,
    /// It does not answer this admin opcode.
    pub ignores: Option<u8>,
    /// It carries this admin opcode out and does not answer it.
    pub conceals: Option<u8>,
    /// It refuses these admin opcodes.
    pub refuses: &'static [u8],
    /// It grants no more I/O queues than this, when it is not 0.
    pub grants: u16,
    /// It never completes a shutdown.
    pub never_shuts_down: bool,
    /// It cannot be forbidden to do DMA.
    pub keeps_bus_master: bool,
    /// It raises no interrupts.
    pub mute: bool,
}

/// The controller, as tests see it.
#[derive(Clone)]
pub struct Model(Arc<Mutex<State>>);

/// What the driver has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    /// I/O commands taken.
    pub commands: u64,
    /// Writes to doorbells of I/O submission queues.
    pub doorbells: u64,
    /// Times that the controller was enabled.
    pub enabled: u64,
    /// Resets of the function.
    pub resets: u64,
    /// Aborts.
    pub aborts: u64,
    /// Orderly shutdowns.
    pub shutdowns: u64,
    /// I/O queue pairs that exist.
    pub queues: usize,
    /// It may do DMA.
    pub bus_master: bool,
}

struct State {
    iommu: FakeIommu,
    media: Media,
    defects: Defects,
    faults: VecDeque<Fault>,
    seen: Seen,
    gone: bool,
    blind: bool,
    bus_master: bool,
    vectors: Vec<EventFd>,
    /// Vectors count only when they were enabled before the controller was, as in some emulated ones.
    counted: bool,
    removal: Option<EventFd>,
    cc: u32,
    csts: u32,
    registers: BTreeMap<u64, u32>,
    submissions: BTreeMap<u16, Submission>,
    completions: BTreeMap<u16, Completions>,
    /// Commands that are not answered: queue, identifier, and whether they can be aborted.
    pending: Vec<(u16, u16, bool)>,
}

struct Submission {
    at: u64,
    entries: u16,
    head: u16,
    completions: u16,
}

struct Completions {
    at: u64,
    entries: u16,
    tail: u16,
    phase: u16,
    vector: Option<u16>,
}

impl Model {
    /// A controller that reaches memory through `iommu`, with namespaces numbered from 1.
    pub fn new(iommu: &FakeIommu, namespaces: Vec<Namespace>) -> Model {
        Model(Arc::new(Mutex::new(State {
            iommu: iommu.clone(),
            media: Media::new(namespaces),
            defects: Defects::default(),
            faults: VecDeque::new(),
            seen: Seen::default(),
            gone: false,
            blind: false,
            bus_master: false,
            vectors: Vec::new(),
            counted: false,
            removal: None,
            cc: 0,
            csts: 0,
            registers: BTreeMap::new(),
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            pending: Vec::new(),
        })))
    }

    /// The function that a driver takes.
    pub fn function(&self) -> Box<dyn Function> {
        Box::new(self.clone())
    }

    /// Gives the controller defects.
    pub fn set_defects(&self, defects: Defects) {
        self.state().defects = defects;
    }

    /// Appends to what the next I/O commands meet.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Replaces identify data: that of the controller (`None`) or of a namespace.
    pub fn set_identify(&self, namespace: Option<u32>, data: &[u8]) {
        let mut page = [0; PAGE as usize];
        let len = data.len().min(page.len());
        page[..len].copy_from_slice(&data[..len]);
        self.state().media.replace(namespace, page);
    }

    /// What the driver has done.
    pub fn seen(&self) -> Seen {
        let state = self.state();
        let queues = state.submissions.len().saturating_sub(1);
        Seen { queues, bus_master: state.bus_master, ..state.seen }
    }

    /// The bytes of a namespace.
    pub fn contents(&self, namespace: u32) -> Vec<u8> {
        self.state().media.contents(namespace)
    }

    /// The host asks for the device, which it announces.
    pub fn ask_back(&self) {
        if let Some(removal) = &self.state().removal {
            removal.write(1).expect("an eventfd takes one more");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Function for Model {
    fn name(&self) -> &str {
        "0000:aa:00.0"
    }

    fn registers(&self) -> u64 {
        0x2000
    }

    fn read(&self, offset: u64) -> u32 {
        let state = self.state();
        match offset {
            _ if state.gone || state.blind => u32::MAX,
            register::CAP => CAPABILITIES as u32,
            _ if offset == register::CAP + 4 => (CAPABILITIES >> 32) as u32,
            register::VS => 0x0001_0400,
            register::CC => state.cc,
            register::CSTS => state.csts,
            other => state.registers.get(&other).copied().unwrap_or(0),
        }
    }

    fn write(&self, offset: u64, value: u32) {
        let mut state = self.state();
        match offset {
            _ if state.gone || state.blind => {}
            register::CC => state.configure(value),
            register::DOORBELLS.. => state.doorbell((offset - register::DOORBELLS) / 4, value as u16),
            other => drop(state.registers.insert(other, value)),
        }
    }

    fn vectors(&self) -> u16 {
        4
    }

    fn enable_interrupts(&self, vectors: &[EventFd]) -> Result<(), FunctionError> {
        let vectors = vectors.iter().map(EventFd::try_clone).collect::<Result<_, _>>()?;
        self.state().vectors = vectors;
        Ok(())
    }

    fn disable_interrupts(&self) -> Result<(), FunctionError> {
        self.state().vectors = Vec::new();
        Ok(())
    }

    fn set_bus_master(&self, allowed: bool) -> Result<(), FunctionError> {
        let mut state = self.state();
        if state.gone || (!allowed && state.defects.keeps_bus_master) {
            return Err("0000:aa:00.0: cannot write its command register".into());
        }
        state.bus_master = allowed;
        Ok(())
    }

    fn is_absent(&self) -> bool {
        self.state().gone
    }

    fn reset(&self) -> Result<(), FunctionError> {
        let mut state = self.state();
        state.seen.resets += 1;
        state.forget();
        state.bus_master = false;
        if state.gone { Err("0000:aa:00.0: cannot reset it: it is gone".into()) } else { Ok(()) }
    }

    fn announce_removal(&self, eventfd: &EventFd) -> Result<(), FunctionError> {
        self.state().removal = Some(eventfd.try_clone()?);
        Ok(())
    }
}

impl State {
    fn configure(&mut self, value: u32) {
        let before = std::mem::replace(&mut self.cc, value);
        if value & Configuration::ENABLED == 0 && !self.defects.never_stops {
            self.forget();
        }
        if before & Configuration::ENABLED == 0
            && value & Configuration::ENABLED != 0
            && !self.defects.never_ready
        {
            self.seen.enabled += 1;
            self.counted = !self.vectors.is_empty();
            self.csts = ControllerStatus::READY;
            let word = |at: u64| u64::from(self.registers.get(&at).copied().unwrap_or(0));
            let sizes = word(register::AQA) as u32;
            let (asq, acq) = (
                word(register::ASQ) | word(register::ASQ + 4) << 32,
                word(register::ACQ) | word(register::ACQ + 4) << 32,
            );
            let submission =
                Submission { at: asq, entries: (sizes & 0xfff) as u16 + 1, head: 0, completions: 0 };
            self.submissions.insert(0, submission);
            let entries = (sizes >> 16 & 0xfff) as u16 + 1;
            self.completions.insert(0, Completions { at: acq, entries, tail: 0, phase: 1, vector: Some(0) });
        }
        if value & Configuration::SHUTDOWN != 0
            && self.csts & ControllerStatus::READY != 0
            && !self.defects.never_shuts_down
        {
            self.seen.shutdowns += 1;
            self.csts |= ControllerStatus::SHUT_DOWN;
        }
    }

    /// As after a reset.
    fn forget(&mut self) {
        (self.cc, self.csts) = (0, 0);
        self.submissions.clear();
        self.completions.clear();
        self.pending.clear();
    }

    fn doorbell(&mut self, number: u64, tail: u16) {
        // Completion doorbells: the model never fills a queue, for drivers have fewer commands under way.
        let queue = (number / 2) as u16;
        if !number.is_multiple_of(2) {
            return;
        }
        self.seen.doorbells += u64::from(queue > 0);
        if self.csts & ControllerStatus::READY == 0 || !self.bus_master {
            return;
        }
        while let Some(submission) = self.submissions.get_mut(&queue)
            && !self.gone
            && submission.head != tail
            && tail < submission.entries
        {
            let at = submission.at + 64 * u64::from(submission.head);
            submission.head = (submission.head + 1) % submission.entries;
            let mut bytes = [0; 64];
            if self.iommu.read(Iova(at), &mut bytes).is_err() {
                self.csts |= ControllerStatus::FATAL;
                return;
            }
            let command = Command::read_from_bytes(&bytes).expect("64 bytes");
            if queue == 0 { self.admin(&command) } else { self.io(queue, &command) }
        }
    }

    fn admin(&mut self, command: &Command) {
        if self.defects.ignores == Some(command.opcode) {
            return;
        }
        let (cdw10, cdw11, at) = (command.cdw10.get(), command.cdw11.get(), command.dptr[0].get());
        let (queue, low, high) = (cdw10 as u16, cdw10 >> 16, cdw11 >> 16);
        let entries = low as u16 + 1;
        let mut result = 0;
        let status = match command.opcode {
            refused if self.defects.refuses.contains(&refused) => Status::INVALID_FIELD,
            admin::IDENTIFY => match self.media.identify(cdw10 as u8, command.nsid.get()) {
                Some(page) if self.iommu.write(Iova(at), &page).is_err() => Status::DATA_TRANSFER_ERROR,
                Some(_) => Status::SUCCESS,
                None => Status::INVALID_FIELD,
            },
            admin::SET_FEATURES => {
                let most = self.defects.grants.checked_sub(1).unwrap_or(u16::MAX);
                let grant = |wanted: u32| wanted.min(most.into());
                result = grant(cdw11 & 0xffff) | grant(cdw11 >> 16) << 16;
                Status::SUCCESS
            }
            admin::GET_FEATURES => {
                result = 1;
                Status::SUCCESS
            }
            admin::CREATE_CQ => {
                let vector = (cdw11 & 2 != 0).then_some(high as u16);
                let made = Completions { at, entries, tail: 0, phase: 1, vector };
                if self.completions.insert(queue, made).is_some() {
                    Status::QUEUE_ID
                } else {
                    Status::SUCCESS
                }
            }
            admin::CREATE_SQ if self.completions.contains_key(&(high as u16)) => {
                let made = Submission { at, entries, head: 0, completions: high as u16 };
                if self.submissions.insert(queue, made).is_some() {
                    Status::QUEUE_ID
                } else {
                    Status::SUCCESS
                }
            }
            admin::DELETE_SQ if self.submissions.remove(&queue).is_some() => Status::SUCCESS,
            admin::DELETE_CQ if self.completions.remove(&queue).is_some() => Status::SUCCESS,
            admin::CREATE_SQ | admin::DELETE_SQ | admin::DELETE_CQ => Status::QUEUE_ID,
            admin::ABORT => {
                self.seen.aborts += 1;
                let which = |pending: &(u16, u16, bool)| *pending == (queue, low as u16, true);
                if let Some(at) = self.pending.iter().position(which) {
                    self.pending.remove(at);
                    self.complete(queue, low as u16, Status::ABORT_REQUESTED, 0);
                }
                Status::SUCCESS
            }
            _ => Status::INVALID_OPCODE,
        };
        if self.defects.conceals != Some(command.opcode) {
            self.complete(0, command.cid.get(), status, result);
        }
    }

    fn io(&mut self, queue: u16, command: &Command) {
        self.seen.commands += 1;
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => {
                let status = self.media.run(&self.iommu, command);
                self.complete(queue, command.cid.get(), status, 0);
            }
            Fault::Status(status) => self.complete(queue, command.cid.get(), Status(status), 0),
            Fault::Silence => self.pending.push((queue, command.cid.get(), true)),
            Fault::Deafness => self.pending.push((queue, command.cid.get(), false)),
            Fault::Garbage(bytes) => {
                let completion = Completion::read_from_bytes(&bytes).expect("16 bytes");
                self.post(queue, completion);
            }
            Fault::Removal => self.gone = true,
            Fault::Blindness => self.blind = true,
        }
    }

    fn complete(&mut self, queue: u16, cid: u16, status: Status, result: u32) {
        let (result, sq_id, cid) = (result.into(), queue.into(), cid.into());
        let status = (status.0 << 1).into();
        self.post(queue, Completion { result, sq_id, cid, status, ..Completion::default() });
    }

    fn post(&mut self, queue: u16, completion: Completion) {
        let completions = self.submissions.get(&queue).map(|submission| submission.completions);
        let Some(target) = completions.and_then(|number| self.completions.get_mut(&number)) else { return };
        let at = target.at + 16 * u64::from(target.tail);
        let completion =
            Completion { status: (completion.status.get() & !1 | target.phase).into(), ..completion };
        // The phase tag last, as a device does it.
        let bytes = completion.as_bytes();
        let done =
            self.iommu.write(Iova(at), &bytes[..14]).and(self.iommu.write(Iova(at + 14), &bytes[14..]));
        target.tail = (target.tail + 1) % target.entries;
        target.phase ^= u16::from(target.tail == 0);
        let vector = target.vector.and_then(|vector| self.vectors.get(usize::from(vector)));
        match (done, vector) {
            (Ok(()), Some(vector)) if self.counted && !self.defects.mute => {
                vector.write(1).expect("an eventfd takes one more");
            }
            (Ok(()), _) => {}
            (Err(_), _) => self.csts |= ControllerStatus::FATAL,
        }
    }
}
