//! Whether the guest's PCI bus will have room for everything.

use config::Draft;
use host::{Host, PciAddress};
use pci::{BarKind, BarSpec, PciError, Windows};

use crate::disks;
use crate::error::host_address;

/// What finds no room on the bus: devices, or BARs of assigned ones in these windows, where they are known. `described`
/// are the disks as their controllers see them.
pub fn check(
    host: &Host,
    windows: Option<&Windows>,
    draft: &Draft,
    described: &[config::Disk],
) -> Vec<PciError> {
    let assigned: Vec<PciAddress> =
        draft.assigned.iter().filter_map(|assign| host_address(assign.address).ok()).collect();
    let bars: Vec<(String, Vec<BarSpec>)> =
        assigned.iter().map(|address| (address.to_string(), bars(host, *address))).collect();
    let mut errors = windows.map_or(Vec::new(), |windows| pci::without_place(windows, &bars));
    errors.extend(pci::room_for(assigned.len(), disks::controllers_of(described)).err());
    errors
}

/// The BARs of a device as far as sysfs knows them. Those that cannot be are not among them: the device says why, when
/// it is opened.
fn bars(host: &Host, address: PciAddress) -> Vec<BarSpec> {
    let bars = host.bars(address).into_iter();
    let spec = |bar: host::HostBar| {
        let prefetchable = bar.prefetchable;
        let kind = match (bar.io, bar.memory64) {
            (true, _) => BarKind::Io,
            (false, true) => BarKind::Memory64 { prefetchable },
            (false, false) => BarKind::Memory32 { prefetchable },
        };
        BarSpec::new(bar.register, kind, bar.size)
    };
    bars.filter_map(spec).collect()
}
