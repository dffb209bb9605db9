//! See `fuzz::virtio_blk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::virtio_blk::run(input));
