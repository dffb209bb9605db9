//! A machine for tests: it remembers what functions asked of it. With the feature `fake` other crates' tests
//! have it too.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memory::{DeviceMemory, Gpa};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::address::{Address, Pin};
use crate::services::{Line, MsiMessage, ResampledLine, ServiceError, Services, Vector};

/// Remembers vectors, doorbells and memory.
#[derive(Default)]
pub struct FakeServices {
    vectors: Mutex<Vec<Arc<FakeVector>>>,
    doorbells: Mutex<Vec<(Gpa, u32)>>,
    memory: Mutex<Vec<DeviceMemory>>,
    lines: Mutex<Vec<Arc<FakeLine>>>,
}

/// A vector whose message can be looked at.
pub struct FakeVector {
    device: Address,
    eventfd: EventFd,
    message: Mutex<Option<MsiMessage>>,
    broken: AtomicBool,
}

/// A line whose level can be looked at.
#[derive(Default)]
pub struct FakeLine(AtomicU32);

impl FakeLine {
    /// Whether it is asserted.
    pub fn asserted(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

impl FakeServices {
    /// The messages of all vectors made, in the order they were made.
    pub fn messages(&self) -> Vec<Option<MsiMessage>> {
        self.vectors.lock().iter().map(|vector| *vector.message.lock()).collect()
    }

    /// How often vector `index` (in the order they were made) was raised since last asked.
    pub fn raised(&self, index: usize) -> u64 {
        self.vectors.lock()[index].eventfd.read().unwrap_or(0)
    }

    /// From now on vector `index` (in the order they were made) takes no message, or does again.
    pub fn break_vector(&self, index: usize, broken: bool) {
        self.vectors.lock()[index].broken.store(broken, Ordering::SeqCst);
    }

    /// Doorbells that are there now: address and width.
    pub fn doorbells(&self) -> Vec<(Gpa, u32)> {
        self.doorbells.lock().clone()
    }

    /// Memory that is there now: address and bytes.
    pub fn memory(&self) -> Vec<DeviceMemory> {
        self.memory.lock().clone()
    }

    /// The lines handed out, in order.
    pub fn lines(&self) -> Vec<Arc<FakeLine>> {
        self.lines.lock().clone()
    }
}

impl Vector for FakeVector {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn set(&self, message: Option<MsiMessage>) -> Result<(), ServiceError> {
        if self.broken.load(Ordering::SeqCst) {
            let cause = io::Error::other("broken on purpose");
            return Err(ServiceError { device: self.device, what: "set a message".into(), cause });
        }
        *self.message.lock() = message;
        Ok(())
    }

    fn pending(&self) -> bool {
        let raised = self.eventfd.read().unwrap_or(0);
        if raised != 0 {
            self.eventfd.write(raised).unwrap();
        }
        raised != 0
    }
}

impl Line for FakeLine {
    fn set(&self, asserted: bool) {
        self.0.store(u32::from(asserted), Ordering::SeqCst);
    }
}

impl Services for FakeServices {
    fn vector(&self, device: Address) -> Result<Arc<dyn Vector>, ServiceError> {
        let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let message = Mutex::default();
        let vector = Arc::new(FakeVector { device, eventfd, message, broken: AtomicBool::new(false) });
        self.vectors.lock().push(vector.clone());
        Ok(vector)
    }

    fn line(&self, _: Address, _: Pin) -> Arc<dyn Line> {
        let line = Arc::new(FakeLine::default());
        self.lines.lock().push(line.clone());
        line
    }

    fn resampled_line(&self, _: Address, _: Pin) -> Result<Arc<ResampledLine>, ServiceError> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Ok(Arc::new(ResampledLine { trigger: eventfd(), resample: eventfd() }))
    }

    fn remove_resampled_line(&self, _: Address, _: Pin, _: &ResampledLine) -> Result<(), ServiceError> {
        Ok(())
    }

    fn add_doorbell(&self, _: Address, at: Gpa, width: u32, _: &EventFd) -> Result<(), ServiceError> {
        self.doorbells.lock().push((at, width));
        Ok(())
    }

    fn remove_doorbell(&self, _: Address, at: Gpa, width: u32, _: &EventFd) -> Result<(), ServiceError> {
        self.doorbells.lock().retain(|doorbell| *doorbell != (at, width));
        Ok(())
    }

    fn add_memory(&self, _: Address, memory: &DeviceMemory) -> Result<(), ServiceError> {
        self.memory.lock().push(memory.clone());
        Ok(())
    }

    fn remove_memory(&self, _: Address, memory: &DeviceMemory) -> Result<(), ServiceError> {
        self.memory.lock().retain(|other| other != memory);
        Ok(())
    }
}
