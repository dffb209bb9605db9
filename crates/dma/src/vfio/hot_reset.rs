//! Resetting a device together with all others on its bus.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{VFIO_PCI_DEVID_NOT_OWNED, VFIO_PCI_HOT_RESET_FLAG_DEV_ID};

use super::device::VfioDevice;
use super::error::VfioError;
use super::group::Group;
use super::ioctl;

/// A function that a bus reset would reset too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependent {
    /// Who may reset it.
    pub holder: Holder,
    /// PCI segment, bus, and device and function as in configuration addresses.
    pub address: (u16, u8, u8),
}

/// Who may reset a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The owner of the open file of this IOMMU group.
    Group(u32),
    /// This VM, whose iommufd translates for its group.
    Ours,
    /// Another process, or none.
    Others,
}

impl VfioDevice {
    /// The functions that a reset of the bus would reset too, this one included.
    pub fn hot_reset_dependents(&self) -> Result<Vec<Dependent>, VfioError> {
        let fail = |cause| VfioError::new(self.name(), "ask what a bus reset would reset", cause, "");
        let mut room = 16;
        loop {
            let mut words = vec![0u32; 3 + 2 * room];
            words[0] = 4 * words.len() as u32;
            match ioctl::words(&self.as_fd(), ioctl::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(), &mut words) {
                Ok(_) => return Ok(dependents(&words)),
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 16 => room *= 4,
                Err(cause) => return Err(fail(cause)),
            }
        }
    }

    /// Resets the bus, with all functions on it. For a device that is open by its group, `groups` must be all the
    /// groups they are in; one that iommufd translates for needs none, because the kernel knows their owner.
    pub fn hot_reset(&self, groups: &[Arc<Group>]) -> Result<(), VfioError> {
        let groups = if self.is_by_group() { groups } else { &[] };
        let mut request = vec![4 * (3 + groups.len() as u32), 0, groups.len() as u32];
        request.extend(groups.iter().map(|group| group.as_fd().as_raw_fd() as u32));
        let fail = |cause: io::Error| {
            let hint = match cause.raw_os_error() {
                Some(libc::EINVAL) => "A device on the bus is not this VM's",
                Some(libc::ENOTTY) => "The port above it does not report its link to be up again",
                _ => "See the kernel's log (`dmesg`)",
            };
            VfioError::new(self.name(), "reset its bus", cause, hint)
        };
        ioctl::words(&self.as_fd(), ioctl::VFIO_DEVICE_PCI_HOT_RESET(), &mut request).map_err(fail)?;
        Ok(())
    }
}

/// `vfio_pci_hot_reset_info`: length, flags, count; then `vfio_pci_dependent_device`s, each a holder, and segment,
/// bus and device/function. By the flag, the holder is a group or an iommufd's number for the device.
fn dependents(words: &[u32]) -> Vec<Dependent> {
    let [_, flags, count, rest @ ..] = words else { return Vec::new() };
    let by_number = flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0;
    let dependent = |pair: &[u32]| {
        let holder = match pair[0] {
            NOT_OWNED if by_number => Holder::Others,
            _ if by_number => Holder::Ours,
            group => Holder::Group(group),
        };
        let [low, high, bus, devfn] = pair[1].to_ne_bytes();
        Dependent { holder, address: (u16::from_ne_bytes([low, high]), bus, devfn) }
    };
    rest.chunks_exact(2).take(*count as usize).map(dependent).collect()
}

const NOT_OWNED: u32 = VFIO_PCI_DEVID_NOT_OWNED as u32;

#[cfg(test)]
mod tests {
    use super::*;

    const AT: (u16, u8, u8) = (1, 0x3f, 0xfa);

    fn list(flags: u32, holders: &[u32]) -> Vec<Dependent> {
        let place = u32::from_ne_bytes([1, 0, 0x3f, 0xfa]);
        let mut words = vec![0, flags, holders.len() as u32];
        words.extend(holders.iter().flat_map(|holder| [*holder, place]));
        words.extend([0, 0]);
        dependents(&words)
    }

    #[test]
    fn a_device_open_by_its_group_learns_the_groups_of_the_others() {
        assert_eq!(list(0, &[12]), [Dependent { holder: Holder::Group(12), address: AT }]);
    }

    #[test]
    fn a_device_with_a_character_device_learns_which_of_the_others_are_ours() {
        let holders: Vec<Holder> = list(1, &[7, 0, u32::MAX]).iter().map(|it| it.holder).collect();
        // Number 0: it is not open, but in a group of ours.
        assert_eq!(holders, [Holder::Ours, Holder::Ours, Holder::Others]);
    }

    #[test]
    fn a_count_that_the_answer_has_no_room_for_is_not_believed() {
        assert_eq!(dependents(&[0, 0, u32::MAX, 1]), []);
        assert_eq!(dependents(&[0]), []);
    }
}
