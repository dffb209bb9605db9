//! Every fact that stands in the way of a start, found before anything on the host is touched.

use assign::{DomainPlan, RamPlan};
use boot::{Initrd, KernelImage, platform};
use host::{Host, PciAddress, PciDevice};
use memory::GpaRange;

use crate::buffers;
use crate::disks::{self, CheckedDisk};
use crate::error::StartError;
use crate::kvm::Hypervisor;
use crate::layout::Layout;
use crate::plan;
use crate::ram;

/// Facts that hold, and files that are open.
pub struct Checked {
    pub hypervisor: Hypervisor,
    pub kernel: KernelImage,
    pub initrd: Option<Initrd>,
    pub layout: Layout,
    pub cpus: platform::Cpus,
    pub disks: Vec<CheckedDisk>,
    pub host: Host,
    pub plans: Vec<DomainPlan>,
}

/// Collects findings, so that all of them are known at once.
#[derive(Default)]
struct Findings(Vec<StartError>);

impl Findings {
    fn keep<T>(&mut self, result: Result<T, impl Into<StartError>>) -> Option<T> {
        result.map_err(|error| self.0.push(error.into())).ok()
    }
}

/// Checks a description against this host.
pub fn check(config: &config::Vm) -> Result<Checked, Vec<StartError>> {
    let mut findings = Findings::default();
    let kernel = findings.keep(KernelImage::open(config.boot.kernel.as_path()));
    let initrd = config.boot.initrd.as_ref().map(|path| Initrd::open(path.as_path()));
    let initrd = findings.keep(initrd.transpose());
    let count = u32::from(config.cpus.get().get());
    let cpus = platform::Cpus::new(1, count, 1);
    let hypervisor = findings.keep(Hypervisor::open().and_then(|hypervisor| {
        hypervisor.check_speed()?;
        hypervisor.check_cpus(count)?;
        Ok(hypervisor)
    }));
    if config.nested
        && let Some(hypervisor) = &hypervisor
    {
        findings.keep(hypervisor.check_nesting());
    }
    let disks: Vec<CheckedDisk> = disks::settled(&config.disks)
        .iter()
        .filter_map(|disk| findings.keep(disks::check(disk, config.cpus)))
        .collect();
    let open = disks.iter().filter_map(|disk| match disk {
        CheckedDisk::Open(open) => Some(open),
        CheckedDisk::Driven(_) => None,
    });
    findings.0.extend(buffers::check(open));
    let host = Host::here();
    let (plans, wrong) = plan::domains(config);
    findings.0.extend(wrong);
    let iommu = host.iommu_address_width().map_or(52, |bits| bits.clamp(32, 52) as u8);
    let address_bits = hypervisor.as_ref().map_or(52, Hypervisor::address_bits).min(iommu);
    let devices: Vec<PciAddress> = plans.iter().flat_map(|plan| plan.devices.clone()).collect();
    let holes = holes(&host, &devices);
    let layout = findings.keep(Layout::new(config.memory.bytes(), address_bits, &holes));
    let ram = layout.as_ref().map_or(&[][..], |layout| &layout.ram);
    findings.0.extend(ram::check(&host, ram, &config.backing, !devices.is_empty()));
    let planned = RamPlan { places: ram, locked: ram::locks(&config.backing) };
    findings.keep(assign::check(&host, &plans, planned, plan::choice(config)));
    match (hypervisor, kernel, initrd, layout, cpus) {
        (Some(hypervisor), Some(kernel), Some(initrd), Some(layout), Some(cpus)) if findings.0.is_empty() => {
            Ok(Checked { hypervisor, kernel, initrd, layout, cpus, disks, host, plans })
        }
        _ => Err(findings.0),
    }
}

/// What no RAM can lie over if these devices are to reach it. What cannot be known of a device is an error when all
/// is checked about it.
fn holes(host: &Host, devices: &[PciAddress]) -> Vec<GpaRange> {
    let groups = devices.iter().filter_map(|address| PciDevice::open(host, *address).ok()?.group);
    groups.filter_map(|group| host.reach(&[group]).ok()).flat_map(|reach| reach.holes()).collect()
}
