//! Which interface of the kernel a VM's domains are made with.

use std::fmt;
use std::sync::Arc;

use crate::backend::BackEnd;
use crate::error::DomainError;
use crate::iommufd::Iommufd;
use crate::memlock::Locked;
use crate::p2p::P2pWish;
use crate::vfio::VfioError;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DmaChoice {
    /// iommufd if the kernel supports it and it can do all that is asked for, else type1.
    #[default]
    Auto,
    /// iommufd, or the start fails.
    Iommufd,
    /// VFIO type1, or the start fails.
    Type1,
}

/// What the choice depends on, beside /dev/iommu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Whether the kernel's VFIO, which must be loaded, has character devices (CONFIG_VFIO_DEVICE_CDEV).
    pub cdevs: bool,
    /// Whether devices shall reach each other's memory, which iommufd does not map: the most that a domain wishes.
    pub p2p: P2pWish,
}

/// What all domains of one VM are made with; displayed, it says why.
#[derive(Debug)]
pub enum Chosen {
    /// iommufd: one for all of them, so that they share what they pin.
    Iommufd(Arc<Iommufd>),
    /// VFIO type1: a container each.
    Type1(Reason),
}

/// Why it is type1.
#[derive(Debug)]
pub enum Reason {
    /// As asked.
    Asked,
    /// There is no iommufd.
    Iommufd(VfioError),
    /// VFIO has no character devices, which iommufd works on.
    Cdevs,
    /// Devices shall reach each other's memory.
    P2p,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chosen::Iommufd(iommufd) => {
                let how = if iommufd.maps_files() { "files" } else { "addresses" };
                write!(f, "DMA domains by iommufd, which maps RAM by its {how}")
            }
            Chosen::Type1(Reason::Asked) => write!(f, "DMA domains by VFIO type1, as asked"),
            Chosen::Type1(Reason::Iommufd(error)) => {
                let VfioError { object, what, cause, .. } = error;
                write!(f, "DMA domains by VFIO type1, for {object}: cannot {what}: {cause}")
            }
            Chosen::Type1(Reason::Cdevs) => {
                write!(f, "DMA domains by VFIO type1, for this kernel's VFIO has no character devices")
            }
            Chosen::Type1(Reason::P2p) => {
                write!(f, "DMA domains by VFIO type1, for iommufd lets devices not reach each other's memory")
            }
        }
    }
}

impl DmaChoice {
    /// What can be known to prevent it before any device is taken: with iommufd, /dev/iommu must be there, and
    /// devices cannot be required to reach each other's memory.
    pub fn check(self, p2p: P2pWish) -> Result<(), DomainError> {
        match self {
            DmaChoice::Iommufd => self.decide(Circumstances { cdevs: true, p2p }, Iommufd::open).map(drop),
            DmaChoice::Auto | DmaChoice::Type1 => Ok(()),
        }
    }

    /// What is going to count as locked when `ram` bytes are mapped in so many domains. Whether VFIO has character
    /// devices is only known when it is loaded; until then skep assumes that it has them, which needs the least.
    pub fn locks(self, on: Circumstances, domains: u64, ram: u64) -> Locked {
        self.expect(on, Iommufd::open).locks(domains, ram)
    }

    /// The kernel's module that will translate, whose parameters then count.
    pub fn module(self, on: Circumstances) -> &'static str {
        let is_type1 = self.expect(on, Iommufd::open) == BackEnd::Type1;
        if is_type1 { "vfio_iommu_type1" } else { "iommufd" }
    }

    fn expect(self, on: Circumstances, open: impl FnOnce() -> Result<Arc<Iommufd>, VfioError>) -> BackEnd {
        match self.decide(on, open) {
            Ok(Chosen::Type1(_)) => BackEnd::Type1,
            Ok(Chosen::Iommufd(_)) | Err(_) => BackEnd::Iommufd,
        }
    }

    /// Decides for one VM.
    pub fn resolve(self, on: Circumstances) -> Result<Chosen, DomainError> {
        self.decide(on, Iommufd::open)
    }

    fn decide(
        self,
        on: Circumstances,
        open: impl FnOnce() -> Result<Arc<Iommufd>, VfioError>,
    ) -> Result<Chosen, DomainError> {
        match self {
            DmaChoice::Type1 => Ok(Chosen::Type1(Reason::Asked)),
            DmaChoice::Iommufd if on.p2p == P2pWish::Required => Err(DomainError::NoP2pByIommufd),
            DmaChoice::Iommufd if !on.cdevs => Err(DomainError::NoCdevs),
            DmaChoice::Iommufd => Ok(Chosen::Iommufd(open()?)),
            DmaChoice::Auto if on.p2p > P2pWish::Off => Ok(Chosen::Type1(Reason::P2p)),
            DmaChoice::Auto if !on.cdevs => Ok(Chosen::Type1(Reason::Cdevs)),
            DmaChoice::Auto => {
                Ok(open().map_or_else(|error| Chosen::Type1(Reason::Iommufd(error)), Chosen::Iommufd))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const FULL: Circumstances = Circumstances { cdevs: true, p2p: P2pWish::Off };
    const NO_CDEVS: Circumstances = Circumstances { cdevs: false, ..FULL };
    const P2P: Circumstances = Circumstances { p2p: P2pWish::On, ..FULL };

    fn missing() -> Result<Arc<Iommufd>, VfioError> {
        Err(VfioError::new("/dev/iommu", "open it", io::Error::from_raw_os_error(libc::ENOENT), "hint"))
    }

    #[test]
    fn what_was_asked_for_is_had_or_refused_and_never_replaced() {
        let type1 = DmaChoice::Type1.decide(FULL, || panic!("not asked for")).unwrap();
        assert!(matches!(type1, Chosen::Type1(Reason::Asked)));
        assert!(DmaChoice::Iommufd.decide(FULL, missing).unwrap_err().to_string().contains("/dev/iommu"));
        assert!(DmaChoice::Iommufd.decide(P2P, missing).is_err());
        let text = DmaChoice::Iommufd.decide(NO_CDEVS, missing).unwrap_err().to_string();
        assert!(text.contains("CONFIG_VFIO_DEVICE_CDEV") && text.contains("--dma type1"), "{text}");
    }

    #[test]
    fn iommufd_is_refused_where_devices_must_reach_each_other() {
        let required = Circumstances { p2p: P2pWish::Required, ..FULL };
        let text = DmaChoice::Iommufd.decide(required, || panic!("of no use")).unwrap_err().to_string();
        assert!(text.contains("--p2p required") && text.contains("--dma type1"), "{text}");
        assert!(DmaChoice::Iommufd.check(P2pWish::Required).is_err(), "before any device is taken");
        for choice in [DmaChoice::Auto, DmaChoice::Type1] {
            choice.check(P2pWish::Required).unwrap();
            assert!(matches!(choice.decide(required, || panic!("of no use")), Ok(Chosen::Type1(_))));
        }
    }

    #[test]
    fn what_will_be_locked_depends_on_what_will_be_chosen() {
        let locks = |choice: DmaChoice, on| choice.expect(on, missing).locks(2, 100);
        let type1 = Locked { process: 200, user: 0 };
        assert_eq!([locks(DmaChoice::Type1, FULL), locks(DmaChoice::Auto, P2P)], [type1; 2]);
        assert_eq!([locks(DmaChoice::Auto, NO_CDEVS), locks(DmaChoice::Auto, FULL)], [type1; 2]);
        assert_eq!(locks(DmaChoice::Iommufd, FULL), Locked { process: 0, user: 100 });
    }

    #[test]
    fn auto_falls_back_to_type1_and_says_why() {
        let text = DmaChoice::Auto.decide(FULL, missing).unwrap().to_string();
        assert_eq!(
            text,
            "DMA domains by VFIO type1, for /dev/iommu: cannot open it: No such file or directory (os error 2)"
        );
        let text = DmaChoice::Auto.decide(NO_CDEVS, || panic!("of no use")).unwrap().to_string();
        assert!(text.contains("no character devices"), "{text}");
        let text = DmaChoice::Auto.decide(P2P, || panic!("of no use")).unwrap().to_string();
        assert!(text.contains("each other's memory"), "{text}");
    }
}
