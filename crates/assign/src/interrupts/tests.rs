use super::*;
use pci::MsiMessage;
use pci::fake::FakeServices;
use std::io;

use parking_lot::Mutex;
/// Remembers calls as "msix 0 +--" (an eventfd, none, none), and fails those asked for.
#[derive(Default)]
pub(crate) struct Fake {
    calls: Mutex<Vec<String>>,
    most: Mutex<Option<usize>>,
}

impl Fake {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }
}

impl Wires for Fake {
    fn set(&self, kind: Interrupt, start: u32, fds: &[Option<&EventFd>]) -> Result<(), VfioError> {
        if self.most.lock().is_some_and(|most| start as usize + fds.len() > most) {
            let cause = io::Error::from_raw_os_error(28);
            return Err(VfioError { object: "dev".into(), what: "set".into(), cause, hint: "" });
        }
        let fds: String = fds.iter().map(|fd| if fd.is_some() { '+' } else { '-' }).collect();
        self.calls.lock().push(format!("{kind:?} {start} {fds}"));
        Ok(())
    }
    fn disable(&self, kind: Interrupt) -> Result<(), VfioError> {
        self.calls.lock().push(format!("{kind:?} off"));
        Ok(())
    }
    fn unmask_on(&self, _: &EventFd) -> Result<(), VfioError> {
        self.calls.lock().push("unmask".into());
        Ok(())
    }
}

const ENABLE: u16 = 1 << 15;
const NO_MSI: [u8; 22] = [0; 22];

pub(crate) fn interrupts(fixed: bool, vectors: u16) -> (Arc<Fake>, Arc<FakeServices>, Interrupts) {
    let (wires, services) = (Arc::new(Fake::default()), Arc::new(FakeServices::default()));
    let at = Address::new(0, 3, 0).unwrap();
    let msi = Msi::new(at, services.clone(), 4, false);
    let msix = Msix::new(at, services.clone(), vectors);
    let kinds = Kinds { pin: Some(Pin::A), msi: Some(msi), msix: Some(msix) };
    let interrupts = Interrupts::new(at, wires.clone(), services.clone(), kinds, fixed);
    (wires, services, interrupts)
}

/// Fills in a table entry and unmasks it.
fn open(interrupts: &mut Interrupts, index: u64) {
    interrupts.write_table(16 * index, &0xfee0_0000u64.to_le_bytes(), &NO_MSI).unwrap();
    interrupts.write_table(16 * index + 8, &(0x40 + index).to_le_bytes(), &NO_MSI).unwrap();
}

#[test]
fn the_pin_is_there_from_the_start_and_makes_way_for_msix_and_comes_back() {
    let (wires, _, mut interrupts) = interrupts(false, 4);
    interrupts.settle(&NO_MSI).unwrap();
    assert_eq!(wires.take(), ["Intx 0 +", "unmask"]);
    interrupts.msix_control(ENABLE, &NO_MSI).unwrap();
    assert_eq!(wires.take(), ["Intx off", "Msix 0 -"]);
    interrupts.msix_control(0, &NO_MSI).unwrap();
    assert_eq!(wires.take(), ["Msix off", "Intx 0 +", "unmask"]);
}

#[test]
fn vectors_are_wired_when_the_guest_unmasks_them_and_stay_wired() {
    let (wires, services, mut interrupts) = interrupts(false, 8);
    interrupts.msix_control(ENABLE, &NO_MSI).unwrap();
    wires.take();
    open(&mut interrupts, 0);
    open(&mut interrupts, 5);
    assert_eq!(wires.take(), ["Msix 0 +", "Msix 5 +"]);
    interrupts.write_table(12, &1u32.to_le_bytes(), &NO_MSI).unwrap();
    interrupts.write_table(12, &0u32.to_le_bytes(), &NO_MSI).unwrap();
    assert_eq!(wires.take(), [""; 0]);
    let data = services.messages().into_iter().map(|message: Option<MsiMessage>| message.unwrap().data);
    assert_eq!(data.collect::<Vec<_>>(), [0x40, 0x45]);
}

#[test]
fn vectors_unmasked_before_enabling_are_wired_by_one_call_per_run_of_neighbours() {
    let (wires, _, mut interrupts) = interrupts(false, 8);
    for index in [1, 2, 3, 6] {
        open(&mut interrupts, index);
    }
    wires.take();
    // With the function mask no vector is live yet; taking that away makes four live at once.
    interrupts.msix_control(ENABLE | 1 << 14, &NO_MSI).unwrap();
    interrupts.msix_control(ENABLE, &NO_MSI).unwrap();
    assert_eq!(wires.take(), ["Intx off", "Msix 0 -", "Msix 1 +++", "Msix 6 +"]);
    let (wires, _, mut interrupts) = self::interrupts(false, 8);
    open(&mut interrupts, 1);
    open(&mut interrupts, 2);
    wires.take();
    interrupts.msix_control(ENABLE, &NO_MSI).unwrap();
    assert_eq!(wires.take(), ["Intx off", "Msix 0 -++"]);
}

#[test]
fn a_kernel_that_cannot_add_vectors_is_asked_for_all_at_once() {
    let (wires, _, mut interrupts) = interrupts(true, 4);
    interrupts.msix_control(ENABLE, &NO_MSI).unwrap();
    open(&mut interrupts, 3);
    assert_eq!(wires.take(), ["Msix 0 ----", "Msix 3 +"]);
}

#[test]
fn on_a_host_short_of_vectors_such_a_kernel_is_asked_again_as_they_come_into_use() {
    let (wires, _, mut interrupts) = interrupts(true, 64);
    *wires.most.lock() = Some(4);
    interrupts.msix_control(ENABLE, &NO_MSI).unwrap();
    assert_eq!(wires.take(), ["Msix 0 -"]);
    open(&mut interrupts, 2);
    assert_eq!(wires.take(), ["Msix off", "Msix 0 --+"]);
    interrupts.write_table(16 * 9, &0xfee0_0000u64.to_le_bytes(), &NO_MSI).unwrap();
    assert!(interrupts.write_table(16 * 9 + 8, &(1u64 << 32 | 1).to_le_bytes(), &NO_MSI).is_ok(), "masked");
    assert!(interrupts.write_table(16 * 9 + 12, &0u32.to_le_bytes(), &NO_MSI).is_err());
}

#[test]
fn msi_is_wired_with_as_many_messages_as_the_guest_enables() {
    let (wires, services, mut interrupts) = interrupts(false, 1);
    interrupts.settle(&NO_MSI).unwrap();
    wires.take();
    let mut body = NO_MSI;
    body[..10].copy_from_slice(&[0x81 | 1 << 4, 0, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    body[10] = 0x50;
    interrupts.msi_changed(&body).unwrap();
    assert_eq!(wires.take(), ["Intx off", "Msi 0 ++"]);
    assert_eq!(services.messages()[1].unwrap().data, 0x51);
    interrupts.msi_changed(&body).unwrap();
    assert_eq!(wires.take(), [""; 0]);
    interrupts.reset().unwrap();
    assert_eq!(wires.take(), ["Msi off"]);
    assert_eq!(services.messages(), [None, None]);
}
