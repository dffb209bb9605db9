//! Model-specific registers of vCPUs (MSRs), many with one call.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, failed};

/// KVM takes so many with one call (Linux, arch/x86/kvm/x86.c, `MAX_IO_MSRS`).
const AT_ONCE: usize = 255;

/// The time stamp counter goes on counting over a reset, as on hardware.
const IA32_TSC: u32 = 0x10;

/// Memory type range registers, which KVM keeps but does not list.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// The default memory type, and whether there are memory types at all.
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// Those that KVM keeps for the vCPUs of a VM, but for the time stamp counter.
pub struct Registers(Vec<u32>);

impl Registers {
    /// Learns them from a vCPU; all of a VM are alike. `listed` are those that KVM says it keeps. Which of them there are
    /// depends on the CPU and on KVM's version.
    pub fn of(cpu: &VcpuFd, listed: &[u32]) -> Result<Registers, KvmError> {
        let listed = listed.iter().copied().filter(|index| *index != IA32_TSC);
        let all: Vec<kvm_msr_entry> = listed.chain(MTRRS.into_iter().flatten()).map(unread).collect();
        let mut known = Vec::new();
        in_calls(&all, |part| {
            let mut list = Msrs::from_entries(part).expect("as many as KVM takes fit");
            let read = cpu.get_msrs(&mut list)?;
            known.extend(part[..read].iter().map(|msr| msr.index));
            Ok(read)
        })?;
        Ok(Registers(known))
    }

    /// What a vCPU has in them.
    pub fn read(&self, cpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, KvmError> {
        let all: Vec<kvm_msr_entry> = self.0.iter().copied().map(unread).collect();
        let mut values = Vec::with_capacity(all.len());
        in_calls(&all, |part| {
            let mut list = Msrs::from_entries(part).expect("as many as KVM takes fit");
            let read = cpu.get_msrs(&mut list)?;
            values.extend_from_slice(&list.as_slice()[..read]);
            Ok(read)
        })?;
        Ok(values)
    }
}

/// Puts values back that a vCPU had. A register that cannot be written the guest has not changed either.
///
/// The memory types are switched off before they change, and on again with the last of their registers (Intel SDM vol. 3A,
/// 12.11.7.2). Else each change has KVM look for pages of the range, and warn in the host's log of a range that has its
/// base already and not yet its mask (Linux up to 6.9, arch/x86/kvm/mtrr.c, `update_mtrr`).
pub fn put_back(cpu: &VcpuFd, values: &[kvm_msr_entry]) -> Result<(), KvmError> {
    in_calls(&in_order(values), |part| {
        cpu.set_msrs(&Msrs::from_entries(part).expect("as many as KVM takes fit"))
    })
}

fn in_order(values: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let (types, mut all): (Vec<kvm_msr_entry>, Vec<_>) =
        values.iter().partition(|msr| msr.index == MTRR_DEF_TYPE);
    all.splice(0..0, types.iter().map(|msr| unread(msr.index)));
    all.extend(types);
    all
}

/// Sets registers of a vCPU, which are among `known`, and notes that there.
pub fn set(cpu: &VcpuFd, changed: &[kvm_msr_entry], known: &mut [kvm_msr_entry]) -> Result<(), KvmError> {
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

fn unread(index: u32) -> kvm_msr_entry {
    kvm_msr_entry { index, ..Default::default() }
}

/// Makes calls that each do as many as they can and stop at the first that there is not, which the next one passes over.
fn in_calls(
    all: &[kvm_msr_entry],
    mut call: impl FnMut(&[kvm_msr_entry]) -> Result<usize, kvm_ioctls::Error>,
) -> Result<(), KvmError> {
    let mut left = all;
    while !left.is_empty() {
        let part = &left[..left.len().min(AT_ONCE)];
        let done = call(part).map_err(failed("read or set a vCPU's registers"))?;
        let passed = if done < part.len() { done + 1 } else { done };
        left = &left[passed..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types_are_off_while_they_are_put_back() {
        let value = |index| kvm_msr_entry { index, data: 0xc06, ..Default::default() };
        let all = in_order(&[value(0x10a), value(MTRR_DEF_TYPE), value(0x200), value(0x201)]);
        let seen: Vec<_> = all.iter().map(|msr| (msr.index, msr.data)).collect();
        assert_eq!(seen, [(0x2ff, 0), (0x10a, 0xc06), (0x200, 0xc06), (0x201, 0xc06), (0x2ff, 0xc06)]);
        assert_eq!(in_order(&[value(0x10a)]).len(), 1);
    }

    #[test]
    fn what_there_is_goes_with_few_calls_and_what_there_is_not_is_passed_over() {
        let all: Vec<kvm_msr_entry> = (0..600).map(unread).collect();
        let missing = [0, 100, 101, 599];
        let (mut seen, mut calls) = (Vec::new(), 0);
        in_calls(&all, |part| {
            calls += 1;
            assert!(part.len() <= AT_ONCE);
            let there = part.iter().take_while(|msr| !missing.contains(&msr.index));
            let before = seen.len();
            seen.extend(there.map(|msr| msr.index));
            Ok(seen.len() - before)
        })
        .unwrap();
        assert_eq!(seen, (0..600).filter(|index| !missing.contains(index)).collect::<Vec<_>>());
        assert_eq!(calls, 5);
    }
}
