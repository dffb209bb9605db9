//! Touches of guest RAM that the host cannot serve stop the thread, not the process.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::mpsc::channel;
use std::time::Duration;

use memory::{Cause, Gpa, GpaRange, Losses, Pages, Ram, any_stopped, is_stopped};

const LEN: u64 = 8 << 20;
const LOST: Gpa = Gpa(0x40_3000);

fn ram() -> Ram {
    Ram::new(&[GpaRange::new(Gpa(0), LEN).unwrap()]).unwrap()
}

/// A page of a file without any bytes, at `place` if that is not null: every touch of it fails.
///
/// # Safety
/// A page at `place` must be the caller's.
unsafe fn empty_page(place: *mut u8) -> *mut u8 {
    // SAFETY: a new file, and a place that is nobody's or the caller's.
    unsafe {
        let file = File::from_raw_fd(libc::memfd_create(c"lost".as_ptr(), libc::MFD_CLOEXEC));
        let kind = libc::MAP_SHARED | if place.is_null() { 0 } else { libc::MAP_FIXED };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mapped = libc::mmap(place.cast(), 4096, access, kind, file.as_raw_fd(), 0);
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped.cast()
    }
}

/// Makes every touch of the page at `gpa` fail.
fn lose(ram: &Ram, gpa: Gpa) {
    // SAFETY: a page of the RAM of this test.
    unsafe { empty_page(ram.slice(gpa, 4096).unwrap().as_ptr()) };
}

/// The next news, if it comes within some seconds.
fn news() -> Option<memory::Touch> {
    let (end, mut start) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(20));
        start.write_all(b"x")
    });
    Losses::watch().unwrap().wait(end.as_fd())
}

fn thread_number() -> i32 {
    // SAFETY: a system call without arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// How a child that runs `work` ends: as waitpid(2) says. Its one thread is the main one.
fn ends<T>(work: impl FnOnce() -> T) -> i32 {
    // SAFETY: the child touches memory and ends, and takes no lock.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            std::hint::black_box(work());
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    }
}

fn killed_by_bus_error(status: i32) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS
}

#[test]
fn a_thread_that_touches_lost_ram_stops_with_nothing_read_and_the_owner_learns_where() {
    // The thread never ends, so it needs the RAM for ever.
    let ram: &'static Ram = Box::leak(Box::new(ram()));
    ram.write_obj(Gpa(0x1000), &7u32).unwrap();
    lose(ram, LOST);
    Losses::watch().unwrap();
    assert!(!any_stopped());
    let (tell, told) = channel();
    std::thread::spawn(move || {
        tell.send(u64::try_from(thread_number()).unwrap()).unwrap();
        tell.send(ram.read_obj(Gpa(LOST.0 + 8)).unwrap())
    });
    let thread = i32::try_from(told.recv().unwrap()).unwrap();
    let loss = ram.loss_of(news().expect("the touch is told")).unwrap();
    assert_eq!((loss.gpa, loss.segment), (LOST, ram.segments()[0].range()));
    assert_eq!(loss.cause, Cause::NoPage(Pages::Default));
    let text = loss.to_string();
    assert!(text.contains("guest RAM at 0x403000 (segment 0x0-0x7fffff)"), "{text}");
    assert!(told.recv_timeout(Duration::from_millis(500)).is_err(), "it read something");
    assert!(is_stopped(thread) && any_stopped() && !is_stopped(thread_number()));
    // Other RAM is as before, for other threads.
    assert_eq!(ram.read_obj::<u32>(Gpa(0x1000)).unwrap(), 7);
    assert_eq!(ram.find_loss(Some(LOST)).unwrap(), loss);
}

#[test]
fn a_file_that_was_made_shorter_is_named_as_the_cause_and_found_without_a_touch() {
    let ram = ram();
    assert_eq!(ram.find_loss(None), None);
    // Without the privilege for a tmpfs of our own the file is sealed, and nobody can do that.
    if ram.segments()[0].file().set_len(LEN / 2).is_err() {
        assert!(ram.segments()[0].file().set_len(LEN).is_ok(), "it is sealed against shrinking only");
        return;
    }
    let loss = ram.find_loss(None).unwrap();
    assert_eq!(loss.cause, Cause::Shortened(LEN / 2));
    assert!(loss.to_string().contains("shorter, to 4194304 of 8388608 bytes"), "{loss}");
}

#[test]
fn ram_that_can_be_had_is_no_loss() {
    let ram = ram();
    assert_eq!(ram.find_loss(Some(Gpa(0x1000))), None);
    ram.wire().unwrap();
    assert_eq!((ram.find_loss(None), ram.find_loss(Some(Gpa(1 << 40)))), (None, None));
}

#[test]
fn what_is_not_guest_ram_and_the_main_thread_still_end_by_the_signal() {
    let ram = ram();
    lose(&ram, LOST);
    Losses::watch().unwrap();
    // SAFETY: a place that is nobody's.
    let elsewhere = unsafe { empty_page(std::ptr::null_mut()) };
    // SAFETY: mapped, though nothing is behind it.
    assert!(killed_by_bus_error(ends(|| unsafe { elsewhere.read_volatile() })));
    assert!(killed_by_bus_error(ends(|| ram.read_obj::<u32>(LOST))));
    assert_eq!(ends(|| ram.read_obj::<u32>(Gpa(0))), 0);
}
