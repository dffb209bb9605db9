//! Emulated hosts that give no sign of life any more: now and then one hangs as a whole, whatever runs in it (docs/lab.md). What
//! was played in it is played once more in another. Each is written down, and `cargo xtask test` counts them at its end.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use lab::LabError;

/// A line for each such host. `cargo xtask test` knows its place.
const RECORD: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/silent-hosts");

/// How often something was tried that a host's silence ended.
#[derive(Debug, Default)]
pub struct Tries(u32);

impl Tries {
    /// Whether it is to be tried again after this error. Whatever else a host ends by is no reason, nor a second silence.
    pub fn another(&mut self, error: &LabError) -> bool {
        let again = matches!(error, LabError::Silent { .. }) && self.0 == 0;
        if again {
            self.0 += 1;
            let test = std::env::args().next().unwrap_or_default();
            let test = Path::new(&test).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let said = format!("{test}: {}", error.to_string().lines().next().unwrap_or_default());
            eprintln!("{said}\nIt is played once more.");
            write_down(&said);
        }
        again
    }
}

fn write_down(line: &str) {
    let written = fs::create_dir_all(env!("CARGO_TARGET_TMPDIR"))
        .and_then(|()| OpenOptions::new().append(true).create(true).open(RECORD))
        .and_then(|mut record| record.write_all(format!("{line}\n").as_bytes()));
    written.unwrap_or_else(|error| panic!("{RECORD}: {error}"));
}
