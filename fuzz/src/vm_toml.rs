//! Descriptions of VMs: each is understood or refused with findings, and what is understood can be written down.

use config::{File, Key};

/// Ends the file; between the flags.
const SEPARATOR: u8 = 0xff;

/// Runs one input: a file, then flags, each behind a byte 0xff; the first byte of a flag is its key.
pub fn run(input: &[u8]) {
    let mut parts = input.split(|byte| *byte == SEPARATOR);
    let file = parts.next().filter(|bytes| !bytes.is_empty());
    let flag = |part: &[u8]| {
        let (key, value) = part.split_first()?;
        let key = Key::ALL[usize::from(*key) % Key::ALL.len()];
        Some((key, String::from_utf8_lossy(value).into_owned()))
    };
    let flags: Vec<(Key, String)> = parts.filter_map(flag).collect();
    match config::describe(file.map(|bytes| File { name: "vm.toml", bytes }), &flags) {
        Ok(vm) => {
            let text = vm.to_toml();
            let again = config::describe(Some(File { name: "again", bytes: text.as_bytes() }), &[]);
            assert_eq!(again.as_ref(), Ok(&vm), "printed as {text}");
        }
        Err(findings) => {
            assert!(findings.iter().count() > 0);
            assert!(!findings.to_string().is_empty());
        }
    }
}
