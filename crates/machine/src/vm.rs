//! The life of a VM.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use assign::Assigned;
use boot::{Contents, CpuState, Initrd, KernelImage, LinuxBoot, LoadError, platform::Platform};
use config::{Draft, OnFault, OnRequest, OnTpmError};
use devices::{Power, PowerRequest, SerialPort};
use disk::nvme::NvmeController;
use disk::{Answer, Failure, Failures, Reading, Tally};
use dma::Domain;
use dma::fault::{self, Watch};
use host::Host;
use kvm_ioctls::VmFd;
use memory::{MemoryMap, Ram};

use crate::alarms::AlarmWatch;
use crate::assemble::assemble;
use crate::assigned::Claimed;
use crate::board::Board;
use crate::check::{Checked, check};
use crate::chips::Chips;
use crate::console::Console;
use crate::cpus::{Cpus, End};
use crate::disks::{
    Disks, DisksOutside, DriveError, DriveReading, PlugError, Plugged, TrayLock, UnplugError, Unplugged,
    drives,
};
use crate::driven;
use crate::ending::wait_for;
use crate::error::StartError;
use crate::events::{Event, Events, Inbox};
use crate::failures;
use crate::faults::{self, Policies};
use crate::leftovers;
use crate::lost::LossWatch;
use crate::notice::{Life, Reporter};
use crate::phase::{Phase, Phases};
use crate::steps::Steps;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// It was stopped from outside before it did.
    Stopped,
    /// The guest crashed: a triple fault, and where.
    Crashed(String),
    /// KVM or the host failed, and how.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PoweredOff => f.write_str("the guest powered off"),
            Outcome::Stopped => f.write_str("it was stopped, as asked"),
            Outcome::Crashed(how) => write!(f, "the guest crashed: {how}"),
            Outcome::Failed(how) => f.write_str(how),
        }
    }
}

/// A VM's end, and what went through its disks.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// Its disks, with everything that was read and written, and what of it was copied on its way.
    pub disks: Vec<Reading>,
}

/// The way to a running VM from outside.
///
/// It keeps no part of the VM: after the VM has ended, it returns nothing.
#[derive(Clone)]
pub struct Control {
    events: Events,
    serial: Arc<SerialPort>,
    power: Weak<Power>,
    phases: Arc<Phases>,
    domains: Vec<Weak<Domain>>,
    map: Weak<MemoryMap>,
    disks: DisksOutside,
}

/// How long a VM may take to pause or resume before the call returns an error that says so.
const PATIENCE: Duration = Duration::from_secs(1);

impl Control {
    /// Presses the power button: the guest shuts down when it listens.
    pub fn press_power_button(&self) {
        self.events.send(Event::PressPowerButton);
    }

    /// Whether the guest has enabled the power button's ACPI event. What in the guest acts on it may start later.
    pub fn guest_listens_to_button(&self) -> bool {
        self.power.upgrade().is_some_and(|power| power.guest_listens())
    }

    /// Pauses the guest; the VM's owner gets `why`. Returns what the VM does then.
    pub fn pause(&self, why: impl Into<String>) -> Phase {
        self.phases.after(|| self.events.send(Event::Pause(why.into())), Phase::Paused, PATIENCE)
    }

    /// Makes the guest run again, after the held requests of disks have been tried again; if they fail again, it
    /// stays paused. Returns what the VM does then.
    pub fn resume(&self) -> Phase {
        self.phases.after(|| self.events.send(Event::Resume), Phase::Running, PATIENCE)
    }

    /// What the VM does now.
    pub fn phase(&self) -> Phase {
        self.phases.now()
    }

    /// Why it is paused, if it is.
    pub fn why_paused(&self) -> Option<String> {
        self.phases.why()
    }

    /// Its DMA domains. While a caller keeps one, the VM's devices cannot be given back.
    pub fn domains(&self) -> Vec<Arc<Domain>> {
        self.domains.iter().filter_map(Weak::upgrade).collect()
    }

    /// Its memory map, as long as it has one.
    pub fn memory(&self) -> Option<Arc<MemoryMap>> {
        self.map.upgrade()
    }

    /// Its disks, with what went through them so far and what waits.
    pub fn disks(&self) -> Vec<Reading> {
        self.disks.read()
    }

    /// Its CD drives, with what is in them.
    pub fn drives(&self) -> Vec<DriveReading> {
        self.disks.drives()
    }

    /// Puts a file or device of this host into the CD drive that is called so, or has a disc called so in it, in the
    /// place of what is there. Returns when that is closed, or after some seconds.
    pub fn insert_disc(&self, drive: &str, path: &Path, tray: TrayLock) -> Result<DriveReading, DriveError> {
        // First, to fail early if the VM has ended. Not held while the file is opened, which may take any time: the VM can
        // end during that.
        drop(self.disks.drive(drive)?);
        let disc = drives::open(path)?;
        self.disks.drive(drive)?.insert(disc, tray)
    }

    /// Takes out what is in a CD drive, in the same way. Nothing, if it is empty.
    pub fn eject_disc(&self, drive: &str, tray: TrayLock) -> Result<DriveReading, DriveError> {
        self.disks.drive(drive)?.eject(tray)
    }

    /// Plugs a SATA disk in, on the first free port of the controller that its description names, or of the first
    /// controller that has one; the guest is notified.
    pub fn plug_disk(&self, disk: &config::Disk) -> Result<Plugged, PlugError> {
        self.disks.plug(disk)
    }

    /// Takes the SATA disk of this name away, whether or not the guest uses it. Returns when it is closed, or after some
    /// seconds.
    pub fn unplug_disk(&self, name: &str) -> Result<Unplugged, UnplugError> {
        self.disks.unplug(name)
    }

    /// Ends the VM now, whatever the guest does.
    pub fn stop(&self) {
        self.events.send(Event::Stop);
    }

    /// Types on the serial console and waits while the guest reads slowly, but at most `patience` without any
    /// progress; returns how much the guest took.
    pub fn type_on_console(&self, bytes: &[u8], patience: Duration) -> usize {
        let (mut done, mut progress) = (0, Instant::now());
        while done < bytes.len() && progress.elapsed() < patience {
            match self.serial.receive(&bytes[done..]) {
                0 => std::thread::sleep(Duration::from_millis(5)),
                taken => (done, progress) = (done + taken, Instant::now()),
            }
        }
        done
    }
}

/// A VM, built and ready to run. Dropping it gives its devices back; [`Vm::give_up`] also says what failed.
///
/// Fields are in the order in which they are dropped: users of something before the thing that they use.
pub struct Vm {
    pub(crate) alarms: Option<AlarmWatch>,
    pub(crate) losses: LossWatch,
    pub(crate) policies: Policies,
    pub(crate) phases: Arc<Phases>,
    pub(crate) cpus: Cpus,
    pub(crate) board: Arc<Board>,
    pub(crate) assigned: Vec<Arc<Assigned>>,
    pub(crate) disks: Disks,
    pub(crate) controllers: Vec<Arc<NvmeController>>,
    pub(crate) faults: Option<Watch>,
    /// Before the devices: as a mirror of it, each of their domains is kept.
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) claimed: Option<Claimed>,
    pub(crate) boot: BootPlan,
    pub(crate) chips: Chips,
    pub(crate) power: Arc<Power>,
    pub(crate) serial: Arc<SerialPort>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) console: Console,
    /// Last, because it reports the messages of all the others.
    pub(crate) inbox: Inbox,
}

/// A VM whose guest has stopped, with all its parts.
pub struct Stopped {
    vm: Vm,
    outcome: Outcome,
}

impl Stopped {
    /// Takes the VM apart and gives its devices back.
    pub fn dismantle(self) -> Ended {
        // Not the disks themselves: they go while their devices are given back, and no other comes.
        self.vm.disks.close();
        let tallies = self.vm.disks.tallies();
        let outcome = self.vm.dismantle(self.outcome);
        // Only now has every queue ended and counted its last request.
        let disks = tallies.iter().map(Tally::read).collect();
        Ended { outcome, disks }
    }
}

/// What is loaded at every start.
pub(crate) struct BootPlan {
    /// `None` where the guest has firmware, which finds everything in its flash memory.
    pub(crate) kernel: Option<KernelPlan>,
    pub(crate) ram: Arc<Ram>,
}

/// A kernel, and what it is started with.
pub(crate) struct KernelPlan {
    pub(crate) kernel: KernelImage,
    pub(crate) initrd: Option<Initrd>,
    pub(crate) command_line: String,
    pub(crate) platform: Platform,
}

impl BootPlan {
    /// Loads kernel and initrd; the state in which the boot CPU enters, if that is not power-on.
    pub(crate) fn load(&self, contents: Contents) -> Result<Option<CpuState>, LoadError> {
        let Some(plan) = &self.kernel else { return Ok(None) };
        let linux = LinuxBoot {
            kernel: &plan.kernel,
            initrd: plan.initrd.as_ref(),
            command_line: &plan.command_line,
        };
        boot::load(&linux, &plan.platform, &self.ram, contents).map(Some)
    }
}

impl Vm {
    /// Gives back what killed VMs left, and then compares a description with this host, without another change: everything
    /// that prevents a start, or what the start needs.
    pub fn check(config: &config::Vm, report: &Reporter) -> Result<Checked, Vec<StartError>> {
        leftovers::give_back(&Host::here(), report);
        check(&Draft::from(config))
    }

    /// Makes a VM from its description and what was found when that was checked, or says what failed and leaves the host
    /// as it was. The console's output goes to `output`.
    ///
    /// `cancelled` is looked at between the steps: once it is set, the start ends there.
    pub fn build(
        config: &config::Vm,
        checked: Checked,
        output: Box<dyn Write + Send>,
        report: Reporter,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Vm, Vec<StartError>> {
        let steps = Steps::new(cancelled);
        let vm = assemble(config, checked, output, report, &steps).map_err(|error| vec![error])?;
        match vm.ready(&steps) {
            Ok(()) => Ok(vm),
            Err(why) => Err(why.into_iter().chain(vm.give_up().err()).collect()),
        }
    }

    /// Whether it may run: no device can have been bus master yet, so this is the last time at which a domain that is
    /// not the memory map harms nobody.
    fn ready(&self, steps: &Steps) -> Result<(), Vec<StartError>> {
        steps.begin("run").map_err(|why| vec![why])?;
        let mirrors = self.map.audit().into_iter();
        let differ: Vec<_> = mirrors.filter_map(|(_, equal)| equal.err()).map(StartError::from).collect();
        if differ.is_empty() { Ok(()) } else { Err(differ) }
    }

    /// Everything on this host that prevents a VM of which only a draft exists, found without a change.
    pub fn findings(draft: &Draft) -> Vec<StartError> {
        check(draft).err().unwrap_or_default()
    }

    /// The way to the VM while it runs.
    pub fn control(&self) -> Control {
        let domains = self.claimed.as_ref().map_or(&[][..], |claimed| claimed.domains());
        Control {
            events: self.board.events.clone(),
            serial: self.serial.clone(),
            power: Arc::downgrade(&self.power),
            phases: self.phases.clone(),
            domains: domains.iter().map(Arc::downgrade).collect(),
            map: Arc::downgrade(&self.map),
            disks: self.disks.outside(),
        }
    }

    /// Runs the VM until it ends. Its devices and disks can be read until it is dismantled.
    pub fn run(mut self) -> Stopped {
        self.cpus.run();
        self.enter(Life::Started);
        let outcome = self.attend();
        self.phases.set(Phase::Ending);
        self.inbox.life(Life::Ending(outcome.clone()));
        self.console.hurry(true);
        self.cpus.hold();
        Stopped { vm: self, outcome }
    }

    /// Ends a VM that will not run after all, and gives its devices back.
    pub fn give_up(self) -> Result<(), StartError> {
        match self.dismantle(Outcome::Stopped) {
            Outcome::Failed(how) => Err(StartError::GiveBack(how)),
            Outcome::PoweredOff | Outcome::Stopped | Outcome::Crashed(_) => Ok(()),
        }
    }

    fn enter(&self, life: Life) {
        match &life {
            Life::Paused(why) => self.phases.stand_still(why.clone()),
            _ => self.phases.set(Phase::Running),
        }
        self.inbox.life(life);
    }

    /// Serves events until one of them is the end.
    fn attend(&mut self) -> Outcome {
        loop {
            let event = match self.inbox.next(failures::due(&self.disks.now())) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => {
                    failures::tell_due(&self.disks.now());
                    continue;
                }
                // The board holds a sender, so there is always another event.
                Err(RecvTimeoutError::Disconnected) => return Outcome::Stopped,
            };
            match event {
                Event::Power(PowerRequest::Off) => return Outcome::PoweredOff,
                Event::Power(PowerRequest::Reset) => {
                    if let Err(outcome) = self.restart() {
                        return outcome;
                    }
                }
                Event::Ended(End::Crashed { cpu, place }) => {
                    return Outcome::Crashed(format!("vCPU {cpu} met a triple fault at {place}"));
                }
                Event::Ended(End::Failed { cpu, what }) => {
                    return Outcome::Failed(format!("vCPU {cpu}: {what}"));
                }
                Event::Ended(End::NoMemory { cpu, at, place }) => {
                    let Some(loss) = self.boot.ram.find_loss(at) else {
                        // Such as that of a device that is gone.
                        let what = "KVM cannot reach memory that the guest uses";
                        return Outcome::Failed(format!("vCPU {cpu}: {what} ({place})"));
                    };
                    return self.memory_lost(loss.to_string());
                }
                Event::MemoryLost(loss) => return self.memory_lost(loss.to_string()),
                Event::Trouble(what) => self.inbox.tell(&what),
                Event::Provoked(what) => self.inbox.tell_provoked(&what),
                Event::PressPowerButton => self.inbox.life(Life::PowerButton(self.power.press_button())),
                Event::PowerButtonHeard => self.inbox.life(Life::PowerButtonHeard),
                Event::Pause(why) => self.pause(why),
                Event::Resume => self.resume(),
                Event::TpmFailed(what, on_error) => {
                    self.inbox.trouble(&what);
                    match on_error {
                        OnTpmError::Report => {}
                        OnTpmError::Pause => self.pause(what),
                        OnTpmError::Stop => return Outcome::Failed(what),
                    }
                }
                Event::DisksChanged(what) => self.inbox.life(Life::DisksChanged(what)),
                Event::Disk(failure) => {
                    // A disk's request can be the first to need a page that the host does not have.
                    let loss = failure.errno.filter(|errno| *errno == libc::EFAULT);
                    let loss = loss.and_then(|_| self.boot.ram.find_loss(None));
                    self.disk_failed(failure);
                    if let Some(loss) = loss {
                        return self.memory_lost(loss.to_string());
                    }
                }
                Event::Requested(device) => {
                    if let Err(outcome) = self.device_requested(device) {
                        return outcome;
                    }
                }
                Event::Fault(fault) => {
                    if let Err(outcome) = self.answer(&fault) {
                        return outcome;
                    }
                }
                Event::Stop => return Outcome::Stopped,
            }
        }
    }

    fn pause(&self, why: String) {
        if self.phases.now() != Phase::Paused {
            self.stand_still(why);
        }
    }

    fn stand_still(&self, why: String) {
        self.console.hurry(true);
        self.cpus.hold();
        self.console.hurry(false);
        self.enter(Life::Paused(why));
    }

    /// The VM runs again, unless the disk request for which it was paused fails again.
    fn resume(&mut self) {
        if self.phases.now() != Phase::Paused || failures::retry(&self.disks.now()).is_some() {
            return;
        }
        self.policies.runs_on(Instant::now());
        self.cpus.run();
        self.enter(Life::Resumed);
    }

    /// Reports a request that failed; if it is held, the VM is paused.
    fn disk_failed(&mut self, failure: Failure) {
        if failure.answer != Answer::Held {
            return self.inbox.disk(failure);
        }
        // It, or what is held in its place, unless that has ended since, with a reset.
        for failure in failures::pause(&self.disks.now()) {
            let why = failures::why(&failure);
            self.inbox.disk(failure);
            // Even a VM that is paused: that was for another reason, or a resume was tried.
            self.stand_still(why);
        }
    }

    /// Reports guest RAM that is lost, which ends the VM: its guest and its devices may not notice the loss.
    fn memory_lost(&self, what: String) -> Outcome {
        self.inbox.trouble(&what);
        Outcome::Failed(what)
    }

    /// Reports that the host wants a device back, and does what the description says.
    fn device_requested(&mut self, device: String) -> Result<(), Outcome> {
        let answer = self.policies.answer_request(&device);
        self.inbox.life(Life::DeviceRequested(device, answer));
        match answer {
            OnRequest::Report => Ok(()),
            OnRequest::Stop => Err(Outcome::Stopped),
        }
    }

    /// Reports a fault, and does what the description says.
    fn answer(&mut self, fault: &fault::Event) -> Result<(), Outcome> {
        let (answer, text) = (self.policies.answer(fault, Instant::now()), fault.to_string());
        let device = faults::device_of(&self.assigned, fault).cloned();
        self.inbox.fault(fault.clone());
        match (answer, device) {
            (OnFault::Report, _) => {}
            (OnFault::Pause, _) => self.pause(format!("{text}. `skep resume` has it run on")),
            (OnFault::Stop, _) => {
                return Err(Outcome::Failed(format!("{text}. That ends it, as on-fault asks")));
            }
            (OnFault::Reset, Some(device)) => {
                let errors = self.board.bus.reset_function(device.at());
                self.policies.took_effect(fault, Instant::now());
                let errors = errors.iter().map(ToString::to_string);
                for what in errors.chain(faults::also_reset(device.name(), device.reset_with())) {
                    self.inbox.tell(&what);
                }
            }
            (OnFault::Reset, None) => self.inbox.tell(
                "only an assigned device can be reset after a fault; skep's own driver resets its device when that is \
                 necessary",
            ),
        }
        Ok(())
    }

    /// The VM starts afresh: vCPUs, controllers and every device return to power-on, the kernel is loaded
    /// again. RAM stays the RAM it was, mapped for devices as before. A VM that is paused stays so.
    fn restart(&mut self) -> Result<(), Outcome> {
        self.console.hurry(true);
        self.cpus.hold();
        self.console.hurry(false);
        // What the guest asked for before everything was reset concerns nobody now.
        if self.inbox.forget_guest(&self.board.events) {
            return Err(Outcome::Stopped);
        }
        failures::give_up(&self.disks.now());
        let errors = wait_for("devices to be reset", self.inbox.reporter(), || self.board.bus.reset());
        failures::hold_again(&self.disks.now());
        if !errors.is_empty() {
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(Outcome::Failed(all.join("\n")));
        }
        self.board.reset();
        self.chips.restore(&self.vm).map_err(|error| Outcome::Failed(error.to_string()))?;
        let entry = self.boot.load(Contents::Used).map_err(|error| Outcome::Failed(error.to_string()))?;
        self.cpus.reset(entry);
        if self.phases.now() == Phase::Running {
            self.cpus.run();
        }
        self.inbox.life(Life::Restarted);
        Ok(())
    }

    /// Takes the VM apart: vCPUs end, devices go quiet and are given back. What fails there is reported, and
    /// turns a good end into a failure, because the host is then not as it was.
    fn dismantle(self, outcome: Outcome) -> Outcome {
        let Vm {
            alarms,
            losses,
            faults,
            cpus,
            board,
            assigned,
            disks,
            controllers,
            claimed,
            map,
            boot,
            power,
            vm,
            console,
            mut inbox,
            ..
        } = self;
        wait_for("its vCPUs", inbox.reporter(), || drop((alarms, cpus)));
        disks.close();
        let now = disks.now();
        failures::give_up(&now);
        let failures: Vec<Arc<Failures>> = now.iter().map(|disk| disk.failures().clone()).collect();
        let mut troubles = Vec::new();
        for device in &assigned {
            let what = format!("device {} to stop", device.name());
            let stopped = wait_for(&what, inbox.reporter(), || device.shut_down());
            troubles.extend(stopped.err().map(|error| error.to_string()));
        }
        // The last holders of functions, and so of queues and of device files, go here.
        wait_for("its disks", inbox.reporter(), || {
            // A thread that has stopped over lost RAM keeps the board, and is not to keep the devices with it.
            board.bus.clear();
            drop((assigned, board, disks, now));
        });
        // With no queue left but those that hang; nothing of theirs may stay open when they are given back.
        for controller in controllers {
            let what = format!("NVMe controller {} to shut down", controller.name());
            let shut_down = wait_for(&what, inbox.reporter(), || driven::shut_down(&controller));
            troubles.extend(shut_down.err().map(|error| error.to_string()));
        }
        if let Some(claimed) = claimed {
            let given_back =
                wait_for("the host to take its devices back", inbox.reporter(), || claimed.give_back(&map));
            troubles.extend(given_back.err().map(|error| error.to_string()));
        }
        // The VM goes before the RAM that its memory slots name.
        wait_for("KVM and its console", inbox.reporter(), || drop((power, vm, map, boot, console, losses)));
        // The last source of faults: until here devices may have done DMA.
        wait_for("the watch for DMA faults", inbox.reporter(), || drop(faults));
        failures.iter().for_each(|disk| disk.tell_rest());
        inbox.tell_rest();
        let outcome = match (troubles.is_empty(), outcome) {
            (false, Outcome::PoweredOff | Outcome::Stopped) => Outcome::Failed(troubles.join("\n")),
            (_, outcome) => {
                troubles.iter().for_each(|trouble| inbox.tell(trouble));
                outcome
            }
        };
        inbox.life(Life::Ended(outcome.clone()));
        outcome
    }
}
