//! From the start of a monitor to its guest's init: how long, and how many exits.

use std::io;
use std::time::Duration;

use crate::Sample;
use crate::guest::Guest;
use crate::vmm::{Hardware, Vmm};

/// Boots a guest that does nothing but say that it is there.
pub fn measure(vmm: Vmm) -> io::Result<Vec<Sample>> {
    let mut guest = Guest::start(vmm.command(&Hardware::default(), "lab.init-only"))?;
    let line = guest.wait_for("lab: init", Duration::from_secs(120))?;
    guest.end(Duration::from_secs(60))?;
    Ok(vec![
        Sample::new("boot, ms", line.after.as_secs_f64() * 1e3),
        Sample::new("boot, exits", line.exits as f64),
    ])
}
