//! Interrupts of a device as VFIO sees them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, vfio_irq_info,
};

use vmm_sys_util::eventfd::EventFd;

use super::device::VfioDevice;
use super::error::VfioError;
use super::ioctl;

/// A kind of interrupt that a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Interrupt {
    /// The pin.
    Intx = VFIO_PCI_INTX_IRQ_INDEX,
    /// MSI.
    Msi = VFIO_PCI_MSI_IRQ_INDEX,
    /// MSI-X.
    Msix = VFIO_PCI_MSIX_IRQ_INDEX,
    /// The device met an error that it cannot recover from.
    Error = VFIO_PCI_ERR_IRQ_INDEX,
    /// The host wants the device back.
    Request = VFIO_PCI_REQ_IRQ_INDEX,
}

/// What the kernel says about a kind of interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many there are; 0 when the device has none of the kind.
    pub count: u32,
    /// To get more vectors, all must be disabled first.
    pub no_resize: bool,
}

impl VfioDevice {
    /// What there is of a kind of interrupt.
    pub fn irq(&self, interrupt: Interrupt) -> Result<IrqInfo, VfioError> {
        let argsz = size_of::<vfio_irq_info>() as u32;
        let mut info = vfio_irq_info { argsz, index: interrupt as u32, ..Default::default() };
        let what = || format!("ask for its {interrupt:?} interrupts");
        match ioctl::write(self, ioctl::VFIO_DEVICE_GET_IRQ_INFO(), &mut info) {
            Ok(_) => {}
            // Conventional PCI devices have no error interrupt, which the kernel answers so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => info = vfio_irq_info::default(),
            Err(cause) => return Err(VfioError::new(self.name(), what(), cause, "")),
        }
        Ok(IrqInfo { count: info.count, no_resize: info.flags & VFIO_IRQ_INFO_NORESIZE != 0 })
    }

    /// Connects vectors from `start` on to these eventfds; `None` leaves a vector allocated and silent. The first
    /// call of a kind enables it in the device, with as many vectors as it names.
    pub fn set_triggers(
        &self,
        interrupt: Interrupt,
        start: u32,
        eventfds: &[Option<&EventFd>],
    ) -> Result<(), VfioError> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(interrupt, flags, start, eventfds).map_err(|cause| {
            let hint = match cause.raw_os_error() {
                Some(libc::ENOSPC | libc::ENOMEM) => "The host has no interrupt vectors left",
                Some(libc::EBUSY) => "The interrupt line is shared with a device of the host",
                _ => "See the kernel's log (`dmesg`)",
            };
            let end = start as usize + eventfds.len();
            let what = format!("set its {interrupt:?} interrupts {start} to {}", end.saturating_sub(1));
            VfioError::new(self.name(), what, cause, hint)
        })
    }

    /// Disconnects all eventfds of a kind and disables it in the device.
    pub fn disable(&self, interrupt: Interrupt) -> Result<(), VfioError> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        let fail =
            |cause| VfioError::new(self.name(), format!("disable its {interrupt:?} interrupts"), cause, "");
        self.set_irqs(interrupt, flags, 0, &[]).map_err(fail)
    }

    /// Makes the kernel unmask the pin whenever this eventfd is signalled.
    pub fn unmask_intx_on(&self, eventfd: &EventFd) -> Result<(), VfioError> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        let fail = |cause| VfioError::new(self.name(), "have its interrupt pin unmasked", cause, "");
        self.set_irqs(Interrupt::Intx, flags, 0, &[Some(eventfd)]).map_err(fail)
    }

    fn set_irqs(
        &self,
        interrupt: Interrupt,
        flags: u32,
        start: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let count = eventfds.len() as u32;
        let mut request = vec![20 + 4 * count, flags, interrupt as u32, start, count];
        let number = |fd: &Option<&EventFd>| fd.map_or(-1, AsRawFd::as_raw_fd) as u32;
        request.extend(eventfds.iter().map(number));
        ioctl::words(&self.as_fd(), ioctl::VFIO_DEVICE_SET_IRQS(), &mut request)?;
        Ok(())
    }
}
