//! All faults since the VM began, counted by domain.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fault::Count;

/// Domains whose faults are counted each by itself; those of more count as of none.
const DOMAINS: usize = 256;

/// Counts what a [`Watch`](crate::Watch) reports, and can be read at any time, also after its end.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

/// Faults by domain since the VM began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    by_domain: BTreeMap<String, Count>,
    /// Those that are not known to be of a domain.
    other: Count,
}

impl Tally {
    /// All faults so far.
    pub fn read(&self) -> Counts {
        self.0.lock().clone()
    }

    /// Counts faults of devices in this domain; those of unknown devices are of no domain.
    pub fn add(&self, domain: Option<&str>, count: Count) {
        let Counts { by_domain, other } = &mut *self.0.lock();
        let known = Count { unattributed: 0, ..count };
        let room = by_domain.len() < DOMAINS;
        let of = match domain {
            Some(domain) if room || by_domain.contains_key(domain) => {
                by_domain.entry(domain.to_owned()).or_default()
            }
            _ => &mut *other,
        };
        *of = of.plus(known);
        if count.unattributed > 0 {
            *other = other.plus(Count { known: 0, ..count });
        }
    }
}

impl Counts {
    /// Those known to be of a domain.
    pub fn of(&self, domain: &str) -> Count {
        self.by_domain.get(domain).copied().unwrap_or_default()
    }

    /// All but those of the domains that `is_shown` names.
    pub fn except(&self, is_shown: impl Fn(&str) -> bool) -> Count {
        let gone = self.by_domain.iter().filter(|(name, _)| !is_shown(name)).map(|(_, count)| *count);
        gone.fold(self.other, Count::plus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_add_up_by_domain_even_when_their_events_are_gone() {
        let (tally, all) = (Tally::default(), 8192);
        for _ in 0..all {
            tally.add(Some("guest"), Count { known: 2, unattributed: 1, complete: true });
        }
        tally.add(None, Count { known: 0, unattributed: 5, complete: true });
        let counts = tally.read();
        assert_eq!(counts.of("guest"), Count { known: 2 * all, unattributed: 0, complete: true });
        assert_eq!(counts.except(|_| true), Count { known: 0, unattributed: all + 5, complete: true });
        assert_eq!(counts.except(|_| false).known, 2 * all);
        assert_eq!(counts.of("host"), Count::default());
    }

    #[test]
    fn domains_without_end_do_not_fill_memory_and_no_fault_is_forgotten() {
        let tally = Tally::default();
        for domain in 1..=1000 {
            tally.add(Some(&format!("d{domain}")), Count { known: 1, unattributed: 0, complete: false });
        }
        let counts = tally.read();
        assert_eq!(counts.by_domain.len(), DOMAINS);
        assert_eq!(counts.except(|_| false).known, 1000);
    }
}
