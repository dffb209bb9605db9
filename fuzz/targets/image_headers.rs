//! See `fuzz::image_headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::image_headers::run(input));
