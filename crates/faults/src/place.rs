//! What lies where a device wanted to go.

use dma::{Domain, Iova, Target};
use memory::{Contents, Gpa};

/// What lies at the IOVA of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// RAM of this VM.
    Ram,
    /// Memory of a device (a BAR).
    Device,
    /// Memory of one of skep's own drivers, such as its queues, which the domain holds.
    Own,
    /// Nothing, with RAM above it.
    Hole,
    /// Nothing, and no RAM above it.
    Beyond,
}

impl Place {
    /// What lies at an IOVA for devices of a domain, whose IOVAs are guest addresses but for the memory of skep's own
    /// drivers. Of that only the domain's ledger knows.
    pub fn of(iova: Iova, domain: Option<&Domain>, contents: &Contents) -> Place {
        let own = |row: &dma::Mapping| {
            matches!(row.target, Target::Own(_)) && (row.iova.first()..=row.iova.last()).contains(&iova)
        };
        match contents.place(Gpa(iova.0)) {
            memory::Place::Ram => Place::Ram,
            memory::Place::Device => Place::Device,
            _ if domain.is_some_and(|domain| domain.mappings().iter().any(own)) => Place::Own,
            memory::Place::Hole => Place::Hole,
            memory::Place::Beyond => Place::Beyond,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dma::Kind;
    use dma::fake::FakeIommu;
    use memory::{GpaRange, Ram};
    use std::sync::Arc;

    #[test]
    fn a_drivers_queue_is_told_from_what_is_beyond_the_ram_while_the_domain_holds_it() {
        let range = GpaRange::new(Gpa(0), 0x10_0000).unwrap();
        let contents = Contents { ram: Arc::new(Ram::new(&[range]).unwrap()), devices: Vec::new() };
        let domain = FakeIommu::new().domain("host", Kind::Host);
        let queues = domain.map_own("queues", 0x2000).unwrap();
        let at = queues.iova();
        let place = |iova| Place::of(iova, Some(&domain), &contents);
        assert_eq!((place(at), place(Iova(at.0 + 0x1fff))), (Place::Own, Place::Own));
        assert_eq!((place(Iova(at.0 - 1)), place(Iova(0xfff))), (Place::Beyond, Place::Ram));
        assert_eq!(Place::of(at, None, &contents), Place::Beyond, "other domains' devices do not see it");
        drop(queues);
        assert_eq!(Place::of(at, Some(&domain), &contents), Place::Beyond);
    }
}
