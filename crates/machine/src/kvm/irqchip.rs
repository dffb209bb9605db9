//! The interrupt controllers and the timer inside KVM, at power-on.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use crate::kvm::{KvmError, failed};

/// Their state before the guest first ran, to return to when the VM starts afresh.
pub struct IrqChips {
    controllers: [kvm_irqchip; 3],
    timer: kvm_pit_state2,
}

impl IrqChips {
    /// Takes the state of a VM that has not run yet.
    pub fn of(vm: &VmFd) -> Result<IrqChips, KvmError> {
        let read = || -> Result<IrqChips, kvm_ioctls::Error> {
            let mut controllers = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
                .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
            controllers.iter_mut().try_for_each(|chip| vm.get_irqchip(chip))?;
            Ok(IrqChips { controllers, timer: vm.get_pit2()? })
        };
        read().map_err(failed("read its interrupt controllers"))
    }

    /// Puts them back into this state.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        let write = || -> Result<(), kvm_ioctls::Error> {
            self.controllers.iter().try_for_each(|chip| vm.set_irqchip(chip))?;
            vm.set_pit2(&self.timer)
        };
        write().map_err(failed("reset its interrupt controllers"))
    }
}
