//! What happens to an assigned device while the guest runs.

use std::fmt;
use std::sync::Arc;

use dma::vfio::{Interrupt, VfioDevice, VfioError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Something about an assigned device that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The device met an error from which it cannot recover (PCIe: an uncorrectable one).
    DeviceError {
        /// The device.
        device: String,
    },
    /// The host wants the device back: its driver is being unbound, or it is being removed.
    Requested {
        /// The device.
        device: String,
    },
    /// Something is not as it should be, and the guest runs on.
    Warning {
        /// The device.
        device: String,
        /// What is wrong, and what it means.
        what: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::DeviceError { device } => {
                write!(
                    f,
                    "{device}: the device reports an error that it cannot recover from. Stop the VM, or reset the device"
                )
            }
            Event::Requested { device } => {
                write!(
                    f,
                    "{device}: this host wants the device back. Stop the VM, or remove the device from it"
                )
            }
            Event::Warning { device, what } => write!(f, "{device}: {what}"),
        }
    }
}

/// Who is told of events. Called on any thread, also by vCPUs; it must not wait or call the device back.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// The eventfds by which the kernel tells of errors and requests. The machine polls them.
#[derive(Debug)]
pub struct Alarms {
    device: String,
    error: Option<EventFd>,
    request: Option<EventFd>,
}

impl Alarms {
    /// Registers for what the device has.
    pub(crate) fn new(device: &VfioDevice) -> Result<Alarms, VfioError> {
        let register = |interrupt| {
            if device.irq(interrupt)?.count == 0 {
                return Ok(None);
            }
            let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|cause| VfioError {
                object: device.name().to_owned(),
                what: "make an eventfd".to_owned(),
                cause,
                hint: "Raise the limit on open files (`ulimit -n`)",
            })?;
            device.set_triggers(interrupt, 0, &[Some(&eventfd)])?;
            Ok(Some(eventfd))
        };
        Ok(Alarms {
            device: device.name().to_owned(),
            error: register(Interrupt::Error)?,
            request: register(Interrupt::Request)?,
        })
    }

    /// The eventfds to poll for reading.
    pub fn eventfds(&self) -> impl Iterator<Item = &EventFd> {
        self.error.iter().chain(&self.request)
    }

    /// What was signalled since the last call; does not block.
    pub fn take(&self) -> Vec<Event> {
        let signalled =
            |eventfd: &Option<EventFd>| eventfd.as_ref().is_some_and(|eventfd| eventfd.read().is_ok());
        let device = || self.device.clone();
        let error = signalled(&self.error).then(|| Event::DeviceError { device: device() });
        let request = signalled(&self.request).then(|| Event::Requested { device: device() });
        error.into_iter().chain(request).collect()
    }

    /// Takes the eventfds away from the kernel.
    pub(crate) fn silence(&self, device: &VfioDevice) -> Result<(), VfioError> {
        let error = self.error.as_ref().map_or(Ok(()), |_| device.disable(Interrupt::Error));
        let request = self.request.as_ref().map_or(Ok(()), |_| device.disable(Interrupt::Request));
        error.and(request)
    }
}
