//! A lying server of the network block device protocol against the client: a whole session, from the negotiation on,
//! with requests under way. The client must not panic or hang, must end every request once, and must write to nothing
//! but the memory of a read under way; a read that goes well holds what the server said under that read's cookies.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use disk::{
    Disk, DiskError, DiskOptions, DiskQueue, Durability, Event, Operation, Request, SectorRange, Sectors,
    Source, Unmap,
};
use memory::{Buffers, Gpa, GpaRange, Ram};

use crate::steps::Steps;

/// Requests at once; each has a slot of memory of its own.
const DEPTH: u16 = 16;
const SLOT: usize = 16 << 10;
/// The middle of a slot is the request's; what is around it, never.
const MARGIN: usize = 4 << 10;
const DISK: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
/// What the server sends where it lies.
const LIE: u8 = 0xee;

/// Messages that servers have sent in all sessions of this process.
pub static MESSAGES: AtomicU64 = AtomicU64::new(0);

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let mut longest = steps.pick(&[512, 1024, 4096, 64 << 10]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nbd.sock");
    let door = UnixListener::bind(&path).expect("a socket");
    let url = format!("nbd+unix:///vm?socket={}&timeout=10", path.display());
    let options = DiskOptions::over(Source::Nbd(url.parse().expect("an address")));
    let (disk, stream) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| Disk::open(&options));
        let (mut stream, _) = door.accept().expect("the client connects");
        longest = negotiate(&mut steps, &mut stream, longest);
        (opening.join().expect("opening does not panic"), stream)
    });
    let Ok(disk) = disk else { return };
    let queue =
        disk.prepare_queue(DEPTH).expect("the kernel's part works").start().expect("any thread may start it");
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("small"));
    let mut session = Session {
        server: Server { stream, unread: Vec::new(), asked: Vec::new(), answered: Vec::new(), longest },
        queue,
        shadow: vec![0; RAM as usize],
        ram: ram.clone(),
        slots: std::array::from_fn(|_| None),
        sent: 0,
        ended: 0,
        events: Vec::new(),
    };
    (0..DEPTH).for_each(|slot| session.reuse(slot.into(), 0x55));
    session.play(&mut steps);
    session.finish();
    drop((session, disk));
    assert_eq!(Arc::strong_count(&ram), 1, "nobody keeps the memory");
}

const RAM: u64 = DEPTH as u64 * SLOT as u64;

/// As the protocol has it, or, at times, as the input says; the longest transfer that the client may make then.
fn negotiate(steps: &mut Steps<'_>, stream: &mut UnixStream, longest: u32) -> u32 {
    let reply = |kind: u32, data: &[u8]| {
        let words = [7, kind, data.len() as u32].map(u32::to_be_bytes);
        [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], words.as_flattened(), data].concat()
    };
    let words = [512, 4096, longest].map(u32::to_be_bytes);
    let mut disk = [&[0, 0][..], &DISK.to_be_bytes(), &(1u16 | 4 | 8 | 32 | 64).to_be_bytes()].concat();
    let mut blocks = [&[0, 3][..], words.as_flattened()].concat();
    let kind = steps.u8();
    let lies = kind & 15 == 15;
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    match kind >> 4 {
        0..8 if lies => {
            disk.iter_mut().chain(&mut blocks).for_each(|byte| *byte ^= steps.u8());
        }
        8..11 if lies => {
            let (kind, data) = (steps.u32(), steps.bytes(40));
            bytes.extend(reply(kind, data));
        }
        11..13 if lies => bytes.extend(steps.bytes(60)),
        13.. if lies => bytes = steps.bytes(60).to_vec(),
        _ => {}
    }
    bytes.extend([reply(3, &disk), reply(3, &blocks), reply(1, &[])].concat());
    send(stream, &bytes);
    if lies {
        // Nothing more comes, so the client does not wait for it.
        stream.shutdown(Shutdown::Write).ok();
    }
    // Flags, then the option with the export's name "vm"; a client that has found the lie sends none.
    let taken = stream.read_exact(&mut [0; 4 + 16 + 4 + 2 + 2 + 2]);
    assert!(lies || taken.is_ok(), "the client asks for its disk");
    if lies { u32::MAX } else { longest }
}

/// Sends a message; that the client has hung up is its right.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    MESSAGES.fetch_add(1, Ordering::Relaxed);
    stream.write_all(bytes).ok();
}

/// What a request of the client asked for, as it came over the socket.
#[derive(Clone, Copy)]
struct Asked {
    cookie: u64,
    command: u16,
    offset: u64,
    len: u32,
}

/// What a sector of the disk holds.
fn contents(offset: u64) -> u8 {
    (offset / 512 % 199) as u8 + 1
}

struct Server {
    stream: UnixStream,
    /// What has come and is not looked at.
    unread: Vec<u8>,
    asked: Vec<Asked>,
    answered: Vec<Asked>,
    longest: u32,
}

impl Server {
    /// Takes what the client has sent.
    fn look(&mut self) {
        self.stream.set_nonblocking(true).expect("our own socket");
        let mut bytes = [0; 64 << 10];
        while let Ok(len @ 1..) = self.stream.read(&mut bytes) {
            self.unread.extend(&bytes[..len]);
        }
        self.stream.set_nonblocking(false).expect("our own socket");
        let mut at = 0;
        while let Some(header) = self.unread.get(at..at + 28) {
            let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight"));
            let (command, len) = (u16::from_be_bytes([header[6], header[7]]), long(20) as u32);
            let data = if command == 1 { len as usize } else { 0 };
            if self.unread.len() < at + 28 + data {
                break;
            }
            assert!(command == 3 || len <= self.longest, "no longer than the server takes");
            self.asked.push(Asked { cookie: long(8), command, offset: long(16), len });
            at += 28 + data;
        }
        self.unread.drain(..at);
    }

    /// The answer to a request, as it should be.
    fn honest(asked: Asked) -> Vec<u8> {
        let mut bytes = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &asked.cookie.to_be_bytes()].concat();
        if asked.command == 0 {
            bytes.extend((0..u64::from(asked.len)).map(|at| contents(asked.offset + at)));
        }
        bytes
    }

    fn answer(&mut self, index: usize, error: u32) {
        let asked = self.asked.remove(index);
        self.answered.push(asked);
        let mut bytes = Server::honest(asked);
        if error != 0 {
            bytes.truncate(16);
            bytes[4..8].copy_from_slice(&error.to_be_bytes());
        }
        send(&mut self.stream, &bytes);
    }

    /// Sends what no honest server sends.
    fn lie(&mut self, steps: &mut Steps<'_>) {
        let choose =
            |list: &[Asked], which: u8| (!list.is_empty()).then(|| list[usize::from(which) % list.len()]);
        let of = choose(if steps.u8() & 1 == 0 { &self.answered } else { &self.asked }, steps.u8());
        let cookie = of.map_or(0, |asked| asked.cookie);
        let with = |cookie: u64, data: usize| {
            let head = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &cookie.to_be_bytes()].concat();
            [head, vec![LIE; data]].concat()
        };
        let bytes = match steps.u8() % 8 {
            // Again, or what has not been asked for.
            0 => choose(&self.answered, steps.u8()).map_or(with(0, 512), |asked| with(asked.cookie, 4096)),
            1 => with(cookie.wrapping_add(steps.u64()), 4096),
            2 => with(cookie ^ 1 << (steps.u8() & 63), 4096),
            3 => with(u64::from(steps.u8()) << 20, 4096),
            // A chunk of a structured reply.
            4 => {
                let (flags, kind) = (u16::from(steps.u8()), steps.u16());
                let data = [&steps.u64().to_be_bytes()[..], &[LIE; 4096]].concat();
                let len = (data.len() as u32).to_be_bytes();
                let magic = [0x66, 0x8e, 0x33, 0xef];
                [&magic[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &len, &data]
                    .concat()
            }
            // Half of an answer, and then another in its place: a lie that fits, so its cookie is used up.
            5 => match choose(&self.asked, steps.u8()) {
                Some(asked) => {
                    let whole = Server::honest(asked);
                    let half = whole[..whole.len() / 2].to_vec();
                    send(&mut self.stream, &half);
                    self.stream.shutdown(Shutdown::Write).ok();
                    return;
                }
                None => with(1, 0),
            },
            6 => steps.bytes(64).to_vec(),
            _ => {
                self.stream.shutdown(Shutdown::Both).ok();
                return;
            }
        };
        send(&mut self.stream, &bytes);
    }
}

/// A request under way: where it reads from, and the ranges of guest memory that are its own.
struct Live {
    reads: Option<u64>,
    pieces: Vec<(usize, usize)>,
}

struct Session {
    server: Server,
    queue: DiskQueue,
    ram: Arc<Ram>,
    /// What guest memory holds outside of reads under way.
    shadow: Vec<u8>,
    slots: [Option<Live>; DEPTH as usize],
    sent: u64,
    ended: u64,
    events: Vec<Event>,
}

impl Session {
    fn play(&mut self, steps: &mut Steps<'_>) {
        while let Some(step) = steps.next_step() {
            match step {
                0..72 => self.submit(step, steps),
                72..104 => self.poll(),
                104..112 if steps.u8() & 7 == 0 => self.queue.cancel().expect("the kernel's part works"),
                250.. => self.server.lie(steps),
                _ if self.server.asked.is_empty() => self.server.look(),
                112..180 => self.server.answer(0, 0),
                180..210 => self.server.answer(self.server.asked.len() - 1, 0),
                210..244 => {
                    let which = usize::from(steps.u8()) % self.server.asked.len();
                    self.server.answer(which, 0);
                }
                _ => {
                    let error = if step & 1 == 0 { u32::from(steps.u8()) } else { steps.u32() };
                    self.server.answer(0, error);
                }
            }
        }
    }

    fn submit(&mut self, step: u8, steps: &mut Steps<'_>) {
        let Some(slot) = self.slots.iter().position(Option::is_none) else { return self.poll() };
        let mut buffers = Buffers::new(self.ram.clone());
        let mut pieces = Vec::new();
        let (mut at, end) = (slot * SLOT + MARGIN, (slot + 1) * SLOT - MARGIN);
        for _ in 0..=step % 3 {
            let len = 512 * (1 + usize::from(steps.u8() & 7));
            if at + len > end {
                break;
            }
            buffers.push(Gpa(at as u64), len as u64).expect("inside RAM");
            pieces.push((at, len));
            // A gap that is nobody's.
            at += len + 64;
        }
        let sector = Sectors(u64::from(steps.u8()) * 8);
        let range = SectorRange { start: sector, count: Sectors(1 + u64::from(steps.u8() & 31)) };
        let durability = if step & 1 == 0 { Durability::Stable } else { Durability::Cached };
        let operation = match step {
            0..40 => Operation::Read { at: sector },
            40..56 => Operation::Write { at: sector, durability },
            56..62 => Operation::Flush,
            62..67 => Operation::Discard(range),
            _ => Operation::WriteZeroes(range, Unmap::Allowed),
        };
        let reads = matches!(operation, Operation::Read { .. }).then_some(sector.0 * 512);
        if self.queue.submit(Request { tag: slot as u64, operation, buffers }).is_ok() {
            self.slots[slot] = Some(Live { reads, pieces });
            self.sent += 1;
        }
        self.poll();
        self.server.look();
    }

    fn poll(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.queue.poll(&mut events).expect("the kernel's part works");
        events.drain(..).for_each(|event| self.take(event));
        self.events = events;
    }

    /// Checks a request that has ended, and gives its memory to something else.
    fn take(&mut self, event: Event) {
        let Event::Done { tag, result, .. } = event else { panic!("nobody is watched") };
        let slot = tag as usize;
        let Some(Live { reads, pieces }) = self.slots[slot].take() else {
            panic!("request {tag} ends twice")
        };
        self.ended += 1;
        let now = self.memory(slot);
        let shadow = &mut self.shadow[slot * SLOT..][..SLOT];
        let mut disk = reads;
        for (at, len) in pieces {
            let at = at - slot * SLOT;
            match &mut disk {
                Some(offset) => {
                    if result == Ok(()) {
                        let good =
                            now[at..at + len].iter().zip(*offset..).all(|(byte, at)| *byte == contents(at));
                        assert!(good, "a read went well and holds what the server did not say");
                    }
                    *offset += len as u64;
                    shadow[at..at + len].copy_from_slice(&now[at..at + len]);
                }
                None => {}
            }
        }
        assert!(now == *shadow, "slot {slot}: memory was written that no read had");
        if let Err(error) = result {
            assert!(!matches!(error, DiskError::QueueFull | DiskError::TimedOut), "{error}");
        }
        self.reuse(slot, (self.ended % 37) as u8 + 0x80);
    }

    fn memory(&self, slot: usize) -> Vec<u8> {
        let mut bytes = vec![0; SLOT];
        self.ram.read(Gpa((slot * SLOT) as u64), &mut bytes).expect("inside RAM");
        bytes
    }

    /// The guest does something else with a slot.
    fn reuse(&mut self, slot: usize, byte: u8) {
        self.shadow[slot * SLOT..][..SLOT].fill(byte);
        self.ram.write(Gpa((slot * SLOT) as u64), &[byte; SLOT]).expect("inside RAM");
    }

    /// The server goes, and all there is ends.
    fn finish(&mut self) {
        self.server.stream.shutdown(Shutdown::Both).ok();
        let begin = Instant::now();
        while self.queue.under_way() > 0 {
            assert!(begin.elapsed() < PATIENCE, "{} requests do not end", self.queue.under_way());
            let mut events = Vec::new();
            self.queue.wait(&mut events).expect("the kernel's part works");
            events.into_iter().for_each(|event| self.take(event));
        }
        assert_eq!(self.sent, self.ended, "each request ends once");
        for slot in 0..usize::from(DEPTH) {
            assert!(
                self.memory(slot) == self.shadow[slot * SLOT..][..SLOT],
                "slot {slot} was written afterwards"
            );
        }
    }
}
