//! See `fuzz::kernel_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::kernel_image::run(input));
