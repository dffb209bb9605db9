//! Taking a device from its driver for vfio-pci, and giving it back.

mod error;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use error::BindError;

use crate::record::{Leftover, Record};
use crate::{Host, PciAddress, PciDevice, attribute, link_name};

/// The driver that hands devices to user space.
pub(crate) const VFIO: &str = "vfio-pci";

/// How long a driver may take to show up at a device after a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// A device that is with vfio-pci for us. Dropped, or given back explicitly, it returns to the driver it had;
/// one that was with vfio-pci before stays there.
///
/// Close every VFIO file descriptor of the device first: the kernel unbinds a driver only then.
#[derive(Debug)]
#[must_use = "dropping it gives the device back at once"]
pub struct Bound {
    host: Host,
    address: PciAddress,
    /// What to go back to; `None` once given back, and when there is nothing to restore.
    before: Option<Record>,
}

impl Bound {
    /// The device.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Returns the device to the driver it had and waits until that has it.
    pub fn give_back(mut self) -> Result<(), BindError> {
        self.restore()
    }

    /// Leaves the device bound to vfio-pci, and its record to a later process: see
    /// [`Host::give_back_leftover`].
    pub fn leave(mut self) {
        self.before = None;
    }

    fn restore(&mut self) -> Result<(), BindError> {
        let Some(record) = self.before.take() else { return Ok(()) };
        let _held = self.host.hold(self.address)?;
        self.host.restore(self.address, &record)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            say::error(error);
        }
    }
}

impl Host {
    /// Takes a device for vfio-pci, unless the host uses it. On failure it is as it was.
    pub fn bind_to_vfio(&self, device: &PciDevice) -> Result<Bound, BindError> {
        let address = device.address;
        let is_with_vfio = || self.driver_of(address).as_deref() == Some(VFIO);
        let (_held, old) = match self.hold(address) {
            Ok(held) => (Some(held), self.record(address)?),
            // For a user for whom root has reserved the device: nothing is changed that would have to be undone, and the
            // kernel lets one process have it.
            Err(BindError::Record { cause, .. }) if is_with_vfio() && cause.is_denied() => (None, None),
            Err(error) => return Err(error),
        };
        if let Some(other) = old.as_ref().filter(|record| self.is_alive(record)) {
            return Err(BindError::Taken { address, pid: other.pid });
        }
        let reasons = self.device_in_use(device);
        if !reasons.is_empty() {
            return Err(BindError::InUse { address, reasons });
        }
        let with_vfio = is_with_vfio();
        if with_vfio && old.is_none() {
            return Ok(Bound { host: self.clone(), address, before: None });
        }
        if !with_vfio {
            self.ensure_vfio_pci()?;
        }
        // If a process was killed half way, the device goes back to its state before that process.
        let record = self.sign(old.unwrap_or_else(|| Record {
            address: address.to_string(),
            driver: self.driver_of(address),
            driver_override: self.override_of(address),
            pid: 0,
            started: None,
        }));
        self.keep_record(address, &record)?;
        match self.hand_to_vfio(address) {
            Ok(()) => Ok(Bound { host: self.clone(), address, before: Some(record) }),
            Err(failed) => Err(match self.restore(address, &record) {
                Ok(()) => failed,
                Err(undo) => BindError::Undo { failed: failed.into(), undo: undo.into() },
            }),
        }
    }

    /// Gives back a device that a killed process left with vfio-pci, unless another process has done so or taken
    /// it meanwhile.
    ///
    /// # Errors
    ///
    /// [`BindError::Used`] while a process has it, or another device of its group, through VFIO.
    pub fn give_back_leftover(&self, leftover: &Leftover) -> Result<(), BindError> {
        let _held = self.hold(leftover.address)?;
        if self.record(leftover.address)?.as_ref() != Some(&leftover.record) {
            return Ok(()); // another process was faster
        }
        let by = self.vfio_users(leftover.address);
        if !by.is_empty() {
            return Err(BindError::Used { address: leftover.address, pid: leftover.pid, by });
        }
        self.restore(leftover.address, &leftover.record)
    }

    fn sign(&self, record: Record) -> Record {
        let pid = std::process::id();
        Record { pid, started: self.started(pid), ..record }
    }

    fn ensure_vfio_pci(&self) -> Result<(), BindError> {
        let there = || self.path("/sys/bus/pci/drivers").join(VFIO).exists();
        if there() {
            return Ok(());
        }
        self.kernel.load(VFIO).map_err(|cause| BindError::NoVfio { cause })?;
        if there() {
            return Ok(());
        }
        Err(BindError::NoVfio { cause: io::Error::other("it loaded, but no such driver appeared") })
    }

    fn hand_to_vfio(&self, address: PciAddress) -> Result<(), BindError> {
        self.set_override(address, VFIO)?;
        if self.driver_of(address).as_deref() != Some(VFIO) {
            self.unbind(address)?;
            self.probe(address)?;
        }
        self.await_driver(address, VFIO)
    }

    /// Brings a device back to what the record says, from whatever state it is in, then drops the record.
    fn restore(&self, address: PciAddress, before: &Record) -> Result<(), BindError> {
        if !self.device_dir(address).exists() {
            return self.drop_record(address); // unplugged: nothing to give back
        }
        let now = self.driver_of(address);
        let of_others = now.as_ref().is_some_and(|now| now != VFIO && Some(now) != before.driver.as_ref());
        if of_others && self.override_of(address).as_deref() != Some(VFIO) {
            return self.drop_record(address); // somebody has given it to another driver since: that is to stay
        }
        if now.as_deref() == Some(VFIO) {
            self.unbind(address)?;
        }
        if self.override_of(address) != before.driver_override {
            self.set_override(address, before.driver_override.as_deref().unwrap_or("\n"))?;
        }
        if let Some(driver) = &before.driver {
            if self.driver_of(address).is_none() {
                self.probe(address)?;
            }
            self.await_driver(address, driver)?;
        }
        self.drop_record(address)
    }

    fn driver_of(&self, address: PciAddress) -> Option<String> {
        link_name(&self.device_dir(address).join("driver"))
    }

    fn override_of(&self, address: PciAddress) -> Option<String> {
        let text = attribute(&self.device_dir(address).join("driver_override"))?;
        (!text.is_empty() && text != "(null)").then_some(text)
    }

    fn set_override(&self, address: PciAddress, driver: &str) -> Result<(), BindError> {
        let path = self.device_dir(address).join("driver_override");
        self.step("choose the driver of", address, path, driver)
    }

    fn unbind(&self, address: PciAddress) -> Result<(), BindError> {
        let path = self.device_dir(address).join("driver/unbind");
        if !path.parent().is_some_and(Path::exists) {
            return Ok(());
        }
        self.step("unbind", address, path, &address.to_string())
    }

    fn probe(&self, address: PciAddress) -> Result<(), BindError> {
        let path = self.path("/sys/bus/pci/drivers_probe");
        self.step("probe a driver for", address, path, &address.to_string())
    }

    fn step(
        &self,
        step: &'static str,
        address: PciAddress,
        path: PathBuf,
        text: &str,
    ) -> Result<(), BindError> {
        self.kernel.write(&path, text).map_err(|cause| self.step_failed(step, address, path, cause))
    }

    pub(crate) fn step_failed(
        &self,
        step: &'static str,
        address: PciAddress,
        path: PathBuf,
        cause: io::Error,
    ) -> BindError {
        let hint = match cause.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "This needs root".to_owned()
            }
            io::ErrorKind::TimedOut => self.why_it_hangs(address),
            _ => "See the kernel's log (`dmesg`)".to_owned(),
        };
        BindError::Step { step, address, path, cause, hint }
    }

    /// Drivers may be bound a moment after the probe returns. And the kernel passes over a device that it is still taking
    /// from its last driver, without an error, though sysfs shows none any more (Linux, drivers/base:
    /// `bus_rescan_devices_helper` looks at `dev->driver`, which outlives the link): such a device is probed again.
    fn await_driver(&self, address: PciAddress, wanted: &str) -> Result<(), BindError> {
        let end = Instant::now() + if cfg!(test) { Duration::from_millis(100) } else { PROBE_LIMIT };
        // A driver that refuses the device is asked a few times only.
        let mut pause = Duration::from_millis(20);
        let mut probe = Instant::now() + pause;
        loop {
            let found = self.driver_of(address);
            if found.as_deref() == Some(wanted) {
                return Ok(());
            }
            let now = Instant::now();
            if now >= end {
                return Err(BindError::WrongDriver { address, wanted: wanted.to_owned(), found });
            }
            if found.is_none() && now >= probe {
                self.probe(address)?;
                pause *= 2;
                probe = now + pause;
                continue;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    const BDF: &str = "0000:01:00.0";

    fn device(host: &Host) -> PciDevice {
        PciDevice::open(host, BDF.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_device_goes_to_vfio_and_back_to_the_driver_it_had() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        assert_eq!(device(&host).driver.as_deref(), Some("vfio-pci"));
        assert!(fake.path("/run/skep/vfio-0000:01:00.0.json").exists());
        bound.give_back().unwrap();
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
        assert!(!fake.path("/run/skep/vfio-0000:01:00.0.json").exists());
    }

    #[test]
    fn dropping_the_guard_gives_back_too_and_keeps_a_former_override() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.set_override(BDF, "nvme");
        let host = fake.host();
        drop(host.bind_to_vfio(&device(&host)).unwrap());
        assert_eq!(fake.state(BDF), (Some("nvme".into()), Some("nvme".into())));
    }

    #[test]
    fn a_device_without_a_driver_goes_back_to_none() {
        let fake = FakeHost::new();
        fake.pci(BDF, 0x00ff00, None, 5);
        let host = fake.host();
        host.bind_to_vfio(&device(&host)).unwrap().give_back().unwrap();
        assert_eq!(fake.state(BDF), (None, None));
    }

    #[test]
    fn a_device_already_with_vfio_pci_is_used_and_left_there() {
        let fake = FakeHost::new();
        fake.pci(BDF, 0x010802, Some("vfio-pci"), 9);
        let host = fake.host();
        host.bind_to_vfio(&device(&host)).unwrap().give_back().unwrap();
        assert_eq!(device(&host).driver.as_deref(), Some("vfio-pci"));
        assert_eq!(fake.writes(), 0);
    }

    #[test]
    fn whichever_step_fails_the_device_is_as_it_was_and_the_error_names_it() {
        for call in 0..3 {
            let fake = FakeHost::new();
            fake.nvme(BDF, 9);
            fake.fail_at(call);
            let host = fake.host();
            let error = host.bind_to_vfio(&device(&host)).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(BDF) && text.contains("Permission denied") && text.contains("root"),
                "{text}"
            );
            assert_eq!(fake.state(BDF), (Some("nvme".into()), None), "call {call}");
            assert!(host.leftovers().is_empty() && host.record(BDF.parse().unwrap()).unwrap().is_none());
        }
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_said_to_be_at_work_unless_a_process_has_the_device_open() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        fake.time_out();
        let text = host.unbind(BDF.parse().unwrap()).unwrap_err().to_string();
        assert!(text.contains("vfio-pci has not finished with it") && !text.contains("process"), "{text}");
        fake.link("/proc/77/fd/5", "/dev/vfio/9");
        fake.link("/proc/78/fd/5", "/dev/vfio/8");
        fake.file("/proc/77/comm", "qemu\n");
        let text = bound.give_back().unwrap_err().to_string();
        assert!(text.ends_with("It is still open in process 77 (qemu); stop that first"), "{text}");
    }

    #[test]
    fn a_failure_to_give_back_is_an_error_and_stays_on_record() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        fake.fail_at(fake.writes());
        assert!(matches!(bound.give_back(), Err(BindError::Step { step: "unbind", .. })));
        assert!(host.record(BDF.parse().unwrap()).unwrap().is_some());
    }

    #[test]
    fn a_driver_that_refuses_its_device_is_named() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        fake.refuse("nvme");
        let text = bound.give_back().unwrap_err().to_string();
        assert!(text.contains("should be bound to driver nvme now, but is bound to none"), "{text}");
    }

    #[test]
    fn a_probe_that_the_kernel_passes_over_is_asked_for_again_and_a_refusal_a_few_times_only() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        fake.pass_over(1);
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        fake.pass_over(2);
        bound.give_back().unwrap();
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        fake.refuse("nvme");
        let before = fake.writes();
        bound.give_back().unwrap_err();
        let writes = fake.writes() - before;
        assert!((4..=6).contains(&writes), "{writes} writes in 100 ms");
    }

    #[test]
    fn a_killed_owner_leaves_a_record_by_which_the_device_is_given_back() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
        assert!(host.leftovers().is_empty(), "the owner still runs");
        assert!(matches!(host.bind_to_vfio(&device(&host)), Err(BindError::Taken { .. })));
        fake.kill_owner();
        let leftovers = host.leftovers();
        assert_eq!((leftovers.len(), leftovers[0].driver.as_deref()), (1, Some("nvme")));
        host.give_back_leftover(&leftovers[0]).unwrap();
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
        assert!(host.leftovers().is_empty());
    }

    #[test]
    fn a_device_that_its_owner_could_not_give_back_goes_back_once_that_has_ended() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let before = fake.state(BDF);
        host.bind_to_vfio(&device(&host)).unwrap().leave();
        assert_eq!(fake.state(BDF).0.as_deref(), Some("vfio-pci"), "nothing was unbound");
        fake.kill_owner();
        host.give_back_leftover(&host.leftovers()[0]).unwrap();
        assert_eq!(fake.state(BDF), before);
    }

    #[test]
    fn whatever_moment_its_owner_was_killed_at_a_device_goes_back_to_its_first_driver() {
        for steps in 0..3 {
            let fake = FakeHost::new();
            fake.nvme(BDF, 9);
            let host = fake.host();
            let address = BDF.parse().unwrap();
            std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
            fake.kill_owner();
            if steps < 2 {
                host.unbind(address).unwrap();
            }
            if steps < 1 {
                host.set_override(address, "\n").unwrap();
                host.probe(address).unwrap();
            }
            host.bind_to_vfio(&device(&host)).unwrap().give_back().unwrap();
            assert_eq!(fake.state(BDF), (Some("nvme".into()), None), "after {steps} steps");
        }
    }

    #[test]
    fn a_leftover_that_another_process_took_meanwhile_stays_taken() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
        fake.kill_owner();
        let leftovers = host.leftovers();
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        host.give_back_leftover(&leftovers[0]).unwrap();
        assert_eq!(device(&host).driver.as_deref(), Some("vfio-pci"));
        bound.give_back().unwrap();
    }

    #[test]
    fn of_many_who_want_a_device_at_once_one_gets_it() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        let device = device(&host);
        let take = || host.bind_to_vfio(&device).map(std::mem::forget).is_ok();
        let taken = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            all.into_iter().filter_map(|thread| thread.join().ok()).filter(|taken| *taken).count()
        });
        assert_eq!(taken, 1);
    }

    #[test]
    fn who_takes_a_leftover_gives_it_back_to_its_first_driver() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
        fake.kill_owner();
        let bound = host.bind_to_vfio(&device(&host)).unwrap();
        bound.give_back().unwrap();
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
    }

    #[test]
    fn who_takes_a_device_that_was_left_half_way_gives_it_back_to_its_first_driver() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
        // As if the owner had been killed after it took the device from its driver.
        host.unbind(BDF.parse().unwrap()).unwrap();
        fake.kill_owner();
        assert_eq!(fake.state(BDF), (None, Some("vfio-pci".into())));
        host.bind_to_vfio(&device(&host)).unwrap().give_back().unwrap();
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
    }

    #[test]
    fn vfio_pci_is_loaded_when_it_is_not_there_and_said_when_it_cannot_be() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.remove("/sys/bus/pci/drivers/vfio-pci");
        let host = fake.host();
        host.bind_to_vfio(&device(&host)).unwrap().give_back().unwrap();
        fake.remove("/sys/bus/pci/drivers/vfio-pci");
        fake.no_modules();
        let text = host.bind_to_vfio(&device(&host)).unwrap_err().to_string();
        assert!(text.contains("`modprobe vfio-pci` failed"), "{text}");
        assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
    }

    #[test]
    fn a_device_in_use_is_refused_before_anything_is_touched() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.disk(BDF, "nvme0/nvme0n1", "259:0");
        fake.file("/proc/self/mountinfo", "22 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n");
        let host = fake.host();
        let text = host.bind_to_vfio(&device(&host)).unwrap_err().to_string();
        assert!(text.contains("nvme0n1 is mounted on /srv"), "{text}");
        assert_eq!(fake.writes(), 0);
    }
    #[test]
    fn a_leftover_stays_with_whoever_uses_it_now_and_goes_back_when_that_has_ended() {
        const OTHER: &str = "0000:01:00.1";
        for file in ["/dev/vfio/9", "/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1"] {
            let fake = FakeHost::new();
            fake.nvme(BDF, 9);
            fake.pci(OTHER, 0x010802, Some("vfio-pci"), 9);
            let host = fake.host();
            std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
            fake.kill_owner();
            fake.dir(format!("/sys/bus/pci/devices/{BDF}/vfio-dev/vfio0"));
            fake.dir(format!("/sys/bus/pci/devices/{OTHER}/vfio-dev/vfio1"));
            fake.opens(77, "qemu", file);
            let (before, leftover) = (fake.writes(), host.leftovers().remove(0));
            let text = host.give_back_leftover(&leftover).unwrap_err().to_string();
            assert!(
                text.contains("in use by process 77 (qemu)")
                    && text.contains("skep host give-back 0000:01:00.0"),
                "{text}"
            );
            // Nor does a start that wants it: when that failed it would give the device back.
            let text = host.bind_to_vfio(&device(&host)).unwrap_err().to_string();
            assert!(text.contains("open through VFIO in process 77 (qemu)"), "{text}");
            assert_eq!((fake.state(BDF).0.as_deref(), fake.writes()), (Some("vfio-pci"), before), "{file}");
            fake.remove("/proc/77/fd/3");
            host.give_back_leftover(&leftover).unwrap();
            assert_eq!(fake.state(BDF), (Some("nvme".into()), None));
        }
    }

    #[test]
    fn a_leftover_that_somebody_has_given_to_another_driver_stays_with_it_and_is_none_any_more() {
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        let host = fake.host();
        std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
        fake.kill_owner();
        fake.dir("/sys/bus/pci/drivers/uio");
        fake.link(format!("/sys/devices/pci0000:00/{BDF}/driver"), "/sys/bus/pci/drivers/uio");
        fake.set_override(BDF, "uio");
        let before = fake.writes();
        host.give_back_leftover(&host.leftovers()[0]).unwrap();
        assert_eq!((fake.state(BDF), fake.writes()), ((Some("uio".into()), Some("uio".into())), before));
        assert!(host.leftovers().is_empty());
    }

    #[test]
    fn a_leftover_stays_while_a_vm_that_lives_has_another_device_of_its_group() {
        const OTHER: &str = "0000:01:00.1";
        let fake = FakeHost::new();
        fake.nvme(BDF, 9);
        fake.nvme(OTHER, 9);
        let host = fake.host();
        std::mem::forget(host.bind_to_vfio(&device(&host)).unwrap());
        fake.kill_owner();
        let alive = "{\"address\":\"0000:01:00.1\",\"driver\":\"nvme\",\"driver_override\":null,\"pid\":78,\"started\":5}";
        fake.file(format!("/run/skep/vfio-{OTHER}.json"), alive);
        fake.process(78, "skep", 5);
        let leftover = host.leftovers().remove(0);
        let text = host.give_back_leftover(&leftover).unwrap_err().to_string();
        assert!(text.contains("process 78 (skep)"), "{text}");
    }

    /// A process of its own, whose standard error nobody reads.
    #[test]
    fn a_device_that_cannot_be_given_back_ends_no_process_whose_standard_error_is_a_closed_pipe() {
        const CHILD: &str = "SKEP_TEST_BROKEN_STDERR";
        if std::env::var_os(CHILD).is_some() {
            let fake = FakeHost::new();
            fake.nvme(BDF, 9);
            let host = fake.host();
            let bound = host.bind_to_vfio(&device(&host)).unwrap();
            fake.fail_at(fake.writes());
            drop(bound);
            assert_eq!(fake.state(BDF).0.as_deref(), Some("vfio-pci"), "that failed");
            std::process::exit(7);
        }
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let name = "bind::tests::a_device_that_cannot_be_given_back_ends_no_process_whose_standard_error_is_a_closed_pipe";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").stderr(writer);
        assert_eq!(child.stdout(std::process::Stdio::null()).status().unwrap().code(), Some(7));
    }
}
