//! How a device reaches its driver: interrupts for queues, and for changes of configuration.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use ::pci::{Gate, Line, Vector};
use parking_lot::Mutex;

use crate::reports::{Report, Reports};

/// ISR status: a queue has used buffers (4.1.4.5).
const ISR_QUEUE: u8 = 1;
/// ISR status: configuration changed.
const ISR_CONFIG: u8 = 2;

/// Where an interrupt goes.
#[derive(Clone, Default)]
pub(crate) enum Route {
    /// Nowhere: MSI-X is on, and the driver gave no vector.
    #[default]
    Nowhere,
    /// By message.
    Vector(Arc<dyn Vector>),
    /// By the interrupt pin and the ISR status.
    Line,
}

/// What a device's threads and its transport share.
pub(crate) struct Shared {
    reports: Reports,
    /// Moves when a route does, so that queues notice without a lock.
    epoch: AtomicU32,
    routes: Mutex<Routes>,
    pin: Mutex<PinState>,
    line: Arc<dyn Line>,
    needs_reset: AtomicBool,
    config_generation: AtomicU8,
    /// Bus mastering.
    gate: Gate,
}

#[derive(Default)]
struct Routes {
    config: Route,
    queues: Vec<Route>,
}

#[derive(Default)]
struct PinState {
    isr: u8,
    disabled: bool,
}

impl Shared {
    pub(crate) fn new(name: &str, queues: usize, line: Arc<dyn Line>, report: Report) -> Shared {
        Shared {
            reports: Reports::new(name.to_owned(), report),
            epoch: AtomicU32::new(0),
            routes: Mutex::new(Routes { config: Route::Line, queues: vec![Route::Line; queues] }),
            pin: Mutex::default(),
            line,
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU8::new(0),
            gate: Gate::shut(),
        }
    }

    pub(crate) fn set_routes(&self, config: Route, queues: Vec<Route>) {
        *self.routes.lock() = Routes { config, queues };
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn queue_route(&self, index: u16) -> (u32, Route) {
        let routes = self.routes.lock();
        let route = routes.queues.get(usize::from(index)).cloned().unwrap_or_default();
        (self.epoch.load(Ordering::Acquire), route)
    }

    fn send(&self, route: &Route, reason: u8) {
        match route {
            Route::Nowhere => {}
            // The only failure is a counter at its limit: then the interrupt is pending already.
            Route::Vector(vector) => drop(vector.eventfd().write(1)),
            Route::Line => {
                let mut pin = self.pin.lock();
                pin.isr |= reason;
                self.line.set(!pin.disabled);
            }
        }
    }

    /// Reads the ISR status, which takes the interrupt back (4.1.4.5).
    pub(crate) fn take_isr(&self) -> u8 {
        let mut pin = self.pin.lock();
        self.line.set(false);
        std::mem::take(&mut pin.isr)
    }

    /// Whether the pin is asserted, or would be if it were not disabled.
    pub(crate) fn pin_wanted(&self) -> bool {
        self.pin.lock().isr != 0
    }

    /// The driver enables or disables the pin in the command register.
    pub(crate) fn disable_pin(&self, disabled: bool) {
        let mut pin = self.pin.lock();
        pin.disabled = disabled;
        self.line.set(pin.isr != 0 && !disabled);
    }

    pub(crate) fn config_generation(&self) -> u8 {
        self.config_generation.load(Ordering::Acquire)
    }

    fn config_changed(&self) {
        let route = self.routes.lock().config.clone();
        if let Route::Vector(_) = route {
            self.pin.lock().isr |= ISR_CONFIG;
        }
        self.send(&route, ISR_CONFIG);
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The device cannot go on, for what its driver did: the driver is told, and so are people.
    pub(crate) fn ask_for_reset(&self, why: &dyn fmt::Display) {
        if self.stop() {
            self.reports.driver(&waits(why));
        }
    }

    /// The device cannot go on, for this host failed at something: the driver is told, and so are people.
    pub(crate) fn host_failed(&self, why: &dyn fmt::Display) {
        if self.stop() {
            self.reports.host(&waits(why));
        }
    }

    /// Whether it had gone on until now.
    fn stop(&self) -> bool {
        let before = self.needs_reset.swap(true, Ordering::AcqRel);
        if !before {
            self.config_changed();
        }
        !before
    }

    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Back to the state before any driver.
    pub(crate) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.take_isr();
    }
}

fn waits(why: &dyn fmt::Display) -> String {
    format!("{why}. The device waits for its driver to reset it.")
}

/// Tells the driver about used buffers of one queue. It belongs to the queue's thread, which pays for a lock
/// only when the driver has changed where the interrupt goes.
pub struct Interrupt {
    shared: Arc<Shared>,
    queue: u16,
    epoch: u32,
    route: Route,
}

impl Interrupt {
    pub(crate) fn new(shared: Arc<Shared>, queue: u16) -> Interrupt {
        let (epoch, route) = shared.queue_route(queue);
        Interrupt { shared, queue, epoch, route }
    }

    /// There are used buffers. Call it when [`crate::Queue::publish`] says so.
    pub fn signal(&mut self) {
        if self.epoch != self.shared.epoch.load(Ordering::Acquire) {
            (self.epoch, self.route) = self.shared.queue_route(self.queue);
        }
        self.shared.send(&self.route, ISR_QUEUE);
    }

    /// The queue cannot go on, for what the driver did: sets DEVICE_NEEDS_RESET and tells driver and people.
    pub fn ask_for_reset(&self, why: &dyn fmt::Display) {
        self.shared.ask_for_reset(&format_args!("queue {}: {why}", self.queue));
    }

    /// Tells people of a failure of this host, after which the queue goes on.
    pub fn report(&self, what: &dyn fmt::Display) {
        self.shared.reports.host(what);
    }

    /// The queue cannot go on, for this host failed at something: sets DEVICE_NEEDS_RESET and tells driver and people.
    pub fn host_failed(&self, why: &dyn fmt::Display) {
        self.shared.host_failed(&format_args!("queue {}: {why}", self.queue));
    }
}

/// Tells the driver that configuration space changed by itself, and people what concerns the device as a whole.
#[derive(Clone)]
pub struct ConfigChange(pub(crate) Arc<Shared>);

impl ConfigChange {
    /// Call it after the change.
    pub fn notify(&self) {
        self.0.config_generation.fetch_add(1, Ordering::AcqRel);
        self.0.config_changed();
    }

    /// Tells people of a failure of this host, after which the device goes on.
    pub fn report(&self, what: &dyn fmt::Display) {
        self.0.reports.host(what);
    }
}
