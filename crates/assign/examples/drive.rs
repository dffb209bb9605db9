//! Takes devices from this host and drives them as a guest would, but without one: for the lab.
//!
//! `drive ADDRESS…`: the NVMe controllers among them identify themselves, QEMU's edu device copies RAM to RAM; each
//! by DMA into RAM and with an interrupt, before and after a reset of the function and of all.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use assign::{Assigned, Claim};
use host::{Host, PciAddress, PciDevice};
use memory::{Gpa, GpaRange, Ram, ram_ranges};
use pci::fake::FakeServices;
use pci::{
    Address, Bus, Function, HostMemory, Line, MemorySlot, Pin, ResampledLine, ServiceError, Services, Vector,
    Windows, capability,
};
use vmm_sys_util::eventfd::EventFd;

type Failure = Box<dyn std::error::Error>;

/// The fake machine, and the interrupt pin it handed out.
#[derive(Default)]
struct Machine {
    fake: FakeServices,
    line: Mutex<Option<Arc<ResampledLine>>>,
}

impl Services for Machine {
    fn vector(&self, device: Address) -> Result<Arc<dyn Vector>, ServiceError> {
        self.fake.vector(device)
    }
    fn line(&self, device: Address, pin: Pin) -> Arc<dyn Line> {
        self.fake.line(device, pin)
    }
    fn resampled_line(&self, device: Address, pin: Pin) -> Result<Arc<ResampledLine>, ServiceError> {
        let line = self.fake.resampled_line(device, pin)?;
        *self.line.lock().expect("lock") = Some(line.clone());
        Ok(line)
    }
    fn remove_resampled_line(&self, _: Address, _: Pin, _: &ResampledLine) -> Result<(), ServiceError> {
        *self.line.lock().expect("lock") = None;
        Ok(())
    }
    fn add_doorbell(&self, _: Address, _: Gpa, _: u32, _: &EventFd) -> Result<(), ServiceError> {
        Ok(())
    }
    fn remove_doorbell(&self, _: Address, _: Gpa, _: u32, _: &EventFd) -> Result<(), ServiceError> {
        Ok(())
    }
    unsafe fn add_memory(
        &self,
        device: Address,
        at: Gpa,
        memory: HostMemory,
    ) -> Result<MemorySlot, ServiceError> {
        // SAFETY: handed on as it came; the fake never touches it.
        unsafe { self.fake.add_memory(device, at, memory) }
    }
    fn remove_memory(&self, device: Address, slot: MemorySlot) -> Result<(), ServiceError> {
        self.fake.remove_memory(device, slot)
    }
}

/// A guest's view of one function.
struct Guest {
    bus: Arc<Bus>,
    at: Address,
    ram: Arc<Ram>,
    services: Arc<Machine>,
    base: u64,
}

impl Guest {
    fn config(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.bus.read_config(self.at, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&self, offset: u16, data: &[u8]) {
        self.bus.write_config(self.at, offset, data).expect("config write");
    }

    fn find(&self, id: u8) -> Option<u16> {
        let all = capability::walk(|at| self.config(at & !3).to_le_bytes()[usize::from(at & 3)]);
        all.into_iter().find(|(other, _)| *other == id).map(|(_, at)| at)
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.bus.read_memory(Gpa(self.base + offset), &mut data));
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.bus
            .write_memory(Gpa(self.base + offset), &value.to_le_bytes())
            .expect("a BAR")
            .expect("BAR write");
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end, "{what}: timed out");
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("  {what}");
    }

    /// Waits for an interrupt on any vector that the function has had so far.
    fn wait_interrupt(&self, vectors: usize) {
        self.wait("interrupt", || (0..vectors).any(|index| self.services.fake.raised(index) > 0));
    }

    fn enable(&self, command: u16) {
        self.set_config(4, &command.to_le_bytes());
    }

    fn nvme(&self) {
        self.enable(2);
        let cap = self.read(0);
        println!("  CAP {cap:#x}, in the guest: {:x?}", self.services.fake.memory());
        let msix = self.find(capability::MSIX).expect("MSI-X");
        let table = u64::from(self.config(msix + 4) & !7);
        self.set_config(msix + 2, &0x8000u16.to_le_bytes());
        for (register, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x41), (12, 0)] {
            self.write(table + register, value);
        }
        self.enable(6);
        self.ram.zero(Gpa(0), 0x10000).expect("RAM");
        self.write(0x14, 0);
        self.wait("controller off", || self.read(0x1c) & 1 == 0);
        for (register, value) in [(0x24, 0x000f_000f), (0x28, 0x1000), (0x2c, 0), (0x30, 0x2000), (0x34, 0)] {
            self.write(register, value);
        }
        self.write(0x14, 0x0046_0001);
        self.wait("controller ready", || self.read(0x1c) & 1 == 1);
        // Identify controller (opcode 6, CNS 1) into 0x3000.
        let mut command = [0u32; 16];
        (command[0], command[6], command[10]) = (0x0001_0006, 0x3000, 1);
        self.ram.write_obj(Gpa(0x1000), &command).expect("RAM");
        self.write(0x1000, 1);
        self.wait_interrupt(self.services.fake.messages().len());
        let mut serial = [0; 20];
        self.ram.read(Gpa(0x3004), &mut serial).expect("RAM");
        println!("  serial {:?}", String::from_utf8_lossy(&serial).trim());
        assert!(serial.starts_with(b"NV"), "nothing came by DMA");
    }

    fn edu(&self) {
        self.enable(6);
        println!("  id {:#x}, in the guest: {:x?}", self.read(0), self.services.fake.memory());
        if let Some(line) = self.services.line.lock().expect("lock").clone() {
            // Twice: after the first the host masks the pin, and the guest's end of interrupt unmasks it.
            for _ in 0..2 {
                self.write(0x60, 1);
                self.wait("interrupt by the pin", || line.trigger.read().is_ok());
                self.write(0x64, u32::MAX);
                line.resample.write(1).expect("resample");
            }
        }
        let msi = self.find(capability::MSI).expect("MSI");
        self.set_config(msi + 4, &0xfee0_0000u32.to_le_bytes());
        self.set_config(msi + 12, &0x42u16.to_le_bytes());
        self.set_config(msi + 2, &0x81u16.to_le_bytes());
        self.ram.write(Gpa(0x5000), b"from RAM to RAM").expect("RAM");
        self.ram.zero(Gpa(0x6000), 64).expect("RAM");
        for (from, to, way) in [(0x5000, 0x40000, 5), (0x40000, 0x6000, 7)] {
            for (register, value) in
                [(0x80, from), (0x84, 0), (0x88, to), (0x8c, 0), (0x90, 15), (0x94, 0), (0x98, way)]
            {
                self.write(register, value);
            }
            self.wait_interrupt(self.services.fake.messages().len());
            self.write(0x64, u32::MAX);
        }
        let mut bytes = [0; 15];
        self.ram.read(Gpa(0x6000), &mut bytes).expect("RAM");
        println!("  {:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(&bytes, b"from RAM to RAM");
    }

    fn use_it(&self) {
        match self.config(0) {
            0x11e8_1234 => self.edu(),
            _ if self.config(8) >> 8 == 0x01_0802 => self.nvme(),
            other => {
                self.enable(2);
                println!("  {other:#x}: {:x?}", self.services.fake.memory());
            }
        }
    }

    /// Function level reset, as Linux does it: the registers are written back afterwards.
    fn reset_function(&self) {
        let Some(express) = self.find(capability::EXPRESS).filter(|at| self.config(at + 4) & 1 << 28 != 0)
        else {
            return;
        };
        let control = self.config(express + 8) as u16;
        self.set_config(express + 8, &(control | 0x8000).to_le_bytes());
        assert_eq!(self.config(4) & 0xffff, 0);
        println!("  function reset");
        self.use_it();
    }
}

fn main() -> Result<(), Failure> {
    let addresses: Vec<PciAddress> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let host = Host::here();
    let before: Vec<_> =
        addresses.iter().map(|address| PciDevice::open(&host, *address)).collect::<Result<_, _>>()?;
    let claim = Claim::new(&host, "guest", &addresses).map_err(|error| error.to_string())?;
    let ram = Arc::new(Ram::new(&ram_ranges(256 << 20))?);
    ram.wire()?;
    claim.map(&ram)?;
    for row in claim.domain().mappings() {
        println!("{row}");
    }
    let windows = Windows {
        memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).ok_or("window")?,
        memory64: GpaRange::new(Gpa(0x40_0000_0000), 0x10_0000_0000),
        ports: (0xc000, 0xffff),
    };
    let bus = Arc::new(Bus::new(&windows));
    let mut guests = Vec::new();
    let mut functions = Vec::new();
    for address in &addresses {
        let at = bus.free_address()?;
        let services = Arc::new(Machine::default());
        let report: assign::Report = Arc::new(|event| println!("event: {event}"));
        let function = Assigned::new(&claim, *address, at, &windows, services.clone(), report)?;
        bus.add(at, function.clone())?;
        bus.place_bars(at)?;
        functions.push(function);
        let mut guest = Guest { bus: bus.clone(), at, ram: ram.clone(), services, base: 0 };
        guest.base = u64::from(guest.config(0x10) & !0xf);
        if guest.config(0x10) & 6 == 4 {
            guest.base |= u64::from(guest.config(0x14)) << 32;
        }
        guests.push(guest);
    }
    println!("devices: {:?}", claim.domain().devices());
    for (guest, function) in guests.iter().zip(&functions) {
        println!("{}:", function.name());
        guest.use_it();
        guest.reset_function();
    }
    println!("all reset: {:?}", bus.reset());
    for guest in &guests {
        guest.use_it();
    }
    for function in &functions {
        println!("events: {:?}", function.alarms().take());
        function.shut_down()?;
    }
    assert!(guests.iter().all(|guest| guest.services.fake.memory().is_empty()));
    drop((guests, functions, bus));
    claim.release()?;
    for (address, before) in addresses.iter().zip(before) {
        let after = PciDevice::open(&host, *address)?;
        // One that a killed run left with vfio-pci goes back to the driver it had before that.
        assert!(after.driver == before.driver || before.driver.as_deref() == Some("vfio-pci"));
        println!("given back: {after}");
    }
    Ok(())
}
