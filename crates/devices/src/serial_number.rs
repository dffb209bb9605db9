//! Serial numbers of the host's disks, in the 20 characters that virtio-blk, ATA and NVMe have for them.
//!
//! A disk behind USB may have a longer one, and two disks may differ in its end alone. So what does not fit is shortened
//! to its beginning and a checksum of all of it: the same at every start, and another for another disk.

/// Characters that a guest is shown at most.
pub(crate) const LENGTH: usize = 20;
/// Characters that stay as they are in front of `-` and the checksum.
const KEPT: usize = LENGTH - 9;

/// What a guest is shown of a disk's own serial number that does not fit as it is; `None` if it does.
pub fn shortened(own: &str) -> Option<String> {
    let printable = |character: &char| (' '..='~').contains(character);
    if own.len() <= LENGTH && own.chars().all(|character| printable(&character)) {
        return None;
    }
    let kept: String = own.chars().filter(printable).take(KEPT).collect();
    Some(format!("{kept}-{:08x}", checksum(own)))
}

/// FNV-1a.
fn checksum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What a guest is shown.
pub(crate) fn shown(own: &str) -> String {
    shortened(own).unwrap_or_else(|| own.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_serial_number_is_shortened_to_one_of_its_own() {
        assert_eq!(shown("12345678901234567890"), "12345678901234567890");
        let (one, other) = (shown("SAME-FIRST-20-CHARACTERS-1"), shown("SAME-FIRST-20-CHARACTERS-2"));
        assert_ne!(one, other);
        for text in [&one, &other] {
            assert!(text.len() == LENGTH && text.starts_with("SAME-FIRST--"), "{text}");
        }
        assert_eq!(one, shown("SAME-FIRST-20-CHARACTERS-1"), "the same at every start");
    }

    #[test]
    fn what_cannot_be_shown_is_left_out_and_still_counts() {
        let (one, other) = (shown("A\u{e9}"), shown("A\u{e8}"));
        assert_ne!(one, other);
        assert!(one.starts_with("A-") && one.is_ascii(), "{one}");
    }
}
