//! See `fuzz::fw_cfg`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::fw_cfg::run(input));
