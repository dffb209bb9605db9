//! See `fuzz::virtio_queue`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::virtio_queue::run(input));
