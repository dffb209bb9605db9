//! Operands out of the bytes of an input.

/// What is left of an input. Numbers are little endian; where bytes are missing they are 0.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    /// All of an input.
    pub fn new(input: &'a [u8]) -> Steps<'a> {
        Steps(input)
    }

    /// The next opcode, until the input ends.
    pub fn next_step(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.u8())
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of the values, chosen by a byte.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.u8()) % values.len()]
    }

    /// The data of an access: 1, 2, 4 or 8 bytes.
    pub fn access(&mut self) -> &'a [u8] {
        let len = self.pick(&[1, 2, 4, 8]);
        let data = self.bytes(len);
        // At the end of the input: the largest power of two that there is.
        match data.len() {
            0 => &[0],
            3 => &data[..2],
            5..8 => &data[..4],
            _ => data,
        }
    }
}
