//! From the start of a monitor to its guest's init, or by firmware to its kernel: how long, and how many exits.

use std::io;
use std::time::Duration;

use crate::Sample;
use crate::guest::{Guest, Line};
use crate::vmm::{Hardware, Vmm};

/// Boots a guest that does nothing but say that it is there.
pub fn measure(vmm: Vmm) -> io::Result<Vec<Sample>> {
    let mut guest = Guest::start(vmm.command(&Hardware::default(), "lab.init-only"))?;
    let line = guest.wait_for("lab: init", Duration::from_secs(120))?;
    guest.end(Duration::from_secs(60))?;
    Ok(samples("boot", &line))
}

/// The first words of a kernel that firmware has started.
const KERNEL: &str = "EFI stub:";

/// Has firmware, which this guest's variables are new for, start a kernel, until that says something first.
pub fn measure_firmware(vmm: Vmm) -> io::Result<Vec<Sample>> {
    let mut guest = Guest::start(vmm.with_firmware("lab.init-only")?)?;
    let line = guest.wait_for(KERNEL, Duration::from_secs(300))?;
    Ok(samples("firmware", &line))
}

fn samples(kind: &str, line: &Line) -> Vec<Sample> {
    let sample = |what: &str, value| Sample::new(format!("{kind}, {what}"), value);
    vec![
        sample("ms", line.after.as_secs_f64() * 1e3),
        sample("exits", line.exits as f64),
        sample("exits but the clock's", line.exits.saturating_sub(line.by_the_clock) as f64),
    ]
}
