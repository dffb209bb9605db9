//! The server's end of a connection of the network block device protocol, whose every byte a test writes itself.

use std::io::{Read, Result, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// Where a disk finds its server, and a test the connections.
pub struct Door {
    listener: UnixListener,
    folder: tempfile::TempDir,
}

/// A request as it came: what the protocol calls its type, its cookie, its place in the disk, and its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

/// What an honest server says of its disk, until a test changes it.
#[derive(Clone, Copy)]
pub struct Export {
    pub size: u64,
    pub flags: u16,
    pub block: u32,
    pub longest: u32,
}

impl Default for Export {
    /// 64 MiB in sectors; flushes, FUA, trims, zeroes.
    fn default() -> Export {
        Export { size: 64 << 20, flags: 1 | 4 | 8 | 32 | 64, block: 512, longest: 64 << 10 }
    }
}

impl Door {
    pub fn new() -> Door {
        let folder = tempfile::tempdir().unwrap();
        Door { listener: UnixListener::bind(folder.path().join("nbd.sock")).unwrap(), folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    /// The address of the disk, whose server has so many seconds for a request.
    pub fn url(&self, timeout: u32) -> String {
        format!("nbd+unix:///vm?socket={}&timeout={timeout}", self.socket().display())
    }

    /// Has the kernel keep one connection for a server that accepts none, and makes that one.
    pub fn let_in_one(&self) -> UnixStream {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::listen(self.listener.as_raw_fd(), 0) }, 0);
        UnixStream::connect(self.socket()).unwrap()
    }

    pub fn accept(&self) -> Peer {
        Peer(self.listener.accept().unwrap().0)
    }
}

/// One connection.
pub struct Peer(pub UnixStream);

impl Peer {
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes)
    }

    pub fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Greets, and takes the one option that is asked for.
    pub fn greet(&mut self) -> Result<()> {
        self.send(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.take::<4>()?;
        let header = self.take::<16>()?;
        assert_eq!(header[8..12], 7u32.to_be_bytes(), "NBD_OPT_GO");
        let mut rest = vec![0; u32::from_be_bytes(header[12..].try_into().unwrap()) as usize];
        self.0.read_exact(&mut rest)
    }

    /// Goes through the whole negotiation.
    pub fn agree(&mut self, export: Export) -> Result<()> {
        self.greet()?;
        self.send(&option_reply(7, 3, &export.about_the_disk()))?;
        self.send(&option_reply(7, 3, &export.about_blocks()))?;
        self.send(&option_reply(7, 1, &[]))
    }

    /// The next request's header; a write's data follows.
    pub fn asked(&mut self) -> Result<Asked> {
        let header = self.take::<28>()?;
        assert_eq!(header[..4], [0x25, 0x60, 0x95, 0x13]);
        Ok(Asked {
            command: u16::from_be_bytes(header[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(header[8..16].try_into().unwrap()),
            offset: u64::from_be_bytes(header[16..24].try_into().unwrap()),
            len: u32::from_be_bytes(header[24..].try_into().unwrap()),
        })
    }

    /// Whether the other end has closed the connection, once that or a byte has come.
    pub fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0; 1]).map_or(true, |bytes| bytes == 0)
    }
}

impl Export {
    pub fn about_the_disk(&self) -> Vec<u8> {
        [&[0, 0][..], &self.size.to_be_bytes(), &self.flags.to_be_bytes()].concat()
    }

    pub fn about_blocks(&self) -> Vec<u8> {
        let words = [self.block, 4096, self.longest].map(u32::to_be_bytes);
        [&[0, 3][..], words.as_flattened()].concat()
    }
}

/// A reply of the negotiation.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let words = [option, kind, data.len() as u32].map(u32::to_be_bytes);
    [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], words.as_flattened(), data].concat()
}

/// A simple reply.
pub fn reply(cookie: u64, error: u32) -> Vec<u8> {
    [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

/// A simple reply with data.
pub fn data(cookie: u64, data: &[u8]) -> Vec<u8> {
    [&reply(cookie, 0)[..], data].concat()
}

/// A chunk of a structured reply.
pub fn chunk(cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let magic = 0x668e_33efu32.to_be_bytes();
    let len = (payload.len() as u32).to_be_bytes();
    [&magic[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &len, payload].concat()
}
