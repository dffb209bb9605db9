//! Texts in identify data.

use std::fmt;

/// A text of up to `N` characters, as ATA's identify data has them: printable ASCII, padded with spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AtaText<const N: usize>([u8; N]);

/// A serial number.
pub type AtaSerial = AtaText<20>;
/// A firmware revision.
pub type AtaFirmware = AtaText<8>;
/// A model name.
pub type AtaModel = AtaText<40>;

/// Why a text cannot be shown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} cannot be shown to a guest as it is. Use up to {most} characters of printable ASCII.")]
pub struct AtaTextError {
    /// The text.
    pub text: String,
    /// The longest there can be.
    pub most: usize,
}

impl<const N: usize> AtaText<N> {
    /// Refuses texts that are too long or not printable ASCII.
    pub fn new(text: &str) -> Result<AtaText<N>, AtaTextError> {
        let fits = text.len() <= N && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if fits { Ok(Self::from_lossy(text)) } else { Err(AtaTextError { text: text.to_owned(), most: N }) }
    }

    /// As much of a text as fits; what cannot be shown becomes a question mark.
    pub(super) fn from_lossy(text: &str) -> AtaText<N> {
        let mut padded = [b' '; N];
        for (to, from) in padded.iter_mut().zip(text.chars()) {
            *to = if (' '..='~').contains(&from) { from as u8 } else { b'?' };
        }
        AtaText(padded)
    }

    /// The characters, padded with spaces.
    pub(super) fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Puts the text into words as ATA does, the first character of each pair above the second (ACS-3, 3.3.10).
    pub(super) fn put(&self, words: &mut [u16]) {
        for (word, pair) in words.iter_mut().zip(self.0.chunks_exact(2)) {
            *word = u16::from_be_bytes([pair[0], pair[1]]);
        }
    }
}

impl<const N: usize> fmt::Display for AtaText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(String::from_utf8_lossy(&self.0).trim_end())
    }
}

impl<const N: usize> fmt::Debug for AtaText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_padded_and_swapped_and_refused_when_they_do_not_fit() {
        let text = AtaText::<8>::new("abc").unwrap();
        let mut words = [0; 4];
        text.put(&mut words);
        assert_eq!(words, [0x6162, 0x6320, 0x2020, 0x2020]);
        assert_eq!(text.to_string(), "abc");
        let error = AtaText::<8>::new("123456789").unwrap_err();
        assert!(error.to_string().contains("up to 8 characters"), "{error}");
        assert!(AtaText::<8>::new("a\u{e9}").is_err());
        assert_eq!(AtaText::<4>::from_lossy("a\u{e9}bcdef").to_string(), "a?bc");
    }
}
