//! Telling of disks that have another size: the controllers that have a word for it, people about the others.

use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use disk::{Disk, Size};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{StartError, system};
use crate::events::Events;

/// Who is to be told when a disk has another size.
pub struct Listener {
    resized: EventFd,
    tell: Box<dyn Fn() + Send>,
}

impl Listener {
    /// Has `tell` called after each change of the disk's size.
    pub fn new(disk: &Disk, tell: impl Fn() + Send + 'static) -> Result<Listener, StartError> {
        let resized = disk.resized().map_err(system("listen to changes of a disk"))?;
        Ok(Listener { resized, tell: Box::new(tell) })
    }
}

/// A thread that tells controllers of other sizes of their disks, until it is dropped.
pub struct SizeTeller {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl SizeTeller {
    /// `None` when nobody listens.
    pub fn new(listeners: Vec<Listener>) -> std::io::Result<Option<SizeTeller>> {
        if listeners.is_empty() {
            return Ok(None);
        }
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let end = stop.try_clone()?;
        let thread = std::thread::Builder::new().name("disk-resizes".into()).spawn(move || {
            while wait(&end, &listeners) {
                // Only those that were written have something to read.
                let told = listeners.iter().filter(|listener| listener.resized.read().is_ok());
                told.for_each(|listener| (listener.tell)());
            }
        })?;
        Ok(Some(SizeTeller { stop, thread: Some(thread) }))
    }
}

impl Drop for SizeTeller {
    fn drop(&mut self) {
        // A counter that is full is readable already.
        self.stop.write(1).unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}

/// Waits for a change; false when it is time to end.
fn wait(stop: &EventFd, listeners: &[Listener]) -> bool {
    let eventfds = listeners.iter().map(|listener| &listener.resized);
    let mut fds: Vec<libc::pollfd> = std::iter::once(stop)
        .chain(eventfds)
        .map(|eventfd| libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array is ours and as long as said; it waits without end, which a signal may cut short.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    fds[0].revents == 0
}

/// ATA has no word for another size, so people are told what to do about it. To unplug the disk for a moment would
/// tell the driver, but not those in the guest who have mounted it.
pub fn tell_people(disk: &Disk, events: Events) -> Result<Listener, StartError> {
    let (name, size) = (disk.name().to_owned(), disk.size());
    Listener::new(disk, move || events.trouble(resized_on_sata(&name, &size)))
}

fn resized_on_sata(name: &str, size: &Size) -> String {
    let mib = size.now().0 >> 11;
    format!(
        "disk {name} has {mib} MiB now. SATA has no word for this: the guest learns of it when it finds the disk anew \
         (Linux, with nothing of it mounted: echo 1 > /sys/block/sdX/device/delete, then echo '- - -' > \
         /sys/class/scsi_host/hostN/scan), or at its next start."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::{DiskOptions, Sectors};

    #[test]
    fn a_listener_is_told_of_another_size_and_the_thread_ends_with_its_owner() {
        let file = std::env::temp_dir().join(format!("skep-resized-{}", std::process::id()));
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let disk = Disk::open(&DiskOptions::new(&file)).unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        let listener = Listener::new(&disk, move || sender.send(()).unwrap()).unwrap();
        let teller = SizeTeller::new(vec![listener]).unwrap();
        std::fs::write(&file, vec![0; 2 << 20]).unwrap();
        assert_eq!(disk.look_again().unwrap(), Some(Sectors::in_bytes(2 << 20)));
        told.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        drop(teller);
        assert!(told.recv().is_err(), "the thread took its listener along");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn of_a_sata_disk_that_grows_people_are_told() {
        let file = std::env::temp_dir().join(format!("skep-sata-grown-{}", std::process::id()));
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let disk = Disk::open(&DiskOptions::new(&file)).unwrap();
        let (events, inbox) = crate::events::events(Box::new(|_| {}));
        let listener = tell_people(&disk, events).unwrap();
        std::fs::write(&file, vec![0; 2 << 20]).unwrap();
        disk.look_again().unwrap();
        assert!(listener.resized.read().is_ok());
        (listener.tell)();
        let Ok(crate::events::Event::Trouble(what)) = inbox.next(None) else { panic!("nothing was told") };
        assert!(what.contains("has 2 MiB now"), "{what}");
        std::fs::remove_file(&file).unwrap();
    }
}
