//! The common registers (VIRTIO 1.2, 4.1.4.3) and what they steer: negotiation, queues, reset.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memory::{Gpa, Ram};
use vmm_sys_util::eventfd::EventFd;

use super::TRANSPORT;
use super::layout::NO_VECTOR;
use crate::device::{QueueSetup, VirtioDevice, Worker};
use crate::features::Features;
use crate::interrupt::{ConfigChange, Interrupt, Shared};
use crate::queue::{Queue, QueueAddresses};

/// Bytes of the registers.
pub(super) const LENGTH: usize = 60;

/// Device status (2.1): negotiation is done.
const FEATURES_OK: u8 = 8;
/// Device status: the driver is ready, queues are live.
const DRIVER_OK: u8 = 4;
/// Device status: the device has met an error and needs a reset.
const NEEDS_RESET: u8 = 64;

/// How long all queues together may take to end what is under way when the device goes.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);
/// How long a driver is made to wait that writes before the status reads 0. Longer than a disk in order takes, and short
/// enough for a vCPU of a guest whose disk is not.
const STATUS_WRITE_LIMIT: Duration = Duration::from_secs(1);
/// How often to look whether threads have ended.
const LOOK: Duration = Duration::from_millis(1);

/// Offsets that are written to.
mod field {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_DESCRIPTORS: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
    pub const QUEUE_RESET: u64 = 58;
}

/// What a queue is doing.
enum Activity {
    /// The driver has not enabled it.
    Off,
    /// Enabled; it starts with DRIVER_OK.
    Enabled,
    /// Served by its thread.
    Running(Worker),
    /// Being reset; its thread is finishing what is under way.
    Stopping(Worker),
}

struct Slot {
    max_size: u16,
    at: QueueAddresses,
    vector: u16,
    activity: Activity,
    kick: EventFd,
}

impl Slot {
    fn clear(&mut self) {
        self.at = QueueAddresses { size: self.max_size, ..QueueAddresses::default() };
        self.vector = NO_VECTOR;
        self.activity = Activity::Off;
    }

    /// Asks the thread to end. Without one the queue is as before any driver at once.
    fn stop(&mut self) {
        match std::mem::replace(&mut self.activity, Activity::Off) {
            Activity::Running(worker) | Activity::Stopping(worker) => {
                worker.stop();
                self.activity = Activity::Stopping(worker);
            }
            Activity::Off | Activity::Enabled => self.clear(),
        }
    }

    fn is_stopping(&self) -> bool {
        matches!(&self.activity, Activity::Stopping(worker) if !worker.has_ended())
    }

    /// A queue whose reset is done is as before any driver (2.6.1.1). Returns whether this one has become so.
    fn settle(&mut self) -> bool {
        let ended = matches!(self.activity, Activity::Stopping(_)) && !self.is_stopping();
        if ended {
            self.clear();
        }
        ended
    }
}

/// Where the device is between power-on and reset.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The driver negotiates or uses the device.
    Live,
    /// The driver wrote 0 to the status, or the machine is reset, since then; threads are finishing what is under way.
    Resetting(Instant),
}

/// Queues whose threads have not ended.
pub(super) struct Stuck(Vec<usize>);

/// "queue 1 has", "queues 1, 2 have".
impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        let (noun, verb) = if numbers.len() == 1 { ("queue", "has") } else { ("queues", "have") };
        write!(f, "{noun} {} {verb}", numbers.join(", "))
    }
}

pub(super) struct Common {
    device: Box<dyn VirtioDevice>,
    ram: Arc<Ram>,
    shared: Arc<Shared>,
    offered: Features,
    accepted: Features,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    status: u8,
    phase: Phase,
    queue_select: u16,
    queues: Vec<Slot>,
    /// The driver changed a vector register, and interrupts are to be routed anew.
    pub(super) vectors_changed: bool,
}

impl Common {
    pub(super) fn new(
        mut device: Box<dyn VirtioDevice>,
        ram: Arc<Ram>,
        shared: Arc<Shared>,
        change: ConfigChange,
        kicks: &[EventFd],
    ) -> io::Result<Common> {
        device.attach(change);
        let slot = |(max_size, kick): (&u16, &EventFd)| {
            let mut slot = Slot {
                max_size: *max_size,
                at: QueueAddresses::default(),
                vector: NO_VECTOR,
                activity: Activity::Off,
                kick: kick.try_clone()?,
            };
            slot.clear();
            Ok(slot)
        };
        let queues = device.queue_sizes().iter().zip(kicks).map(slot).collect::<io::Result<_>>()?;
        Ok(Common {
            offered: device.features() | TRANSPORT,
            device,
            ram,
            shared,
            accepted: Features::default(),
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            phase: Phase::Live,
            queue_select: 0,
            queues,
            vectors_changed: false,
        })
    }

    pub(super) fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// The driver writes to the device's configuration.
    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.takes_writes() {
            self.device.write_config(offset, data);
        }
    }

    /// The vector registers: for configuration changes, and one for each queue.
    pub(super) fn vectors(&mut self) -> (&mut u16, impl Iterator<Item = &mut u16>) {
        (&mut self.config_vector, self.queues.iter_mut().map(|queue| &mut queue.vector))
    }

    pub(super) fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.finish_reset_if_drained();
        let image = self.image();
        for (byte, value) in data.iter_mut().zip(image.iter().skip(offset as usize)) {
            *byte = *value;
        }
    }

    /// All registers as they read now.
    fn image(&mut self) -> [u8; LENGTH] {
        let mut image = [0; LENGTH];
        let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let half = |features: Features, select: u32| match select {
            0 => features.0 as u32,
            1 => (features.0 >> 32) as u32,
            _ => 0,
        };
        set(0, &self.device_feature_select.to_le_bytes());
        set(4, &half(self.offered, self.device_feature_select).to_le_bytes());
        set(8, &self.driver_feature_select.to_le_bytes());
        set(12, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        set(16, &self.config_vector.to_le_bytes());
        set(18, &(self.queues.len() as u16).to_le_bytes());
        let broken = if self.shared.needs_reset() { NEEDS_RESET } else { 0 };
        set(20, &[self.status | broken, self.shared.config_generation()]);
        set(22, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
            self.vectors_changed |= queue.settle();
            let (enabled, resetting) = match queue.activity {
                Activity::Off => (false, false),
                Activity::Enabled | Activity::Running(_) => (true, false),
                Activity::Stopping(_) => (true, true),
            };
            set(24, &queue.at.size.to_le_bytes());
            set(26, &queue.vector.to_le_bytes());
            set(28, &u16::from(enabled).to_le_bytes());
            set(30, &self.queue_select.to_le_bytes());
            set(32, &queue.at.descriptors.0.to_le_bytes());
            set(40, &queue.at.driver.0.to_le_bytes());
            set(48, &queue.at.device.0.to_le_bytes());
            set(56, &self.queue_select.to_le_bytes());
            set(58, &u16::from(resetting).to_le_bytes());
        }
        image
    }

    /// Fields are written in their own width, 64-bit ones also in halves (4.1.3.1); anything else goes nowhere.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if !self.takes_writes() {
            return;
        }
        match *data {
            [value] if offset == field::STATUS => self.write_status(value),
            [a, b] => self.write_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn write_u16(&mut self, offset: u64, value: u16) {
        match offset {
            field::QUEUE_SELECT => self.queue_select = value,
            field::CONFIG_VECTOR => {
                self.config_vector = value;
                self.vectors_changed = true;
            }
            field::QUEUE_ENABLE if value == 1 => self.enable_queue(),
            field::QUEUE_RESET if value == 1 && self.accepted.contains(Features::RING_RESET) => {
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.stop();
                    self.vectors_changed = true;
                }
            }
            field::QUEUE_VECTOR => {
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = value;
                    self.vectors_changed = true;
                }
            }
            field::QUEUE_SIZE => {
                let any = self.accepted.contains(Features::RING_PACKED);
                if let Some(queue) = self.idle_queue()
                    && (1..=queue.max_size).contains(&value)
                    && (any || value.is_power_of_two())
                {
                    queue.at.size = value;
                }
            }
            _ => {}
        }
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            field::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            field::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            field::DRIVER_FEATURE if self.status & FEATURES_OK == 0 => {
                let bits = &mut self.accepted.0;
                match self.driver_feature_select {
                    0 => *bits = *bits & !0xffff_ffff | u64::from(value),
                    1 => *bits = *bits & 0xffff_ffff | u64::from(value) << 32,
                    _ => {}
                }
            }
            _ => {
                let Some(queue) = self.idle_queue() else { return };
                let address = match offset & !7 {
                    field::QUEUE_DESCRIPTORS => &mut queue.at.descriptors,
                    field::QUEUE_DRIVER => &mut queue.at.driver,
                    field::QUEUE_DEVICE => &mut queue.at.device,
                    _ => return,
                };
                match offset % 8 {
                    0 => *address = Gpa(address.0 & !0xffff_ffff | u64::from(value)),
                    4 => *address = Gpa(address.0 & 0xffff_ffff | u64::from(value) << 32),
                    _ => {}
                }
            }
        }
    }

    /// The selected queue, if it is off and may be described.
    fn idle_queue(&mut self) -> Option<&mut Slot> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        self.vectors_changed |= queue.settle();
        matches!(queue.activity, Activity::Off).then_some(queue)
    }

    fn enable_queue(&mut self) {
        let live = self.status & DRIVER_OK != 0;
        let index = self.queue_select;
        let Some(queue) = self.idle_queue() else { return };
        queue.activity = Activity::Enabled;
        if live {
            self.start_queue(index);
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.begin_reset();
        }
        let mut new = value & !self.status & !NEEDS_RESET;
        if new & FEATURES_OK != 0 && !self.acceptable() {
            // The bit stays 0, and the driver learns that the device does not work with this subset.
            new &= !FEATURES_OK;
        }
        if new & DRIVER_OK != 0 && (self.status | new) & FEATURES_OK == 0 {
            self.shared.ask_for_reset(&"the driver went on without agreeing on features");
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & FEATURES_OK != 0 {
            self.device.negotiated(self.accepted);
        }
        if new & DRIVER_OK != 0 {
            for index in 0..self.queues.len() as u16 {
                self.start_queue(index);
            }
        }
    }

    fn acceptable(&self) -> bool {
        self.accepted.without(self.offered) == Features::default()
            && self.accepted.contains(Features::VERSION_1)
    }

    fn start_queue(&mut self, index: u16) {
        let slot = &mut self.queues[usize::from(index)];
        if !matches!(slot.activity, Activity::Enabled) || self.shared.needs_reset() {
            return;
        }
        match Self::serve(&mut *self.device, &self.ram, &self.shared, self.accepted, index, slot) {
            Ok(worker) => slot.activity = Activity::Running(worker),
            Err(error) => self.shared.ask_for_reset(&format_args!("queue {index} cannot start: {error}")),
        }
    }

    fn serve(
        device: &mut dyn VirtioDevice,
        ram: &Arc<Ram>,
        shared: &Arc<Shared>,
        features: Features,
        index: u16,
        slot: &Slot,
    ) -> Result<Worker, crate::device::StartError> {
        let queue = Queue::new(ram.clone(), &slot.at, features)?;
        let kick = slot.kick.try_clone()?;
        let interrupt = Interrupt::new(shared.clone(), index);
        let pass = shared.gate().pass(&kick)?;
        device.start_queue(QueueSetup { index, queue, kick, interrupt, features, pass })
    }

    /// Asks all threads to end. The status reads as before until they have, so that no vCPU waits here.
    fn begin_reset(&mut self) {
        self.queues.iter_mut().for_each(Slot::stop);
        self.phase = Phase::Resetting(Instant::now());
        self.finish_reset_if_drained();
    }

    fn finish_reset_if_drained(&mut self) {
        if matches!(self.phase, Phase::Resetting(_)) && !self.queues.iter().any(Slot::is_stopping) {
            self.finish_reset();
        }
    }

    /// Whether the driver may write. It should wait until the status reads 0 (2.1.2). One that does not is made to wait
    /// for a moment; then what it writes goes nowhere, for the device is not its to steer until it has been reset.
    fn takes_writes(&mut self) -> bool {
        let Phase::Resetting(since) = self.phase else { return true };
        let until = since + STATUS_WRITE_LIMIT;
        let drained = self.drain_within(until.saturating_duration_since(Instant::now())).is_ok();
        self.finish_reset_if_drained();
        drained
    }

    /// Goes back to the state before any driver, if the threads end in so long. Otherwise the device is still in its
    /// reset.
    pub(super) fn reset_within(&mut self, patience: Duration) -> Result<(), Stuck> {
        self.begin_reset();
        self.drain_within(patience)?;
        self.finish_reset_if_drained();
        Ok(())
    }

    /// Waits for all threads that were asked to end, together, and no longer than this.
    fn drain_within(&self, patience: Duration) -> Result<(), Stuck> {
        let begin = Instant::now();
        while self.queues.iter().any(Slot::is_stopping) {
            if begin.elapsed() >= patience {
                let stuck = self.queues.iter().enumerate().filter(|(_, slot)| slot.is_stopping());
                return Err(Stuck(stuck.map(|(index, _)| index).collect()));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Back to the state before any driver: all threads have ended.
    fn finish_reset(&mut self) {
        self.queues.iter_mut().for_each(Slot::clear);
        self.device.reset();
        self.shared.reset();
        self.accepted = Features::default();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.vectors_changed = true;
        self.phase = Phase::Live;
    }
}

impl Drop for Common {
    /// All threads are asked to end before the first is waited for, so that queues that hang cost their time once. Those
    /// whose requests are not answered in that time are left behind, with their share in RAM and in what they work for.
    fn drop(&mut self) {
        self.queues.iter_mut().for_each(Slot::stop);
        let Err(stuck) = self.drain_within(REMOVAL_LIMIT) else { return };
        self.shared.reports().host(&format_args!(
            "{stuck} not ended in {} s what is under way. What serves them is left behind; see the host's log for what it waits for.",
            REMOVAL_LIMIT.as_secs()
        ));
        for slot in &mut self.queues {
            if let Activity::Stopping(worker) = std::mem::replace(&mut slot.activity, Activity::Off) {
                worker.leave();
            }
        }
    }
}
