//! Ways to reset an assigned device.

use std::sync::Arc;

use dma::vfio::{Dependent, Group, Holder, VfioDevice, VfioError};
use host::PciAddress;

use crate::claim::Claim;

/// The best way there is to reset a device.
#[derive(Debug)]
pub(crate) enum Reset {
    /// The function alone.
    Function,
    /// The bus, on which there is nothing that this VM has not claimed.
    Bus {
        /// The groups that all on it is in, of which iommufd needs none.
        groups: Vec<Arc<Group>>,
        /// The other functions on it, which are reset as well.
        others: Vec<PciAddress>,
    },
    /// None. The device keeps what the last user left in it.
    None,
}

impl Reset {
    /// Finds the best way for a device of a claim. A reset of its bus is excluded if the bus has devices that this VM does
    /// not have, or that skep itself drives.
    pub fn of(device: &VfioDevice, claim: &Claim) -> Reset {
        if device.can_reset() {
            return Reset::Function;
        }
        // The kernel answers ENODEV when the bus cannot be reset; any other refusal means the same to us.
        let Ok(dependents) = device.hot_reset_dependents() else { return Reset::None };
        let mine = |dependent: &Dependent| {
            let assigned = address(dependent).is_some_and(|it| claim.assigned().any(|other| other == it));
            assigned && dependent.holder != Holder::Others
        };
        if !dependents.iter().all(mine) {
            return Reset::None;
        }
        let concerned = |group: &&Arc<Group>| {
            dependents.iter().any(|other| other.holder == Holder::Group(group.number()))
        };
        let groups = claim.domains().iter().flat_map(|domain| domain.groups());
        let groups = groups.filter(concerned).cloned().collect();
        Reset::Bus { groups, others: others(&dependents, device.name()) }
    }

    /// The other functions that are reset with the device.
    pub fn others(&self) -> &[PciAddress] {
        match self {
            Reset::Bus { others, .. } => others,
            Reset::Function | Reset::None => &[],
        }
    }

    /// Resets the device; does nothing when there is no way.
    pub fn run(&self, device: &VfioDevice) -> Result<(), VfioError> {
        match self {
            Reset::Function => device.reset(),
            Reset::Bus { groups, .. } => device.hot_reset(groups),
            Reset::None => Ok(()),
        }
    }
}

fn address(dependent: &Dependent) -> Option<PciAddress> {
    let (segment, bus, devfn) = dependent.address;
    PciAddress::new(segment, bus, devfn >> 3, devfn & 7)
}

/// All but the device of this name.
fn others(dependents: &[Dependent], name: &str) -> Vec<PciAddress> {
    dependents.iter().filter_map(address).filter(|address| address.to_string() != name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependent_has_its_address_in_the_usual_form() {
        let dependent = Dependent { holder: Holder::Ours, address: (1, 0x3f, 0xfa) };
        assert_eq!(address(&dependent), "0001:3f:1f.2".parse().ok());
    }

    #[test]
    fn a_bus_reset_names_all_that_it_resets_but_the_device_itself() {
        let on_bus = |devfn| Dependent { holder: Holder::Ours, address: (0, 2, devfn) };
        let [one, two] = ["0000:02:00.1", "0000:02:01.0"].map(|text| text.parse().unwrap());
        let all = [on_bus(0), on_bus(1), on_bus(8)];
        assert_eq!(others(&all, "0000:02:00.0"), [one, two]);
        let reset = Reset::Bus { groups: Vec::new(), others: vec![one] };
        assert_eq!((reset.others(), Reset::Function.others()), (&[one][..], &[][..]));
    }
}
