//! Where an image's data lies, as far as it is known, and who relies on that.

use std::collections::BTreeMap;

use parking_lot::{Condvar, Mutex, MutexGuard};
/// More than this is not remembered; it is learned anew.
const MOST: usize = 8192;

/// A run of the disk that lies in one piece in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// Bytes.
    pub(super) len: u64,
    /// The file's number.
    pub(super) file: u16,
    /// Where in the file, in bytes.
    pub(super) at: u64,
    /// Whether what is written there is the disk's.
    pub(super) writable: bool,
}

/// Known extents, by where they are on the disk in bytes.
///
/// Whoever uses one is registered until it is done, so that it does not move under somebody's feet: what moves or
/// frees extents waits until it is alone.
#[derive(Default)]
pub(super) struct Extents {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    known: BTreeMap<u64, Extent>,
    /// Grows whenever what was looked up before may be wrong.
    generation: u64,
    users: usize,
    /// Somebody is alone, or waits to be.
    closed: bool,
}

impl State {
    fn remove(&mut self, from: u64, len: u64) {
        let end = from.saturating_add(len);
        let overlapping: Vec<u64> = self
            .known
            .range(..end)
            .rev()
            .take_while(|(start, extent)| *start + extent.len > from)
            .map(|(start, _)| *start)
            .collect();
        for start in overlapping {
            self.known.remove(&start);
        }
    }
}

/// A user among others; until it is dropped no extent moves.
pub(super) struct Shared<'a> {
    extents: &'a Extents,
    /// As it was at the beginning.
    generation: u64,
}

/// The only user.
pub(super) struct Alone<'a>(&'a Extents);

impl Extents {
    /// Where a range lies, if that is known, in one piece, and fit for the purpose. The caller is a user from then
    /// on, until [`Extents::ended`].
    pub(super) fn enter(&self, from: u64, len: u64, write: bool) -> Option<(u16, u64)> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let (start, extent) = state.known.range(..=from).next_back()?;
        let skip = from - start;
        let fits = skip.checked_add(len)? <= extent.len && (extent.writable || !write);
        let place = (extent.file, extent.at + skip);
        fits.then(|| {
            state.users += 1;
            place
        })
    }

    /// A user is one no more.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        state.users -= 1;
        if state.users == 0 {
            self.changed.notify_all();
        }
    }

    /// Becomes a user, once nobody wants to be alone.
    pub(super) fn share(&self) -> Shared<'_> {
        let mut state = self.lock();
        self.changed.wait_while(&mut state, |state| state.closed);
        state.users += 1;
        Shared { extents: self, generation: state.generation }
    }

    /// Waits until there is no user; all that was known is forgotten.
    pub(super) fn alone(&self) -> Alone<'_> {
        let mut state = self.lock();
        self.changed.wait_while(&mut state, |state| state.closed);
        state.closed = true;
        self.changed.wait_while(&mut state, |state| state.users > 0);
        state.known.clear();
        state.generation += 1;
        Alone(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Shared<'_> {
    /// Remembers an extent that was found since [`Extents::share`], unless something has moved meanwhile.
    pub(super) fn learn(&self, from: u64, extent: Extent) {
        let mut state = self.extents.lock();
        if state.generation != self.generation || extent.len == 0 {
            return;
        }
        if state.known.len() >= MOST {
            state.known.clear();
        }
        state.remove(from, extent.len);
        state.known.insert(from, extent);
    }

    /// A range has got a new place.
    pub(super) fn moved(&mut self, from: u64, len: u64) {
        let mut state = self.extents.lock();
        state.remove(from, len);
        // What others have looked up meanwhile may be the old place; what this user looks up from now on is not.
        let untouched = state.generation == self.generation;
        state.generation += 1;
        if untouched {
            self.generation = state.generation;
        }
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.extents.ended();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(len: u64, at: u64) -> Extent {
        Extent { len, file: 0, at, writable: false }
    }

    #[test]
    fn what_was_found_before_a_move_is_not_learned_after_it() {
        let extents = Extents::default();
        let (reader, mut writer) = (extents.share(), extents.share());
        writer.moved(0, 512);
        reader.learn(0, extent(512, 0));
        assert_eq!(extents.enter(0, 512, false), None);
        writer.learn(0, Extent { writable: true, ..extent(512, 4096) });
        assert_eq!(extents.enter(0, 512, true), Some((0, 4096)));
        drop((reader, writer));
        extents.ended();
        drop(extents.alone());
        assert_eq!(extents.enter(0, 512, false), None, "all is forgotten");
    }

    #[test]
    fn who_is_alone_has_waited_for_every_user() {
        let extents = Extents::default();
        extents.share().learn(0, extent(512, 0));
        assert!(extents.enter(0, 512, false).is_some());
        std::thread::scope(|scope| {
            let alone = scope.spawn(|| drop(extents.alone()));
            while !extents.lock().closed {
                std::thread::yield_now();
            }
            assert_eq!(extents.enter(0, 512, false), None);
            assert!(!alone.is_finished());
            extents.ended();
        });
    }

    proptest! {
        #[test]
        fn what_is_known_is_what_was_learned_last(
            steps in prop::collection::vec((0u64..64, 1u64..32, 0u64..1000, any::<bool>()), 1..40)
        ) {
            let extents = Extents::default();
            let mut model = [None; 128];
            for (from, len, at, forget) in steps {
                let mut user = extents.share();
                if forget {
                    user.moved(from, len);
                } else {
                    user.learn(from, extent(len, at));
                }
                for (place, known) in model.iter_mut().enumerate().skip(from as usize).take(len as usize) {
                    *known = (!forget).then_some(at + place as u64 - from);
                }
            }
            for (place, expected) in model.iter().enumerate() {
                // Of what overlaps with something newer all may be forgotten, but nothing may be wrong.
                let known = extents.enter(place as u64, 1, false).map(|(_, at)| at);
                prop_assert!(known.is_none() || known == *expected);
            }
        }
    }
}
