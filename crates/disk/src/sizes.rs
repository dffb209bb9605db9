//! Noticing that a disk has another size.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::disk::Disk;

/// Files and servers send no notice; they are looked at this often. Devices are, too, for hosts where the kernel's notices
/// do not arrive (containers).
const EVERY: Duration = Duration::from_secs(2);
/// How long a disk that is being asked may take to answer when the watch ends.
const LAST_LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(1);
/// Group of the kernel's own notices (`linux/netlink.h`, kobject_uevent(9)).
const KERNEL_EVENTS: u32 = 1;

/// A thread that looks at disks again when the kernel says that a block device has changed, and every two
/// seconds. It ends with the value, and does not keep the disks.
pub struct SizeWatch {
    disks: Arc<Watched>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl SizeWatch {
    /// Watches these disks from now on. Who wants to hear of a change asks the disk ([`Disk::resized`]).
    pub fn over<'a>(disks: impl IntoIterator<Item = &'a Arc<Disk>>) -> io::Result<SizeWatch> {
        let watched = Arc::new(Watched::default());
        disks.into_iter().for_each(|disk| watched.add(disk));
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (disks, ours, notices) = (watched.clone(), stop.try_clone()?, notices().ok());
        let thread = std::thread::Builder::new().name("disk-sizes".to_owned());
        let thread = thread.spawn(move || watch(&disks, &ours, notices.as_ref()))?;
        Ok(SizeWatch { disks: watched, stop, thread: Some(thread) })
    }

    /// Watches one more.
    pub fn add(&self, disk: &Arc<Disk>) {
        self.disks.add(disk);
    }
}

impl Drop for SizeWatch {
    fn drop(&mut self) {
        // A counter that is full is readable already.
        self.stop.write(1).unwrap_or_default();
        let Some(thread) = self.thread.take() else { return };
        let until = Instant::now() + LAST_LOOK_LIMIT;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        if thread.is_finished() {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        } else {
            // It asks for the size of a file whose server does not answer, as a rule.
            say::error("a disk does not say how large it is; who asks is left behind. See the host's log.");
        }
    }
}

/// Disks that are watched as long as there are any of them.
#[derive(Default)]
struct Watched(Mutex<Vec<Weak<Disk>>>);

impl Watched {
    fn add(&self, disk: &Arc<Disk>) {
        self.there().push(Arc::downgrade(disk));
    }

    /// Those that have not been closed.
    fn now(&self) -> Vec<Weak<Disk>> {
        self.there().clone()
    }

    fn there(&self) -> MutexGuard<'_, Vec<Weak<Disk>>> {
        let mut disks = self.0.lock();
        disks.retain(|disk| disk.strong_count() > 0);
        disks
    }
}

fn watch(disks: &Watched, stop: &EventFd, notices: Option<&OwnedFd>) {
    loop {
        // One after the other, so that a disk that is closed meanwhile is not kept open.
        for disk in disks.now().iter().filter_map(Weak::upgrade) {
            // A disk that cannot be asked now has no new size; its next request says what is wrong with it.
            disk.look_again().unwrap_or_default();
        }
        let wait = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polls = [wait(stop.as_raw_fd()), wait(notices.map_or(-1, AsRawFd::as_raw_fd))];
        // SAFETY: two entries of ours; one with a negative descriptor is passed over.
        unsafe { libc::poll(polls.as_mut_ptr(), 2, EVERY.as_millis() as libc::c_int) };
        if polls[0].revents != 0 {
            return;
        }
        if let Some(notices) = notices {
            take_all(notices);
        }
    }
}

/// Takes what has arrived. What it says does not matter: something has changed, and asking is cheap.
fn take_all(notices: &OwnedFd) {
    let mut notice = [0u8; 4096];
    let (start, len) = (notice.as_mut_ptr().cast(), notice.len());
    // SAFETY: the buffer is ours and as long as it is said to be.
    while unsafe { libc::recv(notices.as_raw_fd(), start, len, libc::MSG_DONTWAIT) } > 0 {}
}

/// A socket on which the kernel tells of changes of devices.
fn notices() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: a new descriptor is returned, which nobody else has; the address is plain data and lives as long as
    // the call.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = KERNEL_EVENTS;
        let len = size_of_val(&address) as libc::socklen_t;
        match libc::bind(fd, (&raw const address).cast(), len) {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Sectors;
    use crate::options::DiskOptions;

    #[test]
    fn a_file_that_grows_is_noticed_and_a_watch_keeps_no_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Arc::new(Disk::open(&DiskOptions::new(file.path())).unwrap());
        let watch = SizeWatch::over([]).unwrap();
        watch.add(&disk);
        file.as_file().set_len(2 << 20).unwrap();
        let since = Instant::now();
        while disk.capacity() != Sectors(4096) {
            assert!(since.elapsed() < EVERY * 3);
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(disk);
        Disk::open(&DiskOptions::new(file.path())).unwrap();
        let since = Instant::now();
        drop(watch);
        assert!(since.elapsed() < EVERY / 2);
    }
}
