//! What goes over the socket: the NBD protocol's fixed newstyle negotiation, and its requests and simple replies
//! (NBD protocol specification, "Newstyle negotiation" and "Transmission phase").

use std::fs::File;
use std::io::{self, Read, Write};

use super::NbdError;
use super::url::NbdUrl;

const GREETING: [u8; 8] = *b"NBDMAGIC";
const OPTION: [u8; 8] = *b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Handshake flags, both ways.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// No reply of the negotiation is longer than this.
const LONGEST_REPLY: u32 = 64 << 10;
/// Longest transfer where the server names none ("Block size constraints").
const LONGEST_TRANSFER: u32 = 32 << 20;
/// A server that sends more messages than this before it agrees never will.
const MOST_REPLIES: u32 = 64;

/// Transmission flags.
pub(super) mod flag {
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const FUA: u16 = 1 << 3;
    pub(crate) const ROTATIONAL: u16 = 1 << 4;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const MULTI_CONN: u16 = 1 << 8;
}

/// Commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// Command flags.
pub(super) const FUA: u16 = 1;
pub(super) const NO_HOLE: u16 = 2;

/// What a server says about a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Export {
    /// Bytes.
    pub(super) size: u64,
    /// See [`flag`].
    pub(super) flags: u16,
    /// Smallest and best transfer, and the longest, in bytes.
    pub(super) block: u32,
    pub(super) preferred: u32,
    pub(super) longest: u32,
}

/// A request's header.
pub(super) fn request(command: Command, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A reply's error and cookie; `None` if it is no reply.
pub(super) fn reply(bytes: &[u8; 16]) -> Option<(u32, u64)> {
    let error = u32::from_be_bytes(bytes[4..8].try_into().ok()?);
    let cookie = u64::from_be_bytes(bytes[8..].try_into().ok()?);
    bytes.starts_with(&REPLY.to_be_bytes()).then_some((error, cookie))
}

/// Agrees with a server on a disk, after which requests may follow.
pub(super) fn negotiate(socket: &File, url: &NbdUrl) -> Result<Export, NbdError> {
    let mut talk = Talk { socket, url };
    let mut greeting = [0; 18];
    talk.read(&mut greeting)?;
    if greeting[..8] != GREETING || greeting[8..16] != OPTION {
        return Err(talk.wrong("it does not speak the protocol, or only its old style".to_owned()));
    }
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(talk.wrong("it does not know the fixed newstyle of the protocol".to_owned()));
    }
    let ours = u32::from(FIXED_NEWSTYLE | flags & NO_ZEROES);
    let name = url.export.as_bytes();
    let mut go = Vec::new();
    go.extend(ours.to_be_bytes());
    go.extend(OPTION);
    go.extend(OPT_GO.to_be_bytes());
    go.extend((name.len() as u32 + 8).to_be_bytes());
    go.extend((name.len() as u32).to_be_bytes());
    go.extend(name);
    go.extend(1u16.to_be_bytes());
    go.extend(INFO_BLOCK_SIZE.to_be_bytes());
    talk.write(&go)?;
    let mut export = Export { size: 0, flags: 0, block: 1, preferred: 4096, longest: LONGEST_TRANSFER };
    let mut described = false;
    for _ in 0..MOST_REPLIES {
        let (kind, data) = talk.option_reply()?;
        match kind {
            REP_ACK if described => return Ok(export),
            REP_ACK => break,
            REP_INFO => described |= export.note(&data),
            error if error & REP_ERROR != 0 => return Err(talk.refused(error & !REP_ERROR, &data)),
            _ => {}
        }
    }
    Err(talk.wrong("it agreed without saying how large the disk is".to_owned()))
}

impl Export {
    /// Takes a piece of information in; whether it was the disk's size.
    fn note(&mut self, data: &[u8]) -> bool {
        let word = |at: usize| data.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let half = |at: usize| data.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        match half(0) {
            Some(INFO_EXPORT) => {
                let (Some(high), Some(low), Some(flags)) = (word(2), word(6), half(10)) else { return false };
                self.size = u64::from(high) << 32 | u64::from(low);
                self.flags = flags;
                true
            }
            Some(INFO_BLOCK_SIZE) => {
                if let (Some(block), Some(preferred), Some(longest)) = (word(2), word(6), word(10)) {
                    (self.block, self.preferred, self.longest) = (block, preferred, longest);
                }
                false
            }
            _ => false,
        }
    }
}

struct Talk<'a> {
    socket: &'a File,
    url: &'a NbdUrl,
}

impl Talk<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), NbdError> {
        self.socket.read_exact(bytes).map_err(|cause| self.broken(cause))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        self.socket.write_all(bytes).map_err(|cause| self.broken(cause))
    }

    fn broken(&self, cause: io::Error) -> NbdError {
        NbdError::Connection { url: self.url.clone(), cause }
    }

    fn wrong(&self, what: String) -> NbdError {
        NbdError::Protocol { url: self.url.clone(), what }
    }

    fn option_reply(&mut self) -> Result<(u32, Vec<u8>), NbdError> {
        let mut header = [0; 20];
        self.read(&mut header)?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, len) = (word(12), word(16));
        if header[..8] != OPTION_REPLY.to_be_bytes() || word(8) != OPT_GO || len > LONGEST_REPLY {
            return Err(self.wrong("its answer is none of the protocol".to_owned()));
        }
        let mut data = vec![0; len as usize];
        self.read(&mut data)?;
        Ok((kind, data))
    }

    fn refused(&self, error: u32, data: &[u8]) -> NbdError {
        let said: String =
            String::from_utf8_lossy(data).chars().filter(|c| !c.is_control()).take(200).collect();
        let why = match error {
            1 => "it is too old (it does not know NBD_OPT_GO)",
            2 => "its policy forbids it",
            5 => "it wants an encrypted connection, which is not supported here",
            6 => "it has no such disk",
            7 => "it is shutting down",
            8 => "it wants its own block size to be known",
            _ => "it refuses",
        };
        self.wrong(if said.is_empty() { why.to_owned() } else { format!("{why} ({said})") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_protocol_has_it() {
        let bytes = request(Command::WriteZeroes, FUA | NO_HOLE, 0x0102_0304_0506_0708, 0x1000, 0x200);
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6]);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn a_reply_is_known_by_its_magic_number() {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[0x67, 0x44, 0x66, 0x98]);
        (bytes[7], bytes[15]) = (28, 9);
        assert_eq!(reply(&bytes), Some((28, 9)));
        bytes[0] = 0;
        assert_eq!(reply(&bytes), None);
    }
}
