//! The socket from outside: what a client gets, and what a broken one can do.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use config::VmName;

use super::*;
use crate::api::{After, Eject, EventKind, Insert, MemoryFiles, NewDisk, Plug, State, Unplug};
use crate::client::{Client, ClientError};
use crate::fake::FakeVm;
use crate::folder::Folder;

struct Running {
    folder: Folder,
    name: VmName,
    vm: Arc<FakeVm>,
    server: Option<Server>,
    _place: tempfile::TempDir,
}

fn after(after: u64, wait: u64) -> After {
    After { after, wait }
}

const HASTY: Patience = Patience {
    idle: Duration::from_secs(5),
    request: Duration::from_millis(300),
    answer: Duration::from_secs(5),
};

fn running() -> Running {
    let place = tempfile::tempdir().unwrap();
    let (folder, name) = (Folder::at(place.path().join("vm")), "web".parse::<VmName>().unwrap());
    let vm = Arc::new(FakeVm::new("web"));
    let server = Server::with(folder.claim(&name).unwrap(), vm.clone(), HASTY).unwrap();
    Running { folder, name, vm, server: Some(server), _place: place }
}

impl Running {
    fn client(&self) -> Client {
        Client::connect(&self.folder, &self.name).unwrap()
    }

    fn stream(&self) -> UnixStream {
        UnixStream::connect(self.folder.socket(&self.name)).unwrap()
    }

    /// What comes back for these bytes until the VM closes the connection.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.stream();
        stream.write_all(bytes).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn connected(&self) -> usize {
        Arc::strong_count(&self.vm)
    }
}

#[test]
fn one_connection_answers_every_question() {
    let vm = running();
    let mut client = vm.client();
    let info = client.info().unwrap();
    assert_eq!((info.name.as_str(), info.state, info.pid), ("web", State::Running, std::process::id()));
    assert_eq!(client.dma().unwrap().domains.len(), 2);
    assert_eq!(client.memory().unwrap().segments.len(), 2);
    assert_eq!(client.stats().unwrap().disks[0].bytes_direct, 28672);
    assert_eq!(client.pause().unwrap().state, State::Paused);
    assert_eq!(client.info().unwrap().state, State::Paused);
    assert_eq!(client.resume().unwrap().state, State::Running);
    client.press_power_button().unwrap();
    let events = client.events(&after(1, 0)).unwrap();
    assert_eq!((events.events.len(), events.next_after, events.lost), (2, 3, 0));
    assert_eq!((events.events[0].number, events.events[0].kind), (2, EventKind::Life));
    assert_eq!(client.stop().unwrap().state, State::Ending);
    let refused = client.pause().unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: 409, .. }), "{refused}");
    assert!(refused.to_string().contains("is ending. Start it again"), "{refused}");
}

#[test]
fn a_disc_is_changed_by_a_request_with_a_body() {
    let vm = running();
    let mut client = vm.client();
    let (drive, disc) = ("cd0".to_owned(), "/images/b.iso".to_owned());
    let refused = client.eject(&Eject { drive: drive.clone(), force: false }).unwrap_err();
    assert!(refused.to_string().contains("--force"), "{refused}");
    assert_eq!(client.eject(&Eject { drive: drive.clone(), force: true }).unwrap().disc, None);
    assert_eq!(client.stats().unwrap().drives[0].disc, None);
    let changed = client.insert(&Insert { drive, disc: disc.clone(), force: false }).unwrap();
    assert_eq!(changed.disc.as_deref(), Some("/images/b.iso"));
    // A drive is also what is in it.
    assert_eq!(client.eject(&Eject { drive: disc, force: true }).unwrap().name, "cd0");
    for body in ["", "{}", "{\"drive\":\"cd0\",\"froce\":true}", "[1]", "\u{0}"] {
        let length = body.len();
        let head =
            format!("POST /v1/eject HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        let answer = vm.raw(format!("{head}{body}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Send JSON like"), "{body}: {answer}");
    }
}

#[test]
fn a_disk_is_plugged_in_and_unplugged_by_requests_with_a_body() {
    let vm = running();
    let mut client = vm.client();
    let plug = |path: &str| {
        let (path, serial) = (Some(path.to_owned()), Some("A".to_owned()));
        Plug { disk: NewDisk { path, serial, ..NewDisk::default() } }
    };
    let plugged = client.plug(&plug("/dev/sdb")).unwrap();
    assert_eq!((plugged.disk.as_str(), plugged.place.as_str()), ("/dev/sdb", "ahci 00:03.0, port 1"));
    assert_eq!(client.stats().unwrap().disks[1].name, "/dev/sdb");
    let refused = client.plug(&plug("/dev/sdc")).unwrap_err().to_string();
    assert!(refused.contains(" refused: ") && refused.contains("Unplug a disk first"), "{refused}");
    assert!(!refused.contains("POST") && !refused.contains("409"), "no HTTP for people: {refused}");
    let post = |path: &str, body: &str| {
        let length = body.len();
        let head =
            format!("POST /v1/{path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        vm.raw(format!("{head}{body}").as_bytes())
    };
    let refused = post("plug", r#"{"disk":"/dev/sdc,sreial=A"}"#);
    assert!(refused.contains("Did you mean `serial`?"), "{refused}");
    let unplug = Unplug { disk: plugged.disk };
    assert!(!client.unplug(&unplug).unwrap().leaving);
    assert!(client.unplug(&unplug).unwrap_err().to_string().contains("no disk called /dev/sdb"));
    for (path, body) in [
        ("plug", ""),
        ("plug", "{}"),
        ("plug", "{\"disk\":[\"/dev/sdb\"]}"),
        ("unplug", "{\"disk\":\"/dev/sdb\",\"force\":true}"),
        ("unplug", "null"),
        ("plug", "{\"disk\":{\"path\":\"/dev/sdb\",\"sreial\":\"A\"}}"),
        ("plug", "{\"disk\":{\"path\":\"/dev/sdb\",\"poll\":\"often\"}}"),
    ] {
        let answer = post(path, body);
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Send JSON like"), "{body}: {answer}");
        assert!(answer.contains("disk"), "{answer}");
    }
    let long = "a".repeat(65 << 10);
    let head = format!("POST /v1/plug HTTP/1.1\r\nContent-Length: {}\r\n\r\n", long.len());
    assert!(vm.raw(head.as_bytes()).starts_with("HTTP/1.1 413 "));
}

#[test]
fn the_files_of_the_segments_come_over_and_are_the_guests_ram() {
    let vm = running();
    vm.vm.write_ram(0x20_1000, &0x1122_3344u32.to_le_bytes());
    let MemoryFiles { memory, files: fds } = vm.client().memory_fds().unwrap();
    assert_eq!((memory.segments.len(), fds.len()), (2, 2));
    let file = File::from(fds.into_iter().nth(1).unwrap());
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, memory.segments[1].offset.0 + 0x1000).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
    file.write_all_at(&[7], 0x1000).unwrap();
    let mut byte = [0];
    vm.vm.read_ram(0x20_1000, &mut byte);
    assert_eq!(byte[0], 7);
}

#[test]
fn whoever_waits_for_events_gets_the_next_one_and_then_the_end() {
    let mut vm = running();
    let (mut client, journal) = (vm.client(), vm.vm.journal());
    let (tell, told) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let first = client.events(&after(0, 30)).unwrap();
        tell.send(()).unwrap();
        (first.events[0].text.clone(), client.events(&after(1, 30)))
    });
    std::thread::sleep(Duration::from_millis(50));
    journal.record(EventKind::Trouble, "A disk is slow.");
    told.recv().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let before = Instant::now();
    vm.server = None;
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    let (text, end) = waiting.join().unwrap();
    assert_eq!(text, "A disk is slow.");
    assert!(end.is_ok_and(|events| events.ended));
    assert!(vm.connected() == 1, "nothing of the server holds the VM any more");
    assert!(matches!(Client::connect(&vm.folder, &vm.name), Err(ClientError::NoVm { .. })));
}

#[test]
fn while_the_vm_is_taken_apart_its_events_are_told_and_nothing_of_it_is_handed_out() {
    let mut vm = running();
    let (mut client, journal) = (vm.client(), vm.vm.journal());
    assert_eq!(client.dma().unwrap().domains.len(), 2);
    vm.server.as_ref().unwrap().retire().unwrap();
    let refused = client.dma().unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: 409, .. }), "{refused}");
    assert!(client.memory_fds().is_err() && client.pause().is_err());
    assert_eq!(client.info().unwrap().name, "web");
    let (tell, told) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let last = client.events(&after(0, 30)).unwrap();
        tell.send(()).unwrap();
        (last.events[0].text.clone(), client.events(&after(1, 30)).unwrap().ended)
    });
    journal.record(EventKind::Trouble, "0000:01:00.0 cannot be given back.");
    told.recv().unwrap();
    vm.server = None;
    assert_eq!(waiting.join().unwrap(), ("0000:01:00.0 cannot be given back.".to_owned(), true));
}

#[test]
fn a_request_that_hangs_holds_up_neither_the_vms_end_nor_its_sockets() {
    let mut vm = running();
    let (mut client, fake) = (vm.client(), vm.vm.clone());
    let drive = fake.hold_the_drive();
    let asking = std::thread::spawn(move || {
        client.insert(&Insert { drive: "cd0".to_owned(), disc: "/nfs/a.iso".to_owned(), force: true })
    });
    let server = vm.server.take().unwrap();
    let begin = Instant::now();
    while server.gate.traffic().passing == 0 {
        assert!(begin.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(1));
    }
    let begin = Instant::now();
    let unanswered = server.retire_within(Duration::from_millis(100)).unwrap_err();
    assert!(unanswered.to_string().contains("has not answered 1 of the requests"), "{unanswered}");
    assert!(vm.client().pause().is_err(), "nothing new is asked of it");
    drop(server);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(asking.join().unwrap().is_err());
    drop(drive);
    while Arc::strong_count(&fake) > 2 {
        assert!(begin.elapsed() < Duration::from_secs(10), "who was left behind ends when it can");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_waiting_client_that_goes_away_gives_its_place_back() {
    let vm = running();
    let wait = |what: &dyn Fn() -> bool| {
        let until = Instant::now() + Duration::from_secs(5);
        while !what() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let none = vm.connected();
    let streams: Vec<UnixStream> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let mut stream = vm.stream();
            stream.write_all(b"GET /v1/events?wait=60 HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    wait(&|| vm.connected() == none + MAX_CONNECTIONS);
    assert!(vm.client().info().is_err(), "there is no room");
    drop(streams);
    wait(&|| vm.client().info().is_ok());
}

#[test]
fn more_connections_than_there_is_room_for_are_turned_away_in_words() {
    let vm = running();
    let clients: Vec<Client> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let mut client = vm.client();
            client.info().unwrap();
            client
        })
        .collect();
    let refused = vm.client().info().unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: 503, .. }), "{refused}");
    drop(clients);
    let until = Instant::now() + Duration::from_secs(5);
    while vm.client().info().is_err() {
        assert!(Instant::now() < until);
    }
}

#[test]
fn a_slow_request_is_given_up_and_says_so() {
    let vm = running();
    let mut stream = vm.stream();
    let before = Instant::now();
    for byte in b"GET /v1 HTTP/1.1\r\nx: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
        // It breaks once the VM has closed the connection.
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = String::new();
    drop(stream.read_to_string(&mut text));
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(before.elapsed() < Duration::from_secs(3));
}

#[test]
fn nonsense_and_excess_are_refused_and_the_vm_lives_on() {
    let vm = running();
    assert!(vm.raw(b"\x16\x03\x01 hello\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let long = [b"GET /".as_slice(), &[b'x'; 9000]].concat();
    assert!(vm.raw(&long).starts_with("HTTP/1.1 431 "));
    assert!(vm.raw(b"POST /v1/stop HTTP/1.1\r\nContent-Length: 99999\r\n\r\n").starts_with("HTTP/1.1 413 "));
    let close = "Connection: close\r\n\r\n";
    let ask = |line: &str| vm.raw(format!("{line} HTTP/1.1\r\n{close}").as_bytes());
    assert!(ask("GET /v2").contains("There are: /v1, /v1/dma"));
    let wrong = ask("POST /v1/dma");
    assert!(wrong.starts_with("HTTP/1.1 405 ") && wrong.contains("\r\nAllow: GET\r\n"), "{wrong}");
    assert!(ask("GET /v1/stop").contains("Use the method POST"));
    assert!(ask("GET /v1/events?after=-1").contains("is not a number"));
    assert!(ask("GET /v1/dma?watch=1").contains(r#"knows no \"watch\""#));
    let body =
        vm.raw(b"POST /v1/stop HTTP/1.1\r\nContent-Length: 12\r\nConnection: close\r\n\r\n{\"when\": 60}");
    assert!(body.starts_with("HTTP/1.1 400 ") && body.contains("takes no body"), "{body}");
    assert_eq!(vm.client().info().unwrap().state, State::Running);
}

#[test]
fn requests_that_come_together_are_answered_one_after_the_other() {
    let vm = running();
    let two = b"GET /v1 HTTP/1.1\r\n\r\nPOST /v1/pause HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let text = vm.raw(two);
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.ends_with("{\"state\":\"paused\"}\n"), "{text}");
}
