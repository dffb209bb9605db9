//! `lab-initrd SCRIPT OUT`: the guest's initramfs with a script in it, for scripts that do not fit on the
//! kernel's command line.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use lab::archive::Archive;

use crate::guest::SCRIPT;

const GUEST: &str = "/lab/guest/initrd";

/// Does what the arguments ask for.
pub fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [script, out] = arguments.as_slice() else {
        eprintln!("usage: lab-initrd SCRIPT OUT: writes the guest's initramfs with SCRIPT in it to OUT");
        return ExitCode::from(2);
    };
    match write(script, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-initrd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(script: &str, out: &str) -> io::Result<()> {
    let at = |path: &str, e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"));
    let mut archive = Archive::new();
    archive.file(SCRIPT, 0o755, &fs::read(script).map_err(|e| at(script, e))?)?;
    fs::copy(GUEST, out).map_err(|e| at(out, e))?;
    let mut file = fs::File::options().append(true).open(out).map_err(|e| at(out, e))?;
    file.write_all(&archive.finish()?).map_err(|e| at(out, e))
}
