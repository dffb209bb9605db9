//! Interrupts: pins of the I/O APIC and messages, all behind global system interrupt numbers (GSIs).
//!
//! GSI 0 to 23 are the I/O APIC's pins, of which 16 to 23 carry PCI's INTx lines; each message vector has a GSI
//! of its own from 24 on. KVM gets the table of all of them in one call.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use boot::platform::gsi;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use parking_lot::{Mutex, MutexGuard};
use pci::{Address, Line, MsiMessage, Pin, ServiceError, Vector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// KVM's bound on the routing table (KVM_MAX_IRQ_ROUTES).
const ROUTES: u32 = 4096;

/// The pin of the I/O APIC that a function's INTx line is wired to, as the DSDT's `_PRT` says.
pub fn intx_gsi(device: Address, pin: Pin) -> u32 {
    gsi::of_pci(device.device(), pin as u8 - 1)
}

/// All interrupts of a VM.
pub struct Interrupts {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
    /// How many functions assert each pin; lines are shared.
    asserted: Mutex<[u32; gsi::COUNT as usize]>,
}

impl Interrupts {
    /// The pins, and no message yet.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Arc<Interrupts>> {
        let interrupts = Interrupts { vm, messages: Mutex::default(), asserted: Mutex::default() };
        interrupts.commit(&interrupts.messages())?;
        Ok(Arc::new(interrupts))
    }

    /// A new vector for messages of a function.
    pub fn vector(self: &Arc<Self>, device: Address) -> Result<Arc<dyn Vector>, ServiceError> {
        let fail = |cause| ServiceError { device, what: "make an interrupt vector".into(), cause };
        let eventfd = EventFd::new(EFD_NONBLOCK).map_err(fail)?;
        let mut messages = self.messages();
        let free = (gsi::COUNT..ROUTES).find(|gsi| !messages.contains_key(gsi));
        let gsi = free.ok_or_else(|| fail(io::Error::from_raw_os_error(libc::ENOSPC)))?;
        messages.insert(gsi, None);
        Ok(Arc::new(MessageVector { interrupts: self.clone(), device, gsi, eventfd }))
    }

    /// A function's INTx line, for a device model.
    pub fn line(self: &Arc<Self>, device: Address, pin: Pin) -> Arc<dyn Line> {
        let gsi = intx_gsi(device, pin);
        Arc::new(SharedLine { interrupts: self.clone(), gsi, asserted: Mutex::new(false) })
    }

    /// Sets the level of a pin that one device alone drives.
    pub fn set_pin(&self, gsi: u32, asserted: bool) {
        // KVM refuses only pins that do not exist; all callers name constants or `intx_gsi`.
        let set = self.vm.set_irq_line(gsi, asserted);
        debug_assert!(set.is_ok());
    }

    fn messages(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiMessage>>> {
        self.messages.lock()
    }

    /// Gives KVM the whole table.
    fn commit(&self, messages: &BTreeMap<u32, Option<MsiMessage>>) -> io::Result<()> {
        let mut entries = Vec::with_capacity(gsi::COUNT as usize + 16 + messages.len());
        for gsi in 0..gsi::COUNT {
            if gsi < 16 && gsi != 2 {
                let (chip, pin) =
                    if gsi < 8 { (KVM_IRQCHIP_PIC_MASTER, gsi) } else { (KVM_IRQCHIP_PIC_SLAVE, gsi - 8) };
                entries.push(pin_entry(gsi, chip, pin));
            }
            // The timer's line, ISA 0, is wired to pin 2, as the MADT says.
            match gsi {
                0 => entries.push(pin_entry(0, KVM_IRQCHIP_IOAPIC, 2)),
                2 => {}
                _ => entries.push(pin_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
            }
        }
        for (gsi, message) in messages {
            if let Some(message) = message {
                entries.push(message_entry(*gsi, *message));
            }
        }
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too many interrupt routes"))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

fn pin_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    }
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// A vector: an eventfd that KVM turns into a message while there is one.
struct MessageVector {
    interrupts: Arc<Interrupts>,
    device: Address,
    gsi: u32,
    eventfd: EventFd,
}

impl MessageVector {
    /// Connects the eventfd to KVM. What waited in it is taken out before and raised after: KVM would deliver it
    /// but leave it there, to be delivered once more when the vector is next unmasked.
    fn open(&self, vm: &VmFd) -> io::Result<()> {
        let waited = self.eventfd.read().is_ok();
        vm.register_irqfd(&self.eventfd, self.gsi)?;
        if waited { self.eventfd.write(1) } else { Ok(()) }
    }
}

impl Vector for MessageVector {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn set(&self, message: Option<MsiMessage>) -> Result<(), ServiceError> {
        let fail = |cause| ServiceError {
            device: self.device,
            what: match message {
                Some(message) => {
                    format!("send interrupts to {:#x} with {:#x}", message.address, message.data)
                }
                None => "hold interrupts back".to_owned(),
            },
            cause,
        };
        let mut messages = self.interrupts.messages();
        let before = messages.insert(self.gsi, message).flatten();
        let vm = &self.interrupts.vm;
        let done = match (before, message) {
            (None, None) => Ok(()),
            (Some(_), None) => vm.unregister_irqfd(&self.eventfd, self.gsi).map_err(io::Error::from),
            (Some(_), Some(_)) => self.interrupts.commit(&messages),
            (None, Some(_)) => self.interrupts.commit(&messages).and_then(|()| self.open(vm)),
        };
        done.map_err(|cause| {
            messages.insert(self.gsi, before);
            fail(cause)
        })
    }

    fn pending(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of ours, and no wait.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }
}

impl Drop for MessageVector {
    fn drop(&mut self) {
        if let Err(error) = self.set(None) {
            // The eventfd closes now, which ends KVM's use of it as well.
            debug_assert!(false, "{error}");
        }
        self.interrupts.messages().remove(&self.gsi);
    }
}

/// A pin that several functions may assert.
struct SharedLine {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    asserted: Mutex<bool>,
}

impl Line for SharedLine {
    fn set(&self, asserted: bool) {
        let mut mine = self.asserted.lock();
        if *mine == asserted {
            return;
        }
        *mine = asserted;
        let mut all = self.interrupts.asserted.lock();
        let count = &mut all[self.gsi as usize];
        *count = if asserted { *count + 1 } else { *count - 1 };
        self.interrupts.set_pin(self.gsi, *count > 0);
    }
}

impl Drop for SharedLine {
    fn drop(&mut self) {
        self.set(false);
    }
}
