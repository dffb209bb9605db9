//! See `fuzz::rtc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::rtc::run(input));
