//! What is true of files and block devices of the host.

mod subjects;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use disk::{Disk, DiskError, DiskOptions, Request, Sectors};
use memory::{Buffers, Gpa, GpaRange, Ram};
use subjects::bench::{Bench, read, write};
use subjects::{Loop, SIZE, image};

#[test]
fn what_a_dropped_queue_still_moved_is_counted() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let disk = Disk::open(&DiskOptions::new(&path)).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
    let mut written = 0;
    for round in 0..20u8 {
        ram.write(Gpa(0), &vec![round + 1; 1 << 20]).unwrap();
        let mut queue = disk.prepare_queue(16).unwrap().start().unwrap();
        for tag in 0..16 {
            let mut buffers = Buffers::new(ram.clone());
            // Every other round is bounced.
            buffers.push(Gpa(tag * 0x8000 + u64::from(round) % 2), 0x4000).unwrap();
            queue.submit(Request { tag, operation: write(tag * 32), buffers }).unwrap();
        }
        queue.poll(&mut Vec::new()).unwrap();
        drop(queue);
        let on_disk = &std::fs::read(&path).unwrap()[..16 * 0x4000];
        written += on_disk.iter().filter(|byte| **byte == round + 1).count() as u64;
    }
    let counters = disk.counters();
    assert_eq!(counters.bytes_direct + counters.bytes_bounced(), written);
}

#[test]
fn a_disk_in_use_is_refused_with_a_name() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let first = Disk::open(&DiskOptions::new(&path)).unwrap();
    let error = Disk::open(&DiskOptions::new(&path)).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains("disk.raw"), "{error}");
    drop(first);
    let readers =
        [Disk::open(&DiskOptions::new(&path).read_only()), Disk::open(&DiskOptions::new(&path).read_only())];
    assert!(readers.iter().all(Result::is_ok));
    drop(readers);
    if let Some(device) = Loop::over(&path, 512) {
        let _first = Disk::open(&DiskOptions::new(&device.0)).unwrap();
        let error = Disk::open(&DiskOptions::new(&device.0)).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("exclusively"), "{error}");
    }
}

#[test]
fn what_is_not_a_disk_is_refused_with_the_reason() {
    let folder = subjects::folder();
    let refusal = |path: &Path| Disk::open(&DiskOptions::new(path)).unwrap_err().to_string();
    assert!(refusal(&folder.path().join("absent")).contains("no such file or device"));
    assert!(refusal(folder.path()).contains("a directory"));
    assert!(refusal(Path::new("/dev/null")).contains("a character device"));
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap().set_len(511).unwrap();
    assert!(refusal(&empty).contains("511 bytes"), "{}", refusal(&empty));
}

#[test]
fn a_disk_that_shrinks_gives_an_error_and_never_success() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let mut bench = Bench::open(&DiskOptions::new(&path));
    File::options().write(true).open(&path).unwrap().set_len(SIZE / 2).unwrap();
    assert_eq!(bench.run(read(SIZE / 512 - 8), &[(0, 4096)]), Err(DiskError::OutOfRange));
    assert_eq!(bench.run(read(SIZE / 1024 - 8), &[(0, 8192)]), Err(DiskError::OutOfRange));
    assert_eq!(bench.disk.counters().errors, 2);
}

#[test]
fn counters_survive_their_queues_without_growing() {
    let folder = subjects::folder();
    let disk = Disk::open(&DiskOptions::new(image(folder.path()))).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
    for _ in 0..5 {
        let mut queue = disk.prepare_queue(1).unwrap().start().unwrap();
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(Gpa(0), 512 * 8).unwrap();
        queue.submit(Request { tag: 0, operation: read(0), buffers }).unwrap();
        queue.wait(&mut Vec::new()).unwrap();
    }
    assert_eq!(disk.counters().reads, 5);
    assert_eq!(disk.counters().bytes_read, 5 * 4096);
}

/// A sequence of random requests over two queues, compared with a plain copy of the disk.
#[test]
fn a_disk_that_grows_says_so_and_has_the_new_room() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let mut bench = Bench::open(&DiskOptions::new(&path));
    let resized = bench.disk.resized().unwrap();
    assert_eq!(bench.disk.look_again().unwrap(), None);
    File::options().write(true).open(&path).unwrap().set_len(SIZE * 2).unwrap();
    assert_eq!(bench.run(read(SIZE / 512), &[(0, 4096)]), Err(DiskError::OutOfRange), "not known yet");
    assert_eq!(bench.disk.look_again().unwrap(), Some(Sectors(SIZE / 256)));
    assert_eq!(resized.read().unwrap(), 1);
    assert_eq!(bench.disk.capacity(), Sectors(SIZE / 256));
    bench.run(write(SIZE / 512), &[(0, 4096)]).unwrap();
    if let Some(device) = Loop::over(&path, 512) {
        let mut bench = Bench::open(&DiskOptions::new(&device.0));
        File::options().write(true).open(&path).unwrap().set_len(SIZE * 3).unwrap();
        let grown = std::process::Command::new("losetup").arg("--set-capacity").arg(&device.0).status();
        assert!(grown.unwrap().success());
        assert_eq!(bench.disk.look_again().unwrap(), Some(Sectors(SIZE / 512 * 3)));
        bench.run(read(SIZE / 512 * 3 - 8), &[(0, 4096)]).unwrap();
    }
}
