//! One vCPU: its registers at power-on and at the kernel's entry, and its exits.

use std::io;
use std::sync::Arc;

use boot::{CpuState, Segment};
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVMIO, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::cpu::firmware::{Firmware, wire_local_apic};
use crate::cpu::registers::{self, Registers};
use crate::kvm::{KvmError, failed};

/// Machine check banks of a vCPU (IA32_MCG_CAP, bits 7:0). KVM's own choice is 32, all of them empty, and guests
/// look through them at boot with several intercepted accesses to each.
const ERROR_BANKS: u64 = 2;

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);

/// Gives a vCPU no more machine check banks than are useful. Before it runs for the first time.
pub fn limit_error_banks(cpu: &VcpuFd) -> Result<(), KvmError> {
    // SAFETY: KVM reads the number, which lives through the call.
    let done = unsafe { ioctl_with_ref(cpu, KVM_X86_SETUP_MCE(), &ERROR_BANKS) };
    if done == 0 { Ok(()) } else { Err(failed("set up a vCPU's machine checks")(io::Error::last_os_error())) }
}

/// The state in which firmware leaves a vCPU, which was never run: to return to when the VM starts afresh.
pub struct PowerOn {
    common: Arc<Common>,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
}

/// What all vCPUs of a VM have in common that have not run: everything but their numbers and roles. It is some 14 KiB.
struct Common {
    registers: Registers,
    regs: kvm_regs,
    xsave: Option<kvm_xsave>,
    fpu: kvm_fpu,
    nested: Option<KvmNestedStateBuffer>,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
}

impl Common {
    fn of(vm: &VmFd, cpu: &VcpuFd, listed: &[u32]) -> Result<Common, KvmError> {
        let registers = Registers::of(cpu, listed)?;
        let mut nested = KvmNestedStateBuffer::empty();
        let has_nested = cpu.nested_state(&mut nested).is_ok_and(|size| size.is_some());
        let read = || -> Result<Common, kvm_ioctls::Error> {
            Ok(Common {
                registers,
                regs: cpu.get_regs()?,
                xsave: if vm.check_extension(Cap::Xsave) { Some(cpu.get_xsave()?) } else { None },
                fpu: cpu.get_fpu()?,
                nested: has_nested.then_some(nested),
                xcrs: if vm.check_extension(Cap::Xcrs) { Some(cpu.get_xcrs()?) } else { None },
                debug: cpu.get_debug_regs()?,
                events: cpu.get_vcpu_events()?,
            })
        };
        read().map_err(failed("read a vCPU's state"))
    }
}

impl PowerOn {
    /// Does what firmware does to the boot CPU, which has not run yet, unless the guest has firmware of its own, and takes
    /// its state. `listed` are the registers that
    /// KVM says it keeps.
    pub fn of_boot_cpu(
        vm: &VmFd,
        cpu: &VcpuFd,
        listed: &[u32],
        firmware: Option<&Firmware>,
    ) -> Result<PowerOn, KvmError> {
        let common = Arc::new(Common::of(vm, cpu, listed)?);
        let mut state = PowerOn::read(common, cpu, firmware)?;
        if firmware.is_some() {
            wire_local_apic(&mut state.lapic);
            cpu.set_lapic(&state.lapic).map_err(failed("set up the boot CPU's local APIC"))?;
        }
        Ok(state)
    }

    /// The same for another vCPU, which waits for INIT and SIPI, given the state of the boot CPU.
    pub fn of_waiting_cpu(
        boot_cpu: &PowerOn,
        cpu: &VcpuFd,
        firmware: Option<&Firmware>,
    ) -> Result<PowerOn, KvmError> {
        PowerOn::read(boot_cpu.common.clone(), cpu, firmware)
    }

    fn read(common: Arc<Common>, cpu: &VcpuFd, firmware: Option<&Firmware>) -> Result<PowerOn, KvmError> {
        let mut msrs = common.registers.read(cpu)?;
        if let Some(firmware) = firmware {
            registers::set(cpu, &firmware.registers(&msrs), &mut msrs)?;
        }
        let read = || -> Result<PowerOn, kvm_ioctls::Error> {
            let (sregs, lapic, mp_state) = (cpu.get_sregs()?, cpu.get_lapic()?, cpu.get_mp_state()?);
            Ok(PowerOn { common, sregs, lapic, mp_state, msrs })
        };
        read().map_err(failed("read a vCPU's state"))
    }

    /// Puts a vCPU back into this state.
    pub fn restore(&self, cpu: &VcpuFd) -> Result<(), KvmError> {
        let common = &*self.common;
        let before = || -> Result<(), kvm_ioctls::Error> {
            cpu.set_mp_state(self.mp_state)?;
            // First out of a guest's own guest, or the registers below would be those of the wrong one.
            if let Some(nested) = &common.nested {
                cpu.set_nested_state(nested)?;
            }
            cpu.set_regs(&common.regs)?;
            cpu.set_sregs(&self.sregs)?;
            if let Some(xsave) = &common.xsave {
                // SAFETY: these are 4 KiB that KVM itself gave for a vCPU like this one, before any feature that needs
                // more could have been turned on.
                unsafe { cpu.set_xsave(xsave)? };
            }
            cpu.set_fpu(&common.fpu)?;
            if let Some(xcrs) = &common.xcrs {
                cpu.set_xcrs(xcrs)?;
            }
            cpu.set_debug_regs(&common.debug)
        };
        before().map_err(failed("reset a vCPU"))?;
        registers::put_back(cpu, &self.msrs)?;
        cpu.set_lapic(&self.lapic).map_err(failed("reset a vCPU's local APIC"))?;
        cpu.set_vcpu_events(&common.events).map_err(failed("reset a vCPU"))
    }
}

/// Puts the boot CPU at the kernel's entry.
pub fn enter(cpu: &VcpuFd, state: &CpuState) -> Result<(), KvmError> {
    let write = || -> Result<(), kvm_ioctls::Error> {
        let mut sregs = cpu.get_sregs()?;
        let data = segment(&state.data);
        (sregs.cs, sregs.tr) = (segment(&state.cs), segment(&state.tr));
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (state.gdt.base.0, state.gdt.limit);
        (sregs.idt.base, sregs.idt.limit) = (state.idt.base.0, state.idt.limit);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
        cpu.set_sregs(&sregs)?;
        let (rip, rflags, rbx, rsi) = (state.rip, state.rflags, state.rbx, state.rsi);
        cpu.set_regs(&kvm_regs { rip, rflags, rbx, rsi, ..Default::default() })?;
        cpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
    };
    write().map_err(failed("set the boot CPU's registers"))
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.big.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.pages.into(),
        unusable: u8::from(!segment.present),
        ..Default::default()
    }
}

/// The message about a triple fault whose place the registers do not show: on AMD, KVM resets them first
/// (Linux, arch/x86/kvm/svm/svm.c, shutdown_interception).
pub fn crash_place(cpu: &VcpuFd) -> Option<String> {
    const RESET_VECTOR: u64 = 0xfff0;
    const PROTECTED: u64 = 1;
    let reset = cpu.get_regs().ok()?.rip == RESET_VECTOR && cpu.get_sregs().ok()?.cr0 & PROTECTED == 0;
    reset.then(|| "an unknown place, for KVM has reset its registers".to_owned())
}

/// Where a vCPU was when something went wrong, for the report.
pub fn describe(cpu: &VcpuFd) -> String {
    match (cpu.get_regs(), cpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            format!(
                "rip {:#x}, rsp {:#x}, cr0 {:#x}, cr3 {:#x}, cr2 {:#x}",
                regs.rip, regs.rsp, sregs.cr0, sregs.cr3, sregs.cr2
            )
        }
        (Err(error), _) | (_, Err(error)) => format!("registers unreadable: {}", io::Error::from(error)),
    }
}
