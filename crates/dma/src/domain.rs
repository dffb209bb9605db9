//! A domain: mappings, the devices that translate through them, and the ledger.

mod peers;
mod remarks;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use memory::{Change, Contents, Difference, GpaRange, Mirror, MirrorError, Ram, Segment};
use parking_lot::{Mutex, MutexGuard};

use crate::backend::{BackEnd, Backend, Source};
use crate::error::{DomainError, Failed};
use crate::iommufd::Iommufd;
use crate::iova::{Iova, IovaRange};
use crate::ledger::{Mapping, Permission, Target, audit};
use crate::limits::Limits;
use crate::members::{KvmFile, Members};
use crate::own::{self, OwnMemory};
use crate::p2p::{P2p, P2pWish};
use crate::type1::Type1;
use crate::vfio::{Cdev, Group, VfioDevice, VfioError};
pub use remarks::Remark;
use remarks::Remarks;

/// What a domain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// For devices that are assigned to the guest: RAM at IOVA = GPA, and each other's memory when asked for.
    Guest(P2pWish),
    /// For devices that skep itself drives: RAM at IOVA = GPA, and the drivers' own queues above it.
    Host,
}

/// How often the kernel was asked to change a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// To map, with success or without.
    pub maps: u64,
    /// To unmap.
    pub unmaps: u64,
}

/// A set of IOVA to memory mappings and the devices that translate through it: a mirror of a VM's memory map.
///
/// Dropping it unmaps everything. Keep it (it is shared as `Arc`) as long as a device of it may do DMA.
pub struct Domain {
    name: String,
    kind: Kind,
    members: Members,
    state: Mutex<State>,
    /// Grows with every change of the rows.
    generation: AtomicU64,
}

struct State {
    backend: Box<dyn Backend>,
    rows: Vec<Row>,
    calls: Calls,
    p2p: P2p,
    devices: Vec<Weak<VfioDevice>>,
    remarks: Remarks,
}

/// A row of the ledger, and a share in the memory that devices reach through it.
struct Row {
    mapping: Mapping,
    memory: Option<Arc<Segment>>,
}

impl Domain {
    /// A domain of these IOMMU groups in a VFIO type1 container. Nothing is mapped yet. A group that is free is
    /// claimed for it; on failure all are free again.
    pub fn type1(
        name: impl Into<String>,
        kind: Kind,
        groups: Vec<Group>,
    ) -> Result<Arc<Domain>, DomainError> {
        let backend = Type1::new(&groups)?;
        let members = Members::Groups(groups.into_iter().map(Arc::new).collect());
        Ok(Domain::over(name.into(), kind, members, Box::new(backend)))
    }

    /// A domain of these devices in an IOAS of an iommufd. Nothing is mapped yet, and their DMA is blocked until they
    /// are opened. What other domains of that iommufd map as well is pinned only once.
    pub fn iommufd(
        name: impl Into<String>,
        kind: Kind,
        iommufd: &Arc<Iommufd>,
        cdevs: Vec<Cdev>,
    ) -> Result<Arc<Domain>, DomainError> {
        let (members, space) = Members::bind(iommufd, cdevs)?;
        Ok(Domain::over(name.into(), kind, members, Box::new(space)))
    }

    pub(crate) fn over(name: String, kind: Kind, members: Members, backend: Box<dyn Backend>) -> Arc<Domain> {
        let p2p = if let Kind::Guest(P2pWish::On | P2pWish::Required) = kind { P2p::Asked } else { P2p::Off };
        let state = State {
            backend,
            rows: Vec::new(),
            calls: Calls::default(),
            p2p,
            devices: Vec::new(),
            remarks: Remarks::Waiting(Vec::new()),
        };
        Arc::new(Domain { name, kind, members, state: Mutex::new(state), generation: AtomicU64::new(0) })
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it is made with.
    pub fn back_end(&self) -> BackEnd {
        self.state().backend.kind()
    }

    /// The groups in it. None with iommufd, which knows devices only.
    pub fn groups(&self) -> &[Arc<Group>] {
        self.members.groups()
    }

    /// The files with which its devices are registered with KVM. KVM keeps them open as long as its VFIO device.
    pub fn kvm_files(&self) -> Vec<KvmFile<'_>> {
        self.members.kvm_files()
    }

    /// What can be mapped, as of the groups that are in it.
    pub fn limits(&self) -> Result<Limits, DomainError> {
        self.state().limits(&self.name)
    }

    /// Opens a device of the domain, by its IOMMU group and PCI address (`0000:01:00.0`). From then on it reaches
    /// what the domain maps, once it is bus master: attach the domain to the memory map before.
    pub fn open_device(self: &Arc<Self>, group: u32, address: &str) -> Result<Arc<VfioDevice>, DomainError> {
        let device = Arc::new(self.members.open(self, group, address)?);
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
        self.state().mappings()
    }

    /// How often the kernel was asked to change it.
    pub fn calls(&self) -> Calls {
        self.state().calls
    }

    /// Bytes of this host's memory that are pinned because devices of the domain reach them: with iommufd,
    /// none while no device is open.
    pub fn pinned(&self) -> u64 {
        self.pins().iter().map(|segment| segment.range().len()).sum()
    }

    /// The same for all of these domains: what several of them reach counts once.
    pub fn pinned_by_all<'a>(domains: impl IntoIterator<Item = &'a Domain>) -> u64 {
        let mut pins: Vec<Arc<Segment>> = domains.into_iter().flat_map(Domain::pins).collect();
        pins.sort_unstable_by_key(Arc::as_ptr);
        pins.dedup_by(|one, other| Arc::ptr_eq(one, other));
        pins.iter().map(|segment| segment.range().len()).sum()
    }

    fn pins(&self) -> Vec<Arc<Segment>> {
        let state = self.state();
        let any_open = || state.devices.iter().any(|device| device.strong_count() > 0);
        if state.backend.kind() == BackEnd::Iommufd && !any_open() {
            return Vec::new();
        }
        state.rows.iter().filter_map(|row| row.memory.clone()).collect()
    }

    /// Whether its devices reach each other's memory.
    pub fn p2p(&self) -> P2p {
        self.state().p2p.clone()
    }

    /// Memory for one of skep's own drivers, `len` bytes rounded up to pages, at the highest free IOVAs, far above
    /// any RAM. It is `what` in the ledger.
    pub fn map_own(self: &Arc<Self>, what: &str, len: u64) -> Result<OwnMemory, DomainError> {
        let mut state = self.state();
        let (iova, range) = state.free(&self.name, what, len)?;
        let ram = Arc::new(Ram::new(&[range])?);
        let mapping = Mapping::of(iova, Target::Own(what.into()));
        let mapped = state.map_segment(&self.name, mapping, &ram.segments()[0]);
        self.changed();
        drop(state);
        mapped?;
        Ok(OwnMemory::new(self.clone(), iova, ram))
    }

    /// Another number whenever it holds something else than before.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Everything that devices may write, and the generation of that; neighbours are one range.
    pub(crate) fn reached(&self) -> (u64, Vec<IovaRange>) {
        let state = self.state();
        let writable = state.rows.iter().filter(|row| row.mapping.permission == Permission::ReadWrite);
        let mut ranges: Vec<IovaRange> = writable.map(|row| row.mapping.iova).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| match before.joined(*next) {
            Some(both) => {
                *before = both;
                true
            }
            None => false,
        });
        (self.generation(), ranges)
    }

    /// Unmaps a driver's memory from the devices.
    pub(crate) fn unmap_own(&self, iova: IovaRange) -> Result<(), DomainError> {
        // The code that drops memory gets no error.
        self.unmap(|row| row.iova == iova).inspect_err(|error| self.state().remark(error.to_string()))
    }

    /// Unmaps everything that is left. What cannot be unmapped stays in the ledger, and is in the error.
    pub fn unmap_all(&self) -> Result<(), DomainError> {
        self.unmap(|_| true)
    }

    fn unmap(&self, meant: impl Fn(&Mapping) -> bool) -> Result<(), DomainError> {
        let mut state = self.state();
        self.changed();
        let done = state.unmap(&self.name, meant);
        self.changed();
        done
    }

    /// To be called with the state locked, before something is unmapped, so that no driver relies on it during that, and
    /// after every change, whether or not it succeeded.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Mirror for Domain {
    fn name(&self) -> String {
        format!("DMA domain {}", self.name)
    }

    fn prepare(&self, change: &Change) -> Result<(), MirrorError> {
        let mut state = self.state();
        self.changed();
        let done = match change {
            Change::AddRam(segment) => {
                state.map_segment(&self.name, Mapping::of_ram(segment.range()), segment)
            }
            Change::AddDevice(device) => self.add_device(&mut state, device),
            Change::RemoveRam(segment) => {
                let target = Target::Ram(segment.range());
                state.unmap(&self.name, |row| row.target == target)
            }
            Change::RemoveDevice(device) => {
                let wanted = Mapping::of_device(device);
                state.unmap(&self.name, |row| *row == wanted)
            }
        };
        self.changed();
        Ok(done?)
    }

    fn audit(&self, contents: &Contents) -> Result<(), Difference> {
        let state = self.state();
        audit(Mirror::name(self), &state.mappings(), contents, &state.p2p)
    }
}

impl State {
    fn mappings(&self) -> Vec<Mapping> {
        self.rows.iter().map(|row| row.mapping.clone()).collect()
    }

    fn limits(&self, domain: &str) -> Result<Limits, DomainError> {
        let fail = |cause| VfioError::new(domain, "ask the IOMMU what it can map", cause, "");
        Ok(self.backend.limits().map_err(fail)?)
    }

    /// The highest place for `len` bytes of `what` where nothing is, as IOVAs and as guest addresses.
    fn free(&self, domain: &str, what: &str, len: u64) -> Result<(IovaRange, GpaRange), DomainError> {
        let limits = self.limits(domain)?;
        let taken: Vec<IovaRange> = self.rows.iter().map(|row| row.mapping.iova).collect();
        let place = limits.highest_free(len, &taken).and_then(|iova| Some((iova, own::range(iova)?)));
        place.ok_or_else(|| DomainError::NoRoom { domain: domain.to_owned(), what: what.into(), bytes: len })
    }

    /// Maps a whole segment and pins it.
    fn map_segment(
        &mut self,
        domain: &str,
        mapping: Mapping,
        segment: &Arc<Segment>,
    ) -> Result<(), DomainError> {
        let limits = self.limits(domain)?;
        limits.check([segment.range()])?;
        if limits.mappings_left == Some(0) {
            return Err(DomainError::Mappings { domain: domain.to_owned() });
        }
        let source = Source { host: segment.host_address(), file: Some((segment.file().as_fd(), 0)) };
        self.backend.reserve(&source, segment.range().len())?;
        // SAFETY: the row holds a share in the segment, whose mapping lives as long, until the range is unmapped;
        // guest RAM is only ever touched as memory that changes at any time.
        unsafe { self.map(domain, mapping, source, Some(segment.clone())) }
    }

    /// Makes a row and the mapping that it says.
    ///
    /// # Safety
    /// What `source` names must stay mapped in this process until the row is unmapped.
    unsafe fn map(
        &mut self,
        domain: &str,
        mapping: Mapping,
        source: Source<'_>,
        memory: Option<Arc<Segment>>,
    ) -> Result<(), DomainError> {
        self.calls.maps += 1;
        // SAFETY: by this function's contract.
        let mapped = unsafe { self.backend.map(mapping.iova, source, mapping.permission) };
        mapped.map_err(|cause| DomainError::Map {
            domain: domain.to_owned(),
            mapping: mapping.clone(),
            cause,
        })?;
        self.rows.push(Row { mapping, memory });
        Ok(())
    }

    /// Unmaps the rows that are meant, the last first. Tries all; those that fail stay.
    fn unmap(&mut self, domain: &str, meant: impl Fn(&Mapping) -> bool) -> Result<(), DomainError> {
        let mut failed = Vec::new();
        for at in (0..self.rows.len()).rev() {
            if !meant(&self.rows[at].mapping) {
                continue;
            }
            let iova = self.rows[at].mapping.iova;
            self.calls.unmaps += 1;
            match self.backend.unmap(iova) {
                Ok(bytes) if bytes == iova.len() => {
                    self.rows.remove(at);
                }
                Ok(bytes) => {
                    let wanted = iova.len();
                    let cause = format!("the kernel unmapped {bytes:#x} bytes of {wanted:#x}");
                    failed.push(Failed { iova, cause: io::Error::other(cause) });
                }
                Err(cause) => failed.push(Failed { iova, cause }),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(DomainError::Unmap { domain: domain.to_owned(), failed }) }
    }
}

impl Limits {
    /// The highest place for `len` bytes that can be mapped and is not taken.
    fn highest_free(&self, len: u64, taken: &[IovaRange]) -> Option<IovaRange> {
        let page = self.page();
        let len = len.max(1).checked_next_multiple_of(page)?;
        let everything = [IovaRange::inclusive(Iova(0), Iova(UNKNOWN_LAST))?];
        let ranges = if self.ranges.is_empty() { &everything[..] } else { &self.ranges };
        let free = ranges.iter().rev().flat_map(|range| range.without(taken).into_iter().rev());
        for range in free {
            let end = range.last().0.checked_add(1).unwrap_or(range.last().0) / page * page;
            if let Some(first) = end.checked_sub(len)
                && first >= range.first().0
            {
                return IovaRange::inclusive(Iova(first), Iova(end - 1));
            }
        }
        None
    }
}

/// The last IOVA that every IOMMU is assumed to translate if the kernel does not say (39 bits).
const UNKNOWN_LAST: u64 = (1 << 39) - 1;

impl Drop for Domain {
    fn drop(&mut self) {
        if let Err(error) = self.unmap_all() {
            say::error(&error);
            self.state().remark(error.to_string());
            // Devices may reach that RAM still: it must not become anything else's memory in this process.
            self.state().rows.drain(..).for_each(|row| std::mem::forget(row.memory));
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.mappings();
        f.debug_struct("Domain").field("name", &self.name).field("rows", &rows).finish_non_exhaustive()
    }
}
