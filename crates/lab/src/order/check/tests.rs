use std::collections::BTreeMap;
use std::convert::Infallible;

use super::*;
use crate::order::mix;

const SIZE: usize = 1 << 20;

/// A disk with a cache that is lost with its power, from which it writes when it likes.
struct CachedDisk {
    medium: Vec<u8>,
    cache: BTreeMap<usize, Vec<u8>>,
    random: u64,
    /// What it does with the flush of this number.
    drops: Option<u64>,
    flushes: u64,
}

impl CachedDisk {
    fn new(random: u64, drops: Option<u64>) -> CachedDisk {
        CachedDisk { medium: vec![0x5a; SIZE], cache: BTreeMap::new(), random, drops, flushes: 0 }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        for (sector, data) in (at / SECTOR..).zip(bytes.chunks_exact(SECTOR)) {
            self.random = mix(self.random);
            if self.random.is_multiple_of(4) {
                self.medium[sector * SECTOR..][..SECTOR].copy_from_slice(data);
                self.cache.remove(&sector);
            } else {
                self.cache.insert(sector, data.to_vec());
            }
        }
    }

    fn flush(&mut self) {
        self.flushes += 1;
        if self.drops == Some(self.flushes) {
            return;
        }
        for (sector, data) in std::mem::take(&mut self.cache) {
            self.medium[sector * SECTOR..][..SECTOR].copy_from_slice(&data);
        }
    }
}

/// Writes until the power is cut, in the middle of a batch; the last record said to be flushed.
fn write(plan: &Plan, disk: &mut CachedDisk, batches: u64) -> u64 {
    let (mut next, mut flushed) = (1, 0);
    for batch in 0..=batches {
        let mut end = next + plan.batch(next);
        if batch == batches {
            end -= 1;
        }
        for number in next..end {
            let mut record = vec![0; plan.length(number)];
            plan.fill(number, flushed, &mut record);
            disk.write(plan.offset(number) as usize, &record);
        }
        if batch < batches {
            disk.flush();
            flushed = end - 1;
        }
        next = end;
    }
    flushed
}

fn look(plan: &Plan, told: u64, disk: &CachedDisk) -> Result<Verdict, Finding> {
    let read = |slot: u64, place: &mut [u8]| {
        place.copy_from_slice(&disk.medium[slot as usize * SLOT..][..SLOT]);
        Ok::<(), Infallible>(())
    };
    let Ok(verdict) = check(plan, told, read);
    verdict
}

#[test]
fn a_disk_that_flushes_keeps_its_word_wherever_its_power_is_cut() {
    for run in 0..40 {
        let plan = Plan::new(run, SIZE as u64).unwrap();
        let mut disk = CachedDisk::new(run, None);
        let told = write(&plan, &mut disk, run * 2);
        let verdict = look(&plan, told, &disk);
        assert_eq!(verdict.map(|verdict| verdict.flushed), Ok(told), "run {run}");
    }
}

#[test]
fn a_disk_that_drops_its_last_flush_is_found_out() {
    for run in 1..40 {
        let plan = Plan::new(run, SIZE as u64).unwrap();
        let mut disk = CachedDisk::new(run, Some(run * 2));
        let told = write(&plan, &mut disk, run * 2);
        let finding = look(&plan, told, &disk).unwrap_err();
        assert!(matches!(finding.first, Wrong::Lost { .. }), "run {run}: {finding}");
    }
}

#[test]
fn what_was_written_after_a_dropped_flush_shows_that_it_was_dropped_though_nobody_says_so() {
    let mut shown = 0;
    for run in 1..40 {
        let plan = Plan::new(run, SIZE as u64).unwrap();
        let mut disk = CachedDisk::new(run, Some(run * 2));
        write(&plan, &mut disk, run * 2);
        shown += u32::from(look(&plan, 0, &disk).is_err());
    }
    // Only where the disk wrote a sector of the last batch by itself.
    assert!(shown > 20, "{shown} of 39");
}

#[test]
fn an_old_sector_a_mixture_and_a_stray_one_are_called_so() {
    let plan = Plan::new(5, SIZE as u64).unwrap();
    let mut disk = CachedDisk::new(5, None);
    let told = write(&plan, &mut disk, 40);
    let good = disk.medium.clone();
    let at = plan.offset(told) as usize;
    let mut old = vec![0; plan.length(told - plan.slots())];
    plan.fill(told - plan.slots(), 1, &mut old);
    disk.medium[at..][..SECTOR].copy_from_slice(&old[..SECTOR]);
    let lost = Wrong::Lost { must: told, there: Some(told - plan.slots()), flushed: told };
    assert_eq!(look(&plan, told, &disk), Err(Finding { first: lost, at: at as u64, sectors: 1 }));
    disk.medium.clone_from(&good);
    disk.medium[at + 300..at + SECTOR].fill(0);
    assert_eq!(look(&plan, told, &disk).unwrap_err().first, Wrong::Torn);
    disk.medium.clone_from(&good);
    disk.medium.copy_within(at..at + SECTOR, at + SECTOR);
    assert_eq!(look(&plan, told, &disk).unwrap_err().first, Wrong::Misplaced { number: told });
}

#[test]
fn another_runs_records_are_none() {
    let plan = Plan::new(5, SIZE as u64).unwrap();
    let mut disk = CachedDisk::new(5, None);
    write(&plan, &mut disk, 40);
    let other = Plan::new(6, SIZE as u64).unwrap();
    assert_eq!(look(&other, 0, &disk), Ok(Verdict { flushed: 0, newest: 0 }));
    assert!(matches!(look(&other, 3, &disk).unwrap_err().first, Wrong::Lost { there: None, .. }));
}
