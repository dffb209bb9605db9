//! See `fuzz::bar_moves`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::bar_moves::run(input));
