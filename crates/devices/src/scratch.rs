//! Memory of the host's own, for data that is not for the guest, or cannot go straight to it.

use std::sync::Arc;

use memory::{Buffers, Gpa, GpaRange, Ram, RamError};

/// Bytes of it: data that is compared or verified, and zeroes for disks that cannot write them themselves, go through it
/// piece by piece.
pub(crate) const SCRATCH: u64 = 64 << 10;

/// Memory of the host's own that data goes through where it cannot go straight.
#[derive(Default)]
pub(crate) struct Scratch(Option<Arc<Ram>>);

impl Scratch {
    fn ram(&mut self) -> Result<&Arc<Ram>, RamError> {
        if self.0.is_none() {
            let range = GpaRange::new(Gpa(0), SCRATCH).expect("not empty");
            self.0 = Some(Arc::new(Ram::new(&[range])?));
        }
        Ok(self.0.as_ref().expect("made above"))
    }

    /// The first `len` (at most [`SCRATCH`]) bytes.
    pub(crate) fn lend(&mut self, len: u64) -> Result<Buffers, RamError> {
        let mut buffers = Buffers::new(self.ram()?.clone());
        buffers.push(Gpa(0), len).expect("no longer than the scratch");
        Ok(buffers)
    }
}
