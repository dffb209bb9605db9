//! See `fuzz::nvme_driver`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::nvme_driver::run(input));
