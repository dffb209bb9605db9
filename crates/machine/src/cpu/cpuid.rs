//! What CPUID shows to each vCPU: the host's features as KVM passes them on, with its own number, the VM's
//! topology and the VM's address width.

use boot::platform::Cpus;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX: VMX.
const VMX: u32 = 1 << 5;
/// Leaf 8000_0001h, ECX: SVM.
const SVM: u32 = 1 << 2;
/// Details of SVM.
const SVM_LEAF: u32 = 0x8000_000a;
/// Leaf 1, ECX: the local APIC timer counts in TSC ticks.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: this is a VM, so leaf 4000_0000h means something.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: EBX says how many logical CPUs the package has.
const HTT: u32 = 1 << 28;

/// Extended topology: leaf 0Bh, and leaf 1Fh where the CPU has it.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// What all vCPUs have in common.
pub struct Template {
    supported: CpuId,
    cpus: Cpus,
    address_bits: u8,
    tsc_deadline: bool,
    nested: bool,
}

/// Whether a guest can be given what it needs to run VMs of its own.
pub fn offers_nesting(supported: &CpuId) -> bool {
    let has = |function, bit| {
        supported.as_slice().iter().any(|entry| entry.function == function && entry.ecx & bit != 0)
    };
    has(1, VMX) || has(0x8000_0001, SVM)
}

/// Whether the CPU is of a maker whose CPUs have SVM, and not VMX (CPUID leaf 0: EBX, EDX, ECX).
pub fn maker_has_svm(supported: &CpuId) -> bool {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0);
    let name = leaf.map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
    name.is_some_and(|name| [b"AuthenticAMD", b"HygonGenuine"].iter().any(|svm| name.as_flattened() == *svm))
}

impl Template {
    /// From what KVM supports. `nested` is whether the guest can run VMs of its own.
    ///
    /// Without it CPUID has neither VMX nor SVM, and with that the rest goes, too: KVM refuses a guest the capability
    /// registers of VMX, the bit for it in IA32_FEATURE_CONTROL, and EFER.SVME by what CPUID says (Linux,
    /// arch/x86/kvm/vmx/vmx.c, vmx_get_msr, and x86.c, __kvm_valid_efer).
    pub fn new(
        supported: &CpuId,
        cpus: Cpus,
        address_bits: u8,
        tsc_deadline: bool,
        nested: bool,
    ) -> Template {
        Template { supported: supported.clone(), cpus, address_bits, tsc_deadline, nested }
    }

    /// CPUID for the vCPU with this APIC id.
    pub fn for_cpu(&self, apic_id: u32) -> CpuId {
        let left_out = |leaf| TOPOLOGY.contains(&leaf) || (leaf == SVM_LEAF && !self.nested);
        let kept = self.supported.as_slice().iter().filter(|entry| !left_out(entry.function));
        let mut entries: Vec<kvm_cpuid_entry2> = kept.copied().collect();
        for entry in &mut entries {
            self.edit(entry, apic_id);
        }
        // KVM says nothing useful of topology, so these leaves are made whole.
        let top = self
            .supported
            .as_slice()
            .iter()
            .map(|entry| entry.function)
            .filter(|leaf| *leaf < 0x4000_0000)
            .max();
        for leaf in TOPOLOGY.into_iter().filter(|leaf| top >= Some(*leaf)) {
            entries.extend((0..3).map(|level| self.topology(leaf, level, apic_id)));
        }
        CpuId::from_entries(&entries).expect("a few entries more than KVM gave fit")
    }

    /// One level of leaf 0Bh or 1Fh: threads of a core, cores of a package, and the end.
    fn topology(&self, function: u32, index: u32, apic_id: u32) -> kvm_cpuid_entry2 {
        let count = self.cpus.cores() * self.cpus.threads();
        let (eax, ebx, ecx) = match index {
            0 => (self.cpus.thread_bits(), self.cpus.threads(), 1 << 8),
            1 => (self.cpus.package_bits(), count, 2 << 8 | 1),
            _ => (0, 0, index),
        };
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx: apic_id, ..Default::default() }
    }

    /// Registers by the Intel SDM vol. 2A, CPUID, and the AMD APM vol. 3, appendix E.
    fn edit(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        let count = self.cpus.cores() * self.cpus.threads();
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & 0xffff | count.min(255) << 16 | apic_id << 24;
                entry.ecx &= if self.nested { !0 } else { !VMX };
                set(&mut entry.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut entry.ecx, HYPERVISOR, true);
                set(&mut entry.edx, HTT, count > 1);
            }
            (4, _) if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level < 3 { self.cpus.threads() } else { count };
                let ids = |n: u32| n.next_power_of_two() - 1;
                entry.eax =
                    entry.eax & 0x3fff | ids(sharing).min(0xfff) << 14 | ids(self.cpus.cores()).min(63) << 26;
            }
            (0x8000_0001, _) if !self.nested => set(&mut entry.ecx, SVM, false),
            (0x8000_0008, _) => {
                entry.eax = entry.eax & 0xffff_ff00 | u32::from(self.address_bits);
                entry.ecx = self.cpus.package_bits() << 12 | (count - 1).min(0xff);
            }
            (0x8000_001e, _) => {
                entry.eax = apic_id;
                entry.ebx = apic_id >> self.cpus.thread_bits() & 0xff | (self.cpus.threads() - 1) << 8;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_is_told_its_own_number_and_all_the_same_address_width() {
        let entry = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0x8000_0008, 0x3030)]).unwrap();
        let cpus = Cpus::new(1, 3, 1).unwrap();
        let template = Template::new(&supported, cpus, 39, true, false);
        let two = template.for_cpu(2);
        let leaf = |function| *two.as_slice().iter().find(|entry| entry.function == function).unwrap();
        assert_eq!(leaf(1).ebx, 2 << 24 | 3 << 16);
        assert_eq!(leaf(1).edx & HTT, HTT);
        let levels: Vec<_> = two.as_slice().iter().filter(|entry| entry.function == 0xb).collect();
        let seen: Vec<_> =
            levels.iter().map(|level| (level.index, level.eax, level.ebx, level.ecx, level.edx)).collect();
        assert_eq!(seen, [(0, 0, 1, 1 << 8, 2), (1, 2, 3, 2 << 8 | 1, 2), (2, 0, 0, 2, 2)]);
        assert!(two.as_slice().iter().all(|entry| entry.function != 0x1f), "the CPU has no such leaf");
        assert_eq!(leaf(0x8000_0008).eax, 0x3027);
        assert_eq!(leaf(0x8000_0008).ecx, 2 << 12 | 2);
    }

    #[test]
    fn a_guest_has_svm_and_vmx_only_if_it_is_to_run_vms_of_its_own() {
        let entry = |function, ecx| kvm_cpuid_entry2 { function, ecx, ..Default::default() };
        let of = |entries: &[kvm_cpuid_entry2]| CpuId::from_entries(entries).unwrap();
        let both = of(&[entry(1, !0), entry(0x8000_0001, !0), entry(0x8000_000a, 0)]);
        let seen = |nested| {
            let cpuid = Template::new(&both, Cpus::new(1, 1, 1).unwrap(), 39, true, nested).for_cpu(0);
            let ecx = |function| {
                let leaf = cpuid.as_slice().iter().find(|entry| entry.function == function);
                leaf.map(|entry| entry.ecx)
            };
            [ecx(1), ecx(0x8000_0001), ecx(0x8000_000a)]
        };
        assert_eq!(seen(true), [Some(!0), Some(!0), Some(0)]);
        assert_eq!(seen(false), [Some(!(1 << 5)), Some(!(1 << 2)), None]);
        assert!(offers_nesting(&of(&[entry(1, 1 << 5)])));
        assert!(offers_nesting(&of(&[entry(0x8000_0001, 1 << 2)])));
        assert!(!offers_nesting(&of(&[entry(1, !(1 << 5)), entry(0x8000_0001, !(1 << 2))])));
    }
}
