//! See `fuzz::vm_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::vm_toml::run(input));
