//! Domains over a model of an IOMMU: whatever happens and fails, ledger, IOMMU and memory map agree.

use std::sync::Arc;
use std::sync::mpsc::channel;

use memory::{Change, DeviceMemory, Gpa, GpaRange, MemoryMap, Mirror, Ram, Segment};
use proptest::prelude::*;

use crate::fake::{Direction, FakeIommu, Refused};
use crate::{Domain, DomainError, Iova, IovaRange, Kind, P2p, P2pWish, Reach, Target};

const GUEST: Kind = Kind::Guest(P2pWish::Off);

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn map(segments: u64) -> MemoryMap {
    let ranges: Vec<GpaRange> = (0..segments).map(|i| range(i << 16, 0x4000)).collect();
    MemoryMap::new(Arc::new(Ram::new(&ranges).unwrap()))
}

fn segment(start: u64) -> Arc<Segment> {
    Ram::new(&[range(start, 0x1000)]).unwrap().segments()[0].clone()
}

/// Memory that stands for a BAR; it must live as long as the memory is in a map.
fn bar(at: u64, memory: &Segment) -> DeviceMemory {
    // SAFETY: by this function's contract, which the tests keep.
    unsafe { DeviceMemory::new("bar", range(at, memory.range().len()), memory.host_address()) }
}

/// What the domain remarks since the last call.
fn listen_to(domain: &Domain) -> impl Fn() -> Vec<String> {
    let (sender, told) = channel();
    domain.tell(move |remark| sender.send(remark.reason).unwrap());
    move || told.try_iter().collect()
}

fn agree(iommu: &FakeIommu, domain: &Domain) {
    let mut rows: Vec<_> = domain.mappings().iter().map(|row| (row.iova, row.permission)).collect();
    rows.sort_by_key(|row| row.0);
    assert_eq!(iommu.held(), rows);
}

#[test]
fn large_ram_is_mapped_by_one_call_for_each_segment_and_passes_the_audit() {
    let iommu = FakeIommu::new();
    let domain = iommu.domain("guest", GUEST);
    let map = MemoryMap::new(Arc::new(Ram::new(&memory::ram_ranges(64 << 30)).unwrap()));
    map.attach(domain.clone()).unwrap();
    assert_eq!((domain.calls().maps, domain.mappings().len(), domain.pinned()), (2, 2, 64 << 30));
    assert!(map.audit()[0].1.is_ok());
    drop(map);
    drop(domain);
    assert_eq!(iommu.held(), []);
}

#[test]
fn devices_reach_ram_where_the_guest_sees_it_and_nothing_else() {
    let iommu = FakeIommu::new();
    let (map, domain) = (map(2), iommu.domain("guest", GUEST));
    map.attach(domain.clone()).unwrap();
    iommu.write(Iova(0x10ffe), &[1, 2, 3, 4]).unwrap();
    assert_eq!(map.ram().read_obj::<[u8; 4]>(Gpa(0x10ffe)).unwrap(), [1, 2, 3, 4]);
    let refused = Refused { iova: Iova(0x4000), direction: Direction::Read };
    assert_eq!(iommu.read(Iova(0x3fff), &mut [0; 2]), Err(refused));
    assert!(iommu.write(Iova(u64::MAX), &[0]).is_err());
    assert_eq!(iommu.refused().len(), 2);
}

#[test]
fn a_failed_mapping_leaves_nothing_mapped_and_names_the_place_and_the_remedy() {
    let iommu = FakeIommu::failing(&[2]);
    let domain = iommu.domain("guest", GUEST);
    let text = map(3).attach(domain.clone()).unwrap_err().to_string();
    assert!(
        text.contains("cannot map IOVA 0x20000-0x23fff to RAM 0x20000-0x23fff: Cannot allocate"),
        "{text}"
    );
    assert!(text.contains("ulimit -l"), "{text}");
    assert_eq!((iommu.held().len(), domain.mappings().len()), (0, 0));
}

#[test]
fn a_mapping_that_cannot_be_undone_is_said_and_stays_in_the_ledger() {
    let iommu = FakeIommu::failing(&[2, 3]);
    let domain = iommu.domain("guest", GUEST);
    let error = map(3).attach(domain.clone()).unwrap_err();
    assert!(error.to_string().contains("Cannot unmap IOVA 0x10000-0x13fff"), "{error}");
    assert_eq!((error.stuck().len(), domain.mappings().len()), (1, 1));
    agree(&iommu, &domain);
}

#[test]
fn ram_that_does_not_fit_is_refused_before_any_call() {
    let iommu = FakeIommu::new();
    let domain = iommu.domain("guest", GUEST);
    let map = MemoryMap::new(Arc::new(Ram::new(&[range(1 << 39, 0x1000)]).unwrap()));
    let text = map.attach(domain.clone()).unwrap_err().to_string();
    assert!(text.contains("39 bits"), "{text}");
    assert_eq!(domain.calls().maps, 0);
}

#[test]
fn a_drivers_queues_lie_above_all_ram_and_go_with_their_owner() {
    let iommu = FakeIommu::new();
    let (map, domain) = (map(1), iommu.domain("host", Kind::Host));
    map.attach(domain.clone()).unwrap();
    let (one, two) = (domain.map_own("queues", 5000).unwrap(), domain.map_own("lists", 1).unwrap());
    assert_eq!((one.iova(), one.len()), (Iova((1 << 39) - 0x2000), 0x2000));
    assert_eq!(two.iova(), Iova((1 << 39) - 0x3000));
    iommu.write(one.iova(), &[7]).unwrap();
    assert_eq!(one.ram().read_obj::<u8>(Gpa(one.iova().0)).unwrap(), 7);
    assert!(map.audit()[0].1.is_ok(), "its own memory is no difference");
    drop(one);
    agree(&iommu, &domain);
    assert_eq!(domain.mappings().last().map(|row| row.target.clone()), Some(Target::Own("lists".into())));
    map.detach(&(domain.clone() as Arc<dyn Mirror>)).unwrap();
    assert_eq!(domain.mappings().len(), 1, "a driver keeps its queues when the RAM leaves");
}

#[test]
fn device_memory_is_mapped_for_other_devices_only_when_asked_for() {
    let memory = segment(0);
    let try_with = |wish| {
        let iommu = FakeIommu::failing(if wish == P2pWish::Off { &[] } else { &[2] });
        let (map, domain) = (map(1), iommu.domain("guest", Kind::Guest(wish)));
        map.attach(domain.clone()).unwrap();
        let first = map.apply(&Change::AddDevice(bar(0xe000_0000, &memory)));
        let second = map.apply(&Change::AddDevice(bar(0xe100_0000, &memory)));
        agree(&iommu, &domain);
        assert!(map.audit()[0].1.is_ok());
        (first.is_ok(), second.is_ok(), domain.mappings().len(), domain.p2p())
    };
    assert_eq!(try_with(P2pWish::Off), (true, true, 1, P2p::Off));
    assert_eq!(try_with(P2pWish::Required), (true, false, 2, P2p::Working));
    let (first, second, rows, p2p) = try_with(P2pWish::On);
    assert_eq!((first, second, rows), (true, true, 1), "all or none of it");
    assert!(
        p2p.to_string().starts_with("asked for, not working: DMA domain guest: cannot map IOVA 0xe1000000")
    );
}

#[test]
fn whether_devices_reach_each_other_is_tried_before_a_guest_relies_on_it() {
    let memory = segment(0);
    let try_with = |wish, fail: &[usize]| {
        let iommu = FakeIommu::failing(fail);
        let (map, domain) = (map(1), iommu.domain("guest", Kind::Guest(wish)));
        map.attach(domain.clone()).unwrap();
        let before = domain.p2p();
        // SAFETY: the memory lives as long as this test.
        let tried = unsafe { domain.try_memory("0000:01:00.0 BAR 0", memory.host_address(), 0x1000) };
        agree(&iommu, &domain);
        (before, tried, domain.p2p(), domain.mappings().len())
    };
    assert!(matches!(try_with(P2pWish::Off, &[1]), (P2p::Off, Ok(()), P2p::Off, 1)));
    assert!(matches!(try_with(P2pWish::On, &[]), (P2p::Asked, Ok(()), P2p::Working, 1)));
    assert!(matches!(try_with(P2pWish::On, &[1]), (P2p::Asked, Ok(()), P2p::Failed(_), 1)));
    let (_, tried, p2p, rows) = try_with(P2pWish::Required, &[1]);
    let text = tried.unwrap_err().to_string();
    assert!(text.contains("to 0000:01:00.0 BAR 0") && text.contains("--p2p required"), "{text}");
    assert_eq!((p2p, rows), (P2p::Asked, 1));
    // What cannot be unmapped is an error however it was wished for, and stays in the ledger.
    let (_, tried, _, rows) = try_with(P2pWish::On, &[2]);
    assert!(tried.unwrap_err().to_string().contains("still reach memory"));
    assert_eq!(rows, 2);
}

#[test]
fn memory_of_devices_that_is_only_wished_for_fails_aloud() {
    let memory = segment(0);
    // The second mapping of device memory fails, and so does undoing the first.
    let iommu = FakeIommu::failing(&[2, 3]);
    let (map, domain) = (map(1), iommu.domain("guest", Kind::Guest(P2pWish::On)));
    map.attach(domain.clone()).unwrap();
    let told = listen_to(&domain);
    map.apply(&Change::AddDevice(bar(0xe000_0000, &memory))).unwrap();
    assert_eq!(told(), [""; 0]);
    map.apply(&Change::AddDevice(bar(0xe100_0000, &memory))).unwrap();
    let remarks = told();
    assert_eq!(remarks.len(), 1);
    let reason = &remarks[0];
    assert!(reason.contains("cannot map IOVA 0xe1000000"), "{reason}");
    assert!(reason.contains("Cannot unmap IOVA 0xe0000000"), "{reason}");
    map.apply(&Change::RemoveDevice(bar(0xe100_0000, &memory))).unwrap();
    assert_eq!(told(), [""; 0], "once");
}

#[test]
fn what_failed_before_anybody_listened_is_told_then() {
    let iommu = FakeIommu::failing(&[1]);
    let domain = iommu.domain("host", Kind::Host);
    drop(domain.map_own("queues", 1).unwrap());
    assert_eq!(domain.mappings().len(), 1);
    let remarks = listen_to(&domain)();
    assert!(remarks.len() == 1 && remarks[0].contains("DMA domain host"), "{remarks:?}");
}

#[test]
fn ram_that_two_domains_reach_is_pinned_once() {
    let map = map(2);
    let domains = ["one", "two"].map(|name| FakeIommu::new().domain(name, Kind::Host));
    domains.iter().for_each(|domain| map.attach(domain.clone()).unwrap());
    let _queues = domains[1].map_own("queues", 1).unwrap();
    assert_eq!(domains.each_ref().map(|domain| domain.pinned()), [0x8000, 0x9000]);
    assert_eq!(Domain::pinned_by_all(domains.iter().map(|domain| &**domain)), 0x9000);
}

#[test]
fn what_goes_counts_as_gone_before_it_goes() {
    let domain = FakeIommu::new().domain("host", Kind::Host);
    let (own, before) = (domain.map_own("queues", 1).unwrap(), domain.generation());
    drop(own);
    assert_eq!(domain.generation(), before + 2);
}

#[test]
fn what_a_driver_may_touch_follows_the_ledger() {
    let iommu = FakeIommu::new();
    let map = MemoryMap::new(Arc::new(Ram::new(&[range(0, 0x2000), range(0x2000, 0x1000)]).unwrap()));
    let domain = iommu.domain("host", Kind::Host);
    let mut reach = Reach::of(domain.clone());
    let iova = |first, last| IovaRange::inclusive(Iova(first), Iova(last)).unwrap();
    assert!(!reach.covers(iova(0, 0xfff)));
    map.attach(domain.clone()).unwrap();
    assert!(reach.covers(iova(0, 0x2fff)), "segments that touch are one");
    assert!(!reach.covers(iova(0, 0x3000)));
    let own = domain.map_own("queues", 1).unwrap();
    map.detach(&(domain.clone() as Arc<dyn Mirror>)).unwrap();
    assert!(!reach.covers(iova(0x1000, 0x1fff)));
    assert!(reach.covers(iova(own.iova().0, own.iova().0)));
}

#[test]
fn no_room_for_queues_is_an_error_that_names_them() {
    let domain = FakeIommu::new().domain("host", Kind::Host);
    let error = domain.map_own("queues of 0000:02:00.0", 1 << 40).unwrap_err();
    assert!(matches!(error, DomainError::NoRoom { .. }));
    assert!(error.to_string().contains("queues of 0000:02:00.0"), "{error}");
}

#[derive(Debug, Clone)]
enum Step {
    AddRam(u64),
    RemoveRam(usize),
    Assign,
    Unassign,
    MoveBar(u64),
    AttachDriver,
    DetachDriver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..12).prop_map(Step::AddRam),
        (0usize..12).prop_map(Step::RemoveRam),
        Just(Step::Assign),
        Just(Step::Unassign),
        (0u64..6).prop_map(Step::MoveBar),
        Just(Step::AttachDriver),
        Just(Step::DetachDriver),
    ]
}

/// A VM as this test thinks of it: one guest domain, made anew by each assignment, and one host domain.
struct Model {
    map: MemoryMap,
    guest: Option<(FakeIommu, Arc<Domain>)>,
    host: (FakeIommu, Arc<Domain>),
    queues: Vec<crate::OwnMemory>,
    bar: Option<DeviceMemory>,
}

impl Model {
    fn step(
        &mut self,
        step: &Step,
        memory: &Segment,
        wish: P2pWish,
        fail: &[usize],
    ) -> Result<(), memory::ChangeError> {
        match step {
            Step::AddRam(slot) => self.map.apply(&Change::AddRam(segment(slot << 20))),
            Step::RemoveRam(at) => {
                let ram = self.map.ram();
                let Some(segment) = ram.segments().get(*at) else { return Ok(()) };
                self.map.apply(&Change::RemoveRam(segment.clone()))
            }
            Step::Assign => {
                if self.guest.is_none() {
                    let iommu = FakeIommu::failing(fail);
                    let domain = iommu.domain("guest", Kind::Guest(wish));
                    self.guest = Some((iommu, domain.clone()));
                    self.map.attach(domain).inspect_err(|error| {
                        if error.stuck().is_empty() {
                            self.guest = None;
                        }
                    })?;
                }
                Ok(())
            }
            Step::Unassign => match self.guest.take() {
                Some((_, domain)) => self.map.detach(&(domain as Arc<dyn Mirror>)),
                None => Ok(()),
            },
            Step::MoveBar(slot) => {
                if let Some(bar) = &self.bar {
                    self.map.apply(&Change::RemoveDevice(bar.clone()))?;
                    self.bar = None;
                }
                let moved = bar(0xe000_0000 + (slot << 20), memory);
                self.map.apply(&Change::AddDevice(moved.clone()))?;
                self.bar = Some(moved);
                Ok(())
            }
            Step::AttachDriver => {
                self.queues.extend(self.host.1.map_own("queues", 0x1000));
                Ok(())
            }
            Step::DetachDriver => {
                self.queues.pop();
                Ok(())
            }
        }
    }

    /// Every ledger is what its IOMMU holds and what the map says, and DMA goes just where it should.
    fn check(&self, stuck: bool) {
        let besides = |p2p| matches!(p2p, P2p::Failed(why) if why.contains("Besides"));
        let stuck = stuck || self.guest.as_ref().is_some_and(|(_, domain)| besides(domain.p2p()));
        let contents = self.map.contents();
        let domains = self.guest.iter().chain([&self.host]);
        for (iommu, domain) in domains {
            agree(iommu, domain);
            if stuck {
                continue;
            }
            domain.audit(&contents).unwrap();
            for slot in 0..12 {
                let at = slot << 20;
                let is_ram = contents.ram.slice(Gpa(at), 1).is_ok();
                assert_eq!(iommu.read(Iova(at), &mut [0]).is_ok(), is_ram, "at {at:#x}");
                let value = slot as u8 + 1;
                if is_ram {
                    iommu.write(Iova(at), &[value]).unwrap();
                    assert_eq!(contents.ram.read_obj::<u8>(Gpa(at)).unwrap(), value);
                }
            }
            for slot in 0..6 {
                let at = Iova(0xe000_0000 + (slot << 20));
                let bar = contents.devices.iter().any(|device| device.range().start().0 == at.0);
                let reach = bar && domain.p2p() == P2p::Working;
                assert!(!bar || domain.p2p() != P2p::Asked);
                assert_eq!(iommu.read(at, &mut [0]).is_ok(), reach);
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_and_fails_ledgers_iommus_and_the_map_agree(
        steps in prop::collection::vec(step(), 1..40),
        wish in prop_oneof![Just(P2pWish::Off), Just(P2pWish::On), Just(P2pWish::Required)],
        fail in prop::collection::vec(0usize..50, 0..8),
        fail_host in prop::collection::vec(0usize..50, 0..8),
    ) {
        let memory = segment(0);
        let iommu = FakeIommu::failing(&fail_host);
        let host = iommu.domain("host", Kind::Host);
        let mut model = Model {
            map: MemoryMap::new(Arc::new(Ram::new(&[]).unwrap())),
            guest: None,
            host: (iommu, host.clone()),
            queues: Vec::new(),
            bar: None,
        };
        model.map.attach(host).unwrap();
        let mut stuck = false;
        for step in &steps {
            // The domain's own memory may be stuck as well, where it prints that; the ledger has it then.
            let done = model.step(step, &memory, wish, &fail);
            stuck |= done.is_err_and(|error| !error.stuck().is_empty());
            model.check(stuck);
        }
    }
}
