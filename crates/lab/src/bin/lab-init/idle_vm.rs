//! A VM that never runs and is there for the host's whole life.
//!
//! Linux rewrites its own code when the first VM comes and when the last one goes (static branches: the scheduler's
//! notices to vCPU threads, and whether some vCPU's APIC is switched off). QEMU may go on running what the code was
//! before, when another CPU translates it in that moment: a host was found looping at that very branch. Guests that
//! crash or go on with the host's page tables became rarer with this VM; that they have the same cause is likely,
//! not proven. One vCPU whose APIC stays off keeps that code as it is.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
const KVM_CREATE_IRQCHIP: libc::c_ulong = 0xae60;

/// The VM; it goes when this is dropped.
pub struct IdleVm {
    _vm: OwnedFd,
    _vcpu: OwnedFd,
}

impl IdleVm {
    /// The VM, or `None` where there is no KVM.
    ///
    /// # Errors
    /// KVM's, when it is there and refuses.
    pub fn create() -> io::Result<Option<IdleVm>> {
        let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            kvm => kvm?,
        };
        let vm = new_fd(ioctl(kvm.as_raw_fd(), KVM_CREATE_VM)?);
        ioctl(vm.as_raw_fd(), KVM_CREATE_IRQCHIP)?;
        let vcpu = new_fd(ioctl(vm.as_raw_fd(), KVM_CREATE_VCPU)?);
        Ok(Some(IdleVm { _vm: vm, _vcpu: vcpu }))
    }
}

fn ioctl(fd: RawFd, request: libc::c_ulong) -> io::Result<RawFd> {
    // SAFETY: the three requests take a number (a VM's type, a vCPU's index), here 0, and touch no memory of ours.
    let answer = unsafe { libc::ioctl(fd, request as _, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn new_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: KVM has just made this file descriptor for us; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
