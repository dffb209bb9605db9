//! Controllers whose disk holds requests that failed: guests wait for them, and get them or their errors.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use devices::ahci::{self, AhciDisk, AhciPort};
use devices::nvme::driver::io;
use devices::nvme::{self, spec};
use devices::{Namespace, NvmeOptions};
use disk::{Disk, DiskOptions, Failure, OnError};
use memory::{Gpa, GpaRange, Ram};

const SIZE: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk that holds what fails; it fails behind its middle while its file is only half as long.
struct Backing {
    disk: Arc<Disk>,
    file: tempfile::NamedTempFile,
    failures: Receiver<Failure>,
}

impl Backing {
    fn new() -> Backing {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.as_file().set_len(SIZE).unwrap();
        let disk = Arc::new(Disk::open(&DiskOptions::new(file.path())).unwrap());
        let (to, failures) = channel();
        disk.answer_failures(OnError::Pause.into(), Box::new(move |failure| drop(to.send(failure))));
        Backing { disk, file, failures }
    }

    fn halve(&self) {
        self.file.as_file().set_len(SIZE / 2).unwrap();
    }

    fn mend(&self) {
        self.file.as_file().set_len(SIZE).unwrap();
    }

    fn await_failure(&self) {
        self.failures.recv_timeout(PATIENCE).unwrap();
    }

    fn settle(&self) {
        assert!(self.disk.failures().settle(Instant::now() + PATIENCE));
    }
}

fn ram() -> Arc<Ram> {
    Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 32 << 20).unwrap()]).unwrap())
}

#[test]
fn an_nvme_queue_with_a_held_command_goes_when_it_is_given_up() {
    use nvme::driver::Guest;
    let backing = Backing::new();
    let guest = Guest::new(vec![Namespace::new(backing.disk.clone())], &NvmeOptions::new("disk0"), ram());
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let behind = SIZE / 512 - 8;
    backing.halve();
    let held = guest.submit(&mut queue, io(spec::io::READ, 1, behind, 8, [Guest::DATA.0, 0]));
    backing.await_failure();
    // Others are not held up.
    assert_eq!(guest.run(&mut queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0])).0, 0);
    backing.mend();
    backing.disk.failures().retry();
    let done = guest.wait(&mut queue);
    assert_eq!((done.cid.get(), done.status.get() >> 1), (held, 0));
    backing.halve();
    guest.submit(&mut queue, io(spec::io::READ, 1, behind, 8, [Guest::DATA.0, 0]));
    backing.await_failure();
    // Deleting the queue waits for its commands.
    let delete =
        spec::Command { opcode: spec::admin::DELETE_SQ, cdw10: 1.into(), ..spec::Command::default() };
    guest.submit(&mut admin, delete);
    std::thread::sleep(Duration::from_millis(10));
    assert!(guest.look(&admin).is_none());
    backing.disk.failures().give_up();
    assert_eq!(guest.wait(&mut admin).status.get() >> 1, 0);
    assert_eq!(guest.wait(&mut queue).status.get() >> 1 & 0x7ff, 0x80, "LBA out of range");
    backing.settle();
    assert!(backing.disk.failures().waiting().is_none());
}

#[test]
fn a_sata_port_with_a_held_command_goes_on_and_a_machine_is_reset_once_it_is_given_up() {
    use ahci::driver::{Ata, Guest, reg};
    const DATA: u64 = 0x40_0000;
    const READ_QUEUED: u8 = 0x60;
    let backing = Backing::new();
    let disk = AhciPort::Disk(AhciDisk::new("disk0", backing.disk.clone()));
    let guest = Guest::new(vec![disk], ram());
    let port = guest.port(0, Gpa(0x10_0000));
    port.start();
    let behind = SIZE / 512 - 8;
    backing.halve();
    port.issue_queued(3, Ata::queued(READ_QUEUED, behind, 8, 3), &[(DATA, 4096)]);
    backing.await_failure();
    port.issue_queued(4, Ata::queued(READ_QUEUED, 0, 8, 4), &[(DATA, 4096)]);
    port.wait(1 << 4).unwrap();
    assert_eq!(port.read(reg::SACT), 1 << 3);
    backing.mend();
    backing.disk.failures().retry();
    port.wait(1 << 3).unwrap();
    backing.halve();
    port.issue_queued(5, Ata::queued(READ_QUEUED, behind, 8, 5), &[(DATA, 4096)]);
    backing.await_failure();
    backing.disk.failures().give_up();
    backing.settle();
    assert!(guest.bus.reset().is_empty());
    assert!(backing.disk.failures().waiting().is_none());
}
