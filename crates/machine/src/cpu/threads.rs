//! All vCPUs: each has a thread, which runs the guest, waits or ends, as the last order says.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use boot::CpuState;
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use memory::Gpa;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::cpu::state::{self, PowerOn};

/// What a vCPU's exits are served by.
pub trait Exits: Send + Sync {
    /// Reads I/O ports.
    fn read_port(&self, port: u16, data: &mut [u8]);
    /// Writes I/O ports.
    fn write_port(&self, port: u16, data: &[u8]);
    /// Reads memory space where there is no RAM.
    fn read_memory(&self, at: u64, data: &mut [u8]);
    /// Writes memory space where there is no RAM.
    fn write_memory(&self, at: u64, data: &[u8]);
    /// A vCPU cannot continue; it waits until the machine decides.
    fn ended(&self, end: End);
}

/// Why a vCPU cannot continue.
#[derive(Debug)]
pub enum End {
    /// Triple fault.
    Crashed {
        /// The vCPU.
        cpu: u32,
        /// Where it was.
        place: String,
    },
    /// The host has no page for memory that the guest uses.
    NoMemory {
        /// The vCPU.
        cpu: u32,
        /// Where the guest used it, if KVM says so (Linux 6.8).
        at: Option<Gpa>,
        /// Where the vCPU was.
        place: String,
    },
    /// KVM gave up, or the host did something wrong.
    Failed {
        /// The vCPU.
        cpu: u32,
        /// What happened.
        what: String,
    },
}

/// The signal that gets a thread out of KVM. Its handler does nothing; that a signal arrives is enough.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

#[derive(Clone)]
enum Order {
    /// Stay out of the guest.
    Hold,
    /// Run the guest.
    Run,
    /// Return to power-on; the boot CPU then goes to a kernel's entry, or stays there for the firmware. Then hold.
    Reset(Option<CpuState>),
    /// End the thread.
    Quit,
}

struct Shared {
    order: Mutex<Orders>,
    changed: Condvar,
    /// Set with every order but `Run`, so that a running vCPU looks for it after each exit.
    look: AtomicBool,
    exits: Arc<dyn Exits>,
    /// The threads by the kernel's numbers; 0 before a thread has begun.
    numbers: Vec<AtomicI32>,
}

struct Orders {
    order: Order,
    /// Counts orders, so that a thread sees whether an order is new.
    number: u64,
    /// How many vCPUs have carried out the latest order and stay out of the guest.
    done: u32,
}

impl Shared {
    /// How many vCPUs will never obey an order again, because RAM that they needed is lost.
    fn stopped(&self) -> u32 {
        let numbers = self.numbers.iter().map(|number| number.load(Ordering::Relaxed));
        numbers.filter(|number| *number != 0 && memory::is_stopped(*number)).count() as u32
    }

    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.order.lock()
    }
}

/// The vCPUs of a VM. They wait until they get the order to run; dropping them ends their threads.
pub struct Cpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Cpus {
    /// Starts a thread for each vCPU; all wait.
    pub fn new(cpus: Vec<(VcpuFd, PowerOn)>, exits: Arc<dyn Exits>) -> io::Result<Cpus> {
        install_kick_handler()?;
        let orders = Orders { order: Order::Hold, number: 0, done: cpus.len() as u32 };
        let shared = Arc::new(Shared {
            order: Mutex::new(orders),
            changed: Condvar::new(),
            look: AtomicBool::new(true),
            exits,
            numbers: cpus.iter().map(|_| AtomicI32::new(0)).collect(),
        });
        let mut all = Cpus { shared, threads: Vec::new() };
        for (index, (fd, power_on)) in (0u32..).zip(cpus) {
            let shared = all.shared.clone();
            let thread = Thread { index, fd, power_on, shared, carried_out: 0 };
            let name = format!("vcpu{index}");
            all.threads.push(std::thread::Builder::new().name(name).spawn(move || thread.work())?);
        }
        Ok(all)
    }

    /// All run.
    pub fn run(&self) {
        self.give(Order::Run);
    }

    /// Makes all vCPUs wait outside the guest; returns when they do.
    pub fn hold(&self) {
        self.give(Order::Hold);
        self.wait();
    }

    /// All return to power-on, the first to the kernel's entry if there is one, and wait; returns when they do.
    pub fn reset(&self, entry: Option<CpuState>) {
        self.give(Order::Reset(entry));
        self.wait();
    }

    fn give(&self, order: Order) {
        let mut orders = self.shared.lock();
        self.shared.look.store(!matches!(order, Order::Run), Ordering::SeqCst);
        orders.order = order;
        orders.number += 1;
        orders.done = 0;
        drop(orders);
        self.shared.changed.notify_all();
    }

    /// Waits until every vCPU has carried out the order. A signal that comes just before a thread enters the
    /// guest is lost, so they are repeated.
    fn wait(&self) {
        let mut orders = self.shared.lock();
        while orders.done + self.shared.stopped() < self.threads.len() as u32 {
            self.kick();
            self.shared.changed.wait_for(&mut orders, Duration::from_millis(2));
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // SAFETY: the thread is not joined before `self` is dropped, so its handle is valid; the signal
            // has a handler that does nothing.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.give(Order::Quit);
        self.wait();
        for (thread, number) in self.threads.drain(..).zip(&self.shared.numbers) {
            if !memory::is_stopped(number.load(Ordering::Relaxed)) {
                drop(thread.join());
            }
        }
    }
}

struct Thread {
    index: u32,
    fd: VcpuFd,
    power_on: PowerOn,
    shared: Arc<Shared>,
    carried_out: u64,
}

impl Thread {
    fn work(mut self) {
        // SAFETY: a system call without arguments.
        let number = unsafe { libc::syscall(libc::SYS_gettid) };
        self.shared.numbers[self.index as usize].store(number as i32, Ordering::Relaxed);
        loop {
            match self.next_order() {
                Order::Run => self.run(),
                Order::Hold => self.report_done(),
                Order::Reset(entry) => {
                    let mut reset = self.power_on.restore(&self.fd);
                    if let Some(entry) = entry.filter(|_| self.index == 0) {
                        reset = reset.and_then(|()| state::enter(&self.fd, &entry));
                    }
                    if let Err(error) = reset {
                        self.shared.exits.ended(End::Failed { cpu: self.index, what: error.to_string() });
                    }
                    self.report_done();
                }
                Order::Quit => return self.report_done(),
            }
        }
    }

    fn next_order(&mut self) -> Order {
        let mut orders = self.shared.lock();
        while orders.number == self.carried_out {
            self.shared.changed.wait(&mut orders);
        }
        self.carried_out = orders.number;
        orders.order.clone()
    }

    fn report_done(&self) {
        let mut orders = self.shared.lock();
        if orders.number == self.carried_out {
            orders.done += 1;
            drop(orders);
            self.shared.changed.notify_all();
        }
    }

    /// Runs the guest until there is another order or nothing more to run.
    fn run(&mut self) {
        while !self.shared.look.load(Ordering::Relaxed) {
            if let Err(end) = self.enter() {
                return self.shared.exits.ended(end);
            }
        }
        self.complete();
    }

    /// KVM finishes an access that was just served only when it is entered again. A vCPU that is to be reset must
    /// not finish it afterwards, over its new registers, so it is entered once more without running the guest.
    fn complete(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // One access comes in a few pieces at most.
        for _ in 0..64 {
            match self.fd.run() {
                Err(_) => break,
                Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0xff),
                Ok(_) => {}
            }
        }
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Enters the guest once and serves its exit.
    fn enter(&mut self) -> Result<(), End> {
        let exits = &self.shared.exits;
        let run: *const kvm_run = self.fd.get_kvm_run();
        // How wide each item of a string instruction is; the crate gives them all as one slice.
        // SAFETY: the page of `kvm_run` is mapped as long as `fd`; for these exits the union holds `io`.
        let width = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size }).max(1);
        // Where KVM could not get memory, if it says so (Linux, Documentation/virt/kvm/api.rst, KVM_EXIT_MEMORY_FAULT).
        // SAFETY: as above; with this reason the union holds `memory_fault`.
        let lacking = || unsafe {
            let told = (*run).exit_reason == kvm_bindings::KVM_EXIT_MEMORY_FAULT;
            told.then(|| Gpa((*run).__bindgen_anon_1.memory_fault.gpa))
        };
        let what = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(width()).for_each(|item| exits.write_port(port, item));
                return Ok(());
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(width()).for_each(|item| exits.read_port(port, item));
                return Ok(());
            }
            Ok(VcpuExit::MmioRead(at, data)) => {
                exits.read_memory(at, data);
                return Ok(());
            }
            Ok(VcpuExit::MmioWrite(at, data)) => {
                exits.write_memory(at, data);
                return Ok(());
            }
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => return Ok(()),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(()),
            Err(error) if matches!(error.errno(), libc::EFAULT | libc::EHWPOISON) => {
                return Err(End::NoMemory {
                    cpu: self.index,
                    at: lacking(),
                    place: state::describe(&self.fd),
                });
            }
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_CRASH, _)) => {
                let place = state::crash_place(&self.fd).unwrap_or_else(|| state::describe(&self.fd));
                return Err(End::Crashed { cpu: self.index, place });
            }
            Ok(VcpuExit::InternalError) => "KVM cannot emulate an instruction of the guest".to_owned(),
            Ok(VcpuExit::FailEntry(reason, _)) => format!("the CPU refuses the guest's state ({reason:#x})"),
            Ok(other) => format!("KVM returned with {other:?}, which nothing here asked for"),
            Err(error) => format!("KVM cannot run it: {}", io::Error::from(error)),
        };
        Err(End::Failed { cpu: self.index, what: format!("{what} ({})", state::describe(&self.fd)) })
    }
}

fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: a zeroed sigaction is a valid one without flags (no SA_RESTART, so system calls return) and with
    // an empty mask; the handler does nothing, which is safe at any moment.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
