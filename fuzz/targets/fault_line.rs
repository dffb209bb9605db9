//! See `fuzz::fault_line`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::fault_line::run(input));
