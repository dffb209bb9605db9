//! The controller as a whole: bringing it up, resetting it, shutting it down.

mod end;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dma::Domain;
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::admin::{Admin, Target};
use super::error::NvmeError;
use super::function::Function;
use super::options::NvmeOptions;
use super::ring::Place;
use super::trouble::{NvmeTrouble, TroubleKind};
use nvme_spec::{Capabilities, Command, Configuration, ControllerStatus, PAGE, register};

/// A controller in use. Dropped last of all that uses it, it is shut down, if it was not before.
pub(super) struct Controller {
    function: Box<dyn Function>,
    domain: Arc<Domain>,
    options: NvmeOptions,
    capabilities: Capabilities,
    /// The interrupts: the admin queues', then one for each I/O queue as far as there are.
    vectors: Vec<EventFd>,
    removal: EventFd,
    /// There until the end.
    admin: Mutex<Option<Admin>>,
    queues: Mutex<Queues>,
    /// How often the controller forgot its queues: each reset moves it. Whoever has I/O queues looks before using
    /// them.
    generation: AtomicU64,
    lost: AtomicBool,
    /// The controller may still do DMA, and nothing stops it.
    holds_on: AtomicBool,
    /// What failed when it was given up.
    unfinished: Mutex<Vec<String>>,
}

/// Numbers of I/O queues.
#[derive(Default)]
struct Queues {
    all: u16,
    free: Vec<u16>,
}

impl Controller {
    /// Brings a controller up with its admin queues. On failure it is disabled.
    pub fn new(
        function: Box<dyn Function>,
        domain: Arc<Domain>,
        options: NvmeOptions,
    ) -> Result<Controller, NvmeError> {
        let device = function.name().to_owned();
        let capabilities = examine(&*function)?;
        let eventfd = || {
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|cause| {
                let what = "make an eventfd for its interrupts";
                NvmeError::System { device: device.clone(), what, cause }
            })
        };
        let wanted = options.queues.max(1).saturating_add(1);
        let count = function.vectors().clamp(1, wanted);
        let vectors = (0..count).map(|_| eventfd()).collect::<Result<_, _>>()?;
        let removal = eventfd()?;
        let admin = Admin::new(&device, &domain, capabilities)?;
        let controller = Controller {
            function,
            domain,
            options,
            capabilities,
            vectors,
            removal,
            admin: Mutex::new(Some(admin)),
            queues: Mutex::default(),
            generation: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            holds_on: AtomicBool::new(false),
            unfinished: Mutex::default(),
        };
        // From here on dropping it disables it.
        let function = &*controller.function;
        function.announce_removal(&controller.removal)?;
        controller.stop()?;
        function.set_bus_master(true)?;
        // Before CC.EN: there are controllers that never interrupt otherwise.
        function.enable_interrupts(&controller.vectors)?;
        controller.bring_up()?;
        Ok(controller)
    }

    fn bring_up(&self) -> Result<(), NvmeError> {
        let mut admin = self.lock();
        let admin = admin.as_mut().expect("there from the beginning");
        let granted = self.start(admin)?;
        let mut queues = self.queues.lock();
        queues.all = granted;
        queues.free = (1..=granted).rev().collect();
        Ok(())
    }

    /// Its PCI address.
    pub fn name(&self) -> &str {
        self.function.name()
    }

    pub fn function(&self) -> &dyn Function {
        &*self.function
    }

    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    pub fn options(&self) -> &NvmeOptions {
        &self.options
    }

    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Written when the controller is being removed.
    pub fn removal(&self) -> &EventFd {
        &self.removal
    }

    /// The interrupt of an I/O queue, if there are enough vectors: its number and eventfd.
    pub fn vector(&self, queue: u16) -> Option<(u16, &EventFd)> {
        self.vectors.get(usize::from(queue)).map(|eventfd| (queue, eventfd))
    }

    /// Moves whenever the controller has forgotten its I/O queues.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the controller was given up, for good.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether it may still do DMA although it was given up: memory it knows must never be used for anything else.
    pub fn holds_on(&self) -> bool {
        self.holds_on.load(Ordering::Acquire)
    }

    /// Tells of a trouble.
    pub fn report(&self, kind: TroubleKind) {
        let (device, domain) = (self.name().to_owned(), self.domain.name().to_owned());
        (self.options.on_trouble)(&NvmeTrouble { device, domain, kind });
    }

    /// How many I/O queues it grants.
    pub fn granted(&self) -> u16 {
        self.queues.lock().all
    }

    /// A number for a new I/O queue.
    pub fn take_queue(&self) -> Result<u16, NvmeError> {
        let mut queues = self.queues.lock();
        let queue = queues.free.pop();
        queue.ok_or_else(|| NvmeError::NoQueue { device: self.name().to_owned(), queues: queues.all })
    }

    /// The number is free again; the controller knows no such queue any more.
    pub fn return_queue(&self, queue: u16) {
        self.queues.lock().free.push(queue);
    }

    /// Runs an admin command. A controller that does not answer is reset.
    pub fn run(&self, what: &'static str, command: &Command) -> Result<u32, NvmeError> {
        self.with_admin(|admin| self.run_on(admin, what, command))
    }

    /// Reads a page of identify data.
    pub fn identify(
        &self,
        what: &'static str,
        which: u8,
        namespace: u32,
    ) -> Result<Box<[u8; PAGE as usize]>, NvmeError> {
        self.with_admin(|admin| {
            let command = Command::identify(which, namespace, admin.page());
            self.run_on(admin, what, &command)?;
            Ok(admin.data())
        })
    }

    /// Makes a pair of I/O queues at a place in memory of which `iova` says where an offset is.
    pub fn create(
        &self,
        place: &Place,
        iova: impl Fn(u64) -> u64,
        vector: Option<u16>,
    ) -> Result<(), NvmeError> {
        let Place { queue, entries, submissions, completions, .. } = *place;
        let generation = self.generation();
        let command = Command::create_cq(queue, entries, iova(completions), vector);
        self.run("create a completion queue", &command)?;
        let made =
            self.run("create a submission queue", &Command::create_sq(queue, entries, iova(submissions)));
        if made.is_err()
            && let Err(left) = self.run("delete a completion queue", &Command::delete_cq(queue))
        {
            // The number would be of no use to the next who takes it.
            self.recover(generation, &left.to_string());
        }
        made.map(drop)
    }

    /// Unmakes a pair of I/O queues on which nothing is under way. When the controller does not do it, it is reset,
    /// which does it too.
    pub fn delete(&self, queue: u16) {
        let generation = self.generation();
        let deleted = self
            .run("delete a submission queue", &Command::delete_sq(queue))
            .and_then(|_| self.run("delete a completion queue", &Command::delete_cq(queue)));
        if let Err(error) = deleted {
            self.recover(generation, &error.to_string());
        }
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus(self.function.read(register::CSTS))
    }

    /// What its status register says of it, when that is not good.
    pub fn illness(&self) -> Option<NvmeError> {
        let status = self.status();
        let device = || self.name().to_owned();
        if status.is_gone() {
            Some(NvmeError::Gone { device: device() })
        } else {
            status.is_fatal().then(|| NvmeError::Fatal { device: device(), what: "answer" })
        }
    }

    /// Resets the controller, unless somebody has since it was in generation `seen`. Afterwards it has no I/O
    /// queues, and nothing of what was under way is.
    pub fn recover(&self, seen: u64, why: &str) {
        self.recover_with(&mut self.lock(), seen, why);
    }

    /// As [`recover`](Self::recover), unless somebody is at the admin queues just now: not to be waited for, and to be
    /// asked for again.
    pub fn recover_if_free(&self, seen: u64, why: &str) {
        if let Some(mut admin) = self.try_lock() {
            self.recover_with(&mut admin, seen, why);
        }
    }

    fn recover_with(&self, admin: &mut Option<Admin>, seen: u64, why: &str) {
        if let Some(admin) = admin
            && self.generation() == seen
        {
            self.reset(admin, why);
        }
    }

    /// Asks for a command of generation `seen` to be aborted and does not wait for the answer. `false` when it has to be asked
    /// for later: somebody is at the admin queues, or too many abortions are under way.
    pub fn abort(&self, seen: u64, of: Target) -> bool {
        let Some(mut admin) = self.try_lock() else { return false };
        admin.as_mut().is_none_or(|admin| {
            self.is_lost() || self.generation() == seen && admin.abort(&*self.function, of)
        })
    }

    /// Whether the controller may still abort the command that it was asked to. One that does not answer in the time of admin
    /// commands is reset.
    pub fn is_aborting(&self, of: Target) -> bool {
        let Some(mut admin) = self.try_lock() else { return true };
        let Some(admin) = admin.as_mut().filter(|_| !self.is_lost()) else { return false };
        let aborting = admin.is_aborting(&*self.function, of);
        if aborting && admin.is_late(self.options.admin_timeout) {
            self.reset(admin, "it does not answer an abortion");
        }
        aborting
    }

    /// Gives the controller up.
    pub fn give_up(&self, why: &str) {
        let _admin = self.lock();
        if !self.is_lost() {
            self.lose(why);
        }
    }

    fn with_admin<T>(&self, work: impl FnOnce(&mut Admin) -> Result<T, NvmeError>) -> Result<T, NvmeError> {
        let mut admin = self.lock();
        let Some(admin) = admin.as_mut().filter(|_| !self.is_lost()) else {
            return Err(NvmeError::Gone { device: self.name().to_owned() });
        };
        let done = work(admin);
        match &done {
            Err(error @ (NvmeError::TimedOut { .. } | NvmeError::Fatal { .. })) => {
                self.reset(admin, &error.to_string());
            }
            Err(error @ NvmeError::Gone { .. }) => self.lose(&error.to_string()),
            _ => {}
        }
        done
    }

    fn run_on(&self, admin: &mut Admin, what: &'static str, command: &Command) -> Result<u32, NvmeError> {
        admin.run(&*self.function, &self.vectors[0], self.options.admin_timeout, what, command)
    }

    /// Enables a disabled controller; returns how many I/O queues it grants.
    fn start(&self, admin: &mut Admin) -> Result<u16, NvmeError> {
        admin.install(&*self.function);
        self.function.write(register::CC, Configuration::on(self.capabilities).0);
        self.wait("become ready", self.capabilities.ready_timeout(), ControllerStatus::is_ready)?;
        let wanted = self.options.queues.max(1).min(self.reachable_queues());
        let granted = self.run_on(admin, "set its number of queues", &Command::set_queues(wanted))?;
        let granted = (granted as u16).min((granted >> 16) as u16).saturating_add(1);
        Ok(granted.min(wanted))
    }

    /// Queues whose doorbells can be reached.
    fn reachable_queues(&self) -> u16 {
        let stride = 2 * self.capabilities.doorbell_stride();
        let pairs = self.function.registers().saturating_sub(register::DOORBELLS) / stride;
        u16::try_from(pairs.saturating_sub(1)).unwrap_or(u16::MAX)
    }

    /// Disables the controller; afterwards it does no DMA.
    fn stop(&self) -> Result<(), NvmeError> {
        self.function.write(register::CC, Configuration::OFF.0);
        self.wait("stop", self.capabilities.ready_timeout(), |status| !status.is_ready())
    }

    fn wait(
        &self,
        what: &'static str,
        limit: Duration,
        done: impl Fn(ControllerStatus) -> bool,
    ) -> Result<(), NvmeError> {
        let device = || self.name().to_owned();
        let begin = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            let status = self.status();
            if status.is_gone() {
                return Err(NvmeError::Gone { device: device() });
            }
            if done(status) {
                return Ok(());
            }
            if status.is_fatal() && what == "become ready" {
                return Err(NvmeError::Fatal { device: device(), what });
            }
            if begin.elapsed() >= limit {
                return Err(NvmeError::TimedOut { device: device(), what, after: limit });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Disables and enables, and where that does not do, resets the function in between.
    fn reset(&self, admin: &mut Admin, why: &str) {
        let outcome = self.stop().and_then(|()| self.start(admin)).or_else(|error| match error {
            NvmeError::Gone { .. } => Err(error),
            _ => self.reset_function().and_then(|()| self.start(admin)),
        });
        match outcome {
            Ok(_) => {
                self.forgotten();
                self.report(TroubleKind::Reset { why: why.to_owned() });
            }
            Err(error) => self.lose(&format!("{why}. Then it could not be reset: {error}")),
        }
    }

    /// Function level reset, with interrupts off meanwhile, or there are controllers that lose count of them.
    fn reset_function(&self) -> Result<(), NvmeError> {
        self.function.disable_interrupts()?;
        self.function.reset()?;
        self.function.set_bus_master(true)?;
        self.function.enable_interrupts(&self.vectors)?;
        self.stop()
    }

    /// Everybody with I/O queues has to look.
    fn forgotten(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        for vector in &self.vectors {
            // The only failure is a counter at its limit, which wakes as well.
            vector.write(1).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Admin>> {
        self.admin.lock()
    }

    /// `None` while somebody is at the admin queues, which can take as long as a controller is given to answer.
    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Admin>>> {
        self.admin.try_lock()
    }
}

/// Whether these are the registers of a controller that can be driven.
fn examine(function: &dyn Function) -> Result<Capabilities, NvmeError> {
    let device = || function.name().to_owned();
    let unfit = |why| Err(NvmeError::Unfit { device: device(), why });
    if function.registers() < register::DOORBELLS + 16 {
        return unfit("its BAR 0 cannot be mapped as far as the doorbells");
    }
    if ControllerStatus(function.read(register::CSTS)).is_gone() {
        return Err(NvmeError::Gone { device: device() });
    }
    let low = u64::from(function.read(register::CAP));
    let capabilities = Capabilities(u64::from(function.read(register::CAP + 4)) << 32 | low);
    if !capabilities.has_nvm() {
        return unfit("it has no NVM command set");
    }
    if !capabilities.has_small_pages() {
        return unfit("it has no pages of 4096 bytes");
    }
    if function.registers() < capabilities.doorbell(2) {
        return unfit("the doorbells of an I/O queue are out of reach");
    }
    Ok(capabilities)
}
