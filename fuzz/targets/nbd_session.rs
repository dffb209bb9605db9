//! See `fuzz::nbd_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::nbd_session::run(input));
