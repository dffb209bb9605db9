//! A VM from its description to its end.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use boot::platform::{self, Ecam, HostBridge, NativeControl, Platform, gsi, port};
use boot::{Initrd, InitrdError, KernelError, KernelImage, LinuxBoot, LoadError};
use devices::{PmTimer, PortDevice, Power, PowerRequest, ResetPort, Rtc, SerialPort};
use kvm_ioctls::VmFd;
use memory::{Ram, RamError};
use pci::{Address, Bus, PciError, Services};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::board::Board;
use crate::chips::Chips;
use crate::config_ports::ConfigPorts;
use crate::console::{Console, ConsoleWriter};
use crate::cpu::PowerOn;
use crate::cpuid::Template;
use crate::cpus::{Cpus, End};
use crate::interrupts::Interrupts;
use crate::kvm::{Hypervisor, KvmError, failed};
use crate::layout::{Layout, LayoutError};
use crate::ports::Ports;
use crate::services::KvmServices;
use crate::slots::Slots;

/// RAM that is made present before the guest starts: what a kernel touches while it boots, and a few gigabytes
/// more would only delay the start. RAM for assigned devices is present as a whole, for they reach all of it.
const POPULATED: u64 = 1 << 30;

/// Why a VM could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest's address space.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// Loading them.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// Threads and eventfds.
    #[error("cannot {what}: {cause}. This host is short of memory, threads or open files.")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// It was stopped from outside before it did.
    Stopped,
    /// The guest crashed: a triple fault, and where.
    Crashed(String),
    /// KVM or the host failed, and how.
    Failed(String),
}

/// What happens to a running VM.
pub enum Event {
    /// The guest asks for power off or reset.
    Power(PowerRequest),
    /// A vCPU can go no further.
    Ended(End),
    /// Something failed that the guest was not told of.
    Trouble(String),
    /// Somebody presses the power button.
    PressPowerButton,
    /// Somebody wants the VM to end now.
    Stop,
}

/// The way to a running VM from outside.
#[derive(Clone)]
pub struct Control {
    events: Sender<Event>,
    serial: Arc<SerialPort>,
}

impl Control {
    /// Presses the power button: the guest shuts down when it listens.
    pub fn press_power_button(&self) {
        self.tell(Event::PressPowerButton);
    }

    /// Ends the VM now, whatever the guest does.
    pub fn stop(&self) {
        self.tell(Event::Stop);
    }

    /// Types on the serial console; waits while the guest reads slowly.
    pub fn type_on_console(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.serial.receive(bytes);
            bytes = &bytes[taken..];
            if taken == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn tell(&self, event: Event) {
        // A VM that has ended listens no more, and needs neither button nor stop.
        drop(self.events.send(event));
    }
}

/// A VM, built and ready to run. Fields are in the order in which they go when it is dropped: first whoever
/// uses something, then what was used.
pub struct Vm {
    cpus: Cpus,
    board: Arc<Board>,
    boot: BootPlan,
    chips: Chips,
    power: Arc<Power>,
    serial: Arc<SerialPort>,
    console_writer: ConsoleWriter,
    report: Reporter,
    events: Receiver<Event>,
    vm: Arc<VmFd>,
    _console: Console,
}

/// Where a VM's troubles are told, a sentence each.
pub type Reporter = Box<dyn Fn(&str) + Send + Sync>;

/// What is loaded at every start.
struct BootPlan {
    kernel: KernelImage,
    initrd: Option<Initrd>,
    command_line: String,
    platform: Platform,
    ram: Arc<Ram>,
}

impl BootPlan {
    fn load(&self) -> Result<boot::CpuState, LoadError> {
        let linux = LinuxBoot {
            kernel: &self.kernel,
            initrd: self.initrd.as_ref(),
            command_line: &self.command_line,
        };
        boot::load(&linux, &self.platform, &self.ram)
    }
}

/// Facts that hold before anything on the host is touched.
struct Checked {
    hypervisor: Hypervisor,
    kernel: KernelImage,
    initrd: Option<Initrd>,
    layout: Layout,
    cpus: platform::Cpus,
}

impl Vm {
    /// Makes a VM from its description, or says everything that stands in the way and leaves the host as it
    /// was. The console's output goes to `output`.
    pub fn build(
        config: &config::Vm,
        output: Box<dyn Write + Send>,
        report: Reporter,
    ) -> Result<Vm, Vec<StartError>> {
        let checked = check(config)?;
        assemble(config, checked, output, report).map_err(|error| vec![error])
    }

    /// The way to the VM while it runs.
    pub fn control(&self) -> Control {
        Control { events: self.board.events.clone(), serial: self.serial.clone() }
    }

    /// Runs the VM until it ends.
    pub fn run(self) -> Outcome {
        let outcome = self.start().err().unwrap_or_else(|| self.attend());
        self.console_writer.stop_waiting();
        self.cpus.hold();
        outcome
    }

    /// Loads the kernel and lets the vCPUs go; an outcome if that fails.
    fn start(&self) -> Result<(), Outcome> {
        let entry = self.boot.load().map_err(|error| Outcome::Failed(error.to_string()))?;
        self.cpus.reset(&entry);
        self.cpus.run();
        Ok(())
    }

    /// Serves events until one of them is the end.
    fn attend(&self) -> Outcome {
        loop {
            // The board holds a sender, so there is always another event.
            let Ok(event) = self.events.recv() else { return Outcome::Stopped };
            match event {
                Event::Power(PowerRequest::Off) => return Outcome::PoweredOff,
                Event::Power(PowerRequest::Reset) => {
                    if let Err(outcome) = self.restart() {
                        return outcome;
                    }
                }
                Event::Ended(End::Crashed { cpu, place }) => {
                    return Outcome::Crashed(format!("vCPU {cpu} met a triple fault at {place}"));
                }
                Event::Ended(End::Failed { cpu, what }) => {
                    return Outcome::Failed(format!("vCPU {cpu}: {what}"));
                }
                Event::Trouble(what) => (self.report)(&what),
                Event::PressPowerButton => self.power.press_button(),
                Event::Stop => return Outcome::Stopped,
            }
        }
    }

    /// The VM starts afresh: vCPUs, controllers and every device return to power-on, the kernel is loaded
    /// again. RAM stays the RAM it was, mapped for devices as before.
    fn restart(&self) -> Result<(), Outcome> {
        self.cpus.hold();
        // What the guest asked for before everything was reset concerns nobody now.
        let stale = |event: &Event| matches!(event, Event::Power(_) | Event::Ended(_));
        for event in self.events.try_iter().filter(|event| !stale(event)) {
            match event {
                Event::Stop => return Err(Outcome::Stopped),
                Event::Trouble(what) => (self.report)(&what),
                _ => {}
            }
        }
        let errors = self.board.bus.reset();
        if !errors.is_empty() {
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(Outcome::Failed(all.join("; ")));
        }
        self.board.ports.reset();
        self.chips.restore(&self.vm).map_err(|error| Outcome::Failed(error.to_string()))?;
        self.start()
    }
}

/// Collects every fact that stands in the way of a start, before anything on the host is touched.
fn check(config: &config::Vm) -> Result<Checked, Vec<StartError>> {
    let mut findings: Vec<StartError> = Vec::new();
    let mut note = |error: StartError| findings.push(error);
    let kernel = KernelImage::open(config.boot.kernel.as_path()).map_err(|error| note(error.into())).ok();
    let initrd = config.boot.initrd.as_ref().map(|path| Initrd::open(path.as_path()));
    let initrd = initrd.transpose().map_err(|error| note(error.into())).ok();
    let cpus = platform::Cpus::new(1, config.cpus.get().get().into(), 1);
    let hypervisor = Hypervisor::open().and_then(|hypervisor| {
        hypervisor.check_speed()?;
        hypervisor.check_cpus(config.cpus.get().get().into())?;
        Ok(hypervisor)
    });
    let hypervisor = hypervisor.map_err(|error| note(error.into())).ok();
    let address_bits = hypervisor.as_ref().map_or(52, Hypervisor::address_bits);
    let layout = Layout::new(config.memory.bytes(), address_bits).map_err(|error| note(error.into())).ok();
    match (hypervisor, kernel, initrd, layout, cpus) {
        (Some(hypervisor), Some(kernel), Some(initrd), Some(layout), Some(cpus)) if findings.is_empty() => {
            Ok(Checked { hypervisor, kernel, initrd, layout, cpus })
        }
        _ => Err(findings),
    }
}

fn assemble(
    config: &config::Vm,
    checked: Checked,
    output: Box<dyn Write + Send>,
    report: Reporter,
) -> Result<Vm, StartError> {
    let Checked { hypervisor, kernel, initrd, layout, cpus } = checked;
    let ram = Arc::new(Ram::new(&layout.ram)?);
    ram.populate(POPULATED)?;
    let vm = Arc::new(hypervisor.create_vm()?);
    let chips = Chips::of(&vm)?;
    let slots =
        Slots::new(vm.clone(), hypervisor.memory_slots(), &ram).map_err(failed("map the guest's RAM"))?;
    let interrupts = Interrupts::new(vm.clone()).map_err(failed("route its interrupts"))?;
    let services: Arc<dyn Services> = Arc::new(KvmServices::new(vm.clone(), interrupts.clone(), slots));
    let bus = Arc::new(Bus::new(&layout.windows));
    let host_bridge = Address::new(0, 0, 0).expect("00:00.0 is an address");
    bus.add(host_bridge, Arc::new(pci::HostBridge::new(&layout.windows)))?;
    let _ = &services;

    let (sender, events) = channel();
    let console = Console::new(output).map_err(system("start the console's thread"))?;
    let serial_interrupt = EventFd::new(EFD_NONBLOCK).map_err(system("make an eventfd"))?;
    vm.register_irqfd(&serial_interrupt, gsi::COM1.into())
        .map_err(failed("connect the serial port's interrupt"))?;
    let serial = Arc::new(SerialPort::new(serial_interrupt, Box::new(console.writer())));
    let ask = |sender: &Sender<Event>| {
        let sender = sender.clone();
        Box::new(move |request| drop(sender.send(Event::Power(request))))
    };
    let sci = interrupts.clone();
    let power =
        Arc::new(Power::new(Box::new(move |level| sci.set_pin(gsi::SCI.into(), level)), ask(&sender)));
    let mut ports = fixed_ports(&serial, &power, ask(&sender));
    let config_ports = ConfigPorts::new(bus.clone(), ResetPort::cf9(ask(&sender)), sender.clone());
    ports.add(port::PCI_CONFIG_ADDRESS..=port::PCI_CONFIG_DATA + 3, Arc::new(config_ports));
    let board = Arc::new(Board { ports, bus, ecam: layout.ecam, events: sender });

    let template = Template::new(hypervisor.cpuid(), cpus, layout.address_bits, hypervisor.tsc_deadline());
    let mut fds = Vec::new();
    for apic_id in cpus.apic_ids() {
        let fd = vm.create_vcpu(apic_id.into()).map_err(failed("make a vCPU"))?;
        fd.set_cpuid2(&template.for_cpu(apic_id)).map_err(failed("tell a vCPU its features"))?;
        let power_on = PowerOn::of(&vm, &fd)?;
        fds.push((fd, power_on));
    }
    let platform = Platform {
        cpus,
        pci: HostBridge {
            ecam: Ecam::new(layout.ecam, 0).expect("the layout's ECAM is whole buses from 0"),
            window32: layout.windows.memory32,
            window64: layout.windows.memory64,
            ports: Some(layout.windows.ports.0..=layout.windows.ports.1),
            native: NativeControl::default(),
        },
        i8042: false,
        vga: false,
        uuid: uuid(config.name.as_str()),
    };
    let boot =
        BootPlan { kernel, initrd, command_line: config.boot.cmdline.as_str().to_owned(), platform, ram };
    let cpus = Cpus::new(fds, board.clone()).map_err(system("start the vCPUs' threads"))?;
    let console_writer = console.writer();
    Ok(Vm { cpus, board, boot, chips, power, serial, console_writer, report, events, vm, _console: console })
}

fn fixed_ports(
    serial: &Arc<SerialPort>,
    power: &Arc<Power>,
    keyboard: Box<dyn Fn(PowerRequest) + Send + Sync>,
) -> Ports {
    let mut ports = Ports::default();
    let mut add =
        |first: u16, count: u16, device: Arc<dyn PortDevice>| ports.add(first..=first + count - 1, device);
    add(port::COM1, 8, serial.clone());
    add(port::RTC, 2, Arc::new(Rtc::new()));
    add(port::PM1A_EVENT, 6, power.clone());
    add(port::PM_TIMER, 4, Arc::new(PmTimer::new()));
    add(port::I8042_COMMAND, 1, Arc::new(ResetPort::keyboard(keyboard)));
    ports
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::System { what, cause }
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
