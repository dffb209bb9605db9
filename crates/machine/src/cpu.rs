//! One vCPU: its registers at power-on and at the kernel's entry, and its exits.

use std::io;

use boot::{CpuState, Segment};
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVMIO, Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::firmware::{Firmware, wire_local_apic};
use crate::kvm::{KvmError, failed};

/// The time stamp counter goes on counting over a reset, as on hardware.
const IA32_TSC: u32 = 0x10;

/// Memory type range registers, which KVM keeps but does not list.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

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

/// What a vCPU is when the machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It runs the kernel.
    Boot,
    /// It waits for INIT and SIPI.
    Waiting,
}

/// The state in which firmware leaves a vCPU, which was never run: to return to when the VM starts afresh.
pub struct PowerOn {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Option<kvm_xsave>,
    fpu: kvm_fpu,
    nested: Option<KvmNestedStateBuffer>,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
}

impl PowerOn {
    /// Does what firmware does to a vCPU that has not run yet, and takes its state. `listed` are the registers that KVM
    /// says it keeps.
    pub fn of(
        vm: &VmFd,
        cpu: &VcpuFd,
        listed: &[u32],
        firmware: &Firmware,
        role: Role,
    ) -> Result<PowerOn, KvmError> {
        let mut msrs = Vec::new();
        let listed = listed.iter().copied().filter(|index| *index != IA32_TSC);
        for index in listed.chain(MTRRS.into_iter().flatten()) {
            let entry = kvm_msr_entry { index, ..Default::default() };
            let mut one = Msrs::from_entries(&[entry]).expect("one register fits");
            // Which of them there are depends on the CPU and on KVM's version.
            if cpu.get_msrs(&mut one).is_ok_and(|got| got == 1) {
                msrs.push(one.as_slice()[0]);
            }
        }
        set_all(cpu, &firmware.registers(&msrs), &mut msrs)?;
        let mut lapic = cpu.get_lapic().map_err(failed("read a vCPU's local APIC"))?;
        if role == Role::Boot {
            wire_local_apic(&mut lapic);
            cpu.set_lapic(&lapic).map_err(failed("set up the boot CPU's local APIC"))?;
        }
        let mut nested = KvmNestedStateBuffer::empty();
        let has_nested = cpu.nested_state(&mut nested).is_ok_and(|size| size.is_some());
        let read = || -> Result<PowerOn, kvm_ioctls::Error> {
            Ok(PowerOn {
                regs: cpu.get_regs()?,
                sregs: cpu.get_sregs()?,
                xsave: if vm.check_extension(Cap::Xsave) { Some(cpu.get_xsave()?) } else { None },
                fpu: cpu.get_fpu()?,
                nested: has_nested.then_some(nested),
                xcrs: if vm.check_extension(Cap::Xcrs) { Some(cpu.get_xcrs()?) } else { None },
                debug: cpu.get_debug_regs()?,
                lapic,
                events: cpu.get_vcpu_events()?,
                mp_state: cpu.get_mp_state()?,
                msrs,
            })
        };
        read().map_err(failed("read a vCPU's state"))
    }

    /// Puts a vCPU back into this state.
    pub fn restore(&self, cpu: &VcpuFd) -> Result<(), KvmError> {
        let write = || -> Result<(), kvm_ioctls::Error> {
            cpu.set_mp_state(self.mp_state)?;
            // First out of a guest's own guest, or the registers below would be those of the wrong one.
            if let Some(nested) = &self.nested {
                cpu.set_nested_state(nested)?;
            }
            cpu.set_regs(&self.regs)?;
            cpu.set_sregs(&self.sregs)?;
            if let Some(xsave) = &self.xsave {
                // SAFETY: these are 4 KiB that KVM itself gave for this vCPU, before any feature that needs more
                // could have been turned on.
                unsafe { cpu.set_xsave(xsave)? };
            }
            cpu.set_fpu(&self.fpu)?;
            if let Some(xcrs) = &self.xcrs {
                cpu.set_xcrs(xcrs)?;
            }
            cpu.set_debug_regs(&self.debug)?;
            for msr in &self.msrs {
                let one = Msrs::from_entries(&[*msr]).expect("one register fits");
                // A register that cannot be written (0 of 1 done) the guest has not changed either.
                cpu.set_msrs(&one)?;
            }
            cpu.set_lapic(&self.lapic)?;
            cpu.set_vcpu_events(&self.events)
        };
        write().map_err(failed("reset a vCPU"))
    }
}

/// Sets registers, which are among `known`, all with one call.
fn set_all(cpu: &VcpuFd, changed: &[kvm_msr_entry], known: &mut [kvm_msr_entry]) -> Result<(), KvmError> {
    let list = Msrs::from_entries(changed).expect("a few registers fit");
    let set = cpu.set_msrs(&list).map_err(failed("set a vCPU's registers"))?;
    if let Some(refused) = changed.get(set) {
        return Err(KvmError::Register { index: refused.index, value: refused.data });
    }
    for msr in known {
        if let Some(new) = changed.iter().find(|new| new.index == msr.index) {
            msr.data = new.data;
        }
    }
    Ok(())
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

/// What to say of a triple fault's place where the registers do not tell: on AMD, KVM resets them first
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
