//! See `fuzz::assign_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::assign_config::run(input));
