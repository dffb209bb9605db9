//! Buffers for the requests of one thread, within its share of what a device may take of the host.
//!
//! A guest chooses in how many pieces a request's memory lies, on how many queues, and how many requests it has under way.
//! The lists of these pieces are the host's memory. So all threads of a device have a share each in a fixed number of
//! pieces, and a thread whose requests have used up its share begins no other until one of them has ended.

use std::sync::Arc;

use memory::{Buffers, Ram};

/// Pieces of guest memory that the lists of one device have room for: 12 MiB.
const DEVICE: usize = (12 << 20) / Buffers::PIECE;

/// Buffers of one thread. Those that are not in use keep room for the next request, as far as the share goes.
pub(crate) struct Stock {
    ram: Arc<Ram>,
    /// Pieces.
    share: usize,
    /// Pieces that requests under way have room for.
    lent: usize,
    /// Empty buffers, and the pieces that they have room for.
    spare: Vec<Buffers>,
    kept: usize,
}

/// What a request under way has of its thread's share, in pieces.
#[derive(PartialEq, Eq, Debug)]
#[must_use]
pub(crate) struct Lent(usize);

impl Stock {
    /// For one of so many threads of a device. The share in `ram` is the thread's own, so that its count is not passed
    /// between threads.
    pub(crate) fn new(ram: Arc<Ram>, threads: usize) -> Stock {
        Stock { ram, share: DEVICE / threads.max(1), lent: 0, spare: Vec::new(), kept: 0 }
    }

    /// Whether another request may begin. If not, one is under way.
    pub(crate) fn has_room(&self) -> bool {
        self.lent == 0 || self.lent < self.share
    }

    /// What buffers lie in.
    pub(crate) fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Empty buffers.
    pub(crate) fn take(&mut self) -> Buffers {
        match self.spare.pop() {
            Some(buffers) => {
                self.kept -= buffers.room();
                buffers
            }
            None => Buffers::new(self.ram.clone()),
        }
    }

    /// A request begins that has room for so many pieces, or holds as much memory as they would need.
    pub(crate) fn lend(&mut self, pieces: usize) -> Lent {
        self.lent += pieces;
        while self.kept > 0 && self.lent + self.kept > self.share {
            self.kept -= self.spare.pop().map_or(0, |buffers| buffers.room());
        }
        Lent(pieces)
    }

    /// It has ended.
    pub(crate) fn end(&mut self, Lent(pieces): Lent) {
        self.lent -= pieces;
    }

    /// Takes buffers back that are not needed any more.
    pub(crate) fn put_back(&mut self, mut buffers: Buffers) {
        buffers.clear();
        if self.lent + self.kept + buffers.room() <= self.share {
            self.kept += buffers.room();
            self.spare.push(buffers);
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::{Gpa, GpaRange};

    use super::*;

    fn stock(threads: usize) -> Stock {
        Stock::new(Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 0x1000).unwrap()]).unwrap()), threads)
    }

    fn filled(stock: &mut Stock, pieces: usize) -> Buffers {
        let mut buffers = stock.take();
        (0..pieces as u64).for_each(|n| buffers.push(Gpa(2 * n), 1).unwrap());
        buffers
    }

    #[test]
    fn a_thread_begins_requests_until_its_share_is_used_up_and_one_in_any_case() {
        let mut stock = stock(1024);
        let share = DEVICE / 1024;
        assert!(stock.has_room());
        let first = stock.lend(share - 1);
        assert!(stock.has_room(), "one piece is left");
        let second = stock.lend(1000);
        assert!(!stock.has_room());
        stock.end(second);
        assert!(stock.has_room());
        stock.end(first);
        let mut least = self::stock(usize::MAX);
        assert!(least.has_room());
        let only = least.lend(1);
        assert!(!least.has_room());
        least.end(only);
        assert!(least.has_room());
    }

    #[test]
    fn what_is_kept_and_what_is_under_way_are_within_the_share_together() {
        let mut stock = stock(1024);
        let share = DEVICE / 1024;
        let all: Vec<Buffers> = (0..8).map(|_| filled(&mut stock, 100)).collect();
        let room = all[0].room();
        all.into_iter().for_each(|buffers| stock.put_back(buffers));
        assert!(stock.kept > share - room && stock.kept <= share, "as many as there is room for");
        let lent = stock.lend(share - room);
        assert_eq!(stock.kept, room);
        let used = stock.take();
        assert_eq!((used.room(), stock.kept), (room, 0));
        stock.put_back(used);
        assert_eq!(stock.kept, room);
        stock.end(lent);
    }
}
