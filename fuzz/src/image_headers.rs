//! Images that lie: whatever the headers and tables of a qcow2 or vmdk image say, it is refused, or requests to it end.
//! What they may not do: panic, hang, take memory without bound, lead to files outside their folder, or be changed when
//! they are refused or only read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use disk::{
    Allowed, Disk, DiskOptions, Durability, Event, Format, Operation, Request, SectorRange, Sectors, Unmap,
};
use memory::{Buffers, Gpa, GpaRange, Ram};
use tempfile::TempDir;

use crate::steps::Steps;

const RAM: u64 = 64 << 10;
/// Bytes that an input can reach in an image.
const REACH: u64 = 1 << 16;

/// Where images lie, for all inputs: in memory, beside a file for extents and backing files.
struct Place {
    folder: TempDir,
    ram: Arc<Ram>,
}

fn place() -> &'static Place {
    static SHARED: OnceLock<Place> = OnceLock::new();
    SHARED.get_or_init(|| {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a file system in memory");
        File::create(folder.path().join("b")).expect("room").set_len(1 << 20).expect("room");
        let ram = Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("little memory");
        Place { folder, ram: Arc::new(ram) }
    })
}

/// A qcow2 image of 1 MiB with clusters of 512 bytes to 64 KiB, and one cluster of data: header, table of reference
/// counts, a block of them, first and second level of the table of clusters, the data.
fn qcow2(version: u32, bits: u32) -> Vec<u8> {
    let cluster = 1usize << bits;
    let mut image = vec![0; 6 * cluster];
    let size = 1u64 << 20;
    let per_table = size.div_ceil((cluster / 8 * cluster) as u64) as u32;
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &bits.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &per_table.to_be_bytes());
    put(40, &(3 * cluster as u64).to_be_bytes());
    put(48, &(cluster as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    if version == 3 {
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
    }
    put(cluster, &(2 * cluster as u64).to_be_bytes());
    (0..6).for_each(|n| put(2 * cluster + 2 * n, &1u16.to_be_bytes()));
    put(3 * cluster, &(4 * cluster as u64 | 1 << 63).to_be_bytes());
    put(4 * cluster, &(5 * cluster as u64 | 1 << 63).to_be_bytes());
    image
}

const VMDK: &str = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                    createType=\"monolithicFlat\"\n\nRW 2048 FLAT \"b\" 0\n";

/// Runs one input: which image to begin with, what to change in it, what to ask of it.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let kind = steps.u8();
    let (format, mut image) = match kind % 4 {
        0 | 1 => (Format::Qcow2, qcow2(2 + u32::from(kind % 4), 9 + u32::from(kind >> 4 & 7))),
        2 => (Format::Qcow2, Vec::new()),
        _ => (Format::Vmdk, VMDK.as_bytes().to_vec()),
    };
    let changes = steps.u8() % 16;
    for _ in 0..changes {
        change(&mut image, &mut steps);
    }
    let Place { folder, ram } = place();
    let path: PathBuf = folder.path().join("a");
    let file = File::create(&path).expect("room for the image");
    file.write_all_at(&image, 0).expect("room for the image");
    drop(file);
    let options = DiskOptions::new(&path).format(format).chain([Allowed::SameFolder]);
    let read_only = kind & 8 != 0 || format == Format::Vmdk;
    let options = if read_only { options.read_only() } else { options };
    let opened = Disk::open(&options);
    let refused = opened.is_err();
    match opened {
        Ok(disk) => ask(&disk, ram, &mut steps),
        Err(why) => assert!(!why.to_string().is_empty()),
    }
    if refused || read_only {
        assert!(
            std::fs::read(&path).expect("the image") == image,
            "an image that is not to change has changed"
        );
    }
}

/// Bytes in place of others: a few in the header, or a word in some table.
fn change(image: &mut Vec<u8>, steps: &mut Steps<'_>) {
    let how = steps.u8();
    let at = match how % 4 {
        0 | 1 => usize::from(steps.u8()),
        2 => usize::from(steps.u16() % (REACH / 8) as u16) * 8,
        _ => usize::from(steps.u8()) << 9,
    };
    let bytes = steps.bytes(1 + usize::from(how >> 4));
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn ask(disk: &Disk, ram: &Arc<Ram>, steps: &mut Steps<'_>) {
    let Ok(prepared) = disk.prepare_queue(4) else { return };
    let Ok(mut queue) = prepared.start() else { return };
    let mut events = Vec::new();
    for _ in 0..16 {
        let Some(what) = steps.next_step() else { return };
        let at = match what >> 6 {
            0 => u64::from(steps.u8()),
            1 => u64::from(steps.u16()),
            2 => disk.capacity().0.saturating_sub(steps.u8().into()),
            _ => steps.u64(),
        };
        let (start, count) = (Sectors(at), Sectors(1 + u64::from(what >> 3 & 7)));
        let range = SectorRange { start, count };
        let operation = match what & 7 {
            0..3 => Operation::Read { at: start },
            3 => Operation::Write { at: start, durability: Durability::Cached },
            4 => Operation::Write { at: start, durability: Durability::Stable },
            5 => Operation::Flush,
            6 => Operation::Discard(range),
            _ => Operation::WriteZeroes(range, Unmap::Allowed),
        };
        let mut buffers = Buffers::new(ram.clone());
        if what & 7 < 5 {
            buffers.push(Gpa(0), count.0 * Sectors::SIZE).expect("a few sectors");
        }
        if queue.submit(Request { tag: 0, operation, buffers }).is_err() {
            continue;
        }
        while queue.under_way() > 0 {
            queue.wait(&mut events).expect("the queue works");
        }
        assert!(events.drain(..).any(|event| matches!(event, Event::Done { tag: 0, .. })));
    }
}
