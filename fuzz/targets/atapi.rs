//! See `fuzz::atapi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::atapi::run(input));
