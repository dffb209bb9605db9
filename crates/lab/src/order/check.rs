//! The checker: what must be on a disk whose power was cut.

use std::fmt;

use super::record::{Found, Plan, SECTOR, SLOT};

/// Sectors of a place.
const SECTORS: usize = SLOT / SECTOR;

/// A disk that kept its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The last record that is known to have been flushed, be it that somebody said so or that the disk shows it.
    pub flushed: u64,
    /// The newest record of which there is anything.
    pub newest: u64,
}

/// What is wrong with a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// A mixture of two writes, or of one write and what was before: sectors are written whole or not at all.
    Torn,
    /// A sector of a record that belongs elsewhere.
    Misplaced {
        /// Its number.
        number: u64,
    },
    /// What was flushed is not there, and nothing newer is.
    Lost {
        /// The record that must be there.
        must: u64,
        /// The older one that is there, if any is.
        there: Option<u64>,
        /// The last record known to be flushed.
        flushed: u64,
    },
}

/// A disk that did not keep its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong with the first of the sectors.
    pub first: Wrong,
    /// Where it is, in bytes.
    pub at: u64,
    /// How many sectors there are with which something is wrong.
    pub sectors: usize,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { first, at, sectors } = self;
        write!(f, "{sectors} wrong sectors; the first, at {at}, ")?;
        match first {
            Wrong::Torn => write!(f, "is torn, which a sector cannot be"),
            Wrong::Misplaced { number } => write!(f, "is one of record {number}, which belongs elsewhere"),
            Wrong::Lost { must, there, flushed } => {
                write!(f, "must hold record {must} or a newer one, since {flushed} was flushed, and has ")?;
                match there {
                    Some(older) => write!(f, "record {older}"),
                    None => write!(f, "none"),
                }
            }
        }
    }
}

/// Looks at all of a disk. `told` is the last record that was said to be flushed, 0 if none was; `read` reads a place.
///
/// # Errors
/// What `read` fails with.
pub fn check<E>(
    plan: &Plan,
    told: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Result<Verdict, Finding>, E> {
    let mut place = vec![0; SLOT];
    let mut found = Vec::with_capacity(plan.slots() as usize * SECTORS);
    for slot in 0..plan.slots() {
        read(slot, &mut place)?;
        found.extend(place.chunks_exact(SECTOR).map(|sector| plan.read(sector)));
    }
    let mut verdict = Verdict { flushed: told, newest: 0 };
    for sector in &found {
        if let Found::Record { number, flushed, .. } = sector {
            verdict.flushed = verdict.flushed.max(*flushed);
            verdict.newest = verdict.newest.max(*number);
        }
    }
    let wrong = found.iter().enumerate().filter_map(|(at, sector)| {
        let (slot, index) = ((at / SECTORS) as u64, at % SECTORS);
        Some((at as u64 * SECTOR as u64, wrong(plan, *sector, slot, index, verdict.flushed)?))
    });
    let wrong: Vec<(u64, Wrong)> = wrong.collect();
    Ok(match wrong.first() {
        None => Ok(verdict),
        Some((at, first)) => Err(Finding { first: *first, at: *at, sectors: wrong.len() }),
    })
}

fn wrong(plan: &Plan, sector: Found, slot: u64, index: usize, flushed: u64) -> Option<Wrong> {
    let there = match sector {
        Found::Torn => return Some(Wrong::Torn),
        Found::Other => None,
        Found::Record { number, index: its, .. } => {
            let right = number > 0
                && plan.slot(number) == slot
                && its == index
                && plan.length(number) > index * SECTOR;
            if !right {
                return Some(Wrong::Misplaced { number });
            }
            Some(number)
        }
    };
    let must = plan.newest(slot, index, flushed)?;
    (there.unwrap_or(0) < must).then_some(Wrong::Lost { must, there, flushed })
}

#[cfg(test)]
mod tests;
