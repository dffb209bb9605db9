//! What happens to an assigned device while the guest runs.

use std::fmt;
use std::sync::{Arc, OnceLock};

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
    /// The host wants the device back: its driver is being unbound, or the device is being removed. The process that does
    /// this waits until the device is free, so this is reported once.
    Requested {
        /// The device.
        device: String,
    },
    /// Something does not work as it should. The guest continues to run.
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
                    "{device}: this host wants the device back and waits for the end of the VM. Stop the VM (skep stop)"
                )
            }
            Event::Warning { device, what } => write!(f, "{device}: {what}"),
        }
    }
}

/// Receives events. Called on any thread, also by vCPUs; it must neither wait nor call the device.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// The eventfds with which the kernel signals errors and requests. The machine polls them.
#[derive(Debug)]
pub struct Alarms {
    device: String,
    error: Option<EventFd>,
    request: Option<Request>,
}

/// Whether the host wants the device back. That is never taken back: the kernel's unbind ends when it has the device, and
/// signals every ten seconds until then (Linux, drivers/vfio/vfio_main.c, vfio_unregister_group_dev).
#[derive(Debug)]
struct Request {
    eventfd: EventFd,
    made: OnceLock<()>,
}

impl Request {
    /// Whether it came since the last call. It comes once.
    fn take(&self) -> bool {
        self.made.get().is_none() && self.eventfd.read().is_ok() && self.made.set(()).is_ok()
    }

    /// The eventfd, while there is something to wait for.
    fn awaited(&self) -> Option<&EventFd> {
        self.made.get().is_none().then_some(&self.eventfd)
    }
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
            request: register(Interrupt::Request)?.map(|eventfd| Request { eventfd, made: OnceLock::new() }),
        })
    }

    /// The eventfds to poll for reading.
    pub fn eventfds(&self) -> impl Iterator<Item = &EventFd> {
        self.error.iter().chain(self.request.iter().filter_map(Request::awaited))
    }

    /// What was signalled since the last call; does not block.
    pub fn take(&self) -> Vec<Event> {
        let device = || self.device.clone();
        let error = self.error.as_ref().is_some_and(|eventfd| eventfd.read().is_ok());
        let error = error.then(|| Event::DeviceError { device: device() });
        let request = self.request.as_ref().is_some_and(Request::take);
        let request = request.then(|| Event::Requested { device: device() });
        error.into_iter().chain(request).collect()
    }

    /// Whether the host wants the device back, and that was taken.
    pub(crate) fn was_requested(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.awaited().is_none())
    }

    /// Takes the eventfds away from the kernel.
    pub(crate) fn silence(&self, device: &VfioDevice) -> Result<(), VfioError> {
        let error = self.error.as_ref().map_or(Ok(()), |_| device.disable(Interrupt::Error));
        let request = self.request.as_ref().map_or(Ok(()), |_| device.disable(Interrupt::Request));
        error.and(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_the_host_wants_the_device_back_is_said_once_however_often_the_kernel_signals_it() {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let alarms = Alarms {
            device: "0000:01:00.0".to_owned(),
            error: Some(eventfd()),
            request: Some(Request { eventfd: eventfd(), made: OnceLock::new() }),
        };
        let device = alarms.device.clone();
        assert_eq!((alarms.take(), alarms.eventfds().count()), (vec![], 2));
        assert!(!alarms.was_requested());
        for said in [vec![Event::Requested { device: device.clone() }], vec![], vec![]] {
            alarms.request.as_ref().unwrap().eventfd.write(1).unwrap();
            assert_eq!(alarms.take(), said);
        }
        assert!(alarms.was_requested());
        assert_eq!(alarms.eventfds().count(), 1, "nothing more is waited for");
        for _ in 0..2 {
            alarms.error.as_ref().unwrap().write(1).unwrap();
            assert_eq!(alarms.take(), [Event::DeviceError { device: device.clone() }]);
        }
    }
}
