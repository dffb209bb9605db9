//! A small server of the network block device protocol, for tests: it answers two requests in the wrong order where
//! it can, and misbehaves when asked to.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Transmission flags: has flags, flush, FUA, trim, write zeroes, several connections.
pub const EVERYTHING: u16 = 1 | 4 | 8 | 32 | 64 | 256;
/// Without FUA, zeroes and several connections.
pub const LITTLE: u16 = 1 | 4;

/// How the server behaves; it may change at any time.
#[derive(Default)]
pub struct Behaviour {
    /// Requests are taken and never answered.
    pub silent: AtomicBool,
    /// Connections are closed at the next request.
    pub hangs_up: AtomicBool,
    /// Reads and writes fail with this error.
    pub error: AtomicU64,
    /// Flushes that were asked for.
    pub flushes: AtomicU64,
    /// Connections so far.
    pub connections: AtomicU64,
}

pub struct Server {
    pub behaviour: Arc<Behaviour>,
    pub data: Arc<Mutex<Vec<u8>>>,
    socket: PathBuf,
}

impl Server {
    pub fn new(folder: &Path, size: usize, flags: u16) -> Server {
        let socket = folder.join("nbd.sock");
        if socket.exists() {
            std::fs::remove_file(&socket).unwrap();
        }
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Server { behaviour: Arc::default(), data: Arc::new(Mutex::new(vec![0; size])), socket };
        let (behaviour, data) = (server.behaviour.clone(), server.data.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (behaviour, data) = (behaviour.clone(), data.clone());
                behaviour.connections.fetch_add(1, SeqCst);
                std::thread::spawn(move || drop(serve(stream.unwrap(), &data, flags, &behaviour)));
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("nbd+unix:///vm?socket={}&timeout=1", self.socket.display())
    }
}

fn array<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(
    mut stream: UnixStream,
    data: &Mutex<Vec<u8>>,
    flags: u16,
    behaviour: &Behaviour,
) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    array::<4>(&mut stream)?;
    loop {
        let header = array::<16>(&mut stream)?;
        let (option, len) = (&header[8..12], u32::from_be_bytes(header[12..].try_into().unwrap()));
        let mut rest = vec![0; len as usize];
        stream.read_exact(&mut rest)?;
        let reply = |kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            bytes.extend(option);
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes
        };
        if !rest.windows(2).any(|name| name == b"vm") {
            stream.write_all(&reply(1 << 31 | 6, b"only vm is here"))?;
            continue;
        }
        let mut export = vec![0, 0];
        export.extend((data.lock().unwrap().len() as u64).to_be_bytes());
        export.extend(flags.to_be_bytes());
        stream.write_all(&reply(3, &export))?;
        // Blocks: smallest 512, best 4096, longest 64 KiB, so that long transfers have parts.
        stream.write_all(&reply(3, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 0, 1, 0, 0]))?;
        stream.write_all(&reply(1, &[]))?;
        break;
    }
    let mut held: Option<Vec<u8>> = None;
    loop {
        // What was held back is answered after the next request, or when none comes.
        stream.set_read_timeout(held.is_some().then_some(std::time::Duration::from_millis(2)))?;
        let mut first = [0; 1];
        match stream.read(&mut first) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(_) => {
                stream.write_all(&held.take().unwrap_or_default())?;
                continue;
            }
        }
        stream.set_read_timeout(None)?;
        let request = array::<27>(&mut stream)?;
        let request = [&first[..], &request].concat();
        assert_eq!(request[..4], [0x25, 0x60, 0x95, 0x13]);
        let half = |at: usize| u16::from_be_bytes(request[at..at + 2].try_into().unwrap());
        let (asked, command) = (half(4), half(6));
        let at = u64::from_be_bytes(request[16..24].try_into().unwrap()) as usize;
        let len = u32::from_be_bytes(request[24..].try_into().unwrap()) as usize;
        let mut payload = vec![0; if command == 1 { len } else { 0 }];
        stream.read_exact(&mut payload)?;
        if behaviour.hangs_up.load(SeqCst) || command == 2 {
            return Ok(());
        }
        if behaviour.silent.load(SeqCst) {
            continue;
        }
        let mut error = if command < 2 { behaviour.error.load(SeqCst) as u32 } else { 0 };
        if asked & 1 != 0 && flags & 8 == 0 || len > 64 << 10 && command < 2 {
            error = 22;
        }
        let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
        reply.extend(error.to_be_bytes());
        reply.extend(&request[8..16]);
        let mut data = data.lock().unwrap();
        match command {
            _ if error != 0 => {}
            0 => reply.extend(&data[at..at + len]),
            1 => data[at..at + len].copy_from_slice(&payload),
            3 => drop(behaviour.flushes.fetch_add(1, SeqCst)),
            4 | 6 => data[at..at + len].fill(0),
            other => panic!("command {other}"),
        }
        drop(data);
        match held.take() {
            None => held = Some(reply),
            Some(before) => stream.write_all(&[reply, before].concat())?,
        }
    }
}
