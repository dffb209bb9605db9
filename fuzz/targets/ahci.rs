//! See `fuzz::ahci`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::ahci::run(input));
