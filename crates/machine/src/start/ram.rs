//! The guest's RAM, made as the description wants it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assign::AssignError;
use config::{Backing, HugePages, Wire};
use host::Host;
use memory::{GpaRange, Node, Pages, Placement, Ram};

use crate::error::StartError;
use crate::events::notice::{Life, Notice, Reporter};

/// RAM that is in large pages when the guest starts, where the kernel does not do this itself: what a guest uses
/// while it boots, and more would only delay the start. For assigned devices it is all of it, as they reach it.
const ENLARGED: u64 = 1 << 30;

/// A start that takes longer than this reports its progress, and again every [`AGAIN`].
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(5);

/// Where the description wants the RAM to come from.
pub fn placement(backing: &Backing) -> Placement {
    let pages = match backing.hugepages {
        None => Pages::Default,
        Some(HugePages::Of2M) => Pages::Huge2M,
        Some(HugePages::Of1G) => Pages::Huge1G,
    };
    Placement { pages, node: backing.node.map(|node| Node(node.get().into())) }
}

/// What prevents RAM at these places. `pinned` as for [`make`].
pub fn check(host: &Host, places: &[GpaRange], backing: &Backing, pinned: bool) -> Vec<StartError> {
    let placement = placement(backing);
    let mut errors: Vec<StartError> = placement.check(places).into_iter().map(StartError::from).collect();
    let bytes = places.iter().map(|place| place.len()).sum();
    let stays = stays(backing, pinned);
    if stays {
        errors.extend(placement.check_available(bytes).err().map(StartError::from));
    }
    let limits = host.cgroup_limits(bytes, placement.pages, stays);
    errors.extend(limits.into_iter().map(StartError::from));
    errors
}

/// Whether the RAM will be locked. Huge pages stay where they are without.
pub fn locks(backing: &Backing) -> bool {
    backing.wire == Wire::On && !placement(backing).pages.are_huge()
}

/// Whether all of RAM will be present for the VM's life. `pinned` as for [`make`].
pub fn stays(backing: &Backing, pinned: bool) -> bool {
    pinned || backing.wire == Wire::On
}

/// Makes RAM at these places, present as far as it must be. `pinned` says whether all of it will be mapped for
/// devices.
pub fn make(
    places: &[GpaRange],
    backing: &Backing,
    pinned: bool,
    report: &Reporter,
) -> Result<Arc<Ram>, StartError> {
    let placement = placement(backing);
    let ram = Ram::placed(places, &placement)?;
    ram.enlarge_pages(if pinned { u64::MAX } else { ENLARGED })?;
    let progress = progress(ram.size(), report);
    // Mapping it for devices makes every page present, and pins it, one after another; made present before, by
    // several threads, it is there sooner. The kernel is sure to have huge pages of one node only once it gave them.
    if locks(backing) {
        dma::raise_memlock(ram.size()).map_err(AssignError::from)?;
    }
    let soon = pinned || (placement.pages.are_huge() && placement.node.is_some());
    match backing.wire {
        Wire::On => ram.wire_with(progress)?,
        Wire::Auto | Wire::Off if soon => ram.populate_with(progress)?,
        Wire::Auto | Wire::Off => {}
    }
    Ok(Arc::new(ram))
}

/// Reports how many bytes are done, when it takes long; what is reported ends with all of them.
fn progress(all: u64, report: &Reporter) -> impl FnMut(u64) {
    let start = Instant::now();
    let mut last = None;
    move |done| {
        let now = Instant::now();
        if is_due(last, now - start, done, all) {
            last = Some((now - start, done));
            let what = format!("making the guest's RAM present: {} of {} MiB", done >> 20, all >> 20);
            report(&Notice::Life(Life::Preparing(what)));
        }
    }
}

/// Whether to report so many bytes, when `last` was reported before: so long after the start, so many.
fn is_due(last: Option<(Duration, u64)>, elapsed: Duration, done: u64, all: u64) -> bool {
    match last {
        None => elapsed >= PROGRESS_AFTER,
        Some((_, before)) if before == all => false,
        Some((at, _)) => done == all || elapsed >= at + AGAIN,
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn ram_is_placed_as_the_description_says() {
        let backing =
            Backing { hugepages: Some(HugePages::Of1G), node: Some(3.try_into().unwrap()), wire: Wire::Auto };
        assert_eq!(placement(&backing), Placement { pages: Pages::Huge1G, node: Some(Node(3)) });
        assert_eq!(placement(&Backing::default()), Placement::default());
    }

    #[test]
    fn more_ram_than_any_host_has_is_a_finding_only_if_it_must_be_present() {
        let places = memory::ram_ranges(1 << 50);
        let nowhere = Host::at("/nonexistent");
        let found = |backing: &Backing, pinned| check(&nowhere, &places, backing, pinned).len();
        let wired = Backing { wire: Wire::On, ..Backing::default() };
        assert_eq!(found(&Backing::default(), false), 0);
        assert_eq!((found(&Backing::default(), true), found(&wired, false)), (1, 1));
    }

    #[test]
    fn progress_that_is_reported_ends_with_all_of_it_and_a_short_start_reports_none() {
        let second = Duration::from_secs(1);
        let reported = |steps: &[(u32, u64)]| {
            let mut last = None;
            for (seconds, done) in steps {
                if is_due(last, second * *seconds, *done, 9) {
                    last = Some((second * *seconds, *done));
                }
            }
            last.map(|(_, done)| done)
        };
        assert_eq!(reported(&[(0, 3), (0, 9)]), None);
        assert_eq!(reported(&[(1, 0), (2, 5)]), Some(0), "not each step");
        assert_eq!(reported(&[(1, 0), (2, 9)]), Some(9));
        assert!(!is_due(Some((second, 9)), 10 * second, 9, 9), "nor twice");
    }

    #[test]
    fn ram_is_made_whatever_the_choice_for_wiring() {
        let silent: Reporter = Box::new(|_| {});
        for wire in [Wire::Auto, Wire::On, Wire::Off] {
            for pinned in [false, true] {
                let backing = Backing { wire, ..Backing::default() };
                let ram = make(&memory::ram_ranges(4 << 20), &backing, pinned, &silent).unwrap();
                assert_eq!(ram.size(), 4 << 20);
            }
        }
    }

    #[test]
    fn only_what_takes_long_is_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let report: Reporter = Box::new(move |notice| sink.lock().push(notice.to_string()));
        let mut progress = progress(8 << 30, &report);
        progress(1 << 30);
        assert!(told.lock().is_empty());
        std::thread::sleep(PROGRESS_AFTER);
        progress(2 << 30);
        progress(3 << 30);
        assert_eq!(*told.lock(), ["making the guest's RAM present: 2048 of 8192 MiB"]);
    }
}
