//! The life of a VM.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use assign::Assigned;
use boot::Contents;
use config::{OnFault, OnRequest, OnTpmError};
use devices::{Power, PowerRequest, SerialPort};
use disk::nvme::NvmeController;
use disk::{Answer, Failure, Failures, Reading, Tally};
use faults::{Fault, Watch};
use kvm_ioctls::VmFd;
use memory::MemoryMap;

use crate::assigned::Claimed;
use crate::assigned::alarms::AlarmWatch;
use crate::assigned::on_fault::{self, Policies};
use crate::board::Board;
use crate::board::console::Console;
use crate::boot_plan::BootPlan;
use crate::control::Control;
use crate::cpu::threads::{Cpus, End};
use crate::disks::{Disks, failures, host_nvme};
use crate::error::StartError;
use crate::events::lost_ram::LossWatch;
use crate::events::notice::Life;
use crate::events::phase::{Phase, Phases};
use crate::events::slow_step::wait_for;
use crate::events::{Event, Inbox};
use crate::kvm::irqchip::IrqChips;

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
    pub(crate) chips: IrqChips,
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

impl Vm {
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
            faults: self.faults.as_ref().map(Watch::tally).unwrap_or_default(),
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
    fn answer(&mut self, fault: &Fault) -> Result<(), Outcome> {
        let (answer, text) = (self.policies.answer(fault, Instant::now()), fault.to_string());
        let device = on_fault::device_of(&self.assigned, fault).cloned();
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
                for what in errors.chain(on_fault::also_reset(device.name(), device.reset_with())) {
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
        wait_for("its TPM to be reset", self.inbox.reporter(), || self.board.reset_tpm());
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
        let stored = || board.flash.iter().filter_map(|flash| flash.end().err()).collect::<Vec<_>>();
        troubles.extend(wait_for("its firmware's variables to be stored", inbox.reporter(), stored));
        let bus = board.bus.clone();
        // Of the devices at fixed places only the TPM can take long to go.
        wait_for("its TPM", inbox.reporter(), || drop(board));
        // The last holders of functions, and so of queues and of device files, go here.
        wait_for("its disks", inbox.reporter(), || {
            // A thread that has stopped over lost RAM keeps the board, and is not to keep the devices with it.
            bus.clear();
            drop((assigned, bus, disks, now));
        });
        // With no queue left but those that hang; nothing of theirs may stay open when they are given back.
        for controller in controllers {
            let what = format!("NVMe controller {} to shut down", controller.name());
            let shut_down = wait_for(&what, inbox.reporter(), || host_nvme::shut_down(&controller));
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
