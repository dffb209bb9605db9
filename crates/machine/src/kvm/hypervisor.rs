//! The host's KVM: whether it exists, whether hardware is behind it, and what it can do.

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, Msrs,
    kvm_irqchip, kvm_msr_entry, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VmFd};
use memory::{Gpa, GpaRange, Ram};

use crate::board::layout::IDENTITY_MAP;
use crate::cpu::cpuid::offers_nesting;
use crate::cpu::firmware::{MICROCODE, initialise_8259};

/// Why this host cannot run a VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No /dev/kvm.
    #[error(
        "cannot open /dev/kvm: {0}. This host offers no hardware virtualization: enable SVM or VT-x in the firmware and load \
         kvm_amd or kvm_intel, or rehearse in an emulated host with `skep lab exec -- skep run …`."
    )]
    Absent(io::Error),
    /// /dev/kvm exists, but this process may not open it.
    #[error(
        "cannot open /dev/kvm: {0}. Run skep as root, or join the group that owns /dev/kvm (usually `kvm`)."
    )]
    Denied(io::Error),
    /// KVM lacks something that every kernel since 5.x has.
    #[error("this host's KVM lacks {0}. Use a Linux kernel of version 6.1 or later.")]
    Lacks(&'static str),
    /// KVM emulates instruction by instruction.
    #[error(
        "this host's KVM emulates guests instruction by instruction (fewer than {below} million a second), which is far too slow \
         to run one. Use a host with SVM or VT-x, or an emulated host: `skep lab exec -- skep run …`."
    )]
    Emulates {
        /// It does fewer millions of guest instructions a second than this.
        below: u64,
    },
    /// More CPUs than KVM supports.
    #[error(
        "{wanted} CPUs are more than skep and this host's KVM support: {limit} at most. Give the VM fewer (--cpus)."
    )]
    TooManyCpus {
        /// CPUs asked for.
        wanted: u32,
        /// The limit.
        limit: usize,
    },
    /// KVM gives guests no SVM or VMX.
    #[error(
        "the description asks for VMs inside the guest (nested), and this host's KVM gives guests neither SVM nor VMX. Load its \
         module with nesting: modprobe -r kvm_intel && modprobe kvm_intel nested=1 (on AMD: kvm_amd), or remove `nested`."
    )]
    NoNesting,
    /// KVM refuses the value of a register.
    #[error(
        "KVM refuses the value {value:#x} for a vCPU's register {index:#x}, which firmware leaves there. This is an error of skep, \
         or of this kernel: report it with the kernel's version."
    )]
    Register {
        /// The register's number.
        index: u32,
        /// What was to be in it.
        value: u64,
    },
    /// An ioctl failed.
    #[error("KVM cannot {what}: {cause}. The kernel's log (dmesg) may say more.")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// For `map_err`: what was tried.
pub(crate) fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> KvmError {
    move |cause| KvmError::Failed { what, cause: cause.into() }
}

/// The host's KVM.
pub struct Hypervisor {
    kvm: Kvm,
    cpuid: CpuId,
}

impl Hypervisor {
    /// Opens /dev/kvm and checks what skep needs of it.
    pub fn open() -> Result<Hypervisor, KvmError> {
        let kvm = Kvm::new().map_err(|error| match io::Error::from(error) {
            error if error.kind() == io::ErrorKind::PermissionDenied => KvmError::Denied(error),
            error => KvmError::Absent(error),
        })?;
        let needed = [
            (Cap::Irqchip, "an interrupt controller of its own"),
            (Cap::Irqfd, "irqfd"),
            (Cap::IrqfdResample, "irqfd with resampling"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::IoeventfdNoLength, "ioeventfd without length"),
            (Cap::IrqRouting, "interrupt routing"),
            (Cap::Pit2, "a timer of its own"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::UserMemory, "memory slots"),
        ];
        if let Some((_, name)) = needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Lacks(name));
        }
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("list the CPU's features"))?;
        Ok(Hypervisor { kvm, cpuid })
    }

    /// Recognises a KVM without hardware behind it. If the CPU shows SVM or VT-x, that is enough; otherwise
    /// a short guest loop shows how fast it is.
    pub fn check_speed(&self) -> Result<(), KvmError> {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx") {
            return Ok(());
        }
        let rate = self.loop_rate().map_err(failed("run a short test guest"))?;
        judge_rate(rate)
    }

    /// What KVM can show the guest of the host's CPU.
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Address bits of this host's CPU (CPUID 8000_0008h).
    pub fn address_bits(&self) -> u8 {
        let leaf = self.cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
        leaf.map_or(36, |entry| entry.eax as u8).clamp(36, 52)
    }

    /// Memory slots that a VM can have.
    pub fn memory_slots(&self) -> usize {
        self.kvm.get_nr_memslots()
    }

    /// Checks a number of CPUs against KVM's limit.
    pub fn check_cpus(&self, wanted: u32) -> Result<(), KvmError> {
        // Above 255, interrupts could reach only some of the CPUs: the I/O APIC and plain messages name 8 bits.
        let limit = self.kvm.get_max_vcpus().min(255);
        if wanted as usize > limit { Err(KvmError::TooManyCpus { wanted, limit }) } else { Ok(()) }
    }

    /// Checks whether KVM gives a guest what it needs to run VMs of its own.
    pub fn check_nesting(&self) -> Result<(), KvmError> {
        if offers_nesting(&self.cpuid) { Ok(()) } else { Err(KvmError::NoNesting) }
    }

    /// The model-specific registers that KVM saves and restores.
    pub fn msrs(&self) -> Result<Vec<u32>, KvmError> {
        Ok(self.kvm.get_msr_index_list().map_err(failed("list the CPU's registers"))?.as_slice().to_vec())
    }

    /// The version of this CPU's microcode, in the format of its register; none where KVM does not know it.
    pub fn microcode(&self) -> Option<u64> {
        let asked = kvm_msr_entry { index: MICROCODE, ..Default::default() };
        let mut one = Msrs::from_entries(&[asked]).expect("one register fits");
        let got = self.kvm.get_msrs(&mut one).is_ok_and(|got| got == 1);
        got.then(|| one.as_slice()[0].data)
    }

    /// Whether the guest's local APIC timer can count in TSC ticks.
    pub fn tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// A VM with nothing. The kernel gives up (mm_take_all_locks) when anything wants the thread's attention, such as
    /// io_uring when a ring of a disk that was looked at has just gone; that is served before the call returns.
    fn bare_vm(&self) -> Result<VmFd, kvm_ioctls::Error> {
        loop {
            match self.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                made => return made,
            }
        }
    }

    /// A VM with interrupt controllers and timer, and nothing else.
    pub fn create_vm(&self) -> Result<VmFd, KvmError> {
        let vm = self.bare_vm().map_err(failed("make a VM"))?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(failed("place its identity map"))?;
        vm.set_tss_address(IDENTITY_MAP as usize + 0x1000).map_err(failed("place its task state"))?;
        vm.create_irq_chip().map_err(failed("make its interrupt controllers"))?;
        pass_8259_on(&vm).map_err(failed("set up its I/O APIC"))?;
        initialise_8259s(&vm).map_err(failed("set up its 8259s"))?;
        // Dummy speaker: port 0x61 is answered in the kernel, as guests expect beside a timer.
        let pit = kvm_pit_config { flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(failed("make its timer"))?;
        Ok(vm)
    }

    /// Instructions a second of a short loop in real mode, at most 100 ms of it.
    fn loop_rate(&self) -> io::Result<u64> {
        // mov cx, 0xffff; again: dec cx; jnz again; hlt
        const CODE: [u8; 7] = [0xb9, 0xff, 0xff, 0x49, 0x75, 0xfd, 0xf4];
        let range = GpaRange::new(Gpa(0), 4096).expect("a page");
        let ram = Ram::new(&[range]).map_err(io::Error::other)?;
        ram.write(Gpa(0), &CODE).map_err(io::Error::other)?;
        let vm = self.bare_vm()?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: 4096,
            userspace_addr: ram.segments()[0].host_address().as_ptr() as u64,
        };
        // SAFETY: `ram` outlives `vm` and `cpu`, which are declared after it.
        unsafe { vm.set_user_memory_region(region)? };
        let mut cpu = vm.create_vcpu(0)?;
        let mut sregs = cpu.get_sregs()?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        cpu.set_sregs(&sregs)?;
        let (start, mut rounds) = (Instant::now(), 0);
        while rounds < 16 && start.elapsed() < Duration::from_millis(100) {
            let mut regs = cpu.get_regs()?;
            regs.rip = 0;
            regs.rflags = 2;
            cpu.set_regs(&regs)?;
            match cpu.run()? {
                VcpuExit::Hlt => rounds += 1,
                other => return Err(io::Error::other(format!("the test guest ended with {other:?}"))),
            }
        }
        Ok(rounds * 2 * 0xffff * 1_000_000 / start.elapsed().as_micros().max(1) as u64)
    }
}

/// Makes the I/O APIC's pin 0, to which a PC's 8259 is wired, pass on the 8259's interrupts, as firmware leaves it
/// (Intel MultiProcessor Specification 1.4, 3.6.2.2, virtual wire mode). A guest that looks for this pin reads
/// all others, at four exits each, if it is not the first.
fn pass_8259_on(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    /// Delivery mode ExtINT, not masked (82093AA data sheet, 3.2.4).
    const EXTERNAL: u64 = 7 << 8;
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut chip)?;
    // SAFETY: KVM has filled in the I/O APIC's member, which is plain numbers.
    unsafe { chip.chip.ioapic.redirtbl[0].bits = EXTERNAL };
    vm.set_irqchip(&chip)
}

/// Leaves the 8259s as firmware does.
fn initialise_8259s(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for (chip_id, first) in [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_PIC_SLAVE, 8)] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip)?;
        // SAFETY: KVM has filled in the 8259's member, which is plain numbers.
        initialise_8259(unsafe { &mut chip.chip.pic }, first);
        vm.set_irqchip(&chip)?;
    }
    Ok(())
}

/// Hardware does a thousand million instructions a second, emulation inside emulation still a hundred; a
/// kernel that interprets them does a few.
fn judge_rate(rate: u64) -> Result<(), KvmError> {
    const SLOWEST: u64 = 25_000_000;
    if rate < SLOWEST { Err(KvmError::Emulates { below: rate / 1_000_000 + 1 }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_interprets_instructions_is_refused_and_the_lab_is_named() {
        let error = judge_rate(2_000_000).unwrap_err().to_string();
        assert!(error.contains("fewer than 3 million") && error.contains("skep lab"), "{error}");
        assert!(judge_rate(80_000_000).is_ok());
    }
}
