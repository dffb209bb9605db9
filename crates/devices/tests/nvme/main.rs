//! The NVMe controller, driven through its registers and queues by a small driver.

mod data;
mod identity;
mod queues;
mod scripted;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::nvme::driver::{Guest, Queue, io};
use devices::nvme::spec::{self, Command, DatasetRange, SglDescriptor, admin, feature, log_page, register};
use devices::{Namespace, NvmeError, NvmeOptions};
use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};
use zerocopy::IntoBytes;

const RAM: u64 = 32 << 20;
const DISK: u64 = 16 << 20;
const BLOCKS: u64 = DISK / 512;

struct Fixture {
    guest: Guest,
    files: Vec<File>,
    disks: Vec<Arc<Disk>>,
}

fn disk_file() -> tempfile::NamedTempFile {
    // Beside this program, for where temporary files are kept there may be no direct I/O.
    let program = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
    file.as_file().set_len(DISK).unwrap();
    file
}

fn fixture_with(disks: usize, options: &NvmeOptions) -> Fixture {
    let files: Vec<_> = (0..disks).map(|_| disk_file()).collect();
    let open = |file: &tempfile::NamedTempFile| Arc::new(Disk::open(&DiskOptions::new(file.path())).unwrap());
    let disks: Vec<_> = files.iter().map(open).collect();
    let namespaces = disks.iter().cloned().map(Namespace::new).collect();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap());
    let guest = Guest::new(namespaces, options, ram);
    Fixture { guest, files: files.into_iter().map(tempfile::NamedTempFile::into_file).collect(), disks }
}

fn fixture() -> Fixture {
    fixture_with(1, &NvmeOptions { queues: 8, ..NvmeOptions::new("disk0") })
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len as u64).map(|i| (i * 7 + i / 512 + u64::from(seed)) as u8).collect()
}

fn identify(guest: &Guest, queue: &mut Queue, cns: u32, nsid: u32) -> (u16, Vec<u8>) {
    let command =
        Command { opcode: admin::IDENTIFY, nsid: nsid.into(), cdw10: cns.into(), ..Command::default() };
    guest.ask(queue, command)
}

fn log(guest: &Guest, queue: &mut Queue, page: u8, dwords: u32, retain: bool) -> (u16, Vec<u8>) {
    let cdw10 = u32::from(page) | u32::from(retain) << 15 | (dwords - 1) << 16;
    let command = Command {
        opcode: admin::GET_LOG_PAGE,
        nsid: 0xffff_ffff.into(),
        cdw10: cdw10.into(),
        ..Command::default()
    };
    guest.ask(queue, command)
}
