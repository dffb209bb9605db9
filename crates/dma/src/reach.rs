//! What a host driver may have its device touch.

use std::sync::Arc;

use crate::domain::Domain;
use crate::iova::IovaRange;

/// What devices of a domain reach, remembered for as long as the domain stays as it is: asking costs one atomic load
/// and a look at a range or two.
///
/// A driver asks before it lets its device do DMA. Not every device says when its DMA was blocked, so what the ledger
/// does not have must not be tried: it would look like success.
pub struct Reach {
    domain: Arc<Domain>,
    generation: u64,
    ranges: Vec<IovaRange>,
}

impl Reach {
    /// What devices of this domain reach.
    pub fn of(domain: Arc<Domain>) -> Reach {
        let (generation, ranges) = domain.reached();
        Reach { domain, generation, ranges }
    }

    /// Whether devices reach every address of the range now.
    pub fn covers(&mut self, iova: IovaRange) -> bool {
        if self.domain.generation() != self.generation {
            (self.generation, self.ranges) = self.domain.reached();
        }
        self.ranges.iter().any(|range| range.covers(iova))
    }
}
