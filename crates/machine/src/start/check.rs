//! Every fact that prevents a start, found before anything on the host is changed.

use std::collections::{HashMap, HashSet};

use assign::{DomainPlan, RamPlan, Rom};
use boot::{Initrd, KernelImage, platform};
use config::MemorySize;
use host::{Host, PciAddress, PciDevice};
use memory::GpaRange;

use crate::assigned::domains;
use crate::board::layout::Layout;
use crate::board::room;
use crate::disks::host_nvme;
use crate::disks::registered;
use crate::disks::{self, CheckedDisk};
use crate::error::StartError;
use crate::kvm::Hypervisor;
use crate::start::ram;
use crate::tpm::CheckedTpm;
use crate::uefi::{self, Firmware};

/// A description that fits this host: facts that hold, and files and disks that are open.
pub struct Checked {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) boots: Boots,
    pub(crate) layout: Layout,
    pub(crate) cpus: platform::Cpus,
    pub(crate) disks: Vec<CheckedDisk>,
    pub(crate) host: Host,
    pub(crate) plans: Vec<DomainPlan>,
    pub(crate) roms: HashMap<PciAddress, Rom>,
    pub(crate) tpm: Option<CheckedTpm>,
}

/// What is booted.
pub(crate) enum Boots {
    /// A kernel, without firmware.
    Kernel { kernel: KernelImage, initrd: Option<Initrd>, command_line: String },
    /// Firmware.
    Firmware { firmware: Firmware, kernel: Option<uefi::Kernel> },
}

/// Collects findings, so that all of them are known at once.
#[derive(Default)]
struct Findings(Vec<StartError>);

impl Findings {
    fn keep<T>(&mut self, result: Result<T, impl Into<StartError>>) -> Option<T> {
        result.map_err(|error| self.0.push(error.into())).ok()
    }

    fn keep_all<T>(&mut self, result: Result<T, Vec<impl Into<StartError>>>) -> Option<T> {
        result.map_err(|errors| self.add(errors)).ok()
    }

    fn add(&mut self, errors: impl IntoIterator<Item = impl Into<StartError>>) {
        self.0.extend(errors.into_iter().map(Into::into));
    }

    /// What is true of several devices or disks alike is said once.
    fn each_once(mut self) -> Vec<StartError> {
        let mut said = HashSet::new();
        self.0.retain(|error| said.insert(error.to_string()));
        self.0
    }
}

/// Everything that prevents the start of a description's VM on this host, or what the start needs. Each check uses
/// what is known, whatever other checks found; what a draft lacks is not checked, and only then can there be neither a
/// finding nor a start. `looked` is called while everything is still open.
pub fn check(draft: &config::Draft, looked: &mut dyn FnMut()) -> Result<Checked, Vec<StartError>> {
    let mut findings = Findings::default();
    let kernel = draft.kernel.as_ref().filter(|_| draft.firmware.is_none());
    let kernel = kernel.and_then(|path| findings.keep(KernelImage::open(path.as_path())));
    let initrd =
        draft.initrd.as_ref().filter(|_| draft.firmware.is_none()).map(|path| Initrd::open(path.as_path()));
    let initrd = findings.keep(initrd.transpose());
    let firmware = draft.firmware.as_ref().zip(draft.name.as_ref());
    let firmware = firmware.map(|(firmware, name)| Firmware::check(firmware, name));
    let firmware = findings.keep_all(firmware.transpose());
    let started = draft.firmware.as_ref().and(draft.linux());
    let started = started.and_then(|linux| findings.keep_all(uefi::Kernel::check(&linux)));
    let tpm = draft.tpm.as_ref().zip(draft.name.as_ref());
    let tpm =
        findings.keep(tpm.map(|(tpm, name)| CheckedTpm::check(&tpm.source, name)).transpose()).flatten();
    let count = u32::from(draft.cpus.get().get());
    let cpus = platform::Cpus::new(1, count, 1);
    let hypervisor = findings.keep(Hypervisor::open());
    if let Some(hypervisor) = &hypervisor {
        findings.keep(hypervisor.check_speed());
        findings.keep(hypervisor.check_cpus(count));
        if draft.nested {
            findings.keep(hypervisor.check_nesting());
        }
    }
    let host = Host::here();
    let described = disks::settled(&draft.disks);
    let check = |(n, disk): (usize, &config::Disk)| {
        let checked = disks::check(disk, draft.cpus);
        let wrong = |error| disks::same_as(&described[..n], disk, error).for_a_disk_in(disk.syntax);
        findings.keep(checked.map_err(wrong))
    };
    let disks: Vec<CheckedDisk> = described.iter().enumerate().filter_map(check).collect();
    findings.add(disks::on_controllers(&host, draft));
    findings.add(host_nvme::check(&host, &described));
    let open = disks.iter().filter_map(|disk| match disk {
        CheckedDisk::Open(open) => Some(open),
        CheckedDisk::Driven(_) => None,
    });
    findings.add(registered::check(&described, open));

    let (plans, wrong) = domains::planned(draft);
    findings.add(wrong);
    let (roms, wrong) = domains::roms(draft);
    findings.add(wrong);
    let devices: Vec<PciAddress> = plans.iter().flat_map(|plan| plan.devices.clone()).collect();
    let iommu = host.iommu_address_width().map_or(52, |bits| bits.clamp(32, 52) as u8);
    let address_bits = hypervisor.as_ref().map_or(52, Hypervisor::address_bits).min(iommu);
    let holes = holes(&host, &devices);
    let bytes = draft.memory.map(MemorySize::bytes);
    let layout = bytes.and_then(|bytes| findings.keep(Layout::new(bytes, address_bits, &holes)));
    if let (Some(_), Some(bytes)) = (&draft.firmware, bytes) {
        findings.keep(uefi::enough_ram(bytes));
    }
    let layout = layout.map(|layout| if draft.firmware.is_some() { layout.with_firmware() } else { layout });
    // Without a layout, RAM is where it would be without holes.
    let places = match (&layout, bytes) {
        (Some(layout), _) => layout.ram.clone(),
        (None, bytes) => memory::ram_ranges(bytes.unwrap_or(0)),
    };
    // As much as there can be below 4 GiB, if it is not known how much there is.
    let low = if bytes.is_some() { places.clone() } else { memory::ram_ranges(memory::LOW_RAM_END.0) };
    let line = draft.cmdline.as_ref().map(config::Cmdline::as_str);
    findings.add(boot::check(kernel.as_ref(), initrd.as_ref().and_then(Option::as_ref), line, &low));
    findings.add(ram::check(&host, &places, &draft.backing, !devices.is_empty()));
    if !ram::stays(&draft.backing, !devices.is_empty()) {
        let bytes = places.iter().map(|place| place.len()).sum();
        findings.keep(ram::placement(&draft.backing).check_possible(bytes));
    }
    let planned = RamPlan { places: &places, locked: ram::locks(&draft.backing) };
    findings.keep(assign::check(&host, &plans, planned, domains::choice(&draft.dma)));
    let windows = layout.as_ref().map(|layout| &layout.windows);
    findings.add(room::check(&host, windows, draft, &described));
    let boots = match (firmware, kernel, initrd, line) {
        (Some(Some(firmware)), ..) => Some(Boots::Firmware { firmware, kernel: started }),
        (Some(None), Some(kernel), Some(initrd), Some(line)) => {
            Some(Boots::Kernel { kernel, initrd, command_line: line.to_owned() })
        }
        _ => None,
    };
    looked();
    match (hypervisor, boots, layout, cpus) {
        (Some(hypervisor), Some(boots), Some(layout), Some(cpus)) if findings.0.is_empty() => {
            Ok(Checked { hypervisor, boots, layout, cpus, disks, host, plans, roms, tpm })
        }
        _ => Err(findings.each_once()),
    }
}

/// What no RAM can lie over if these devices are to reach it. What cannot be known of a device is an error when all
/// is checked about it.
fn holes(host: &Host, devices: &[PciAddress]) -> Vec<GpaRange> {
    let groups = devices.iter().filter_map(|address| PciDevice::open(host, *address).ok()?.group);
    groups.filter_map(|group| host.reach(&[group]).ok()).flat_map(|reach| reach.holes()).collect()
}
