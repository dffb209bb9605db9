//! See `fuzz::config_space`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::config_space::run(input));
