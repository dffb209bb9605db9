//! A description from a file and flags, and what is said of it.

// Each file of tests is a program of its own and uses its part of this.
#![allow(dead_code)]

use config::{File, Key, Vm};

pub fn describe(file: Option<&str>, flags: &[(Key, &str)]) -> Result<Vm, String> {
    let flags: Vec<(Key, String)> = flags.iter().map(|(key, value)| (*key, value.to_string())).collect();
    let file = file.map(|text| File { name: "vm.toml", bytes: text.as_bytes() });
    config::describe(file, &flags).map_err(|findings| findings.to_string())
}

/// Everything that is wrong with a file, one string per line of the output.
pub fn findings(file: &str) -> Vec<String> {
    describe(Some(file), &[]).unwrap_err().lines().map(str::to_owned).collect()
}

/// Everything that is wrong with one flag beside a good kernel.
pub fn flag_findings(key: Key, value: &str) -> String {
    describe(None, &[(Key::Kernel, "k"), (key, value)]).unwrap_err()
}
