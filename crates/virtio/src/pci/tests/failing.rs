//! A function on a machine that fails.

use super::*;

/// A machine that fails at what its switches say.
#[derive(Default)]
pub(super) struct Failing {
    fake: ::pci::fake::FakeServices,
    doorbells: AtomicBool,
    vectors: AtomicBool,
    messages: Arc<AtomicBool>,
}

struct FailingVector(Arc<dyn ::pci::Vector>, Arc<AtomicBool>);

fn failure(what: String) -> ServiceError {
    let device = Address::new(0, 3, 0).unwrap();
    ServiceError { device, what, cause: std::io::Error::from_raw_os_error(5) }
}

impl ::pci::Vector for FailingVector {
    fn eventfd(&self) -> &EventFd {
        self.0.eventfd()
    }

    fn set(&self, message: Option<MsiMessage>) -> Result<(), ServiceError> {
        if self.1.load(Ordering::SeqCst) { Err(failure("set a message".into())) } else { self.0.set(message) }
    }

    fn pending(&self) -> bool {
        self.0.pending()
    }
}

impl Services for Failing {
    fn vector(&self, device: Address) -> Result<Arc<dyn ::pci::Vector>, ServiceError> {
        if self.vectors.load(Ordering::SeqCst) {
            return Err(failure("make a vector".into()));
        }
        Ok(Arc::new(FailingVector(self.fake.vector(device)?, self.messages.clone())))
    }

    fn line(&self, device: Address, pin: Pin) -> Arc<dyn ::pci::Line> {
        self.fake.line(device, pin)
    }

    fn resampled_line(&self, device: Address, pin: Pin) -> Result<Arc<::pci::ResampledLine>, ServiceError> {
        self.fake.resampled_line(device, pin)
    }

    fn remove_resampled_line(
        &self,
        _: Address,
        _: Pin,
        _: &::pci::ResampledLine,
    ) -> Result<(), ServiceError> {
        Ok(())
    }

    fn add_doorbell(&self, device: Address, at: Gpa, width: u32, fd: &EventFd) -> Result<(), ServiceError> {
        self.fake.add_doorbell(device, at, width, fd)
    }

    fn remove_doorbell(
        &self,
        device: Address,
        at: Gpa,
        width: u32,
        fd: &EventFd,
    ) -> Result<(), ServiceError> {
        if self.doorbells.load(Ordering::SeqCst) {
            return Err(failure(format!("remove the doorbell at {at}")));
        }
        self.fake.remove_doorbell(device, at, width, fd)
    }

    fn add_memory(&self, _: Address, _: &memory::DeviceMemory) -> Result<(), ServiceError> {
        Err(failure("map memory".into()))
    }

    fn remove_memory(&self, _: Address, _: &memory::DeviceMemory) -> Result<(), ServiceError> {
        Ok(())
    }
}

fn on_a_failing_machine() -> (Arc<Failing>, VirtioPci) {
    let (services, function, _) = on_a_machine();
    (services, function)
}

/// A device on a machine that does not fail yet, and what keeps its queues from ending.
pub(super) fn on_a_machine() -> (Arc<Failing>, VirtioPci, Arc<AtomicBool>) {
    let services = Arc::new(Failing::default());
    let windows = Windows {
        memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
        memory64: GpaRange::new(Gpa(BAR), 0x10_0000_0000),
        ports: (0xc000, 0xffff),
    };
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
    let hold = Arc::<AtomicBool>::default();
    let (resets, change) = Default::default();
    let echo = Echo { hold: hold.clone(), resets, change, config: *b"abcdefgh" };
    let address = Address::new(0, 3, 0).unwrap();
    let report: Report = Arc::new(|_| ());
    let function = VirtioPci::new(Box::new(echo), address, ram, services.clone(), &windows, report).unwrap();
    (services, function, hold)
}

#[test]
fn doorbells_that_stay_are_all_named_and_tried_again() {
    let (services, function) = on_a_failing_machine();
    let at = |start| Some(DecodedAt::Memory(GpaRange::new(Gpa(start), 0x4000).unwrap()));
    function.bar_moved(0, at(BAR)).unwrap();
    services.doorbells.store(true, Ordering::SeqCst);
    let error = function.bar_moved(0, None).unwrap_err().to_string();
    for doorbell in [NOTIFY, NOTIFY + 4] {
        assert!(error.contains(&format!("remove the doorbell at {}", Gpa(doorbell))), "{error}");
    }
    function.bar_moved(0, at(BAR)).unwrap();
    assert_eq!(services.fake.doorbells().len(), 2, "those that stayed serve on where they are");
    function.bar_moved(0, None).unwrap_err();
    function.bar_moved(0, at(BAR + 0x10000)).unwrap();
    assert_eq!(services.fake.doorbells().len(), 4);
    services.doorbells.store(false, Ordering::SeqCst);
    function.bar_moved(0, None).unwrap();
    assert_eq!(services.fake.doorbells(), []);
}

#[test]
fn a_reset_that_fails_in_part_says_why() {
    let (services, function) = on_a_failing_machine();
    let msix = capability::walk(|offset| {
        let mut byte = [0];
        function.read_config(offset, &mut byte);
        byte[0]
    })[0]
        .1;
    // Vector 1 has a message, which the machine will not take back.
    function.write_config(4, &[6, 0]).unwrap();
    function.write_config(msix + 2, &0x8000u16.to_le_bytes()).unwrap();
    function.write_bar(2, 16, &0xfee0_0000u64.to_le_bytes()).unwrap();
    function.write_bar(2, 28, &0u32.to_le_bytes()).unwrap();
    services.messages.store(true, Ordering::SeqCst);
    services.vectors.store(true, Ordering::SeqCst);
    let error = function.reset().unwrap_err().to_string();
    assert!(error.contains("set a message"), "{error}");
}
