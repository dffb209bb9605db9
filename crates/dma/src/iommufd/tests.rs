//! Shared pins, over a model of the kernel's IOASes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memory::{Gpa, GpaRange, Ram, Segment};
use parking_lot::{Mutex, MutexGuard};
use proptest::prelude::*;

use super::kernel::{IoasId, Kernel};
use super::share::{Ioas, Naming, Share};
use crate::backend::Source;
use crate::iova::{Iova, IovaRange};
use crate::ledger::Permission;

/// Keeps mappings as iommufd does: each is a share in pages that are pinned once.
#[derive(Default)]
struct Fake {
    maps_files: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    spaces: BTreeMap<u32, BTreeMap<IovaRange, Pages>>,
    made: u32,
    calls: Vec<&'static str>,
    /// Calls with these numbers fail.
    fail: Vec<usize>,
}

#[derive(Clone)]
struct Pages {
    pinned: Arc<u64>,
    host: Option<NonNull<u8>>,
    permission: Permission,
}

// SAFETY: the address is only compared.
unsafe impl Send for Pages {}

fn error<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Bytes pinned: those of all pages, each once.
    fn pinned(&self) -> u64 {
        let state = self.state();
        let all = state.spaces.values().flat_map(BTreeMap::values);
        let unique: BTreeMap<*const u64, u64> =
            all.map(|pages| (Arc::as_ptr(&pages.pinned), *pages.pinned)).collect();
        unique.values().sum()
    }

    fn map(&self, ioas: IoasId, iova: IovaRange, pages: Pages, name: &'static str) -> io::Result<()> {
        let mut state = self.state();
        state.call(name)?;
        let Some(space) = state.spaces.get_mut(&ioas.0) else { return error(libc::ENOENT) };
        if space.keys().any(|other| other.overlaps(iova)) {
            return error(libc::EEXIST);
        }
        space.insert(iova, pages);
        Ok(())
    }
}

impl State {
    fn call(&mut self, name: &'static str) -> io::Result<()> {
        self.calls.push(name);
        if self.fail.contains(&(self.calls.len() - 1)) { error(libc::ENOMEM) } else { Ok(()) }
    }
}

impl Kernel for Fake {
    fn alloc(&self) -> io::Result<IoasId> {
        let mut state = self.state();
        state.made += 1;
        let id = state.made;
        state.spaces.insert(id, BTreeMap::new());
        Ok(IoasId(id))
    }
    fn destroy(&self, ioas: IoasId) -> io::Result<()> {
        self.state()
            .spaces
            .remove(&ioas.0)
            .map(drop)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }
    fn ranges(&self, _: IoasId) -> io::Result<(Vec<IovaRange>, u64)> {
        Ok((Vec::new(), 1))
    }
    fn maps_files(&self) -> bool {
        self.maps_files
    }
    fn map_file(
        &self,
        ioas: IoasId,
        iova: IovaRange,
        _: BorrowedFd<'_>,
        _: u64,
        permission: Permission,
    ) -> io::Result<()> {
        self.map(ioas, iova, Pages { pinned: Arc::new(iova.len()), host: None, permission }, "file")
    }
    unsafe fn map_memory(
        &self,
        ioas: IoasId,
        iova: IovaRange,
        host: NonNull<u8>,
        permission: Permission,
    ) -> io::Result<()> {
        let pages = Pages { pinned: Arc::new(iova.len()), host: Some(host), permission };
        self.map(ioas, iova, pages, "memory")
    }
    fn copy(
        &self,
        to: (IoasId, IovaRange),
        from: (IoasId, IovaRange),
        permission: Permission,
    ) -> io::Result<()> {
        let pages = self.state().spaces.get(&from.0.0).and_then(|space| space.get(&from.1)).cloned();
        let Some(pages) = pages.filter(|_| from.1.len() == to.1.len()) else { return error(libc::ENOENT) };
        if permission == Permission::ReadWrite && pages.permission == Permission::Read {
            return error(libc::EPERM);
        }
        self.map(to.0, to.1, pages, "copy")
    }
    fn unmap(&self, ioas: IoasId, iova: IovaRange) -> io::Result<u64> {
        let mut state = self.state();
        state.call("unmap")?;
        match state.spaces.get_mut(&ioas.0).and_then(|space| space.remove(&iova)) {
            Some(_) => Ok(iova.len()),
            None => error(libc::ENOENT),
        }
    }
}

fn segments() -> Vec<Arc<Segment>> {
    let range = |i: u64| GpaRange::new(Gpa(i << 16), 0x1000 << i).unwrap();
    Ram::new(&[range(0), range(1), range(2)]).unwrap().segments().to_vec()
}

fn at(segment: &Segment) -> IovaRange {
    IovaRange::identity(segment.range())
}

fn map(ioas: &Ioas<Fake>, segment: &Segment, permission: Permission) -> io::Result<()> {
    let source = Source { host: segment.host_address(), file: Some((segment.file().as_fd(), 0)) };
    // SAFETY: the model never touches it.
    unsafe { ioas.map(at(segment), source, permission) }
}

fn share(maps_files: bool) -> Arc<Share<Fake>> {
    Arc::new(Share::new(Fake { maps_files, ..Fake::default() }))
}

#[test]
fn the_second_domain_copies_and_pins_nothing_and_outlives_the_first() {
    for maps_files in [true, false] {
        let share = share(maps_files);
        assert_eq!(share.naming == Naming::File, maps_files);
        let [one, two, three] = [(); 3].map(|()| Ioas::new(&share).unwrap());
        let segments = segments();
        for ioas in [&one, &two] {
            segments.iter().for_each(|segment| map(ioas, segment, Permission::ReadWrite).unwrap());
        }
        let first = if maps_files { "file" } else { "memory" };
        assert_eq!(share.kernel.state().calls, [first, first, first, "copy", "copy", "copy"]);
        assert_eq!((share.kernel.pinned(), share.bytes()), (0x7000, 0x7000));
        drop(one);
        map(&three, &segments[0], Permission::ReadWrite).unwrap();
        assert_eq!(share.kernel.state().calls.last(), Some(&"copy"));
        assert_eq!((share.kernel.pinned(), share.bytes()), (0x7000, 0x7000));
        drop((two, three));
        assert_eq!((share.kernel.pinned(), share.bytes()), (0, 0));
    }
}

#[test]
fn what_may_only_be_read_is_not_copied_to_where_it_may_be_written() {
    let share = share(true);
    let [one, two, three] = [(); 3].map(|()| Ioas::new(&share).unwrap());
    let segment = &segments()[0];
    map(&one, segment, Permission::Read).unwrap();
    map(&two, segment, Permission::ReadWrite).unwrap();
    map(&three, segment, Permission::Read).unwrap();
    assert_eq!(share.kernel.state().calls, ["file", "file", "copy"]);
}

#[test]
fn what_will_be_pinned_is_the_sum_of_all_that_is_mapped_with_shared_memory_once() {
    let share = share(true);
    let [one, two] = [(); 2].map(|()| Ioas::new(&share).unwrap());
    let segments = segments();
    let pins = |ioas: &Ioas<Fake>, segment: &Segment| {
        let source = Source { host: segment.host_address(), file: Some((segment.file().as_fd(), 0)) };
        ioas.pins_with(&source, segment.range().len())
    };
    let [first, second] = [0, 1].map(|index: usize| segments[index].range().len());
    assert_eq!(pins(&one, &segments[0]), (first, first));
    map(&one, &segments[0], Permission::ReadWrite).unwrap();
    assert_eq!(pins(&one, &segments[1]), (first + second, second));
    assert_eq!(pins(&two, &segments[0]), (first, 0), "the other domain has it");
}

#[test]
fn device_memory_has_no_file_and_is_mapped_by_its_address_each_time() {
    let share = share(true);
    let [one, two] = [(); 2].map(|()| Ioas::new(&share).unwrap());
    let segment = &segments()[0];
    for ioas in [&one, &two] {
        let source = Source { host: segment.host_address(), file: None };
        // SAFETY: the model never touches it.
        unsafe { ioas.map(at(segment), source, Permission::ReadWrite).unwrap() };
    }
    assert_eq!(share.kernel.state().calls, ["memory", "memory"]);
}

#[test]
fn another_segment_with_the_same_addresses_is_other_memory() {
    let share = share(true);
    let [one, two] = [(); 2].map(|()| Ioas::new(&share).unwrap());
    let (here, there) = (segments(), segments());
    map(&one, &here[0], Permission::ReadWrite).unwrap();
    map(&two, &there[0], Permission::ReadWrite).unwrap();
    assert!(!share.kernel.state().calls.contains(&"copy"));
}

proptest! {
    #[test]
    fn whatever_is_mapped_unmapped_dropped_and_fails_each_domain_holds_its_own_and_memory_is_pinned_once(
        steps in prop::collection::vec((0usize..3, 0usize..3, 0u8..4), 1..60),
        fail in prop::collection::vec(0usize..60, 0..6),
        maps_files: bool,
    ) {
        let share = share(maps_files);
        share.kernel.state().fail = fail;
        let segments = segments();
        let mut spaces = [(); 3].map(|()| Ioas::new(&share).unwrap());
        let mut model = [[false; 3]; 3];
        for (space, segment, what) in steps {
            let ioas = &spaces[space];
            match what {
                0 | 1 => {
                    let mapped = map(ioas, &segments[segment], Permission::ReadWrite).is_ok();
                    prop_assert!(!(mapped && model[space][segment]));
                    model[space][segment] |= mapped;
                }
                2 => {
                    let unmapped = ioas.unmap(at(&segments[segment])).is_ok();
                    prop_assert!(!unmapped || model[space][segment]);
                    model[space][segment] &= !unmapped;
                }
                _ => {
                    spaces[space] = Ioas::new(&share).unwrap();
                    model[space] = [false; 3];
                }
            }
            for (ioas, held) in spaces.iter().zip(&model) {
                let wanted = |index: &usize| held[*index];
                let wanted: Vec<IovaRange> = (0..3).filter(wanted).map(|index| at(&segments[index])).collect();
                let state = share.kernel.state();
                let kernel: Vec<_> = state.spaces[&ioas.id.0].iter().collect();
                prop_assert_eq!(kernel.iter().map(|(iova, _)| **iova).collect::<Vec<_>>(), wanted);
                for (iova, pages) in kernel {
                    let own = segments.iter().find(|segment| at(segment) == *iova).map(|it| it.host_address());
                    prop_assert!(maps_files || pages.host == own);
                }
            }
            let anywhere = |index: &usize| model.iter().any(|held| held[*index]);
            let bytes: u64 = (0..3).filter(anywhere).map(|index| segments[index].range().len()).sum();
            prop_assert_eq!((share.kernel.pinned(), share.bytes()), (bytes, bytes));
        }
        drop(spaces);
        prop_assert!(share.kernel.state().spaces.is_empty());
    }
}

#[test]
fn addresses_of_mappings_do_not_need_to_be_those_of_their_source() {
    let share = share(false);
    let [one, two] = [(); 2].map(|()| Ioas::new(&share).unwrap());
    let segment = &segments()[0];
    map(&one, segment, Permission::ReadWrite).unwrap();
    let source = Source { host: segment.host_address(), file: Some((segment.file().as_fd(), 0)) };
    let high = IovaRange::inclusive(Iova(1 << 40), Iova((1 << 40) + 0xfff)).unwrap();
    // SAFETY: the model never touches it.
    unsafe { two.map(high, source, Permission::ReadWrite).unwrap() };
    assert_eq!(share.kernel.state().calls, ["memory", "copy"]);
}
