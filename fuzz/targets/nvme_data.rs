//! See `fuzz::nvme_data`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::nvme_data::run(input));
