//! Commands of qemu-img that make images.

use std::io;
use std::process::{Command, Output};

/// Runs it. To make a key of a password, qemu-img measures how long that takes, and gives up where the clock of CPU time is
/// too coarse for it ("Unable to get accurate CPU usage"): then it is run again.
pub fn output(command: &mut Command) -> io::Result<Output> {
    let mut output = command.output()?;
    for _ in 0..50 {
        if !String::from_utf8_lossy(&output.stderr).contains("accurate CPU usage") {
            break;
        }
        output = command.output()?;
    }
    Ok(output)
}
