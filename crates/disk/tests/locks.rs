//! Whom the locks on files keep out, and whom they let in: ourselves and QEMU, in both orders.

mod subjects;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use disk::{Allowed, Claim, Disk, DiskOptions, Format};
use subjects::{image, qcow2};

/// How QEMU has an image open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Qemu {
    Writes,
    Reads,
}

/// `qemu-nbd` over an image, gone with the value.
struct Daemon(Child);

impl Daemon {
    fn over(file: &Path, format: Format, how: Qemu) -> Daemon {
        let socket = file.with_extension("sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-f", format.name(), "-k"]).arg(&socket).arg(file);
        if how == Qemu::Reads {
            command.arg("-r");
        }
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        // It greets when it has opened the image; it listens before.
        let greets = || UnixStream::connect(&socket)?.read_exact(&mut [0; 8]);
        while let Err(cause) = greets() {
            assert!(start.elapsed() < Duration::from_secs(60), "qemu-nbd does not answer: {cause}");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::remove_file(&socket).unwrap();
        Daemon(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn there_is_no_qemu() -> bool {
    let missing = ["qemu-nbd", "qemu-io", "qemu-img"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err());
    missing.inspect(|tool| eprintln!("skipped: there is no {tool}")).is_some()
}

/// Why it is not opened.
fn refusal(options: &DiskOptions) -> String {
    match Disk::open(options) {
        Ok(_) => panic!("{} is opened", options.source),
        Err(error) => error.to_string(),
    }
}

/// Whether a tool of QEMU's does it; only a lock may be the reason if it does not.
fn does(tool: &str, arguments: &[&str], file: &Path, more: &[&str]) -> bool {
    let done = Command::new(tool).args(arguments).arg(file).args(more).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() || said.contains("lock"), "{tool} {arguments:?}: {said}");
    done.status.success()
}

/// A raw file, an image of its own, and one that stands on the raw file of another folder.
fn images(folder: &Path) -> [(DiskOptions, PathBuf, Format); 3] {
    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    let (raw, below, own, top) =
        (image(folder), image(&other), folder.join("own.qcow2"), folder.join("top.qcow2"));
    qcow2(&own, None);
    qcow2(&top, Some((&below, Format::Raw)));
    [
        (DiskOptions::new(&raw), raw, Format::Raw),
        (DiskOptions::new(&own).format(Format::Qcow2), own, Format::Qcow2),
        (
            DiskOptions {
                chain: vec![Allowed::File(below.clone())],
                ..DiskOptions::new(&top).format(Format::Qcow2)
            },
            below,
            Format::Raw,
        ),
    ]
}

#[test]
fn what_qemu_writes_is_not_opened_in_any_way_but_by_force() {
    if there_is_no_qemu() {
        return;
    }
    let folder = subjects::folder();
    for (options, file, format) in images(folder.path()) {
        let daemon = Daemon::over(&file, format, Qemu::Writes);
        for options in [options.clone(), options.clone().read_only(), options.clone().throw_away()] {
            let error = refusal(&options);
            let who = format!("process {} (qemu-nbd) writes to it", daemon.0.id());
            assert!(error.contains("in use") && error.contains(&file.display().to_string()), "{error}");
            // Who does both is named for what stands in the way first.
            let forbids = format!("process {} (qemu-nbd) uses it and lets nobody write", daemon.0.id());
            assert!(error.contains(&who) || error.contains(&forbids), "{error}");
            let forced = Disk::open(&DiskOptions { claim: Claim::Forced, ..options }).unwrap();
            assert!(
                forced.remarks().iter().any(|said| said.contains("force=on") && said.contains("qemu-nbd"))
            );
        }
        drop(daemon);
        Disk::open(&options).unwrap();
    }
}

#[test]
fn what_qemu_only_reads_can_be_read_with_it_and_not_written() {
    if there_is_no_qemu() {
        return;
    }
    let folder = subjects::folder();
    for (options, file, format) in images(folder.path()) {
        let daemon = Daemon::over(&file, format, Qemu::Reads);
        Disk::open(&options.clone().read_only()).unwrap();
        Disk::open(&options.clone().throw_away()).unwrap();
        let is_below = *options.source.to_string() != *file.display().to_string();
        // QEMU lets others write a raw file that it only reads, unless its user says otherwise.
        if format == Format::Qcow2 {
            let error = refusal(&options);
            let why = format!("process {} (qemu-nbd) uses it and lets nobody write to it", daemon.0.id());
            assert!(error.contains(&why), "{error}");
        } else if is_below {
            Disk::open(&options).unwrap();
        }
    }
}

#[test]
fn what_we_write_qemu_does_not_write_and_takes_no_image_for_whole() {
    if there_is_no_qemu() {
        return;
    }
    let folder = subjects::folder();
    let [(raw, raw_file, _), (own, own_file, _), _] = images(folder.path());
    let held = [Disk::open(&raw).unwrap(), Disk::open(&own).unwrap()];
    assert!(!does("qemu-io", &["-f", "raw", "-c", "write 0 4k"], &raw_file, &[]));
    assert!(!does("qemu-io", &["-f", "qcow2", "-c", "write 0 4k"], &own_file, &[]));
    assert!(!does("qemu-io", &["-r", "-f", "qcow2", "-c", "read 0 4k"], &own_file, &[]));
    assert!(!does("qemu-img", &["snapshot", "-c", "x"], &own_file, &[]));
    assert!(!does("qemu-img", &["check", "-f", "qcow2"], &own_file, &[]));
    assert!(
        does("qemu-img", &["info", "-U", "-f", "qcow2"], &own_file, &[]),
        "who asks for no promise gets in"
    );
    drop(held);
    assert!(does("qemu-io", &["-f", "raw", "-c", "write 0 4k"], &raw_file, &[]));
    assert!(does("qemu-io", &["-f", "qcow2", "-c", "write 0 4k"], &own_file, &[]));
}

#[test]
fn what_we_only_read_qemu_reads_too_and_does_not_write() {
    if there_is_no_qemu() {
        return;
    }
    let folder = subjects::folder();
    for (options, file, format) in images(folder.path()) {
        let stands_on_it = *options.source.to_string() != *file.display().to_string();
        let mut ways = vec![options.clone().read_only(), options.clone().throw_away()];
        ways.extend(stands_on_it.then_some(options));
        for options in ways {
            let held = Disk::open(&options).unwrap();
            assert!(does("qemu-io", &["-r", "-f", format.name(), "-c", "read 0 4k"], &file, &[]));
            assert!(!does("qemu-io", &["-f", format.name(), "-c", "write 0 4k"], &file, &[]));
            assert!(!does("qemu-img", &["resize", "-q", "-f", format.name(), "--shrink"], &file, &["1M"]));
            drop(held);
            assert!(does("qemu-io", &["-f", format.name(), "-c", "write 0 4k"], &file, &[]));
        }
    }
}

#[test]
fn who_locks_a_whole_file_keeps_us_out_and_is_kept_out() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert!(lock_all(&file, libc::F_WRLCK));
    for options in [DiskOptions::new(&path), DiskOptions::new(&path).read_only()] {
        let error = refusal(&options);
        assert!(error.contains("holds a lock on the file"), "{error}");
        assert!(lock_all(&file, libc::F_UNLCK));
        let held = Disk::open(&options).unwrap();
        assert!(!lock_all(&file, libc::F_WRLCK));
        drop(held);
        assert!(lock_all(&file, libc::F_WRLCK));
    }
}

/// Whether all of a file can be locked like this.
fn lock_all(file: &File, kind: libc::c_int) -> bool {
    // SAFETY: flock is plain data; all zeroes are the whole file.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = kind as libc::c_short;
    // SAFETY: our own descriptor and a valid flock for the duration of the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) == 0 }
}
