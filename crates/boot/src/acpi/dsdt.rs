//! DSDT: the devices that cannot be found by looking, as AML byte code.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, PackageBuilder, Path, ResourceTemplate,
    Return, Scope, Store, Uuid,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use memory::GpaRange;

use super::table;
use crate::platform::{Cpus, NativeControl, Platform, SLEEP_TYPE_SOFT_OFF, gsi, mmio, port};

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;

pub(super) fn dsdt(platform: &Platform) -> Sdt {
    let mut dsdt = table(b"DSDT", REVISION);
    let mut add = |aml: &dyn Aml| dsdt.append_slice(&super::bytes(aml));
    add(&Scope::new(
        "_SB_".into(),
        vec![
            &Processors(platform.cpus),
            &Bridge(platform),
            &Board(platform),
            &InterruptControllers,
            &Timer,
            &Com1,
            &Rtc,
            &Keyboard(platform.i8042),
            &Configuration(platform.firmware),
            &Tpm(platform.tpm),
        ],
    ));
    add(&name("_S5_", &Package::new(vec![&SLEEP_TYPE_SOFT_OFF, &0u8, &0u8, &0u8])));
    dsdt
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// A device for each CPU, which the MADT's entry with the same number belongs to. ACPI 6.5, 8.4: nothing but where it is.
struct Processors(Cpus);

impl Aml for Processors {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for uid in 0..self.0.count() {
            let path = Path::new(&format!("C{uid:03X}"));
            Device::new(path, vec![&name("_HID", &"ACPI0007"), &name("_UID", &uid)]).to_aml_bytes(sink);
        }
    }
}

/// The PCI Express host bridge. PCI Firmware 3.3, chapter 4.
struct Bridge<'a>(&'a Platform);

impl Aml for Bridge<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let pci = &self.0.pci;
        let (first, last) = (pci.ecam.first_bus(), pci.ecam.last_bus());
        let buses = AddressSpace::new_bus_number(u16::from(first), u16::from(last));
        let config = IO::new(port::PCI_CONFIG_ADDRESS, port::PCI_CONFIG_ADDRESS, 1, 8);
        let ports = pci.ports.as_ref().map(|ports| AddressSpace::new_io(*ports.start(), *ports.end(), None));
        // What the south bridge's power management has: Linux looks for it there, and below the bridge.
        let south = (port::PM_BASE, port::PM_BASE + (port::PIIX4_PM_LEN - 1));
        let south = self.0.firmware.then(|| AddressSpace::new_io(south.0, south.1, None));
        let low = AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            pci.window32.start().0 as u32,
            (pci.window32.end().0 - 1) as u32,
            None,
        );
        let high = pci.window64.map(memory64);
        let mut resources: Vec<&dyn Aml> = vec![&buses, &config];
        resources.extend(ports.as_ref().map(|ports| ports as &dyn Aml));
        resources.extend(south.as_ref().map(|south| south as &dyn Aml));
        resources.push(&low);
        resources.extend(high.as_ref().map(|high| high as &dyn Aml));

        Device::new(
            "PCI0".into(),
            vec![
                &name("_HID", &EISAName::new("PNP0A08")),
                &name("_CID", &EISAName::new("PNP0A03")),
                &name("_UID", &0u8),
                &name("_SEG", &0u8),
                &name("_BBN", &first),
                &name("_CRS", &ResourceTemplate::new(resources)),
                &name("_PRT", &interrupt_routes()),
                &Osc(pci.native),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn memory64(range: GpaRange) -> AddressSpace<u64> {
    let cacheable = AddressSpaceCacheable::NotCacheable;
    AddressSpace::new_memory(cacheable, true, range.start().0, range.end().0 - 1, None)
}

/// Each pin of each device on the root bus, wired to an I/O APIC input. ACPI 6.5, 6.2.13.
fn interrupt_routes() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 0..32 {
        (0..4).for_each(|pin| routes.add_element(&Route { device, pin }));
    }
    routes
}

/// A pin of a device, of all its functions that have it. By hand, for there are many, and the library's packages allocate.
struct Route {
    device: u8,
    pin: u8,
}

impl Aml for Route {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const PACKAGE: u8 = 0x12;
        const ANY_FUNCTION: u32 = 0xffff;
        let address = u32::from(self.device) << 16 | ANY_FUNCTION;
        // Numbers are as long as they must be: of 32 or 16 bits behind a byte that says so, and 0 and 1 a byte alone.
        let lens = [if self.device == 0 { 3 } else { 5 }, if self.pin < 2 { 1 } else { 2 }, 1, 2];
        sink.byte(PACKAGE);
        sink.byte(2 + lens.iter().sum::<u8>());
        sink.byte(lens.len() as u8);
        address.to_aml_bytes(sink);
        self.pin.to_aml_bytes(sink);
        0u8.to_aml_bytes(sink);
        gsi::of_pci(self.device, self.pin).to_aml_bytes(sink);
    }
}

/// _OSC: which PCI Express features the guest may drive itself. PCI Firmware 3.3, 4.5.1.
struct Osc(NativeControl);

impl Osc {
    /// Control field bits to grant. Without the PCI Express capability structure (bit 4) none of the others
    /// counts.
    fn granted(&self) -> u32 {
        const CAPABILITY_STRUCTURE: u32 = 1 << 4;
        let bit = |allowed, bit: u32| if allowed { 1 << bit } else { 0u32 };
        CAPABILITY_STRUCTURE | bit(self.0.hotplug, 0) | bit(self.0.power_events, 2) | bit(self.0.errors, 3)
    }
}

impl Aml for Osc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const UNRECOGNISED_UUID: u8 = 1 << 2;
        const UNRECOGNISED_REVISION: u8 = 1 << 3;
        const CAPABILITIES_MASKED: u8 = 1 << 4;
        let path = Path::new;
        let (status, control, granted) = (path("CDW1"), path("CDW3"), Local(0));
        let refuse = |bit: &'static u8| Or::new(&status, &status, bit);

        Method::new(
            "_OSC".into(),
            4,
            true,
            vec![
                &CreateDWordField::new(&status, &Arg(3), &0u8),
                &If::new(
                    &Equal::new(&Arg(0), &Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                    vec![
                        &CreateDWordField::new(&control, &Arg(3), &8u8),
                        &And::new(&granted, &control, &self.granted()),
                        &If::new(&NotEqual::new(&granted, &control), vec![&refuse(&CAPABILITIES_MASKED)]),
                        &If::new(&NotEqual::new(&Arg(1), &1u8), vec![&refuse(&UNRECOGNISED_REVISION)]),
                        &Store::new(&control, &granted),
                    ],
                ),
                &Else::new(vec![&refuse(&UNRECOGNISED_UUID)]),
                &Return::new(&Arg(3)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// What the board itself occupies, so that the guest gives it to nobody: PCI configuration space, without
/// which entry Linux would not use it, and the fixed ports.
struct Board<'a>(&'a Platform);

impl Aml for Board<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ecam = self.0.pci.ecam.range();
        let (low, high);
        let ecam: &dyn Aml = if ecam.end().0 <= 1 << 32 {
            low = Memory32Fixed::new(true, ecam.start().0 as u32, ecam.len() as u32);
            &low
        } else {
            high = memory64(ecam);
            &high
        };
        let ports = IO::new(port::PM_BASE, port::PM_BASE, 1, port::PM_LEN);
        let control = [port::SYSTEM_CONTROL_A, port::SYSTEM_CONTROL_B].map(|port| IO::new(port, port, 1, 1));
        let mut resources = vec![ecam, &control[0], &control[1]];
        // With a south bridge they are its own, and Linux warns where another device claims them, too.
        if !self.0.firmware {
            resources.push(&ports);
        }
        let resources = ResourceTemplate::new(resources);
        Device::new(
            "MBRD".into(),
            vec![&name("_HID", &EISAName::new("PNP0C02")), &name("_UID", &0u8), &name("_CRS", &resources)],
        )
        .to_aml_bytes(sink);
    }
}

/// The two 8259s, with their registers for level and edge.
struct InterruptControllers;

impl Aml for InterruptControllers {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = port::I8259.map(|port| IO::new(port, port, 1, 2));
        let resources = ResourceTemplate::new(vec![&ports[0], &ports[1], &ports[2], &Irq(2)]);
        let hid = EISAName::new("PNP0000");
        Device::new("PIC_".into(), vec![&name("_HID", &hid), &name("_CRS", &resources)]).to_aml_bytes(sink);
    }
}

/// The 8254.
struct Timer;

impl Aml for Timer {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(port::I8254, port::I8254, 1, 4);
        let resources = ResourceTemplate::new(vec![&ports, &Irq(0)]);
        let hid = EISAName::new("PNP0100");
        Device::new("TIMR".into(), vec![&name("_HID", &hid), &name("_CRS", &resources)]).to_aml_bytes(sink);
    }
}

/// The first serial port.
struct Com1;

impl Aml for Com1 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(port::COM1, port::COM1, 1, 8);
        let resources = ResourceTemplate::new(vec![&ports, &Irq(gsi::COM1)]);
        let hid = EISAName::new("PNP0501");
        Device::new("COM1".into(), vec![&name("_HID", &hid), &name("_UID", &0u8), &name("_CRS", &resources)])
            .to_aml_bytes(sink);
    }
}

/// The real-time clock.
struct Rtc;

impl Aml for Rtc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(port::RTC, port::RTC, 1, 2);
        let resources = ResourceTemplate::new(vec![&ports, &Irq(gsi::RTC)]);
        let hid = EISAName::new("PNP0B00");
        Device::new("RTC_".into(), vec![&name("_HID", &hid), &name("_CRS", &resources)]).to_aml_bytes(sink);
    }
}

/// Keyboard and mouse, if there are any.
struct Keyboard(bool);

impl Aml for Keyboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if !self.0 {
            return;
        }
        let ports = [port::I8042_DATA, port::I8042_COMMAND].map(|port| IO::new(port, port, 1, 1));
        let resources = ResourceTemplate::new(vec![&ports[0], &ports[1], &Irq(1)]);
        Device::new("KBD_".into(), vec![&name("_HID", &EISAName::new("PNP0303")), &name("_CRS", &resources)])
            .to_aml_bytes(sink);
        let resources = ResourceTemplate::new(vec![&Irq(12)]);
        Device::new("MOU_".into(), vec![&name("_HID", &EISAName::new("PNP0F13")), &name("_CRS", &resources)])
            .to_aml_bytes(sink);
    }
}

/// The TPM, if there is one; TPM2 says what it is like. TCG ACPI Specification 1.4, 7.1.
struct Tpm(bool);

impl Aml for Tpm {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if !self.0 {
            return;
        }
        let place = Memory32Fixed::new(true, mmio::TPM.0 as u32, mmio::TPM_LEN as u32);
        let resources = ResourceTemplate::new(vec![&place]);
        Device::new("TPM_".into(), vec![&name("_HID", &"MSFT0101"), &name("_CRS", &resources)])
            .to_aml_bytes(sink);
    }
}

/// The firmware's configuration device, if there is one: QEMU, docs/specs/fw_cfg.rst ("ACPI Interface").
struct Configuration(bool);

impl Aml for Configuration {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if !self.0 {
            return;
        }
        // Shown in no user interface, there and working.
        const STATUS: u8 = 0xb;
        let ports = IO::new(port::FW_CFG, port::FW_CFG, 1, port::FW_CFG_LEN);
        let resources = ResourceTemplate::new(vec![&ports]);
        let hid = name("_HID", &"QEMU0002");
        Device::new("FWCF".into(), vec![&hid, &name("_STA", &STATUS), &name("_CRS", &resources)])
            .to_aml_bytes(sink);
    }
}

/// An ISA interrupt: edge, active high. The IRQ descriptor without flags, ACPI 6.5, 6.4.2.1.
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}
