//! How completion queues reach the driver: by message, or by the interrupt pin (7.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pci::{Line, Msix, ServiceError, Vector};

/// Where an interrupt goes.
#[derive(Clone, Default)]
pub(super) enum Route {
    /// Nowhere: the vector cannot be had.
    #[default]
    Nowhere,
    /// By message.
    Vector(Arc<dyn Vector>),
    /// By the interrupt pin.
    Line,
}

#[derive(Default)]
struct Pin {
    /// Completion queues with entries that the driver has not taken, a bit each.
    pending: u128,
    /// INTMS.
    masks: u32,
    /// By the command register, or because MSI-X is on.
    disabled: bool,
}

/// The interrupts of one controller.
pub(super) struct Interrupts {
    msix: Mutex<Msix>,
    line: Arc<dyn Line>,
    pin: Mutex<Pin>,
    /// Moves when MSI-X is turned on or off.
    epoch: AtomicU32,
    /// Feature 08h: threshold in bits 7:0 (0's based), time in bits 15:8 (100 µs).
    coalescing: AtomicU32,
    /// Feature 09h: vectors that are never held back.
    prompt: Vec<AtomicBool>,
}

impl Interrupts {
    pub(super) fn new(msix: Msix, line: Arc<dyn Line>) -> Interrupts {
        let prompt = (0..msix.count()).map(|_| AtomicBool::new(false)).collect();
        Interrupts {
            msix: Mutex::new(msix),
            line,
            pin: Mutex::default(),
            epoch: AtomicU32::new(0),
            coalescing: AtomicU32::new(0),
            prompt,
        }
    }

    /// The table, to be read and written by the guest. Use [`Interrupts::rerouted`] after turning it on or off.
    pub(super) fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock()
    }

    /// MSI-X was turned on or off, or reset.
    pub(super) fn rerouted(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// How many vectors there are.
    pub(super) fn vectors(&self) -> u16 {
        self.prompt.len() as u16
    }

    /// Where interrupts of a vector go, and since which epoch.
    pub(super) fn route(&self, vector: u16) -> Result<(u32, Route), ServiceError> {
        let mut msix = self.msix();
        let epoch = self.epoch();
        if !msix.enabled() {
            return Ok((epoch, Route::Line));
        }
        let vector = msix.vector(usize::from(vector))?;
        Ok((epoch, vector.map_or(Route::Nowhere, Route::Vector)))
    }

    /// A completion queue has entries for the driver, or has not, as far as the pin goes.
    pub(super) fn set_pin(&self, queue: u16, entries: impl FnOnce() -> bool) {
        let mut pin = self.pin.lock();
        let bit = 1u128 << (queue % 128);
        if entries() {
            pin.pending |= bit;
        } else {
            pin.pending &= !bit;
        }
        self.level(&pin);
    }

    fn level(&self, pin: &Pin) {
        self.line.set(Self::asserted(pin));
    }

    fn asserted(pin: &Pin) -> bool {
        pin.pending != 0 && pin.masks & 1 == 0 && !pin.disabled
    }

    /// The interrupt mask as INTMS and INTMC read.
    pub(super) fn masks(&self) -> u32 {
        self.pin.lock().masks
    }

    pub(super) fn mask(&self, set: u32, clear: u32) {
        let mut pin = self.pin.lock();
        pin.masks = (pin.masks | set) & !clear;
        self.level(&pin);
    }

    pub(super) fn disable_pin(&self, disabled: bool) {
        let mut pin = self.pin.lock();
        pin.disabled = disabled;
        self.level(&pin);
    }

    /// Whether the pin would be asserted if it were not disabled: the status register shows it.
    pub(super) fn pin_wanted(&self) -> bool {
        self.pin.lock().pending != 0
    }

    /// Takes all that a disabled controller may not say any more back.
    pub(super) fn controller_reset(&self) {
        let mut pin = self.pin.lock();
        (pin.pending, pin.masks) = (0, 0);
        self.level(&pin);
        self.coalescing.store(0, Ordering::Relaxed);
        self.prompt.iter().for_each(|prompt| prompt.store(false, Ordering::Relaxed));
    }

    pub(super) fn coalescing(&self) -> u32 {
        self.coalescing.load(Ordering::Relaxed)
    }

    pub(super) fn set_coalescing(&self, value: u32) {
        self.coalescing.store(value & 0xffff, Ordering::Relaxed);
    }

    /// Whether a vector is exempt from coalescing; `None` when there is no such vector.
    pub(super) fn prompt(&self, vector: u16) -> Option<&AtomicBool> {
        self.prompt.get(usize::from(vector))
    }

    /// For a vector: with how many entries an interrupt goes out at once, and how long fewer may wait.
    pub(super) fn patience(&self, vector: u16) -> Option<(u32, Duration)> {
        let value = self.coalescing();
        let (threshold, time) = (value & 0xff, value >> 8);
        let prompt = self.prompt(vector).is_none_or(|prompt| prompt.load(Ordering::Relaxed));
        (threshold > 0 && time > 0 && !prompt)
            .then(|| (threshold + 1, Duration::from_micros(100 * u64::from(time))))
    }
}
