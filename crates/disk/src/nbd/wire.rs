//! What goes over the socket: the NBD protocol's fixed newstyle negotiation, and its requests and simple replies
//! (NBD protocol specification, "Newstyle negotiation" and "Transmission phase").

use std::fmt;
use std::io;
use std::time::Instant;

use super::error::NbdError;
use super::socket::{Socket, in_time};
use super::url::NbdUrl;
use crate::contract::{DiskError, Sectors};

const GREETING: [u8; 8] = *b"NBDMAGIC";
const OPTION: [u8; 8] = *b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flags, both ways.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Largest smallest block that a server may have ("Block size constraints").
const LARGEST_BLOCK: u32 = 64 << 10;
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

/// A simple reply's meaning and cookie. These are the only replies there are, for structured ones are not negotiated;
/// what else the server sent is the error.
pub(super) fn reply(bytes: &[u8; 16]) -> Result<(Result<(), DiskError>, u64), String> {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    match word(0) {
        REPLY => Ok((meaning(word(4)), u64::from(word(8)) << 32 | u64::from(word(12)))),
        STRUCTURED_REPLY => Err("a structured reply, which was not negotiated".to_owned()),
        other => {
            Err(format!("{other:#010x} where the magic number of a simple reply belongs ({REPLY:#010x})"))
        }
    }
}

/// What the error of a reply says. The protocol has its own few numbers, and all others mean EINVAL ("Error values").
fn meaning(error: u32) -> Result<(), DiskError> {
    const OURS: [(u32, libc::c_int); 7] = [
        (1, libc::EPERM),
        (5, libc::EIO),
        (12, libc::ENOMEM),
        (28, libc::ENOSPC),
        (75, libc::EOVERFLOW),
        (95, libc::EOPNOTSUPP),
        (108, libc::ESHUTDOWN),
    ];
    if error == 0 {
        return Ok(());
    }
    let known = OURS.iter().find(|(theirs, _)| *theirs == error);
    Err(DiskError::from_errno(known.map_or(libc::EINVAL, |(_, errno)| *errno)))
}

/// Agrees with a server on a disk, after which requests may follow. The server has the address's time for all of it.
pub(super) fn negotiate(socket: &Socket, url: &NbdUrl) -> Result<Export, NbdError> {
    let talk = Talk { socket, url, deadline: Instant::now() + url.timeout };
    let mut greeting = [0; 18];
    talk.read(&mut greeting)?;
    if greeting[..8] != GREETING {
        return Err(talk.wrong("it does not begin with NBDMAGIC, as the protocol does".to_owned()));
    }
    if greeting[8..16] != OPTION {
        return Err(talk.wrong("it speaks only the protocol's old style (there is no IHAVEOPT)".to_owned()));
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
    talk.write(&mut go)?;
    let (mut disk, mut blocks) = (None, None);
    for _ in 0..MOST_REPLIES {
        let (kind, data) = talk.option_reply()?;
        match kind {
            REP_ACK if !data.is_empty() => {
                return Err(talk.wrong(format!("its NBD_REP_ACK has {} bytes of data", data.len())));
            }
            REP_ACK => {
                let (size, flags) = disk.ok_or_else(|| {
                    talk.wrong("it agreed without saying how large the disk is (NBD_INFO_EXPORT)".to_owned())
                })?;
                let (block, preferred, longest) = blocks.unwrap_or((1, 4096, LONGEST_TRANSFER));
                return Export::new(size, flags, block, preferred, longest).map_err(|what| talk.wrong(what));
            }
            REP_INFO => note(&data, &mut disk, &mut blocks).map_err(|what| talk.wrong(what))?,
            error if error & REP_ERROR != 0 => return Err(talk.refused(error & !REP_ERROR, &data)),
            other => return Err(talk.wrong(format!("it answered NBD_OPT_GO with a reply of type {other}"))),
        }
    }
    Err(talk.wrong(format!("it sent {MOST_REPLIES} replies to NBD_OPT_GO and no NBD_REP_ACK")))
}

/// Takes a piece of information in: size and flags, or smallest, best and longest transfer. Each comes once at most.
fn note(
    data: &[u8],
    disk: &mut Option<(u64, u16)>,
    blocks: &mut Option<(u32, u32, u32)>,
) -> Result<(), String> {
    let word = |at: usize| u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    let half = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    if data.len() < 2 {
        return Err("its NBD_REP_INFO says not what it is about".to_owned());
    }
    let again = match (half(0), data.len()) {
        (INFO_EXPORT, 12) => {
            disk.replace((u64::from(word(2)) << 32 | u64::from(word(6)), half(10))).is_some()
        }
        (INFO_BLOCK_SIZE, 14) => blocks.replace((word(2), word(6), word(10))).is_some(),
        (kind @ (INFO_EXPORT | INFO_BLOCK_SIZE), len) => {
            return Err(format!("its NBD_REP_INFO of type {kind} has {len} bytes"));
        }
        // Names and descriptions, which nobody asked for and the protocol allows.
        _ => false,
    };
    if again { Err(format!("it sent the NBD_REP_INFO of type {} twice", half(0))) } else { Ok(()) }
}

impl Export {
    /// A disk as the server describes it, checked.
    fn new(size: u64, flags: u16, block: u32, preferred: u32, longest: u32) -> Result<Export, String> {
        if !block.is_power_of_two() || block > LARGEST_BLOCK {
            return Err(format!(
                "its smallest block of {block} bytes is no power of two up to {LARGEST_BLOCK} (NBD_INFO_BLOCK_SIZE)"
            ));
        }
        // Disks have sectors, whatever smaller transfers the server allows.
        let block = block.max(Sectors::SIZE as u32);
        if longest < block {
            return Err(format!(
                "its longest transfer of {longest} bytes is shorter than a block of {block} (NBD_INFO_BLOCK_SIZE)"
            ));
        }
        if size > i64::MAX as u64 {
            return Err(format!(
                "it says that the disk has {size} bytes, which is more than a disk can have"
            ));
        }
        Ok(Export { size, flags, block, preferred, longest: longest - longest % block })
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Export { size, flags, block, longest, .. } = self;
        write!(f, "{size} bytes in blocks of {block}, transfers up to {longest}, flags {flags:#x}")
    }
}

struct Talk<'a> {
    socket: &'a Socket,
    url: &'a NbdUrl,
    deadline: Instant,
}

impl Talk<'_> {
    fn read(&self, bytes: &mut [u8]) -> Result<(), NbdError> {
        let read = self.socket.receive_bytes(bytes, &|| in_time(self.deadline));
        read.map_err(|cause| self.broken(cause))
    }

    fn write(&self, bytes: &mut [u8]) -> Result<(), NbdError> {
        let written = self.socket.send(bytes, &[], &|| in_time(self.deadline));
        written.map_err(|cause| self.broken(cause))
    }

    fn broken(&self, cause: io::Error) -> NbdError {
        let cause = match cause.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(cause.kind(), "it closed the connection while it negotiated")
            }
            io::ErrorKind::TimedOut => {
                let text = format!("it did not end the negotiation within {} s", self.url.timeout.as_secs());
                io::Error::new(cause.kind(), text)
            }
            _ => cause,
        };
        NbdError::Connection { url: self.url.clone(), cause }
    }

    fn wrong(&self, what: String) -> NbdError {
        NbdError::Protocol { url: self.url.clone(), what }
    }

    fn option_reply(&self) -> Result<(u32, Vec<u8>), NbdError> {
        let mut header = [0; 20];
        self.read(&mut header)?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (option, kind, len) = (word(8), word(12), word(16));
        if header[..8] != OPTION_REPLY.to_be_bytes() {
            return Err(self.wrong(
                "its answer to NBD_OPT_GO is no option reply (its magic number is wrong)".to_owned(),
            ));
        }
        if option != OPT_GO {
            return Err(
                self.wrong(format!("it answers option {option}, and was asked option {OPT_GO} (NBD_OPT_GO)"))
            );
        }
        if len > LONGEST_REPLY {
            return Err(
                self.wrong(format!("its option reply is {len} bytes long; {LONGEST_REPLY} are allowed here"))
            );
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
        (bytes[7], bytes[8], bytes[15]) = (28, 1, 9);
        assert_eq!(reply(&bytes), Ok((Err(DiskError::NoSpace), 1 << 56 | 9)));
        bytes[7] = 0;
        assert_eq!(reply(&bytes), Ok((Ok(()), 1 << 56 | 9)));
        bytes[0] = 0;
        assert!(reply(&bytes).unwrap_err().starts_with("0x00446698 where the magic number"));
        bytes[..4].copy_from_slice(&[0x66, 0x8e, 0x33, 0xef]);
        assert!(reply(&bytes).unwrap_err().contains("structured reply"));
    }

    #[test]
    fn errors_that_the_protocol_does_not_have_are_invalid_requests() {
        for error in [125, 61, 19, 22, 0x8000_0000, u32::MAX] {
            assert_eq!(meaning(error), Err(DiskError::Other(libc::EINVAL)));
        }
    }

    #[test]
    fn the_longest_transfer_is_in_whole_blocks() {
        let longest =
            |block, longest| Export::new(1 << 20, 1, block, 4096, longest).map(|export| export.longest);
        assert_eq!(longest(1, 1000), Ok(512));
        assert_eq!(longest(4096, u32::MAX), Ok(0xffff_f000));
        for (block, too_short) in [(1, 511), (4096, 4095), (0, 4096), (3, 4096), (128 << 10, 1 << 20)] {
            assert!(longest(block, too_short).is_err(), "{block}, {too_short}");
        }
    }
}
