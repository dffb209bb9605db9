//! A domain: mappings, the devices that translate through them, and the books.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use memory::{Ram, Segment};

use crate::backend::{Backend, Source};
use crate::error::{DomainError, Failed};
use crate::ledger::{Difference, Mapping, audit};
use crate::limits::Limits;
use crate::type1::Type1;
use crate::vfio::{Group, VfioDevice, VfioError};

/// A set of IOVA to RAM mappings and the devices that translate through it.
///
/// Dropping it unmaps everything. Keep it (it is shared as `Arc`) as long as a device of it may do DMA.
pub struct Domain {
    name: String,
    groups: Vec<Arc<Group>>,
    state: Mutex<State>,
}

struct State {
    backend: Box<dyn Backend>,
    rows: Vec<Mapping>,
    /// The RAM mapped: kept, so that what devices reach stays what it was.
    ram: Option<Arc<Ram>>,
    devices: Vec<Weak<VfioDevice>>,
}

impl Domain {
    /// A domain of these IOMMU groups in a VFIO type1 container. Nothing is mapped yet. A group that is free is
    /// claimed for it; on failure all are free again.
    pub fn type1(name: impl Into<String>, groups: Vec<Group>) -> Result<Arc<Domain>, DomainError> {
        let backend = Type1::new(&groups)?;
        Ok(Arc::new(Domain::over(name.into(), groups, Box::new(backend))))
    }

    fn over(name: String, groups: Vec<Group>, backend: Box<dyn Backend>) -> Domain {
        let state = State { backend, rows: Vec::new(), ram: None, devices: Vec::new() };
        Domain { name, groups: groups.into_iter().map(Arc::new).collect(), state: Mutex::new(state) }
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The groups in it; KVM wants to know them (KVM_DEV_VFIO).
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    /// What can be mapped, as of the groups that are in it.
    pub fn limits(&self) -> Result<Limits, DomainError> {
        let fail = |cause| VfioError::new(&self.name, "ask the IOMMU what it can map", cause, "");
        Ok(self.state().backend.limits().map_err(fail)?)
    }

    /// Opens a device of one of the groups, by its PCI address (`0000:01:00.0`).
    pub fn open_device(&self, group: u32, address: &str) -> Result<Arc<VfioDevice>, DomainError> {
        let group = self.groups.iter().find(|other| other.number() == group).ok_or_else(|| {
            let cause = std::io::Error::from(std::io::ErrorKind::NotFound);
            VfioError::new(
                address,
                format!("find IOMMU group {group} in DMA domain {}", self.name),
                cause,
                "",
            )
        })?;
        let device = Arc::new(VfioDevice::open(group.clone(), address)?);
        let devices = &mut self.state().devices;
        devices.retain(|device| device.strong_count() > 0);
        devices.push(Arc::downgrade(&device));
        Ok(device)
    }

    /// The devices in it that are open now, by PCI address.
    pub fn devices(&self) -> Vec<String> {
        let open = self.state().devices.iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        open.iter().map(|device| device.name().to_owned()).collect()
    }

    /// The ledger: every mapping, in the order they were made.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.state().rows.clone()
    }

    /// Maps all RAM at IOVA = GPA, each segment by one call. All or nothing: on failure what was mapped is
    /// unmapped again, and what could not be is in the error and in the ledger.
    pub fn map_ram(&self, ram: &Arc<Ram>) -> Result<(), DomainError> {
        let limits = self.limits()?;
        let mut state = self.state();
        if !state.rows.is_empty() {
            return Err(DomainError::Mapped { domain: self.name.clone() });
        }
        limits.check(ram.segments().iter().map(Segment::range))?;
        let wanted = ram.segments().len() as u64;
        if let Some(left) = limits.mappings_left.filter(|left| *left < wanted) {
            return Err(DomainError::Mappings { domain: self.name.clone(), wanted, left });
        }
        state.backend.reserve(ram.size())?;
        state.ram = Some(ram.clone());
        for segment in ram.segments() {
            if let Err(cause) = state.map(segment) {
                let stuck = state.unmap_all();
                let range = segment.range();
                return Err(DomainError::Map {
                    domain: self.name.clone(),
                    iova: Mapping::of(range).iova.first(),
                    gpa: range.start(),
                    bytes: range.len(),
                    cause,
                    stuck,
                });
            }
        }
        Ok(())
    }

    /// Unmaps everything. What cannot be unmapped stays in the ledger, and is in the error.
    pub fn unmap_all(&self) -> Result<(), DomainError> {
        let failed = self.state().unmap_all();
        if failed.is_empty() { Ok(()) } else { Err(DomainError::Unmap { domain: self.name.clone(), failed }) }
    }

    /// Compares the ledger with the RAM map. To be asked before a device may be bus master.
    pub fn audit(&self, ram: &Ram) -> Result<(), Difference> {
        audit(&self.name, &self.state().rows, ram)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

impl State {
    fn map(&mut self, segment: &Segment) -> std::io::Result<()> {
        let row = Mapping::of(segment.range());
        let source = Source { host: segment.host_address(), file: (segment.file().as_fd(), row.offset) };
        // SAFETY: the segment's mapping lives as long as its `Ram`, of which `self.ram` holds a share until no
        // row is left (see `unmap_all`); guest RAM is only ever touched as memory that changes at any time.
        unsafe { self.backend.map(row.iova, source, row.permission)? };
        self.rows.push(row);
        Ok(())
    }

    /// Unmaps in reverse order; rows that fail stay.
    fn unmap_all(&mut self) -> Vec<Failed> {
        let mut failed = Vec::new();
        let mut kept = Vec::new();
        while let Some(row) = self.rows.pop() {
            let cause = match self.backend.unmap(row.iova) {
                Ok(bytes) if bytes == row.iova.len() => continue,
                Ok(bytes) => {
                    let wanted = row.iova.len();
                    std::io::Error::other(format!("the kernel unmapped {bytes:#x} bytes of {wanted:#x}"))
                }
                Err(cause) => cause,
            };
            failed.push(Failed { iova: row.iova, cause });
            kept.push(row);
        }
        self.rows.extend(kept.into_iter().rev());
        if self.rows.is_empty() {
            self.ram = None;
        }
        failed
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if let Err(error) = self.unmap_all() {
            eprintln!("skep: {error}");
            // Devices may reach that RAM still: it must not become anything else's memory in this process.
            std::mem::forget(self.state().ram.take());
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Domain").field("name", &self.name).field("rows", &state.rows).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iova::IovaRange;
    use crate::ledger::Permission;
    use crate::memlock::MemlockError;
    use memory::{Gpa, GpaRange};
    use proptest::prelude::*;
    use std::io;

    /// Holds mappings as the kernel would; calls with numbers in `fail` fail.
    #[derive(Default)]
    struct Fake {
        calls: usize,
        fail: Vec<usize>,
        held: Vec<(IovaRange, Permission)>,
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Fake>>);

    impl Fake {
        fn call(&mut self) -> io::Result<()> {
            self.calls += 1;
            if self.fail.contains(&(self.calls - 1)) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            Ok(())
        }
    }

    impl Backend for Shared {
        fn limits(&self) -> io::Result<Limits> {
            Ok(crate::limits::tests::client())
        }
        fn reserve(&self, _: u64) -> Result<(), MemlockError> {
            Ok(())
        }
        unsafe fn map(
            &mut self,
            iova: IovaRange,
            source: Source<'_>,
            permission: Permission,
        ) -> io::Result<()> {
            let mut fake = self.0.lock().unwrap();
            fake.call()?;
            assert_eq!(source.file.1, 0);
            assert!(fake.held.iter().all(|(other, _)| !other.overlaps(iova)));
            fake.held.push((iova, permission));
            Ok(())
        }
        fn unmap(&mut self, iova: IovaRange) -> io::Result<u64> {
            let mut fake = self.0.lock().unwrap();
            fake.call()?;
            let before = fake.held.len();
            fake.held.retain(|(other, _)| *other != iova);
            Ok(if fake.held.len() < before { iova.len() } else { 0 })
        }
    }

    fn domain(fail: &[usize]) -> (Shared, Domain) {
        let fake = Shared::default();
        fake.0.lock().unwrap().fail = fail.to_vec();
        (fake.clone(), Domain::over("guest".into(), Vec::new(), Box::new(fake)))
    }

    fn ram(segments: u64) -> Arc<Ram> {
        let range = |i| GpaRange::new(Gpa(i * 0x10000), 0x4000).unwrap();
        Arc::new(Ram::new(&(0..segments).map(range).collect::<Vec<_>>()).unwrap())
    }

    fn held(fake: &Shared) -> Vec<(IovaRange, Permission)> {
        fake.0.lock().unwrap().held.clone()
    }

    fn rows(domain: &Domain) -> Vec<(IovaRange, Permission)> {
        domain.mappings().iter().map(|row| (row.iova, row.permission)).collect()
    }

    #[test]
    fn large_ram_is_mapped_by_one_call_for_each_segment_and_passes_the_audit() {
        let (fake, domain) = domain(&[]);
        let ram = Arc::new(Ram::new(&memory::ram_ranges(64 << 30)).unwrap());
        domain.map_ram(&ram).unwrap();
        assert_eq!(fake.0.lock().unwrap().calls, 2);
        domain.audit(&ram).unwrap();
        assert!(matches!(domain.map_ram(&ram), Err(DomainError::Mapped { .. })));
        drop(domain);
        assert_eq!(held(&fake), []);
    }

    #[test]
    fn a_failed_mapping_leaves_nothing_mapped_and_names_the_place_and_the_remedy() {
        let (fake, domain) = domain(&[2]);
        let error = domain.map_ram(&ram(3)).unwrap_err();
        assert_eq!((held(&fake).len(), rows(&domain).len()), (0, 0));
        let text = error.to_string();
        assert!(
            text.contains("0x4000 bytes of RAM at GPA 0x20000 to IOVA 0x20000: Cannot allocate memory"),
            "{text}"
        );
        assert!(text.contains("ulimit -l"), "{text}");
        assert!(domain.audit(&ram(3)).is_err());
    }

    #[test]
    fn a_mapping_that_cannot_be_undone_is_said_and_stays_in_the_ledger() {
        let (fake, domain) = domain(&[2, 3]);
        let error = domain.map_ram(&ram(3)).unwrap_err();
        assert!(error.to_string().contains("Cannot unmap IOVA 0x10000-0x13fff"), "{error}");
        assert_eq!(held(&fake), rows(&domain));
        assert_eq!(rows(&domain).len(), 1);
    }

    #[test]
    fn ram_that_does_not_fit_is_refused_before_any_call() {
        let (fake, domain) = domain(&[]);
        let ram = Ram::new(&[GpaRange::new(Gpa(1 << 39), 0x1000).unwrap()]).unwrap();
        assert!(matches!(domain.map_ram(&Arc::new(ram)), Err(DomainError::Misfits(_))));
        assert_eq!(fake.0.lock().unwrap().calls, 0);
    }

    proptest! {
        #[test]
        fn whatever_fails_the_ledger_is_what_the_back_end_holds(
            steps in prop::collection::vec((any::<bool>(), 1u64..6), 1..12),
            fail in prop::collection::vec(0usize..40, 0..12),
        ) {
            let (fake, domain) = domain(&fail);
            for (map, segments) in steps {
                if map {
                    let ram = ram(segments);
                    if domain.map_ram(&ram).is_ok() {
                        prop_assert!(domain.audit(&ram).is_ok());
                        prop_assert_eq!(rows(&domain).len() as u64, segments);
                    }
                } else if domain.unmap_all().is_ok() {
                    prop_assert_eq!(rows(&domain).len(), 0);
                }
                prop_assert_eq!(held(&fake), rows(&domain));
            }
        }
    }
}
