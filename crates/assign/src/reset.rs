//! Ways to reset an assigned device.

use dma::Domain;
use dma::vfio::{VfioDevice, VfioError};

/// The best way there is to reset a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    /// The function alone.
    Function,
    /// The bus, on which there is nothing that is not this VM's.
    Bus,
    /// None. The device keeps what the last user left in it.
    None,
}

impl Reset {
    /// Finds the best way for a device of a domain.
    pub fn of(device: &VfioDevice, domain: &Domain) -> Reset {
        if device.can_reset() {
            return Reset::Function;
        }
        // The kernel answers ENODEV when the bus cannot be reset; any other refusal means the same to us.
        let Ok(dependents) = device.hot_reset_dependents() else { return Reset::None };
        let ours = |group: u32| domain.groups().iter().any(|other| other.number() == group);
        if dependents.iter().all(|dependent| ours(dependent.group)) { Reset::Bus } else { Reset::None }
    }

    /// Resets the device; does nothing when there is no way.
    pub fn run(self, device: &VfioDevice, domain: &Domain) -> Result<(), VfioError> {
        match self {
            Reset::Function => device.reset(),
            Reset::Bus => device.hot_reset(domain.groups()),
            Reset::None => Ok(()),
        }
    }
}
