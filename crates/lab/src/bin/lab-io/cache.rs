//! A disk with a cache that is lost with its power: a server of the network block device protocol (newstyle, fixed)
//! over a file. What was written goes to the file at a flush, and some of it when the disk likes. Killing the server
//! cuts the power.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::thread;

use lab::order::SECTOR;

use crate::{mix, number};

/// Transmission flags: has flags, flush, FUA, trim, write zeroes.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64;
/// Flag of a command: what it writes is to last when it is done.
const FUA: u16 = 1;
/// Errors of the protocol: input/output, invalid.
const EIO: u32 = 5;
const EINVAL: u32 = 22;
/// Longest transfer in bytes.
const LONGEST: usize = 1 << 20;

/// Options and answers of the handshake.
mod option {
    pub const ABORT: u32 = 2;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const MAGIC: u64 = 0x0003_e889_0455_65a9;
    pub const ACK: u32 = 1;
    pub const INFORMATION: u32 = 3;
    pub const UNKNOWN: u32 = 1 << 31 | 1;
}

/// Commands.
mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
}

/// Serves until it is killed. After `flushes` of them flushes are only answered.
pub fn serve(socket: &str, file: &str, flushes: Option<&str>) -> Result<String, String> {
    let honest = flushes.map_or(Ok(u64::MAX), |text| number("flushes", text))?;
    let fail = |what: &str, error: io::Error| format!("{what}: {error}");
    let medium = File::options().read(true).write(true).open(file).map_err(|e| fail(file, e))?;
    let size = medium.metadata().map_err(|e| fail(file, e))?.len() / SECTOR as u64 * SECTOR as u64;
    let listener = UnixListener::bind(socket).map_err(|e| fail(socket, e))?;
    let cache = Cache { medium, sectors: BTreeMap::new(), random: size, flushes: 0, honest };
    let cache = Mutex::new(cache);
    thread::scope(|scope| {
        for stream in listener.incoming() {
            let stream = stream.map_err(|e| fail(socket, e))?;
            let cache = &cache;
            scope.spawn(move || {
                if let Err(error) = talk(stream, size, cache) {
                    eprintln!("lab-io cache: a connection ended: {error}");
                }
            });
        }
        Ok(String::new())
    })
}

/// The disk.
struct Cache {
    medium: File,
    /// What is written and not on the medium.
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    random: u64,
    flushes: u64,
    honest: u64,
}

impl Cache {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.medium.read_exact_at(bytes, at)?;
        for (sector, data) in (at / SECTOR as u64..).zip(bytes.chunks_exact_mut(SECTOR)) {
            if let Some(newer) = self.sectors.get(&sector) {
                data.copy_from_slice(newer);
            }
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8], lasting: bool) -> io::Result<()> {
        for (sector, data) in (at / SECTOR as u64..).zip(bytes.chunks_exact(SECTOR)) {
            self.random = mix(self.random);
            if lasting || self.random.is_multiple_of(8) {
                self.medium.write_all_at(data, sector * SECTOR as u64)?;
                self.sectors.remove(&sector);
            } else {
                let mut kept = [0; SECTOR];
                kept.copy_from_slice(data);
                self.sectors.insert(sector, kept);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        if self.flushes > self.honest {
            return Ok(());
        }
        for (sector, data) in std::mem::take(&mut self.sectors) {
            self.medium.write_all_at(&data, sector * SECTOR as u64)?;
        }
        Ok(())
    }
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn talk(mut out: UnixStream, size: u64, cache: &Mutex<Cache>) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(1 << 18, out.try_clone()?);
    out.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    array::<4>(&mut stream)?;
    loop {
        array::<8>(&mut stream)?;
        let asked = u32::from_be_bytes(array(&mut stream)?);
        let mut rest = vec![0; (u32::from_be_bytes(array(&mut stream)?) as usize).min(1 << 16)];
        stream.read_exact(&mut rest)?;
        let reply = |kind: u32, data: &[u8]| {
            let mut bytes = option::MAGIC.to_be_bytes().to_vec();
            bytes.extend([asked, kind, data.len() as u32].iter().flat_map(|word| word.to_be_bytes()));
            bytes.extend(data);
            bytes
        };
        if asked == option::INFO || asked == option::GO {
            let export = [&[0, 0][..], &size.to_be_bytes(), &FLAGS.to_be_bytes()].concat();
            out.write_all(&reply(option::INFORMATION, &export))?;
            // Blocks: smallest, best, longest.
            let blocks = [SECTOR as u32, 4096, LONGEST as u32].map(u32::to_be_bytes).concat();
            out.write_all(&reply(option::INFORMATION, &[&[0, 3][..], &blocks].concat()))?;
            out.write_all(&reply(option::ACK, &[]))?;
            if asked == option::GO {
                break;
            }
        } else {
            out.write_all(&reply(if asked == option::ABORT { option::ACK } else { option::UNKNOWN }, &[]))?;
        }
    }
    loop {
        array::<4>(&mut stream)?;
        let (flags, asked) =
            (u16::from_be_bytes(array(&mut stream)?), u16::from_be_bytes(array(&mut stream)?));
        let cookie: [u8; 8] = array(&mut stream)?;
        let (at, len) =
            (u64::from_be_bytes(array(&mut stream)?), u32::from_be_bytes(array(&mut stream)?) as usize);
        if asked == command::DISCONNECT {
            return Ok(());
        }
        let moves = matches!(asked, command::READ | command::WRITE);
        if moves && len > LONGEST {
            return Err(io::Error::other(format!("a transfer of {len} bytes")));
        }
        let mut data = vec![0; if moves { len } else { 0 }];
        if asked == command::WRITE {
            stream.read_exact(&mut data)?;
        }
        let whole = (at | len as u64).is_multiple_of(SECTOR as u64);
        let inside = at.checked_add(len as u64).is_some_and(|end| end <= size);
        let done = if whole && inside {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            match asked {
                command::READ => cache.read(at, &mut data).map_err(|_| EIO),
                command::WRITE => cache.write(at, &data, flags & FUA != 0).map_err(|_| EIO),
                command::FLUSH => cache.flush().map_err(|_| EIO),
                command::TRIM | command::WRITE_ZEROES => {
                    cache.write(at, &vec![0; len], flags & FUA != 0).map_err(|_| EIO)
                }
                _ => Err(EINVAL),
            }
        } else {
            Err(EINVAL)
        };
        let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
        reply.extend(done.err().unwrap_or(0).to_be_bytes());
        reply.extend(cookie);
        if asked == command::READ && done.is_ok() {
            reply.extend(data);
        }
        out.write_all(&reply)?;
    }
}
