//! Servers that lie: whatever they send, nothing outside the memory of a request that waits for just these bytes is
//! written, every request ends in its time, and a person is told what was wrong, in the protocol's words.

mod subjects;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use disk::{
    Disk, DiskError, DiskOptions, DiskQueue, Event, OnError, Operation, Request, SectorRange, Sectors,
    Source, Unmap,
};
use memory::{Buffers, Gpa, GpaRange, Ram};
use subjects::bench::{read, write};
use subjects::nbd_peer::{Asked, Door, Export, Peer, chunk, data, option_reply, reply};

const RAM: u64 = 8 << 20;
/// What guest memory holds where nobody wrote.
const OURS: u8 = 0x55;
/// What the server sends.
const THEIRS: u8 = 0xee;

/// A guest with a disk.
struct Guest {
    ram: Arc<Ram>,
    disk: Disk,
    queue: DiskQueue,
    /// Of requests that ended early.
    events: Vec<Event>,
    /// What people are told.
    told: Arc<Mutex<Vec<String>>>,
}

impl Guest {
    /// With a disk that the peer offers, behind that door.
    fn with(door: &Door, timeout: u32) -> Guest {
        let disk = open(door, timeout).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = told.clone();
        let tell = move |failure: disk::Failure| to.lock().unwrap().push(failure.to_string());
        disk.answer_failures(OnError::Report.into(), Box::new(tell));
        let queue = disk.prepare_queue(32).unwrap().start().unwrap();
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap());
        let guest = Guest { ram, disk, queue, events: Vec::new(), told };
        guest.reuse(0, RAM);
        guest
    }

    /// Begins a request; the socket has as much of it as it takes afterwards.
    fn begin(&mut self, tag: u64, operation: Operation, gpa: u64, len: u64) {
        let mut buffers = Buffers::new(self.ram.clone());
        if len > 0 {
            buffers.push(Gpa(gpa), len).unwrap();
        }
        self.queue.submit(Request { tag, operation, buffers }).unwrap();
        self.queue.poll(&mut self.events).unwrap();
    }

    /// Waits until so many requests have ended: tags and results.
    fn ended(&mut self, count: usize) -> Vec<(u64, Result<(), DiskError>)> {
        let (events, begin) = (&mut self.events, Instant::now());
        while events.len() < count {
            self.queue.wait(events).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(30), "a request does not end");
        }
        let mut ended: Vec<_> = std::mem::take(events)
            .into_iter()
            .map(|event| match event {
                Event::Done { tag, result, .. } => (tag, result),
                Event::Wake => panic!("nobody is watched"),
            })
            .collect();
        ended.sort_by_key(|(tag, _)| *tag);
        ended
    }

    /// The guest uses its memory for something else.
    fn reuse(&self, gpa: u64, len: u64) {
        self.ram.write(Gpa(gpa), &vec![OURS; len as usize]).unwrap();
    }

    fn holds(&self, gpa: u64, len: u64, byte: u8) -> bool {
        let mut bytes = vec![0; len as usize];
        self.ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes.iter().all(|found| *found == byte)
    }

    fn was_told(&self, what: &str) {
        let told = self.told.lock().unwrap();
        assert!(told.iter().any(|text| text.contains(what)), "{what:?} is not in {told:?}");
    }
}

fn options(door: &Door, timeout: u32) -> DiskOptions {
    DiskOptions::over(Source::Nbd(door.url(timeout).parse().unwrap()))
}

fn open(door: &Door, timeout: u32) -> Result<Disk, disk::OpenError> {
    Disk::open(&options(door, timeout))
}

/// A server's thread, which has the door.
fn server<T: Send + 'static>(
    export: Export,
    timeout: u32,
    run: impl FnOnce(&Door, Peer) -> T + Send + 'static,
) -> (JoinHandle<T>, Guest) {
    let door = Arc::new(Door::new());
    let ours = door.clone();
    let thread = std::thread::spawn(move || {
        let mut peer = ours.accept();
        peer.agree(export).unwrap();
        run(&ours, peer)
    });
    let guest = Guest::with(&door, timeout);
    (thread, guest)
}

const SMALL: Export = Export { size: 64 << 20, flags: 1 | 4 | 8 | 32 | 64, block: 512, longest: 512 };

/// The server answers the first part of a long read again and again, for all others, before it takes these from the
/// socket; and once more when the read has ended. Returns what it does then, and the guest.
fn answers_one_part_for_all(parts: usize) -> (JoinHandle<()>, Guest, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel();
    let (thread, guest) = server(SMALL, 20, move |_, mut peer| {
        let first = peer.asked().unwrap();
        let all: Vec<u8> = (0..parts).flat_map(|_| data(first.cookie, &[THEIRS; 512])).collect();
        // The connection may end at any of them.
        peer.send(&all).ok();
        peer.send(&reply(first.cookie, 0)).ok();
        peer.take::<28>().ok();
        wait.recv().unwrap();
        peer.send(&[THEIRS; 512]).ok();
    });
    (thread, guest, go)
}

#[test]
fn a_part_that_is_answered_again_stands_for_no_other_and_its_late_data_reaches_no_memory() {
    let (thread, mut guest, go) = answers_one_part_for_all(2048);
    guest.begin(1, read(0), 0, 1 << 20);
    assert_eq!(guest.ended(1), [(1, Err(DiskError::Gone))], "only its first 512 bytes were sent");
    assert!(guest.holds(512, RAM - 512, OURS));
    guest.reuse(0, 512);
    go.send(()).unwrap();
    thread.join().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(guest.holds(0, RAM, OURS), "written after the request had ended");
    guest.was_told("the server broke the NBD protocol: a reply with the cookie 0x");
}

#[test]
fn memory_that_a_request_had_is_not_written_when_it_has_become_something_else_of_the_process() {
    let (thread, mut guest, go) = answers_one_part_for_all(2048);
    let mut buffers = Buffers::new(guest.ram.clone());
    buffers.push(Gpa(0), 1 << 20).unwrap();
    let place = buffers.iovecs()[0].iov_base;
    guest.queue.submit(Request { tag: 1, operation: read(0), buffers }).unwrap();
    assert_eq!(guest.ended(1), [(1, Err(DiskError::Gone))]);
    let Guest { ram, disk, queue, .. } = guest;
    assert_eq!(Arc::strong_count(&ram), 1, "nobody else has a share of the memory");
    drop(ram);
    // SAFETY: a new mapping, at a place that has become free or nowhere.
    let again = unsafe {
        let (rights, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
        );
        libc::mmap(place, 4096, rights, kind, -1, 0)
    };
    assert_eq!(again, place, "the RAM is unmapped");
    // SAFETY: just mapped, and nobody else's.
    let bytes = unsafe { std::slice::from_raw_parts_mut(again.cast::<u8>(), 4096) };
    bytes.fill(OURS);
    go.send(()).unwrap();
    thread.join().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(bytes.iter().all(|byte| *byte == OURS), "written after the request had ended");
    drop((queue, disk));
}

#[test]
fn an_answer_after_the_answer_ends_the_connection_and_is_read_into_nothing() {
    for first_error in [0, 5] {
        let (thread, mut guest) = server(Export::default(), 20, move |_, mut peer| {
            let [one, two] = [peer.asked().unwrap(), peer.asked().unwrap()];
            let answer =
                if first_error == 0 { data(one.cookie, &[THEIRS; 4096]) } else { reply(one.cookie, 5) };
            peer.send(&answer).unwrap();
            peer.send(&data(one.cookie, &[THEIRS; 4096])).unwrap();
            peer.send(&data(two.cookie, &[THEIRS; 4096])).ok();
            peer.is_closed()
        });
        guest.begin(1, read(0), 0, 4096);
        guest.begin(2, read(8), 8192, 4096);
        let first = if first_error == 0 { Ok(()) } else { Err(DiskError::Media) };
        assert_eq!(guest.ended(2), [(1, first), (2, Err(DiskError::Gone))]);
        assert!(thread.join().unwrap());
        assert!(guest.holds(4096, RAM - 4096, OURS));
        assert!(guest.holds(0, 4096, if first_error == 0 { THEIRS } else { OURS }));
    }
}

#[test]
fn chunks_of_structured_replies_are_refused_wherever_they_point_and_whatever_came_before() {
    let at = |offset: u64, bytes: usize| [&offset.to_be_bytes()[..], &vec![THEIRS; bytes]].concat();
    let (content, hole, done) = (1, 2, 1);
    type Chunks = Vec<(u16, u16, Vec<u8>)>;
    let cases: [Chunks; 5] = [
        vec![(done, content, at(0, 4096))],
        // Overlapping, and too many.
        vec![(0, content, at(0, 4096)), (0, content, at(0, 4096)), (done, content, at(2048, 4096))],
        // Outside what was asked for.
        vec![(done, content, at(1 << 20, 4096))],
        vec![(done, hole, [&0u64.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat())],
        // After the last.
        vec![(done, 0, Vec::new()), (0, content, at(0, 4096))],
    ];
    for chunks in cases {
        let (thread, mut guest) = server(Export::default(), 20, move |_, mut peer| {
            let asked = peer.asked().unwrap();
            chunks
                .iter()
                .for_each(|(flags, kind, bytes)| drop(peer.send(&chunk(asked.cookie, *flags, *kind, bytes))));
            peer.is_closed()
        });
        guest.begin(1, read(0), 0, 4096);
        assert_eq!(guest.ended(1), [(1, Err(DiskError::Gone))]);
        thread.join().unwrap();
        assert!(guest.holds(0, RAM, OURS));
        guest.was_told("the server broke the NBD protocol: a structured reply, which was not negotiated");
    }
}

#[test]
fn no_cookie_can_be_told_from_those_before() {
    type Guess = fn(&[u64; 3]) -> u64;
    let guesses: [Guess; 8] = [
        |seen| seen[2].wrapping_add(1),
        |seen| seen[2].wrapping_add(seen[2].wrapping_sub(seen[1])),
        |seen| seen[2] ^ seen[1] ^ seen[0],
        |seen| seen[2] ^ 1,
        |seen| seen[2].wrapping_add(1 << 20),
        |_| 4,
        |_| 0,
        |_| 4 << 20,
    ];
    for guess in guesses {
        let (sent, has_sent) = mpsc::channel();
        let (thread, mut guest) = server(Export::default(), 20, move |_, mut peer| {
            let seen = [0, 1, 2].map(|_| peer.asked().unwrap().cookie);
            // The fourth is under way and the server has not looked at it.
            has_sent.recv().unwrap();
            peer.send(&data(guess(&seen), &[THEIRS; 4096])).unwrap();
            peer.0.set_nonblocking(false).unwrap();
            while !peer.is_closed() {}
        });
        (0..4).for_each(|tag| guest.begin(tag, read(0), tag << 13, 4096));
        sent.send(()).unwrap();
        assert_eq!(guest.ended(4), [0, 1, 2, 3].map(|tag| (tag, Err(DiskError::Gone))));
        assert!(guest.holds(0, RAM, OURS));
        drop(guest);
        thread.join().unwrap();
    }
}

#[test]
fn no_cookie_comes_twice_and_one_of_a_connection_that_ended_is_nothing_on_the_next() {
    let (tell, old) = mpsc::channel();
    let (thread, mut guest) = server(Export::default(), 20, move |door, mut peer| {
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            let asked = peer.asked().unwrap();
            assert!(seen.insert(asked.cookie));
            peer.send(&data(asked.cookie, &[THEIRS; 512])).unwrap();
        }
        let open = peer.asked().unwrap().cookie;
        drop(peer);
        let mut peer = door.accept();
        peer.agree(Export::default()).unwrap();
        tell.send(()).unwrap();
        let asked = peer.asked().unwrap();
        assert!(seen.insert(asked.cookie) && asked.cookie != open);
        tell.send(()).unwrap();
        peer.send(&data(open, &[THEIRS; 512])).unwrap();
        peer.is_closed()
    });
    for tag in 0..1000 {
        guest.begin(tag, read(0), 0, 512);
        assert_eq!(guest.ended(1), [(tag, Ok(()))]);
    }
    guest.reuse(0, 512);
    guest.begin(1, read(0), 0, 512);
    assert_eq!(guest.ended(1), [(1, Err(DiskError::Gone))]);
    guest.was_told("the disk is gone (the server closed the connection)");
    old.recv().unwrap();
    // The new connection is the disk's in a moment. Until then it has none.
    for tag in 2.. {
        guest.begin(tag, read(0), 4096, 512);
        assert_eq!(guest.ended(1), [(tag, Err(DiskError::Gone))]);
        guest.reuse(4096, 512);
        if old.try_recv().is_ok() {
            break;
        }
        assert!(tag < 1000, "the new connection is never used");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(thread.join().unwrap());
    assert!(guest.holds(0, RAM, OURS));
}

#[test]
fn a_write_that_is_answered_while_it_is_sent_keeps_its_memory_until_it_is_not_read_any_more() {
    let (go, wait) = mpsc::channel();
    let export = Export { longest: 4 << 20, ..Export::default() };
    let (thread, guest) = server(export, 20, move |_, mut peer| {
        let asked = peer.asked().unwrap();
        peer.send(&reply(asked.cookie, 0)).unwrap();
        wait.recv().unwrap();
        let mut rest = vec![0; asked.len as usize];
        std::io::Read::read_exact(&mut peer.0, &mut rest).unwrap();
        rest.iter().all(|byte| *byte == OURS)
    });
    let Guest { ram, disk, .. } = guest;
    let (ended, end) = mpsc::channel();
    let shared = ram.clone();
    let client = std::thread::spawn(move || {
        let mut queue = disk.prepare_queue(4).unwrap().start().unwrap();
        let mut buffers = Buffers::new(shared);
        buffers.push(Gpa(0), 4 << 20).unwrap();
        queue.submit(Request { tag: 1, operation: write(0), buffers }).unwrap();
        let mut events = Vec::new();
        queue.drain(&mut events).unwrap();
        ended.send(matches!(events[..], [Event::Done { result: Ok(()), .. }])).unwrap();
    });
    assert!(end.recv_timeout(Duration::from_millis(300)).is_err(), "its memory is still being sent");
    assert!(Arc::strong_count(&ram) > 1);
    go.send(()).unwrap();
    assert!(end.recv().unwrap());
    client.join().unwrap();
    assert!(thread.join().unwrap(), "all of it arrived");
    assert_eq!(Arc::strong_count(&ram), 1);
}

/// How long the guest's request took to end; it ended as one that was not answered in time.
fn ends_in_time(guest: &mut Guest, operation: Operation, len: u64) {
    let begin = Instant::now();
    guest.begin(1, operation, 0, len);
    assert_eq!(guest.ended(1), [(1, Err(DiskError::TimedOut))]);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    guest.was_told("the disk did not answer in time (the server did not answer in its time");
}

#[test]
fn a_server_that_drips_has_no_more_time_than_one_that_is_silent() {
    let drip = |mut peer: Peer, bytes: Vec<u8>| {
        for byte in bytes {
            if peer.send(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("all of it was taken");
    };
    // Data, a byte at a time.
    let (thread, mut guest) = server(Export::default(), 1, move |_, mut peer| {
        let asked = peer.asked().unwrap();
        drip(peer, data(asked.cookie, &[THEIRS; 4096]));
    });
    ends_in_time(&mut guest, read(0), 4096);
    thread.join().unwrap();
    // Parts, one now and then.
    let (thread, mut guest) = server(SMALL, 1, move |_, mut peer| {
        for _ in 0..1000 {
            let Ok(asked) = peer.asked() else { return };
            if peer.send(&data(asked.cookie, &[THEIRS; 512])).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("all of it was taken");
    });
    ends_in_time(&mut guest, read(0), 1 << 20);
    thread.join().unwrap();
}

#[test]
fn a_server_that_takes_a_byte_now_and_then_has_no_more_time_than_one_that_takes_nothing() {
    let export = Export { longest: 8 << 20, ..Export::default() };
    let (thread, guest) = server(export, 1, move |_, mut peer| {
        peer.asked().unwrap();
        while peer.take::<4096>().is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let begin = Instant::now();
    let Guest { ram, mut queue, disk, .. } = guest;
    let mut buffers = Buffers::new(ram);
    buffers.push(Gpa(0), RAM).unwrap();
    queue.submit(Request { tag: 1, operation: write(0), buffers }).unwrap();
    let mut events = Vec::new();
    queue.drain(&mut events).unwrap();
    assert!(matches!(events[..], [Event::Done { result: Err(DiskError::TimedOut), .. }]), "{events:?}");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    drop((queue, disk));
    thread.join().unwrap();
}

/// Serves everything with zeroes until the connection ends; what was asked for.
fn serve(mut peer: Peer) -> Vec<Asked> {
    let mut all = Vec::new();
    while let Ok(asked) = peer.asked() {
        all.push(asked);
        let answer = match asked.command {
            0 => data(asked.cookie, &vec![THEIRS; asked.len as usize]),
            2 => break,
            _ => reply(asked.cookie, 0),
        };
        if peer.send(&answer).is_err() {
            break;
        }
    }
    all
}

#[test]
fn long_ranges_on_a_server_with_short_transfers_have_a_limit_and_every_part_is_its_own() {
    let (thread, mut guest) = server(Export { size: 8 << 30, ..SMALL }, 20, |_, peer| serve(peer));
    let geometry = guest.disk.geometry().clone();
    let max = geometry.discard.unwrap().max;
    assert_eq!(geometry.write_zeroes.unwrap().max, max);
    assert!(max >= Sectors(128) && max <= Sectors(1 << 14), "{max}");
    let whole = SectorRange { start: Sectors(0), count: Sectors((1 << 30) / 512) };
    for operation in [Operation::Discard(whole), Operation::WriteZeroes(whole, Unmap::Allowed)] {
        let refused =
            guest.queue.submit(Request { tag: 0, operation, buffers: Buffers::new(guest.ram.clone()) });
        assert_eq!(refused.unwrap_err().error, DiskError::TooLong);
    }
    // More parts than a server may owe at once, and the longest ranges there are.
    guest.queue.submit(Request { tag: 0, operation: read(0), buffers: all_of(&guest.ram) }).unwrap();
    assert_eq!(guest.ended(1), [(0, Ok(()))]);
    assert!(guest.holds(0, RAM, THEIRS));
    let range = SectorRange { start: Sectors(1 << 15), count: max };
    for operation in [Operation::Discard(range), Operation::WriteZeroes(range, Unmap::Forbidden)] {
        guest.queue.submit(Request { tag: 1, operation, buffers: Buffers::new(guest.ram.clone()) }).unwrap();
        assert_eq!(guest.ended(1), [(1, Ok(()))]);
    }
    drop((guest.queue, guest.disk));
    let asked = thread.join().unwrap();
    let cookies: HashSet<u64> = asked.iter().map(|asked| asked.cookie).collect();
    let requests = asked.iter().filter(|asked| asked.command != 2).count();
    assert_eq!(requests as u64, RAM / 512 + 2 * max.0);
    assert!(cookies.len() >= requests, "no cookie twice");
    for (command, start) in [(0, 0), (4, 1 << 24), (6, 1 << 24)] {
        let parts = asked.iter().filter(|asked| asked.command == command);
        assert!(parts.zip(0u64..).all(|(part, n)| (part.offset, part.len) == (start + 512 * n, 512)));
    }
}

fn all_of(ram: &Arc<Ram>) -> Buffers {
    let mut buffers = Buffers::new(ram.clone());
    buffers.push(Gpa(0), RAM).unwrap();
    buffers
}

/// What opening a disk says when the server behaves so.
fn refusal(behave: impl FnOnce(&mut Peer) + Send + 'static) -> String {
    let door = Arc::new(Door::new());
    let ours = door.clone();
    let thread = std::thread::spawn(move || {
        let mut peer = ours.accept();
        behave(&mut peer);
        peer.is_closed();
    });
    let error = open(&door, 1).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "disk nbd+unix:///vm?socket={}",
            door.url(1).split_once('=').unwrap().1.split_once('&').unwrap().0
        )),
        "{error}"
    );
    thread.join().unwrap();
    error
}

#[test]
fn a_negotiation_that_breaks_the_protocol_is_refused_in_its_words() {
    let plain = Export::default();
    let replies = |replies: Vec<Vec<u8>>| {
        refusal(move |peer| {
            peer.greet().unwrap();
            peer.send(&replies.concat()).unwrap();
        })
    };
    let (disk, blocks) = (plain.about_the_disk(), plain.about_blocks());
    let info = |data: &[u8]| option_reply(7, 3, data);
    let ack = option_reply(7, 1, &[]);
    let size = |size| info(&Export { size, ..plain }.about_the_disk());
    let sizes = |block, longest| info(&Export { block, longest, ..plain }.about_blocks());
    let mut huge = option_reply(7, 3, &[]);
    huge[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    for (sent, expected) in [
        (vec![ack.clone()], "without saying how large the disk is (NBD_INFO_EXPORT)"),
        (vec![info(&disk[..11])], "NBD_REP_INFO of type 0 has 11 bytes"),
        (vec![info(&blocks[..13])], "NBD_REP_INFO of type 3 has 13 bytes"),
        (vec![info(&[])], "says not what it is about"),
        (vec![info(&disk), size(1 << 20)], "NBD_REP_INFO of type 0 twice"),
        (vec![info(&disk), option_reply(7, 1, b"x")], "its NBD_REP_ACK has 1 bytes of data"),
        (vec![size(0), ack.clone()], "0 bytes, which is less than one block"),
        (vec![size(511), ack.clone()], "511 bytes, which is less than one block of 512"),
        (vec![size(u64::MAX), ack.clone()], "more than a disk can have"),
        (vec![info(&disk), sizes(0, 4096), ack.clone()], "smallest block of 0 bytes is no power of two"),
        (vec![info(&disk), sizes(1 << 20, 1 << 20), ack.clone()], "smallest block of 1048576 bytes"),
        (
            vec![info(&disk), sizes(4096, 512), ack.clone()],
            "longest transfer of 512 bytes is shorter than a block",
        ),
        (vec![huge], "its option reply is 4294967295 bytes long"),
        (vec![option_reply(3, 1, &[])], "it answers option 3, and was asked option 7 (NBD_OPT_GO)"),
        (vec![option_reply(7, 9, &[])], "a reply of type 9"),
        (vec![vec![0; 20]], "no option reply (its magic number is wrong)"),
        (vec![info(&[0, 1, b'x']); 64], "64 replies to NBD_OPT_GO and no NBD_REP_ACK"),
    ] {
        let error = replies(sent);
        assert!(error.contains(expected), "{error}");
    }
    let error = refusal(|peer| peer.send(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0").unwrap());
    assert!(error.contains("old style (there is no IHAVEOPT)"), "{error}");
    let error = refusal(|peer| peer.send(b"SSH-2.0-OpenSSH_9.2p1\r\n").unwrap());
    assert!(error.contains("does not begin with NBDMAGIC"), "{error}");
    let error = refusal(|peer| peer.0.shutdown(std::net::Shutdown::Both).unwrap());
    assert!(error.contains("closed the connection while it negotiated"), "{error}");
}

#[test]
fn a_negotiation_that_drips_or_never_ends_is_given_up_in_time() {
    let begin = Instant::now();
    let error = refusal(|peer| {
        for byte in b"NBDMAGICIHAVEOPT".iter().cycle() {
            if peer.send(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(
        error.contains("does not begin") || error.contains("did not end the negotiation within 1 s"),
        "{error}"
    );
    assert!(begin.elapsed() < Duration::from_secs(3));
    let begin = Instant::now();
    let error = refusal(|peer| {
        peer.greet().unwrap();
        let name = option_reply(7, 3, &[0, 1, b'x']);
        while peer.send(&name[..8]).is_ok() && peer.send(&name[8..]).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(error.contains("did not end the negotiation within 1 s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_server_that_accepts_nobody_is_given_up_in_time() {
    let door = Door::new();
    let _first = door.let_in_one();
    let begin = Instant::now();
    let error = open(&door, 1).unwrap_err().to_string();
    assert!(error.contains("the server accepts no connection"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_disk_whose_server_accepts_nobody_any_more_is_closed_at_once() {
    let (over, wait) = mpsc::channel::<()>();
    let (thread, guest) = server(Export::default(), 20, move |door, peer| {
        let _first = door.let_in_one();
        drop(peer);
        wait.recv().unwrap_err();
    });
    // One attempt a second.
    std::thread::sleep(Duration::from_millis(1500));
    let begin = Instant::now();
    drop(guest);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    drop(over);
    thread.join().unwrap();
}

#[test]
fn a_server_that_is_back_with_another_disk_does_not_get_the_guests_requests() {
    let (thread, mut guest) = server(Export::default(), 20, |door, peer| {
        drop(peer);
        let mut peer = door.accept();
        peer.agree(Export { size: 1 << 20, ..Export::default() }).unwrap();
        peer.is_closed()
    });
    assert!(thread.join().unwrap());
    let begin = Instant::now();
    loop {
        let buffers = Buffers::new(guest.ram.clone());
        guest.queue.submit(Request { tag: 1, operation: Operation::Flush, buffers }).unwrap();
        assert_eq!(guest.ended(1), [(1, Err(DiskError::Gone))]);
        if guest
            .told
            .lock()
            .unwrap()
            .iter()
            .any(|text| text.contains("another disk there now: 1048576 bytes"))
        {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", guest.told);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_export_whose_last_block_is_not_whole_is_remarked_on() {
    let door = Arc::new(Door::new());
    let ours = door.clone();
    let thread = std::thread::spawn(move || {
        for (size, block) in [(123_456_789, 512), (8 << 20 | 512, 4096), (8 << 20, 4096)] {
            let mut peer = ours.accept();
            peer.agree(Export { size, block, ..Export::default() }).unwrap();
            peer.asked().ok();
        }
    });
    for (sectors, tail) in [(241_126, Some("277 bytes")), (16384, Some("512 bytes")), (16384, None)] {
        let disk = open(&door, 5).unwrap();
        assert_eq!(disk.capacity(), Sectors(sectors));
        match tail {
            Some(tail) => assert!(
                disk.remarks()[0].contains(&format!("does not see the last {tail}")),
                "{:?}",
                disk.remarks()
            ),
            None => assert!(disk.remarks().is_empty()),
        }
    }
    thread.join().unwrap();
}
