//! What KVM does for PCI functions.

use std::io;
use std::sync::{Arc, Weak};

use faults::FaultReporter;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use memory::{Change, DeviceMemory, Gpa, MemoryMap};
use pci::{Address, Line, Pin, ResampledLine, ServiceError, Services, Vector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::assigned::on_fault;
use crate::kvm::interrupts::{Interrupts, intx_gsi};

/// A VM's services to its functions.
pub struct KvmServices {
    vm: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    /// The VM's. It is gone after the VM has ended, even if threads of a device are left behind.
    map: Weak<MemoryMap>,
    /// Gets reports of changes that failed; it is set when there are devices.
    reporter: Option<FaultReporter>,
}

impl KvmServices {
    /// Services on one VM.
    pub fn new(
        vm: Arc<VmFd>,
        interrupts: Arc<Interrupts>,
        map: &Arc<MemoryMap>,
        reporter: Option<FaultReporter>,
    ) -> KvmServices {
        KvmServices { vm, interrupts, map: Arc::downgrade(map), reporter }
    }
}

fn failed<E: Into<io::Error>>(device: Address, what: String) -> impl FnOnce(E) -> ServiceError {
    move |cause| ServiceError { device, what, cause: cause.into() }
}

impl Services for KvmServices {
    fn vector(&self, device: Address) -> Result<Arc<dyn Vector>, ServiceError> {
        self.interrupts.vector(device)
    }

    fn line(&self, device: Address, pin: Pin) -> Arc<dyn Line> {
        self.interrupts.line(device, pin)
    }

    fn resampled_line(&self, device: Address, pin: Pin) -> Result<Arc<ResampledLine>, ServiceError> {
        let gsi = intx_gsi(device, pin);
        let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(failed(device, "make an eventfd".into()));
        let line = ResampledLine { trigger: eventfd()?, resample: eventfd()? };
        self.vm
            .register_irqfd_with_resample(&line.trigger, &line.resample, gsi)
            .map_err(failed(device, format!("connect its pin {pin:?} to interrupt {gsi}")))?;
        Ok(Arc::new(line))
    }

    fn remove_resampled_line(
        &self,
        device: Address,
        pin: Pin,
        line: &ResampledLine,
    ) -> Result<(), ServiceError> {
        let gsi = intx_gsi(device, pin);
        self.vm
            .unregister_irqfd(&line.trigger, gsi)
            .map_err(failed(device, format!("disconnect its pin {pin:?} from interrupt {gsi}")))
    }

    fn add_doorbell(&self, device: Address, at: Gpa, width: u32, fd: &EventFd) -> Result<(), ServiceError> {
        // Any value rings, so KVM must not look at the length of the write either (length 0), which it also
        // serves fastest.
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(at.0), NoDatamatch)
            .map_err(failed(device, format!("put a doorbell of {width} bytes at {at}")))
    }

    fn remove_doorbell(
        &self,
        device: Address,
        at: Gpa,
        width: u32,
        fd: &EventFd,
    ) -> Result<(), ServiceError> {
        self.vm
            .unregister_ioevent(fd, &IoEventAddress::Mmio(at.0), NoDatamatch)
            .map_err(failed(device, format!("remove the doorbell of {width} bytes at {at}")))
    }

    fn add_memory(&self, device: Address, memory: &DeviceMemory) -> Result<(), ServiceError> {
        self.change(device, &Change::AddDevice(memory.clone()))
    }

    fn remove_memory(&self, device: Address, memory: &DeviceMemory) -> Result<(), ServiceError> {
        self.change(device, &Change::RemoveDevice(memory.clone()))
    }
}

impl KvmServices {
    fn change(&self, device: Address, change: &Change) -> Result<(), ServiceError> {
        let gone = || io::Error::other("the VM is ending");
        let map = self.map.upgrade().ok_or_else(gone).map_err(failed(device, change.to_string()))?;
        map.apply(change).map_err(|error| {
            if let Some(reporter) = &self.reporter {
                let faults = on_fault::of_failed_change(&map, &error);
                faults.into_iter().for_each(|fault| reporter.tell(fault));
            }
            ServiceError { device, what: change.to_string(), cause: io::Error::other(error) }
        })
    }
}
