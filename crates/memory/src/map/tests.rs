use super::*;
use proptest::prelude::*;

/// Holds what it was told; calls with numbers in `fail` fail.
#[derive(Default)]
struct Fake {
    held: Mutex<Vec<GpaRange>>,
    calls: Mutex<usize>,
    fail: Vec<usize>,
}

impl Fake {
    fn failing(fail: &[usize]) -> Arc<Fake> {
        Arc::new(Fake { fail: fail.to_vec(), ..Fake::default() })
    }

    fn held(&self) -> Vec<GpaRange> {
        let mut held = self.held.lock().clone();
        held.sort_by_key(|range| range.start());
        held
    }
}

impl Mirror for Fake {
    fn name(&self) -> String {
        "fake".into()
    }

    fn prepare(&self, change: &Change) -> Result<(), MirrorError> {
        let mut calls = self.calls.lock();
        *calls += 1;
        if self.fail.contains(&(*calls - 1)) {
            return Err("out of order".into());
        }
        let mut held = self.held.lock();
        match change {
            Change::AddRam(_) | Change::AddDevice(_) => held.push(change.range()),
            Change::RemoveRam(_) | Change::RemoveDevice(_) => {
                held.retain(|range| *range != change.range());
            }
        }
        Ok(())
    }

    fn audit(&self, contents: &Contents) -> Result<(), Difference> {
        let mut ranges: Vec<GpaRange> = contents.ranges().collect();
        ranges.sort_by_key(|range| range.start());
        if ranges == self.held() {
            return Ok(());
        }
        let differences = vec![format!("{:?} is not {:?}", self.held(), ranges)];
        Err(Difference { mirror: self.name(), differences })
    }
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn segment(start: u64, len: u64) -> Arc<Segment> {
    Ram::new(&[range(start, len)]).unwrap().segments()[0].clone()
}

fn bar(start: u64, len: u64) -> DeviceMemory {
    // SAFETY: no mirror here touches it.
    unsafe { DeviceMemory::new("bar", range(start, len), std::ptr::NonNull::dangling()) }
}

fn map() -> MemoryMap {
    MemoryMap::new(Arc::new(Ram::new(&[range(0, 0x4000), range(0x10000, 0x2000)]).unwrap()))
}

#[test]
fn what_one_mirror_refuses_happens_nowhere() {
    let (map, one, two) = (map(), Fake::failing(&[]), Fake::failing(&[2]));
    map.attach(one.clone()).unwrap();
    map.attach(two.clone()).unwrap();
    let before = one.held();
    let error = map.apply(&Change::AddRam(segment(0x20000, 0x1000))).unwrap_err();
    assert_eq!(error.to_string(), "fake cannot add RAM 0x20000-0x20fff: out of order");
    assert_eq!((one.held(), two.held(), map.ram().size()), (before.clone(), before, 0x6000));
    map.apply(&Change::AddRam(segment(0x20000, 0x1000))).unwrap();
    assert!(map.ram().slice(Gpa(0x20fff), 1).is_ok() && map.audit().iter().all(|(_, audit)| audit.is_ok()));
}

#[test]
fn what_cannot_be_undone_is_said_and_shown_by_the_audit() {
    let (map, one, two) = (map(), Fake::failing(&[3]), Fake::failing(&[2]));
    map.attach(one).unwrap();
    map.attach(two).unwrap();
    let error = map.apply(&Change::AddDevice(bar(0x8000, 0x1000))).unwrap_err();
    assert_eq!(error.stuck().len(), 1);
    assert!(error.to_string().contains("could not remove bar at 0x8000-0x8fff"), "{error}");
    let audits: Vec<bool> = map.audit().into_iter().map(|(_, audit)| audit.is_ok()).collect();
    assert_eq!(audits, [false, true]);
}

#[test]
fn a_mirror_that_fails_while_it_is_attached_holds_nothing() {
    let (map, fake) = (map(), Fake::failing(&[1]));
    assert!(map.attach(fake.clone()).is_err());
    assert_eq!((fake.held(), map.audit().len()), (Vec::new(), 0));
}

#[test]
fn a_change_that_does_not_fit_the_map_reaches_no_mirror() {
    let (map, fake) = (map(), Fake::failing(&[]));
    map.attach(fake.clone()).unwrap();
    assert!(map.apply(&Change::AddRam(segment(0x3000, 0x2000))).is_err());
    assert!(map.apply(&Change::RemoveDevice(bar(0x8000, 0x1000))).is_err());
    // As large and as high as what is there, but another.
    assert!(map.apply(&Change::RemoveRam(segment(0x10000, 0x2000))).is_err());
    assert_eq!(*fake.calls.lock(), 2);
}

#[test]
fn a_place_is_ram_or_device_or_hole_or_beyond() {
    let map = map();
    map.apply(&Change::AddDevice(bar(0x8000, 0x1000))).unwrap();
    let contents = map.contents();
    let place = |gpa| contents.place(Gpa(gpa));
    assert_eq!((place(0x3fff), place(0x4000)), (Place::Ram, Place::Hole));
    assert_eq!((place(0x8fff), place(0x9000)), (Place::Device, Place::Hole));
    assert_eq!((place(0x11fff), place(0x12000)), (Place::Ram, Place::Beyond));
}

proptest! {
    #[test]
    fn whatever_fails_mirrors_equal_the_map_unless_something_is_stuck(
        steps in prop::collection::vec((any::<bool>(), 0u64..8, any::<bool>()), 1..30),
        fail in prop::collection::vec(prop::collection::vec(0usize..60, 0..6), 3),
    ) {
        let map = MemoryMap::new(Arc::new(Ram::new(&[]).unwrap()));
        let mirrors: Vec<_> = fail.iter().map(|fail| Fake::failing(fail)).collect();
        let mut wanted = Vec::new();
        for mirror in &mirrors {
            map.attach(mirror.clone()).unwrap();
        }
        for (add, slot, ram) in steps {
            let change = match (add, ram) {
                (true, true) => Change::AddRam(segment(slot << 16, 0x1000)),
                (true, false) => Change::AddDevice(bar(slot << 16, 0x1000)),
                (false, _) => {
                    let contents = map.contents();
                    let at = Gpa(slot << 16);
                    let segment = contents.ram.segments().iter().find(|one| one.range().start() == at);
                    let device = contents.devices.iter().find(|one| one.range().start() == at);
                    match (segment, device) {
                        (Some(segment), _) => Change::RemoveRam(segment.clone()),
                        (_, Some(device)) => Change::RemoveDevice(device.clone()),
                        _ => continue,
                    }
                }
            };
            match map.apply(&change) {
                Ok(()) if add => wanted.push(change.range()),
                Ok(()) => wanted.retain(|range| *range != change.range()),
                Err(error) if !error.stuck().is_empty() => return Ok(()),
                Err(_) => {}
            }
            wanted.sort_by_key(|range| range.start());
            let mut ranges: Vec<GpaRange> = map.contents().ranges().collect();
            ranges.sort_by_key(|range| range.start());
            prop_assert_eq!(&ranges, &wanted);
            for mirror in &mirrors {
                prop_assert_eq!(mirror.held(), wanted.clone());
            }
        }
    }
}

#[test]
fn what_is_seen_in_one_look_is_of_one_moment() {
    let map = Arc::new(map());
    map.attach(Fake::failing(&[])).unwrap();
    let (sender, done) = std::sync::mpsc::channel();
    let change = Change::AddDevice(bar(0x8000, 0x1000));
    let changer = map.look(|before, audit| {
        let other = map.clone();
        let changer = std::thread::spawn(move || {
            other.apply(&change).unwrap();
            sender.send(()).unwrap();
        });
        // It wants to, and has to wait until this look is over.
        assert!(done.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        assert!(audit().iter().all(|(_, result)| result.is_ok()));
        assert_eq!(before.devices.len(), 0);
        changer
    });
    changer.join().unwrap();
    map.look(|after, audit| {
        assert_eq!((after.devices.len(), audit().len()), (1, 1));
        assert!(audit()[0].1.is_ok());
    });
}
