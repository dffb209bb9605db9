//! Reports of disks that have another size: to controllers whose protocol knows that, to people for the others.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use disk::{Disk, Size, SizeWatch};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{StartError, system};
use crate::events::Events;

/// Watches the sizes of disks, and reports changes. The watch begins with the first disk.
#[derive(Default)]
pub struct Sizes {
    teller: Option<SizeTeller>,
    watch: Option<SizeWatch>,
}

impl Sizes {
    /// Watches these disks as well from now on, as long as they are open, and notifies these listeners.
    pub fn add(&mut self, disks: &[Arc<Disk>], listeners: Vec<Listener>) -> Result<(), StartError> {
        match (&self.teller, listeners.is_empty()) {
            (_, true) => {}
            (Some(teller), false) => listeners.into_iter().for_each(|listener| teller.add(listener)),
            (None, false) => {
                let teller = SizeTeller::new(listeners).map_err(system("listen to changes of disks"))?;
                self.teller = Some(teller);
            }
        }
        match (&self.watch, disks.is_empty()) {
            (_, true) => {}
            (Some(watch), false) => disks.iter().for_each(|disk| watch.add(disk)),
            (None, false) => {
                self.watch = Some(SizeWatch::over(disks).map_err(system("watch the sizes of disks"))?);
            }
        }
        Ok(())
    }
}

/// Notified when a disk has another size, as long as the disk is open.
pub struct Listener {
    disk: Weak<Disk>,
    resized: EventFd,
    tell: Box<dyn Fn() + Send>,
}

impl Listener {
    /// Calls `tell` after each change of the disk's size.
    pub fn new(disk: &Arc<Disk>, tell: impl Fn() + Send + 'static) -> Result<Listener, StartError> {
        let resized = disk.resized().map_err(system("listen to changes of a disk"))?;
        Ok(Listener { disk: Arc::downgrade(disk), resized, tell: Box::new(tell) })
    }
}

/// A thread that notifies controllers of new sizes of their disks, until it is dropped.
struct SizeTeller {
    /// Its end is the thread's.
    more: Option<Sender<Listener>>,
    bell: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl SizeTeller {
    fn new(mut listeners: Vec<Listener>) -> std::io::Result<SizeTeller> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ((more, come), rung) = (channel(), bell.try_clone()?);
        let thread = std::thread::Builder::new().name("disk-resizes".into()).spawn(move || {
            while take(&come, &mut listeners) {
                wait(&rung, &listeners);
                // Only those that were written have something to read.
                let told = listeners.iter().filter(|listener| listener.resized.read().is_ok());
                told.for_each(|listener| (listener.tell)());
            }
        })?;
        Ok(SizeTeller { more: Some(more), bell, thread: Some(thread) })
    }

    fn add(&self, listener: Listener) {
        if let Some(more) = &self.more {
            // The thread ends only after its sender, so it takes all.
            more.send(listener).unwrap_or_default();
        }
        self.ring();
    }

    fn ring(&self) {
        // A counter that is full is readable already.
        self.bell.write(1).unwrap_or_default();
    }
}

impl Drop for SizeTeller {
    fn drop(&mut self) {
        self.more = None;
        self.ring();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}

/// Takes in those that have come, and forgets those whose disks have been closed; false when it is time to end.
fn take(come: &Receiver<Listener>, listeners: &mut Vec<Listener>) -> bool {
    listeners.retain(|listener| listener.disk.strong_count() > 0);
    loop {
        match come.try_recv() {
            Ok(listener) => listeners.push(listener),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}

/// Waits for a change of a disk, or of who listens.
fn wait(bell: &EventFd, listeners: &[Listener]) {
    let eventfds = listeners.iter().map(|listener| &listener.resized);
    let mut fds: Vec<libc::pollfd> = std::iter::once(bell)
        .chain(eventfds)
        .map(|eventfd| libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array is ours and as long as said; it waits without end, which a signal may cut short.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    // Rung or not; what rings after this wakes the next wait.
    bell.read().unwrap_or_default();
}

/// ATA cannot report another size, so a message tells people what to do. To unplug the disk for a moment would
/// inform the driver, but it would break file systems that the guest has mounted.
pub fn tell_people(disk: &Arc<Disk>, events: Events) -> Result<Listener, StartError> {
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
        let disk = Arc::new(Disk::open(&DiskOptions::new(&file)).unwrap());
        let (sender, told) = std::sync::mpsc::channel();
        let listener = |what: &'static str| {
            let sender = sender.clone();
            Listener::new(&disk, move || sender.send(what).unwrap()).unwrap()
        };
        let mut sizes = Sizes::default();
        sizes.add(&[], vec![listener("first")]).unwrap();
        sizes.add(&[], vec![listener("second")]).unwrap();
        drop(sender);
        std::fs::write(&file, vec![0; 2 << 20]).unwrap();
        assert_eq!(disk.look_again().unwrap(), Some(Sectors::in_bytes(2 << 20)));
        let mut heard = [(); 2].map(|()| told.recv_timeout(std::time::Duration::from_secs(10)).unwrap());
        heard.sort_unstable();
        assert_eq!(heard, ["first", "second"]);
        drop(sizes);
        assert!(told.recv().is_err(), "the thread took its listeners along");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn of_a_sata_disk_that_grows_people_are_told() {
        let file = std::env::temp_dir().join(format!("skep-sata-grown-{}", std::process::id()));
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let disk = Arc::new(Disk::open(&DiskOptions::new(&file)).unwrap());
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
