//! Taking devices from the host as a VM would, and giving them back, several times over: whether they survive it, and
//! whether anything stays behind.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::host::{Host, PciAddress};
use assign::{AssignError, Claim, DomainPlan};
use dma::{DmaChoice, Kind, P2pWish};
use memory::{MemoryMap, Ram, RamError, ram_ranges};

/// RAM that is mapped for the devices: enough to see if it stayed.
const RAM: u64 = 64 << 20;

/// Why a rehearsal ended early.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Taking the devices, or giving them back.
    #[error("round {round}: {cause}")]
    Round {
        /// Which round.
        round: u32,
        /// What failed.
        cause: AssignError,
    },
    /// RAM for them.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Something stayed behind.
    #[error(
        "after {rounds} rounds {what}: {before} before, {after} after. This is a fault in skep or in the kernel"
    )]
    Left {
        /// How many rounds.
        rounds: u32,
        /// What there is more of.
        what: &'static str,
        /// How much after the first round.
        before: u64,
        /// How much after the last.
        after: u64,
    },
}

/// What this process and its kernel hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    files: u64,
    /// Pages that stay where they are, in the whole host; 0 where the kernel does not count them.
    pinned: u64,
}

impl Held {
    fn now() -> Held {
        let files = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        let counter = |name: &str| {
            let line = counters.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let pinned = counter("nr_foll_pin_acquired ").saturating_sub(counter("nr_foll_pin_released "));
        Held { files, pinned }
    }
}

/// Does it `rounds` times, two at least, and says after each how it went. The first round may load drivers; what is
/// held after it is what is held at the end.
pub fn rehearse(
    host: &Host,
    devices: &[PciAddress],
    rounds: u32,
    mut said: impl FnMut(u32, Duration),
) -> Result<(), Trouble> {
    let plan =
        DomainPlan { name: "guest".into(), kind: Kind::Guest(P2pWish::Off), devices: devices.to_vec() };
    let mut before = None;
    for round in 1..=rounds.max(2) {
        let begin = Instant::now();
        once(host, std::slice::from_ref(&plan)).map_err(|error| match error {
            Once::Ram(error) => Trouble::Ram(error),
            Once::Assign(cause) => Trouble::Round { round, cause },
        })?;
        said(round, begin.elapsed());
        let now = Held::now();
        let first = *before.get_or_insert(now);
        let grown = [
            ("more files are open", first.files, now.files),
            ("more pages are pinned", first.pinned, now.pinned),
        ];
        // The host pins pages for others, too, and lets go of them; what only grows is ours.
        if round == rounds.max(2)
            && let Some((what, before, after)) = grown.into_iter().find(|(_, before, after)| after > before)
        {
            return Err(Trouble::Left { rounds: round, what, before, after });
        }
    }
    Ok(())
}

enum Once {
    Ram(RamError),
    Assign(AssignError),
}

impl From<AssignError> for Once {
    fn from(error: AssignError) -> Once {
        Once::Assign(error)
    }
}

/// Takes the devices, maps RAM for them, opens and resets each, and gives all back.
fn once(host: &Host, plans: &[DomainPlan]) -> Result<(), Once> {
    let ram = Arc::new(Ram::new(&ram_ranges(RAM)).map_err(Once::Ram)?);
    let map = MemoryMap::new(ram);
    let claim = Claim::new(host, plans, DmaChoice::Auto)?;
    let used = claim.attach(&map).and_then(|()| {
        let assigned: Vec<PciAddress> = claim.assigned().collect();
        assigned.into_iter().try_for_each(|address| {
            let device = claim.open(address)?;
            if device.can_reset() { Ok(device.reset()?) } else { Ok(()) }
        })
    });
    let released = claim.release(&map);
    used.and(released).map_err(Once::Assign)
}
