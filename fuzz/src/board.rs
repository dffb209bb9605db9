//! A PCI bus with a function of every kind, and a model of what its BARs decode.

use std::sync::{Arc, Mutex, MutexGuard};

use assign::fuzz::Emulated;
use memory::{Gpa, GpaRange, Ram};
use pci::fake::FakeServices;
use pci::{
    Address, BarKind, BarSpec, Bus, Chipset, ConfigSpace, Decoded, DecodedAt, Function, Identity, PciError,
    Services, Windows, register,
};
use virtio::{Features, QueueSetup, StartError, VirtioDevice, VirtioPci, Worker};

use crate::steps::Steps;

/// Small windows, so that BARs meet.
pub fn windows() -> Windows {
    Windows {
        memory32: GpaRange::new(Gpa(0xc000_0000), 0x2_0000).expect("not empty"),
        memory64: GpaRange::new(Gpa(0x10_0000_0000), 0x2_0000),
        ports: (0xc000, 0xc0ff),
    }
}

/// An access that arrived at a BAR: which, where, how long.
type Arrived = (usize, u64, usize);

/// A function whose BARs and accesses are watched.
pub struct Watched {
    inner: Box<dyn Function>,
    sizes: [u64; 7],
    seen: Mutex<Decoded>,
    arrived: Mutex<Option<Arrived>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic was survived")
}

impl Watched {
    fn new(inner: Box<dyn Function>, bars: &[(usize, u64)]) -> Arc<Watched> {
        let mut sizes = [0; 7];
        bars.iter().for_each(|(bar, size)| sizes[*bar] = *size);
        Arc::new(Watched { inner, sizes, seen: Mutex::default(), arrived: Mutex::default() })
    }

    fn arrive(&self, bar: usize, offset: u64, len: usize) {
        assert!(offset + len as u64 <= self.sizes[bar], "{}: {len} bytes at {offset:#x}", self.name());
        *lock(&self.arrived) = Some((bar, offset, len));
    }
}

impl Function for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.inner.read_config(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        self.inner.write_config(offset, data)
    }
    fn decoded(&self) -> Decoded {
        self.inner.decoded()
    }
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.arrive(bar, offset, data.len());
        self.inner.read_bar(bar, offset, data);
    }
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        self.arrive(bar, offset, data.len());
        self.inner.write_bar(bar, offset, data)
    }
    fn bar_moved(&self, bar: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        {
            let mut seen = lock(&self.seen);
            assert!(seen[bar].is_none() != at.is_none(), "{}: BAR {bar} moved twice", self.name());
            seen[bar] = at;
        }
        self.inner.bar_moved(bar, at)
    }
    fn reset(&self) -> Result<(), PciError> {
        self.inner.reset()
    }
}

/// A function with every kind of BAR.
struct Plain(Mutex<ConfigSpace>);

impl Plain {
    const BARS: [(usize, BarKind, u64); 4] = [
        (0, BarKind::Memory32 { prefetchable: true }, 0x1000),
        (1, BarKind::Io, 32),
        (2, BarKind::Memory64 { prefetchable: false }, 0x8000),
        (pci::ROM, BarKind::Rom, 0x800),
    ];
}

fn specs(bars: &[(usize, BarKind, u64)]) -> Vec<BarSpec> {
    bars.iter().map(|(bar, kind, size)| BarSpec::new(*bar, *kind, *size).expect("a possible BAR")).collect()
}

fn sizes(bars: &[(usize, BarKind, u64)]) -> Vec<(usize, u64)> {
    bars.iter().map(|(bar, _, size)| (*bar, *size)).collect()
}

impl Function for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        lock(&self.0).read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        lock(&self.0).write(offset, data);
        Ok(())
    }
    fn decoded(&self) -> Decoded {
        lock(&self.0).decoded()
    }
    fn read_bar(&self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(0x11);
    }
    fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Result<(), PciError> {
        Ok(())
    }
    fn bar_moved(&self, _: usize, _: Option<DecodedAt>) -> Result<(), PciError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), PciError> {
        lock(&self.0).reset();
        Ok(())
    }
}

/// An assigned function without a device.
struct Assigned(Mutex<Emulated>);

impl Assigned {
    const BARS: [(usize, BarKind, u64); 2] =
        [(0, BarKind::Memory64 { prefetchable: false }, 0x4000), (3, BarKind::Io, 16)];
}

impl Function for Assigned {
    fn name(&self) -> &'static str {
        "assigned"
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        lock(&self.0).read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        lock(&self.0).write(offset, data)?;
        Ok(())
    }
    fn decoded(&self) -> Decoded {
        lock(&self.0).decoded()
    }
    fn read_bar(&self, _: usize, offset: u64, data: &mut [u8]) {
        if let Some(msix) = lock(&self.0).msix() {
            msix.read_table(offset, data);
            msix.read_pending(offset, data);
        }
    }
    fn write_bar(&self, _: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        Ok(lock(&self.0).msix().map_or(Ok(()), |msix| msix.write_table(offset, data))?)
    }
    fn bar_moved(&self, _: usize, _: Option<DecodedAt>) -> Result<(), PciError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), PciError> {
        Ok(())
    }
}

/// A virtio device that never serves a queue.
struct Idle([u8; 8]);

impl VirtioDevice for Idle {
    fn name(&self) -> &'static str {
        "virtio-idle"
    }
    fn device_type(&self) -> u16 {
        42
    }
    fn class(&self) -> u32 {
        0xff_0000
    }
    fn features(&self) -> Features {
        Features::EVENT_IDX | Features::INDIRECT_DESC
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 4]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.0.iter().skip(offset as usize)) {
            *to = *from;
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(offset as usize).zip(data) {
            *to = *from;
        }
    }
    fn start_queue(&mut self, _: QueueSetup) -> Result<Worker, StartError> {
        Err("it is idle".into())
    }
    fn reset(&mut self) {}
}

/// The bus and its functions.
pub struct Board {
    /// The bus.
    pub bus: Bus,
    functions: Vec<(Address, Arc<Watched>)>,
    services: Arc<FakeServices>,
}

impl Board {
    /// A host bridge, a virtio device, an assigned function over the hardware given, and a plain one.
    pub fn new(hardware: Vec<u8>) -> Board {
        let windows = windows();
        let bus = Bus::new(&windows);
        let services = Arc::new(FakeServices::default());
        let shared: Arc<dyn Services> = services.clone();
        let address = |device| Address::new(0, device, 0).expect("a device of the root bus");
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 0x1000).expect("not empty")]).expect("a page"));
        let virtio =
            VirtioPci::new(Box::new(Idle([0; 8])), address(1), ram, shared.clone(), &windows, Arc::new(drop));
        let emulated = Emulated::new(hardware, 4096, &specs(&Assigned::BARS), &windows, &shared, true);
        let identity = Identity {
            vendor: 1,
            device: 2,
            subsystem_vendor: 3,
            subsystem: 4,
            class: 0xff_0000,
            revision: 0,
        };
        let plain = Plain(Mutex::new(ConfigSpace::new(identity, &specs(&Plain::BARS), &windows)));
        let functions = vec![
            (address(0), Watched::new(Box::new(Chipset::host_bridge(&windows)), &[])),
            (
                address(1),
                Watched::new(Box::new(virtio.expect("eventfds are there")), &[(0, 0x4000), (2, 0x1000)]),
            ),
            (address(2), Watched::new(Box::new(Assigned(Mutex::new(emulated))), &sizes(&Assigned::BARS))),
            (address(3), Watched::new(Box::new(plain), &sizes(&Plain::BARS))),
        ];
        for (address, function) in &functions {
            bus.add(*address, function.clone()).expect("the address is free");
        }
        Board { bus, functions, services }
    }

    /// A function, or now and then an address without one.
    pub fn address(&self, steps: &mut Steps<'_>) -> Address {
        match steps.u8() % 16 {
            15 => Address::from_ecam(steps.u16().into()),
            index => self.functions[usize::from(index) % self.functions.len()].0,
        }
    }

    /// A write to a BAR register or the command register, mostly a sensible one.
    pub fn reprogram(&self, steps: &mut Steps<'_>) {
        let address = self.address(steps);
        let slots = steps.u8();
        let place = u32::from(slots) << 12 & 0x1_f000;
        let (offset, value) = match steps.u8() % 10 {
            0..3 => (register::COMMAND, u32::from(steps.u8() & 7)),
            3 => (register::BAR0, 0xc000_0000 | place),
            4 => (register::BAR0 + 4, 0x10),
            5 => (register::BAR0 + 8, place | if slots & 0x80 != 0 { 0xc000_0000 } else { 0 }),
            6 => (register::BAR0 + 12, if slots & 0x80 != 0 { 0x10 } else { 0 }),
            7 => (register::BAR0 + 4 * u16::from(slots % 6), 0xc000 | u32::from(slots)),
            8 => (register::ROM_BAR, 0xc000_0001 | place),
            _ => (register::BAR0 + 4 * u16::from(slots % 6), steps.u32()),
        };
        let width = if offset == register::COMMAND { 2 } else { 4 };
        self.write_config(address, offset, &value.to_le_bytes()[..width]);
    }

    /// A write that nothing stands in the way of.
    pub fn write_config(&self, address: Address, offset: u16, data: &[u8]) {
        if let Err(why) = self.bus.write_config(address, offset, data) {
            panic!("a service failed that never does: {why}");
        }
    }

    /// Everything that the bus promises about BARs.
    pub fn check(&self) {
        let windows = windows();
        let mut all: Vec<(usize, usize, DecodedAt)> = Vec::new();
        for (index, (_, function)) in self.functions.iter().enumerate() {
            let seen = *lock(&function.seen);
            all.extend(seen.iter().enumerate().filter_map(|(bar, at)| Some((index, bar, (*at)?))));
        }
        for (n, (_, _, one)) in all.iter().enumerate() {
            assert!(all[n + 1..].iter().all(|(_, _, other)| !overlap(*one, *other)), "{all:?}");
            let inside = match *one {
                DecodedAt::Memory(range) => {
                    windows.memory32.covers(range) || windows.memory64.is_some_and(|high| high.covers(range))
                }
                DecodedAt::Ports(first, count) => {
                    first >= windows.ports.0
                        && u32::from(first) + u32::from(count) - 1 <= windows.ports.1.into()
                }
            };
            assert!(inside, "{one:?} lies in no window");
        }
        for (_, function) in &self.functions {
            let seen = *lock(&function.seen);
            for (wanted, seen) in function.decoded().into_iter().zip(seen) {
                assert!(seen.is_none() || seen == wanted, "{seen:?} is stale: {wanted:?}");
                let free = |at| all.iter().all(|(_, _, other)| !overlap(at, *other));
                assert!(seen.is_some() || !wanted.is_some_and(free), "{wanted:?} is free and not claimed");
            }
        }
        let virtio = lock(&self.functions[1].1.seen)[0];
        let doorbells = self.services.doorbells();
        match virtio {
            Some(DecodedAt::Memory(bar)) => {
                assert!(doorbells.len() == 2 && doorbells.iter().all(|(at, _)| bar.contains(*at)));
            }
            _ => assert!(doorbells.is_empty(), "doorbells of a BAR that is not there"),
        }
    }

    /// Reads or writes memory or ports and compares where it arrives with where it should.
    pub fn access(&self, space: Space, at: u64, write: Option<&[u8]>, len: usize) {
        let mut expected = None;
        for (index, (_, function)) in self.functions.iter().enumerate() {
            *lock(&function.arrived) = None;
            for (bar, range) in lock(&function.seen).iter().enumerate() {
                let Some((start, size)) = range.and_then(|range| space.bounds(range)) else { continue };
                if at >= start && at - start + len as u64 <= size {
                    expected = Some((index, (bar, at - start, len)));
                }
            }
        }
        let mut data = [0; 8];
        let port = at as u16;
        let answered = match (space, write) {
            (Space::Memory, None) => self.bus.read_memory(Gpa(at), &mut data[..len]),
            (Space::Memory, Some(data)) => self.bus.write_memory(Gpa(at), data).is_some(),
            (Space::Ports, None) => self.bus.read_port(port, &mut data[..len]),
            (Space::Ports, Some(data)) => self.bus.write_port(port, data).is_some(),
        };
        assert_eq!(answered, expected.is_some(), "{len} bytes at {at:#x}");
        for (index, (_, function)) in self.functions.iter().enumerate() {
            let here = expected.and_then(|(other, arrived)| (other == index).then_some(arrived));
            assert_eq!(*lock(&function.arrived), here, "{len} bytes at {at:#x}");
        }
    }

    /// Resets all; nothing decodes afterwards but what never stops to.
    pub fn reset(&self) {
        let errors = self.bus.reset();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// What a BAR may decode in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Memory.
    Memory,
    /// I/O ports.
    Ports,
}

impl Space {
    /// First address and length of what lies in this space.
    fn bounds(self, at: DecodedAt) -> Option<(u64, u64)> {
        match (self, at) {
            (Space::Memory, DecodedAt::Memory(range)) => Some((range.start().0, range.len())),
            (Space::Ports, DecodedAt::Ports(first, count)) => Some((first.into(), count.into())),
            _ => None,
        }
    }
}

fn overlap(one: DecodedAt, other: DecodedAt) -> bool {
    [Space::Memory, Space::Ports].into_iter().any(|space| {
        let pair = space.bounds(one).zip(space.bounds(other));
        pair.is_some_and(|((a, n), (b, m))| a < b + m && b < a + n)
    })
}
