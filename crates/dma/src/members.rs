//! Whose DMA a domain translates.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::domain::Domain;
use crate::iommufd::{Iommufd, Space};
use crate::vfio::{BoundCdev, Cdev, Group, VfioDevice, VfioError};

/// The devices that can be opened in a domain, by what the back end takes: type1 takes groups, iommufd takes devices.
pub(crate) enum Members {
    /// Groups in a container.
    Groups(Vec<Arc<Group>>),
    /// Devices that an iommufd translates for, by the IOAS when they are attached to it.
    Cdevs { cdevs: Vec<Arc<BoundCdev>>, space: Arc<Space> },
}

/// A file by which KVM knows of devices (KVM_DEV_VFIO_FILE_ADD).
#[derive(Debug)]
pub struct KvmFile<'a> {
    /// "IOMMU group 9" or the device's PCI address.
    pub name: String,
    /// The group's or the device's file.
    pub file: BorrowedFd<'a>,
}

impl Members {
    /// Takes these devices, and with them their IOMMU groups, for an IOAS of their own.
    pub fn bind(iommufd: &Arc<Iommufd>, cdevs: Vec<Cdev>) -> Result<(Members, Arc<Space>), VfioError> {
        let cdevs = cdevs.into_iter().map(|cdev| Ok(Arc::new(cdev.bind(iommufd)?)));
        let cdevs: Vec<Arc<BoundCdev>> = cdevs.collect::<Result<_, VfioError>>()?;
        let space = Arc::new(Space::new(iommufd, &cdevs)?);
        Ok((Members::Cdevs { cdevs, space: space.clone() }, space))
    }

    /// The groups, where the back end takes groups.
    pub fn groups(&self) -> &[Arc<Group>] {
        match self {
            Members::Groups(groups) => groups,
            Members::Cdevs { .. } => &[],
        }
    }

    /// Opens one of the devices, which from then on does DMA by what the domain maps.
    pub fn open(&self, domain: &Arc<Domain>, group: u32, address: &str) -> Result<VfioDevice, VfioError> {
        let none = |what: &str| {
            let cause = io::Error::from(io::ErrorKind::NotFound);
            VfioError::new(address, format!("find {what} in DMA domain {}", domain.name()), cause, "")
        };
        match self {
            Members::Groups(groups) => {
                let found = groups.iter().find(|other| other.number() == group);
                let found = found.ok_or_else(|| none(&format!("IOMMU group {group}")))?;
                VfioDevice::open(found.clone(), address, domain)
            }
            Members::Cdevs { cdevs, space } => {
                let found = cdevs.iter().find(|other| other.name() == address);
                VfioDevice::attach(found.ok_or_else(|| none("it"))?, space, domain)
            }
        }
    }

    /// What KVM wants to know of.
    pub fn kvm_files(&self) -> Vec<KvmFile<'_>> {
        let of_group = |group: &'_ Arc<Group>| format!("IOMMU group {}", group.number());
        match self {
            Members::Groups(groups) => {
                groups.iter().map(|group| KvmFile { name: of_group(group), file: group.as_fd() }).collect()
            }
            Members::Cdevs { cdevs, .. } => {
                let file = |cdev: &'_ Arc<BoundCdev>| cdev.name().to_owned();
                cdevs.iter().map(|cdev| KvmFile { name: file(cdev), file: cdev.as_fd() }).collect()
            }
        }
    }
}
