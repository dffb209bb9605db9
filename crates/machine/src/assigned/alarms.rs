//! Listens to the kernel's signals about devices: errors, and that the host wants one back.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use assign::Assigned;
use disk::nvme::NvmeController;
use faults::FaultReporter;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::assigned::on_fault;
use crate::events::Events;

/// A thread that turns alarms into events until it is dropped.
pub struct AlarmWatch {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Who may raise an alarm.
struct AlarmSources {
    devices: Vec<Arc<Assigned>>,
    controllers: Vec<Arc<NvmeController>>,
}

impl AlarmWatch {
    /// Starts to listen; `None` when there is no device to listen to. The driver of a controller reports what happens
    /// to it.
    pub fn new(
        devices: &[Arc<Assigned>],
        controllers: &[Arc<NvmeController>],
        reporter: FaultReporter,
        events: Events,
    ) -> std::io::Result<Option<AlarmWatch>> {
        if devices.is_empty() && controllers.is_empty() {
            return Ok(None);
        }
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let end = stop.try_clone()?;
        let sources = AlarmSources { devices: devices.to_vec(), controllers: controllers.to_vec() };
        let thread = std::thread::Builder::new().name("alarms".into()).spawn(move || {
            while sources.wait(&end) {
                for event in sources.devices.iter().flat_map(|device| device.alarms().take()) {
                    on_fault::tell_alarm(&event, &reporter, &events);
                }
                sources.controllers.iter().for_each(|controller| controller.heed_removal());
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

impl AlarmSources {
    /// Waits for an alarm; false when it is time to end.
    fn wait(&self, stop: &EventFd) -> bool {
        let alarms = self.devices.iter().flat_map(|device| device.alarms().eventfds());
        let removals = self.controllers.iter().map(|controller| controller.removal());
        let mut fds: Vec<libc::pollfd> = std::iter::once(stop)
            .chain(alarms)
            .chain(removals)
            .map(|eventfd| libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: the array is ours and as long as said; it waits without end, which a signal may cut short.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        fds[0].revents == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::host_nvme;
    use crate::events::{Event, events};
    use disk::nvme::NvmeOptions;
    use disk::nvme::model::{Model, Namespace};
    use dma::Kind;
    use dma::fake::FakeIommu;
    use faults::Place;
    use faults::{Fault, Inputs, Source, Watch, Watched};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn that_the_host_wants_a_controller_back_is_a_fault_although_no_queue_is_in_use() {
        let (sender, faults) = channel::<Fault>();
        let device = Watched { device: "0000:aa:00.0".parse().unwrap(), domain: "host".into() };
        let tell = Box::new(move |event| drop(sender.send(event)));
        let watch =
            Watch::start(Inputs::passive(), vec![device], Box::new(|_, _| Place::Beyond), tell).unwrap();
        let (events, inbox) = events(Box::new(|_| {}));

        let iommu = FakeIommu::new();
        let model = Model::new(&iommu, vec![Namespace { bytes: 1 << 20, block: 512 }]);
        let options = NvmeOptions::new(host_nvme::report(&watch.reporter(), &events));
        let controller =
            NvmeController::over(model.function(), &iommu.domain("host", Kind::Host), options).unwrap();
        let alarms =
            AlarmWatch::new(&[], &[Arc::new(controller)], watch.reporter(), events).unwrap().unwrap();
        model.ask_back();
        let mine = |event: &Fault| event.source == Source::HostDriver;
        let told =
            std::iter::from_fn(|| faults.recv_timeout(Duration::from_secs(10)).ok()).find(mine).unwrap();
        assert!(told.reason.contains("the host takes it away"), "{told}");
        assert_eq!(told.domain.as_deref(), Some("host"));
        drop(alarms);
        assert_eq!(model.seen().shutdowns, 1);
        assert!(!inbox.waiting().iter().any(|event| matches!(event, Event::Trouble(_))));
    }
}
