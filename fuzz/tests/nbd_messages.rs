//! Sessions with random servers, until so many messages were sent.

use std::sync::atomic::Ordering;

/// Names another number of messages.
const MESSAGES: &str = "SKEP_TEST_NBD_MESSAGES";
const FEW: u64 = 50_000;

#[test]
fn whatever_a_server_sends_reaches_live_requests_only() {
    let wanted = std::env::var(MESSAGES).map_or(FEW, |number| number.parse().expect("a number"));
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut sessions = 0;
    while fuzz::nbd_session::MESSAGES.load(Ordering::Relaxed) < wanted {
        let mut script = vec![0; 800];
        for word in script.chunks_mut(8) {
            // xorshift64
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            word.copy_from_slice(&seed.to_le_bytes()[..word.len()]);
        }
        fuzz::nbd_session::run(&script);
        sessions += 1;
    }
    println!("{sessions} sessions, {} messages", fuzz::nbd_session::MESSAGES.load(Ordering::Relaxed));
}
