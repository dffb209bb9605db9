//! A VM from what was checked, step by step; a failure drops, in reverse, all that was made.

use std::io::Write;
use std::sync::Arc;

use boot::Contents;
use boot::platform::{self, Ecam, HostBridge, NativeControl, Platform, gsi, port};
use devices::{FwCfg, PmTimer, PortDevice, Power, PowerRequest, RamSizes, ResetPort, Rtc, SerialPort};
use faults::{Inputs, Watch};
use kvm_ioctls::{VcpuFd, VmFd};
use memory::{HIGH_RAM_START, MemoryMap};
use pci::{Address, Bus, Chipset, PciError, SOUTH_BRIDGE, Services};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::assigned::Claimed;
use crate::assigned::alarms::AlarmWatch;
use crate::assigned::domains;
use crate::assigned::on_fault::{self, Policies};
use crate::board::Board;
use crate::board::config_ports::ConfigPorts;
use crate::board::console::Console;
use crate::board::layout::Layout;
use crate::board::ports::Ports;
use crate::boot_plan::{BootPlan, KernelPlan};
use crate::cpu::cpuid::Template;
use crate::cpu::firmware::{Firmware, Virtualization};
use crate::cpu::state::{self, PowerOn};
use crate::cpu::threads::Cpus;
use crate::disks::host_nvme::{self, Driven, Drivers};
use crate::disks::registered;
use crate::disks::{self, Disks, Place};
use crate::error::{StartError, system};
use crate::events::lost_ram::LossWatch;
use crate::events::notice::{Life, Notice, Reporter};
use crate::events::{Event, Events, events};
use crate::kvm::interrupts::Interrupts;
use crate::kvm::irqchip::IrqChips;
use crate::kvm::services::KvmServices;
use crate::kvm::slots::Slots;
use crate::kvm::{Hypervisor, failed};
use crate::start::check::{Boots, Checked};
use crate::start::ram;
use crate::start::steps::Steps;
use crate::tpm::{StartUp, Tell};
use crate::uefi;
use crate::vm::Vm;

// What the guest is told, and what is there.
const _: () = assert!(FwCfg::PORTS == port::FW_CFG_LEN as u16);

/// Makes a VM; on failure everything made so far is undone.
pub fn assemble(
    config: &config::Vm,
    checked: Checked,
    output: Box<dyn Write + Send>,
    report: Reporter,
    steps: &Steps,
) -> Result<Vm, StartError> {
    let Checked { hypervisor, boots, layout, cpus, disks, host, plans, roms, tpm } = checked;
    // First, so that it is dropped last and reports what failed when everything else was dropped.
    let (sender, inbox) = events(report);

    // What is made first is dropped last: devices are given back when nothing uses them.
    steps.begin("claim devices")?;
    let mut claimed = Claimed::new(&host, &plans, domains::choice(&config.dma))?;
    if let Some(claimed) = &claimed {
        claimed.check(&layout.ram)?;
    }
    let inputs = claimed.as_ref().map(|claimed| listen(claimed, inbox.reporter()));
    steps.begin("RAM")?;
    let ram = ram::make(&layout.ram, &config.backing, claimed.is_some(), inbox.reporter())?;
    let losses = LossWatch::new(&ram, sender.clone()).map_err(system("listen for lost memory"))?;
    let map = Arc::new(MemoryMap::new(ram.clone()));
    steps.begin("map RAM for devices")?;
    if let Some(claimed) = &claimed {
        claimed.attach(&map)?;
        claimed.separate(&map, config.dma.host_domain)?;
    }

    // Before any device can be bus master.
    let faults = match (&claimed, inputs) {
        (Some(claimed), Some(inputs)) => {
            Some(on_fault::watch(&plans, claimed.domains(), &map, inputs, &sender)?)
        }
        _ => None,
    };
    let reporter = faults.as_ref().map(Watch::reporter);
    if let (Some(claimed), Some(reporter)) = (&claimed, &reporter) {
        claimed.domains().iter().for_each(|domain| reporter.listen_to(domain));
    }

    steps.begin("VM")?;
    let vm = Arc::new(hypervisor.create_vm()?);
    let chips = IrqChips::of(&vm)?;
    map.attach(Arc::new(Slots::new(vm.clone(), hypervisor.memory_slots())))?;
    let interrupts = Interrupts::new(vm.clone()).map_err(failed("route its interrupts"))?;
    let services: Arc<dyn Services> =
        Arc::new(KvmServices::new(vm.clone(), interrupts.clone(), &map, reporter.clone()));
    let bus = Arc::new(Bus::new(&layout.windows));
    add_chipset(&bus, &boots)?;

    steps.begin("assign devices")?;
    let assigned = match &mut claimed {
        Some(claimed) => {
            claimed.introduce(&vm)?;
            claimed.put_on(&bus, &services, &roms, &sender)?
        }
        None => Vec::new(),
    };
    steps.begin("disks")?;
    let drivers = claimed.as_ref().zip(reporter.as_ref());
    let drivers = drivers.map(|(claimed, reporter)| Drivers { claimed, reporter, events: &sender });
    let Driven { disks, controllers } = host_nvme::open(disks, drivers.as_ref(), config.cpus)?;
    disks::remarks(&disks).for_each(|remark| (inbox.reporter())(&Notice::Trouble(remark.clone())));
    let stays = ram::stays(&config.backing, claimed.is_some());
    let registered = registered::register(&disks, &map, stays, inbox.reporter())?;
    let place = Place { bus: &bus, ram: &ram, services: &services, events: &sender };
    let (disks, mut bootable) = Disks::put_on(disks, place, registered)?;
    let places = assigned.iter().map(|device| (device.name(), device.at())).collect();
    bootable.extend(uefi::assigned(&config.assigned, &places));

    steps.begin("console")?;
    let console = Console::new(output).map_err(system("start the console's thread"))?;
    let serial_interrupt = EventFd::new(EFD_NONBLOCK).map_err(system("make an eventfd"))?;
    vm.register_irqfd(&serial_interrupt, gsi::COM1.into())
        .map_err(failed("connect the serial port's interrupt"))?;
    let serial = Arc::new(SerialPort::new(serial_interrupt, Box::new(console.writer())));
    let sci = interrupts.clone();
    let sci = Box::new(move |level| sci.set_pin(gsi::SCI.into(), level));
    let owner = sender.clone();
    let heard = Box::new(move || owner.send(Event::PowerButtonHeard));
    let power = Arc::new(Power::new(sci, ask(&sender), heard));
    let clock = clock(&vm, &layout, &sender)?;
    let mut ports = fixed_ports(&serial, clock, &power, &bus, &sender);
    let platform = describe(&layout, cpus, &boots, config);
    let flash = match &boots {
        Boots::Kernel { .. } => Vec::new(),
        Boots::Firmware { firmware, kernel } => {
            let report = inbox.reporter();
            report(&Notice::Life(Life::Made(firmware.said())));
            let new = firmware.new_variables();
            ports.add(
                port::FW_CFG..=port::FW_CFG + FwCfg::PORTS - 1,
                Arc::new(firmware.configuration(&platform, &ram, kernel.as_ref(), &bootable)?),
            );
            let flash = firmware.flash(&map, &sender)?;
            new.into_iter().for_each(|made| report(&Notice::Life(Life::Kept(made))));
            flash
        }
    };
    steps.begin("TPM")?;
    let tpm = match tpm {
        Some(tpm) => {
            (inbox.reporter())(&Notice::Life(Life::Made(tpm.said())));
            let owner = sender.clone();
            let on_error = config.tpm.as_ref().map(|tpm| tpm.on_error).unwrap_or_default();
            let tell: Tell = Arc::new(move |what| owner.send(Event::TpmFailed(what, on_error)));
            let start_up = match boots {
                Boots::Kernel { .. } => StartUp::BySkep,
                Boots::Firmware { .. } => StartUp::ByFirmware,
            };
            Some(tpm.start(start_up, &tell, steps)?)
        }
        None => None,
    };
    let board = Arc::new(Board { ports, bus, flash, tpm, ecam: layout.ecam, events: sender.clone() });

    steps.begin("vCPUs")?;
    let virtualization = Virtualization::of(hypervisor.cpuid(), config.nested);
    let left = matches!(boots, Boots::Kernel { .. })
        .then(|| Firmware::new(&layout, hypervisor.microcode(), virtualization));
    let fds = make_cpus(&vm, &hypervisor, cpus, &layout, config.nested, left.as_ref())?;

    steps.begin("load")?;
    let kernel = match boots {
        Boots::Kernel { kernel, initrd, command_line } => {
            Some(KernelPlan { kernel, initrd, command_line, platform })
        }
        Boots::Firmware { .. } => None,
    };
    let boot = BootPlan { kernel, ram };
    if let Some(entry) = boot.load(Contents::New)? {
        state::enter(&fds[0].0, &entry)?;
    }
    let cpus = Cpus::new(fds, board.clone()).map_err(system("start the vCPUs' threads"))?;
    let alarms = match reporter {
        Some(reporter) => {
            AlarmWatch::new(&assigned, &controllers, reporter, sender).map_err(system("listen to devices"))?
        }
        None => None,
    };
    Ok(Vm {
        alarms,
        losses,
        faults,
        policies: Policies::new(config)?,
        phases: Arc::default(),
        cpus,
        board,
        assigned,
        disks,
        controllers,
        claimed,
        boot,
        chips,
        power,
        serial,
        vm,
        map,
        console,
        inbox,
    })
}

/// What the board itself has on the bus. The south bridge is there for firmware, which finds serial port and power
/// management by it; a kernel finds them by ACPI, and would read through two functions more.
fn add_chipset(bus: &Bus, boots: &Boots) -> Result<(), PciError> {
    let at = |device, function| Address::new(0, device, function).expect("a constant address");
    let windows = bus.windows();
    bus.add(at(0, 0), Arc::new(Chipset::host_bridge(windows)))?;
    if let Boots::Kernel { .. } = boots {
        return Ok(());
    }
    bus.add(at(SOUTH_BRIDGE, 0), Arc::new(Chipset::isa_bridge(windows)))?;
    bus.add(at(SOUTH_BRIDGE, 3), Arc::new(Chipset::power_management(port::PM_BASE, windows)))
}

/// Opens the sources of faults, and reports these sources and the kind of domains.
fn listen(claimed: &Claimed, report: &Reporter) -> Inputs {
    report(&Notice::Life(Life::Made(claimed.chosen().to_string())));
    let inputs = Inputs::open();
    let sources = inputs.sources();
    let said = sources.to_string();
    report(&if sources.name_devices() { Notice::Life(Life::Made(said)) } else { Notice::Trouble(said) });
    inputs
}

fn make_cpus(
    vm: &VmFd,
    hypervisor: &Hypervisor,
    cpus: platform::Cpus,
    layout: &Layout,
    nested: bool,
    firmware: Option<&Firmware>,
) -> Result<Vec<(VcpuFd, PowerOn)>, StartError> {
    let address_bits = layout.address_bits;
    let template = Template::new(hypervisor.cpuid(), cpus, address_bits, hypervisor.tsc_deadline(), nested);
    let msrs = hypervisor.msrs()?;
    let mut fds: Vec<(VcpuFd, PowerOn)> = Vec::new();
    for apic_id in cpus.apic_ids() {
        let fd = vm.create_vcpu(apic_id.into()).map_err(failed("make a vCPU"))?;
        fd.set_cpuid2(&template.for_cpu(apic_id)).map_err(failed("set the features of a vCPU"))?;
        state::limit_error_banks(&fd)?;
        let power_on = match fds.first() {
            None => PowerOn::of_boot_cpu(vm, &fd, &msrs, firmware)?,
            Some((_, boot_cpu)) => PowerOn::of_waiting_cpu(boot_cpu, &fd, firmware)?,
        };
        fds.push((fd, power_on));
    }
    Ok(fds)
}

/// Sends what the guest asks for to the VM's owner.
fn ask(events: &Events) -> Box<dyn Fn(PowerRequest) + Send + Sync> {
    let events = events.clone();
    Box::new(move |request| events.power(request))
}

/// The clock, with its interrupt.
fn clock(vm: &VmFd, layout: &Layout, events: &Events) -> Result<Rtc, StartError> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(system("make an eventfd"))?;
    vm.register_irqfd(&interrupt, gsi::RTC.into()).map_err(failed("connect the clock's interrupt"))?;
    let size = |low: bool| {
        let ranges = layout.ram.iter().filter(|range| (range.start() < HIGH_RAM_START) == low);
        ranges.map(|range| range.len()).sum()
    };
    let ram = RamSizes { low: size(true), high: size(false) };
    // An eventfd that is full has an interrupt in it already.
    let raise = Box::new(move || drop(interrupt.write(1)));
    let events = events.clone();
    let no_thread = Box::new(move |cause| {
        events.provoked(format!(
            "the guest's clock cannot interrupt, for its thread did not start: {cause}. See the limits on processes (ulimit -u)"
        ));
    });
    Ok(Rtc::new(ram, raise, no_thread))
}

fn fixed_ports(
    serial: &Arc<SerialPort>,
    clock: Rtc,
    power: &Arc<Power>,
    bus: &Arc<Bus>,
    events: &Events,
) -> Ports {
    let mut ports = Ports::default();
    let mut add =
        |first: u16, count: u16, device: Arc<dyn PortDevice>| ports.add(first..=first + count - 1, device);
    add(port::COM1, 8, serial.clone());
    add(port::RTC, 2, Arc::new(clock));
    add(port::SYSTEM_CONTROL_A, 1, Arc::new(ResetPort::port_92(ask(events))));
    add(port::PM1A_EVENT, 6, power.clone());
    add(port::PM_TIMER, 4, Arc::new(PmTimer::new()));
    let config = ConfigPorts::new(bus.clone(), ResetPort::cf9(ask(events)), events.clone());
    add(port::PCI_CONFIG_ADDRESS, 8, Arc::new(config));
    add(port::I8042_COMMAND, 1, Arc::new(ResetPort::keyboard(ask(events))));
    ports
}

fn describe(layout: &Layout, cpus: platform::Cpus, boots: &Boots, config: &config::Vm) -> Platform {
    let windows = &layout.windows;
    Platform {
        cpus,
        pci: HostBridge {
            ecam: Ecam::new(layout.ecam, 0).expect("the layout's ECAM is whole buses from 0"),
            window32: windows.memory32,
            window64: windows.memory64,
            ports: Some(windows.ports.0..=windows.ports.1),
            native: NativeControl::default(),
        },
        i8042: false,
        firmware: matches!(boots, Boots::Firmware { .. }),
        vga: false,
        tpm: config.tpm.is_some(),
        uuid: uuid(config.name.as_str()),
    }
}

/// A UUID that stays the same for a VM of the same name: RFC 9562 version 8, whose bits are ours to fill.
fn uuid(name: &str) -> [u8; 16] {
    // FNV-1a, 128 bits.
    let hash = name.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
    });
    let mut bytes = hash.to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}
