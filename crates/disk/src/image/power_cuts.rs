//! Power cuts between any two writes to an image: what may be left of it must be sound, and have all that was flushed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use memory::{Buffers, Gpa, GpaRange, Ram};

use super::Image;
use crate::contract::{DiskError, Durability, Operation, SectorRange, Sectors, Unmap};
use crate::kernel::recorder::{self, Deed};
use crate::options::{Allowed, DiskOptions, Format};
use crate::threads::{Moved, Work};

/// Bytes of every disk: no whole number of clusters.
const SIZE: u64 = (6 << 20) + 3 * 512;
const SECTORS: u64 = SIZE / 512;
/// Cuts that one image lives through, each after the last.
const GENERATIONS: usize = 3;
/// So many cuts there are in a usual run, and the variable that asks for more.
const CUTS: usize = 60;
const CUTS_VARIABLE: &str = "SKEP_TEST_POWER_CUTS";
/// The seed to start with, to see the story of a failure alone.
const SEED_VARIABLE: &str = "SKEP_TEST_POWER_CUTS_SEED";
/// Requests between two cuts.
const REQUESTS: usize = 120;

/// A kind of image to make with `qemu-img`: its options, and where its first contents come from.
struct Kind {
    options: &'static str,
    from: From,
}

#[derive(PartialEq, Eq)]
enum From {
    Nothing,
    Backing,
    Compressed,
}

const KINDS: [Kind; 10] = [
    Kind { options: "cluster_size=512,refcount_bits=64", from: From::Nothing },
    Kind { options: "cluster_size=512,compat=0.10", from: From::Nothing },
    Kind { options: "cluster_size=512,refcount_bits=1", from: From::Backing },
    Kind { options: "cluster_size=4k", from: From::Nothing },
    Kind { options: "cluster_size=4k", from: From::Backing },
    Kind { options: "cluster_size=4k,compat=0.10", from: From::Compressed },
    Kind { options: "cluster_size=4k,compat=0.10", from: From::Backing },
    Kind { options: "cluster_size=64k", from: From::Nothing },
    Kind { options: "cluster_size=64k", from: From::Backing },
    Kind { options: "cluster_size=4k,data_file=DATA", from: From::Nothing },
];

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A request, and which of the recorded deeds may be its own.
struct Done {
    first_deed: usize,
    last_deed: usize,
    what: What,
}

enum What {
    /// These sectors got this tag.
    Changed(SectorRange, u32),
    /// The same, and all of it lasts from then on.
    Flushed,
}

/// The image in use.
struct Vm {
    image: Image,
    ram: Arc<Ram>,
}

impl Vm {
    fn start(path: &Path) -> Vm {
        let chain = vec![Allowed::SameFolder];
        let options = DiskOptions { chain, ..DiskOptions::new(path).format(Format::Qcow2) };
        let (image, _, _) = super::prepare(path, Format::Qcow2, &options).unwrap();
        Vm { image, ram: Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap()) }
    }

    fn run(&self, operation: Operation, bytes: u64) {
        self.try_to(operation, bytes).unwrap();
    }

    fn try_to(&self, operation: Operation, bytes: u64) -> Result<(), DiskError> {
        let mut buffers = Buffers::new(self.ram.clone());
        buffers.push(Gpa(0), bytes).unwrap();
        self.image.execute(operation, &buffers, &mut Moved::default())
    }

    fn write(&self, range: SectorRange, tag: u32, durability: Durability) {
        let bytes: Vec<u8> = (0..range.count.0).flat_map(|n| sector(range.start.0 + n, tag)).collect();
        self.ram.write(Gpa(0), &bytes).unwrap();
        self.run(Operation::Write { at: range.start, durability }, bytes.len() as u64);
    }

    /// The tag of every sector.
    fn read(&self) -> Vec<u32> {
        let mut tags = Vec::new();
        while (tags.len() as u64) < SECTORS {
            let count = (SECTORS - tags.len() as u64).min(2048);
            let mut bytes = vec![0; count as usize * 512];
            self.run(Operation::Read { at: Sectors(tags.len() as u64) }, bytes.len() as u64);
            self.ram.read(Gpa(0), &mut bytes).unwrap();
            for found in bytes.chunks(512) {
                let (number, tag) = (tags.len() as u64, u32::from_le_bytes(found[..4].try_into().unwrap()));
                assert!(
                    found == sector(number, tag),
                    "sector {number} has parts of others: {:x?}",
                    &found[..16]
                );
                tags.push(tag);
            }
        }
        tags
    }
}

/// What a sector with this tag has: its number and the tag, again and again. Without a tag it is empty.
fn sector(number: u64, tag: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    if tag != 0 {
        for piece in bytes.chunks_mut(8) {
            piece[..4].copy_from_slice(&tag.to_le_bytes());
            piece[4..].copy_from_slice(&(number as u32).to_le_bytes());
        }
    }
    bytes
}

fn qemu_img(arguments: &[&str], folder: &Path) -> std::process::Output {
    Command::new("qemu-img").args(arguments).current_dir(folder).output().unwrap()
}

/// The clusters that are counted and not used; more than those must not be wrong. Those behind the file's end count as
/// well, which `qemu-img` does not look at: the file is longer meanwhile.
fn leaks(folder: &Path, story: &str) -> (u64, String) {
    let file = fs::File::options().write(true).open(folder.join("disk.qcow2")).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len + SIZE).unwrap();
    let checked = qemu_img(&["check", "-f", "qcow2", "disk.qcow2"], folder);
    file.set_len(len).unwrap();
    let text =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{story}: {text}");
    let line = text.lines().find(|line| line.contains("leaked clusters were found"));
    (line.map_or(0, |line| line.split(' ').next().unwrap().parse().unwrap()), text)
}

/// Makes an image; returns the tag of every sector.
fn create(kind: &Kind, folder: &Path) -> Vec<u32> {
    let tags: Vec<u32> = match kind.from {
        From::Nothing => vec![0; SECTORS as usize],
        // Long runs of the same, with holes.
        _ => (0..SECTORS as u32).map(|n| if n / 700 % 3 == 0 { 0 } else { 1 + n / 700 }).collect(),
    };
    let bytes: Vec<u8> = tags.iter().zip(0..).flat_map(|(tag, number)| sector(number, *tag)).collect();
    fs::write(folder.join("first.raw"), bytes).unwrap();
    let options = kind.options;
    let size = SIZE.to_string();
    let made = match kind.from {
        From::Nothing => {
            let options = options.replace("DATA", "data.raw");
            qemu_img(&["create", "-f", "qcow2", "-o", &options, "disk.qcow2", &size], folder)
        }
        From::Backing => {
            let of = ["create", "-f", "qcow2", "-F", "raw", "-b", "first.raw", "-o", options, "disk.qcow2"];
            qemu_img(&of, folder)
        }
        From::Compressed => {
            let of = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "first.raw", "disk.qcow2"];
            qemu_img(&of, folder)
        }
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    tags
}

/// Does what a guest may do, until the power goes.
fn use_it(vm: &Vm, dice: &mut Dice, next: &mut u32) -> Vec<Done> {
    let mut all = Vec::new();
    for _ in 0..REQUESTS {
        let first_deed = recorder::count();
        let start = match dice.below(2) {
            0 => dice.below(SECTORS - 256),
            _ => dice.below(600),
        };
        let count = if dice.below(8) == 0 { 1 + dice.below(200) } else { 1 + dice.below(20) };
        let range = match dice.below(20) {
            0 => SectorRange { start: Sectors(SECTORS - count), count: Sectors(count) },
            _ => SectorRange { start: Sectors(start), count: Sectors(count) },
        };
        *next += 1;
        let mut push = |what| all.push(Done { first_deed, last_deed: recorder::count(), what });
        match dice.below(20) {
            0..12 => {
                vm.write(range, *next, Durability::Cached);
                push(What::Changed(range, *next));
            }
            12 => {
                vm.write(range, *next, Durability::Stable);
                push(What::Changed(range, *next));
                push(What::Flushed);
            }
            13..15 => {
                vm.run(Operation::WriteZeroes(range, Unmap::Forbidden), 0);
                push(What::Changed(range, 0));
            }
            15..17 if vm.image.image.inner().zero_granularity().is_some() => {
                vm.run(Operation::Discard(range), 0);
                push(What::Changed(range, 0));
            }
            _ => {
                vm.run(Operation::Flush, 0);
                push(What::Flushed);
            }
        }
    }
    all
}

/// What each sector may have if the power goes after so many deeds; and how many clusters may be counted in vain: as many
/// as were given a place since the last flush that was done, or left one before it since the flush before.
fn allowed(before: &[u32], done: &[Done], deeds: usize) -> (Vec<Vec<u32>>, u64) {
    let mut all: Vec<Vec<u32>> = before.iter().map(|tag| vec![*tag]).collect();
    let (mut open, mut closed) = (0, 0);
    for Done { first_deed, last_deed, what } in done {
        match what {
            What::Changed(range, tag) if *first_deed < deeds => {
                let (start, count) = (range.start.0 as usize, range.count.0 as usize);
                all[start..start + count].iter_mut().for_each(|tags| tags.push(*tag));
                open += range.count.0 + 32;
            }
            What::Flushed if *last_deed <= deeds => {
                all.iter_mut().for_each(|tags| *tags = vec![*tags.last().unwrap()]);
                (closed, open) = (open, 0);
            }
            _ => {}
        }
    }
    (all, open + closed)
}

/// Puts the files into a state that a cut after so many deeds may leave: what was brought to stable storage is there,
/// and of the rest each sector may be.
fn cut(files: &BTreeMap<u64, (PathBuf, Vec<u8>)>, deeds: &[Deed], dice: &mut Dice) {
    for (inode, (path, before)) in files {
        let synced = |deed: &Deed| matches!(deed, Deed::Synced { inode: of } if of == inode);
        let lasts = deeds.iter().rposition(synced).unwrap_or(0);
        let mut bytes = before.clone();
        for (number, deed) in deeds.iter().enumerate() {
            let Deed::Wrote { inode: of, at, bytes: new } = deed else { continue };
            if of != inode {
                continue;
            }
            let fate = if number < lasts { 0 } else { dice.below(3) };
            for (at, new) in (*at as usize..).step_by(512).zip(new.chunks(512)) {
                if fate == 0 || (fate == 1 && dice.below(2) == 0) {
                    bytes.resize(bytes.len().max(at + new.len()), 0);
                    bytes[at..at + new.len()].copy_from_slice(new);
                }
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

fn live_through_cuts(kind: &Kind, seed: u64) {
    // In memory where that can be: what is brought to stable storage is recorded, and need not wait for a disk.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (path, mut dice) = (folder.path().join("disk.qcow2"), Dice(0x9e37_79b9_7f4a_7c15 ^ (seed << 20 | 1)));
    let mut tags = create(kind, folder.path());
    let (mut next, mut leaked) = (1 << 16, 0);
    for generation in 0..GENERATIONS {
        let story = format!("{}, seed {seed}, generation {generation}", kind.options);
        let files: BTreeMap<u64, (PathBuf, Vec<u8>)> = ["disk.qcow2", "data.raw"]
            .iter()
            .map(|name| folder.path().join(name))
            .filter(|path| path.exists())
            .map(|path| (fs::metadata(&path).unwrap().ino(), (path.clone(), fs::read(&path).unwrap())))
            .collect();
        recorder::start();
        let vm = Vm::start(&path);
        let done = use_it(&vm, &mut dice, &mut next);
        let deeds = recorder::stop();
        drop(vm);
        let at = dice.below(deeds.len() as u64 + 1) as usize;
        cut(&files, &deeds[..at], &mut dice);
        let story = format!("{story}, cut after {at} of {}", deeds.len());

        let (now, text) = leaks(folder.path(), &story);
        let (allowed, open) = allowed(&tags, &done, at);
        assert!(
            now <= leaked + open,
            "{story}: {now} clusters leaked where {leaked} were, {open} may be new: {text}"
        );
        leaked = now;
        let vm = Vm::start(&path);
        tags = vm.read();
        for (number, (tag, allowed)) in tags.iter().zip(allowed).enumerate() {
            assert!(
                allowed.contains(tag),
                "{story}: sector {number} has {tag:#x} and not one of {allowed:x?}"
            );
        }
    }
    let vm = Vm::start(&path);
    let done = use_it(&vm, &mut dice, &mut next);
    drop(vm);
    let story = format!("{}, seed {seed}, without a cut", kind.options);
    let (now, text) = leaks(folder.path(), &story);
    assert!(now <= leaked, "{story}: {now} clusters leaked, and {leaked} before: {text}");
    let (allowed, _) = allowed(&tags, &done, usize::MAX);
    let last: Vec<u32> = allowed.iter().map(|tags| *tags.last().unwrap()).collect();
    assert!(Vm::start(&path).read() == last, "{story}");
}

/// The kernel tells once that it could not bring data to stable storage, and to whom it tells it need not be who wrote it.
#[test]
fn what_could_not_be_brought_to_stable_storage_is_told_by_the_next_flush_whoever_tried_before() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return eprintln!("skipped: there is no qemu-img");
    }
    let folder = tempfile::tempdir().unwrap();
    create(&Kind { options: "cluster_size=4k", from: From::Nothing }, folder.path());
    let vm = Vm::start(&folder.path().join("disk.qcow2"));
    let range = |start| SectorRange { start: Sectors(start), count: Sectors(8) };
    let write = |start, durability| vm.try_to(Operation::Write { at: Sectors(start), durability }, 4096);
    let flush = || vm.try_to(Operation::Flush, 0);
    write(0, Durability::Cached).unwrap();
    write(8, Durability::Cached).unwrap();
    flush().unwrap();
    // This leaves a cluster, after which the tables go to the file before another gets a place.
    vm.run(Operation::Discard(range(0)), 0);
    recorder::fail_syncs(1);
    assert_eq!(write(16, Durability::Cached), Err(DiskError::Media));
    assert_eq!(flush(), Err(DiskError::Media));
    flush().unwrap();
    // So does a write that is to last by itself.
    write(24, Durability::Cached).unwrap();
    recorder::fail_syncs(1);
    assert_eq!(write(8, Durability::Stable), Err(DiskError::Media));
    assert_eq!(flush(), Err(DiskError::Media));
    flush().unwrap();
    // What a flush has told is told.
    write(32, Durability::Cached).unwrap();
    recorder::fail_syncs(1);
    assert_eq!(flush(), Err(DiskError::Media));
    flush().unwrap();
}

#[test]
fn after_a_power_cut_an_image_is_sound_and_has_all_that_was_flushed() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return eprintln!("skipped: there is no qemu-img");
    }
    let cuts = std::env::var(CUTS_VARIABLE).map_or(CUTS, |cuts| cuts.parse().expect("a number"));
    let first = std::env::var(SEED_VARIABLE).map_or(0, |seed| seed.parse().expect("a number"));
    for seed in (first..).take(cuts.div_ceil(GENERATIONS)) {
        live_through_cuts(&KINDS[seed as usize % KINDS.len()], seed);
    }
}
