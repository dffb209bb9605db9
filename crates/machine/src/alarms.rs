//! Listening for what the kernel says of assigned devices: errors, and that the host wants one back.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use assign::Assigned;
use dma::fault::Witness;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::events::Events;
use crate::faults;

/// A thread that turns alarms into events until it is dropped.
pub struct AlarmWatch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl AlarmWatch {
    /// Starts to listen; `None` when there is no device to listen to.
    pub fn new(
        devices: &[Arc<Assigned>],
        witness: Witness,
        events: Events,
    ) -> std::io::Result<Option<AlarmWatch>> {
        if devices.is_empty() {
            return Ok(None);
        }
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let (end, devices) = (stop.try_clone()?, devices.to_vec());
        let thread = std::thread::Builder::new().name("alarms".into()).spawn(move || {
            while wait(&end, &devices) {
                for device in &devices {
                    for event in device.alarms().take() {
                        faults::tell_alarm(&event, &witness, &events);
                    }
                }
            }
        })?;
        Ok(Some(AlarmWatch { stop, thread: Some(thread) }))
    }
}

impl Drop for AlarmWatch {
    fn drop(&mut self) {
        let told = self.stop.write(1);
        debug_assert!(told.is_ok(), "an eventfd that nobody wrote to takes a 1");
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Waits for an alarm; false when it is time to end.
fn wait(stop: &EventFd, devices: &[Arc<Assigned>]) -> bool {
    let eventfds = devices.iter().flat_map(|device| device.alarms().eventfds());
    let mut fds: Vec<libc::pollfd> = std::iter::once(stop)
        .chain(eventfds)
        .map(|eventfd| libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array is ours and as long as said; it waits without end, which a signal may cut short.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    fds[0].revents == 0
}
