//! Guest RAM that this host can no longer provide, or has lost.
//!
//! The kernel reserves RAM when a VM starts, and provides it page by page. If the host then has no page (others have used
//! up the pool of huge pages, a cgroup has a limit), or has lost one (a memory error, a file that was made shorter), the
//! kernel answers an access with SIGBUS. This would end the process at once, and its devices would stay bound.
//!
//! Instead, the thread that accessed the page never leaves the signal's handler, and the VM's owner is woken to end the
//! VM. The thread must not continue: with other data in the place of what it wanted to read, a device model would work on
//! wrong data, and could write it to a disk. For the same reason nothing else is mapped there. So the kernel fails each
//! request of a disk that needs the page, and KVM each entry of the guest that does (both with EFAULT).
//!
//! A stopped thread keeps its locks, so code that waits for threads must not wait for these ([`is_stopped`]). The main
//! thread ends the VM, so it must not be stopped: it makes RAM present before it writes there
//! ([`crate::Ram::make_present`]).

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Segments that are known to the handler at most. A VM has a few. The handler treats segments beyond that as other memory.
const SEGMENTS: usize = 64;

/// Threads that are known to be stopped at most. Such a VM ends soon and needs no exact count.
const THREADS: usize = 64;

/// Printed before the signal ends the process after all. A handler cannot format text.
const MAIN_THREAD: &[u8] =
    b"skep: this host cannot give guest RAM that the main thread needs (SIGBUS), so the VM ends at once. The next start \
      gives its devices back.\n";

/// Where a segment lies in this process. The handler reads it, so it is made of atomics.
struct Slot {
    /// 0 while the slot is free, 1 while it is being filled.
    start: AtomicUsize,
    end: AtomicUsize,
}

static SLOTS: [Slot; SEGMENTS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; SEGMENTS];

/// The stopped threads, by the kernel's number.
static STOPPED: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];

/// The first touch that failed: the signal's code, 0 before there is one, and the address.
static CODE: AtomicI32 = AtomicI32::new(0);
static PLACE: AtomicUsize = AtomicUsize::new(0);

/// Written by the handler; -1 before there is one. It is never closed: a handler may be about to write to it.
static NEWS: AtomicI32 = AtomicI32::new(-1);

/// The action of SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// The registration of a segment with the handler.
#[derive(Debug)]
pub(crate) struct Known(usize);

impl Known {
    /// Registers `len` bytes of guest RAM; `None` when there is no room for more.
    pub(crate) fn new(host: NonNull<u8>, len: usize) -> Option<Known> {
        let start = host.as_ptr() as usize;
        let free =
            |slot: &Slot| slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let index = SLOTS.iter().position(free)?;
        SLOTS[index].end.store(start + len, Ordering::Relaxed);
        SLOTS[index].start.store(start, Ordering::Release);
        Some(Known(index))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        SLOTS[self.0].start.store(0, Ordering::Release);
    }
}

fn is_guest_ram(place: usize) -> bool {
    SLOTS.iter().any(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        start > 1 && (start..slot.end.load(Ordering::Relaxed)).contains(&place)
    })
}

/// An access to guest RAM that the host could not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Where, in this process.
    pub(crate) place: usize,
    /// Whether it was an error of the host's memory.
    pub(crate) memory_error: bool,
}

/// Reports accesses that failed. There is one for the process.
#[derive(Debug)]
pub struct Losses(File);

impl Losses {
    /// From now on, accesses to guest RAM that fail do not end the process.
    pub fn watch() -> io::Result<&'static Losses> {
        static LOSSES: OnceLock<Losses> = OnceLock::new();
        if let Some(losses) = LOSSES.get() {
            return Ok(losses);
        }
        // SAFETY: plain numbers; the descriptor is new, and nothing else owns it.
        let news = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        let losses = LOSSES.get_or_init(|| Losses(news));
        NEWS.store(losses.0.as_raw_fd(), Ordering::Release);
        install()?;
        Ok(losses)
    }

    /// Waits for the next report; `None` when `stop` can be read before.
    pub fn wait(&self, stop: BorrowedFd<'_>) -> Option<Touch> {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        loop {
            let mut fds = [poll(self.0.as_raw_fd()), poll(stop.as_raw_fd())];
            // SAFETY: the array is ours and as long as said; it waits without end, which a signal may cut short.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if fds[0].revents != 0 && (&self.0).read_exact(&mut [0; 8]).is_ok() {
                let memory_error = CODE.load(Ordering::Acquire) != libc::BUS_ADRERR;
                return Some(Touch { place: PLACE.load(Ordering::Acquire), memory_error });
            }
            if fds[1].revents != 0 {
                return None;
            }
        }
    }
}

/// Whether the thread with this number (gettid(2)) will never run again, because RAM that it needed is
/// lost.
pub fn is_stopped(thread: i32) -> bool {
    STOPPED.iter().any(|stopped| stopped.load(Ordering::Acquire) == thread)
}

/// Whether any thread has.
pub fn any_stopped() -> bool {
    STOPPED[0].load(Ordering::Acquire) != 0
}

fn install() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is valid and has an empty mask; the handler is one for SA_SIGINFO and does only what is
    // allowed in a handler. The action of before goes to memory of ours and was filled in when the call succeeds.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Before the handler is there, for it uses it. A second watch finds this very handler there, and keeps the first.
        BEFORE.get_or_init(|| before.assume_init());
        match libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Handles SIGBUS (sigaction(2)). Only atomics and system calls from here on: the thread may hold any lock.
extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes pointers to both, valid until the handler returns.
    let (code, place) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let lost = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR | libc::BUS_MCEERR_AO);
    if !lost || !is_guest_ram(place) {
        return act_as_before(code);
    }
    if CODE.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        PLACE.store(place, Ordering::Release);
        let one = 1u64;
        // SAFETY: writes eight bytes of ours to an eventfd that is never closed. It cannot be full, so it does not block.
        unsafe { libc::write(NEWS.load(Ordering::Acquire), (&raw const one).cast(), 8) };
    }
    // Nobody has touched it yet, or only the guest has, inside KVM: this thread has nothing wrong in its hands.
    // SAFETY: the kernel passed `context`, as `info` above.
    let from_kvm = code == libc::BUS_MCEERR_AR && unsafe { came_from_system_call(context) };
    if code == libc::BUS_MCEERR_AO || from_kvm {
        return;
    }
    // SAFETY: plain numbers.
    let (thread, process) = unsafe { (libc::syscall(libc::SYS_gettid) as i32, libc::getpid()) };
    if thread == process {
        // SAFETY: writes bytes of ours; where that fails there is no place to say so.
        unsafe { libc::write(libc::STDERR_FILENO, MAIN_THREAD.as_ptr().cast(), MAIN_THREAD.len()) };
        return act_as_before(code);
    }
    let free =
        |slot: &AtomicI32| slot.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    STOPPED.iter().any(free);
    loop {
        // SAFETY: waits for a signal, whose handler returns here.
        unsafe { libc::pause() };
    }
}

/// Whether the signal came as a system call returned, as KVM_RUN does when the guest touches memory with an error, rather
/// than at an instruction that touches memory.
///
/// # Safety
/// `context` must be what the kernel passed to a handler.
unsafe fn came_from_system_call(context: *mut libc::c_void) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    // SAFETY: the caller vouches for `context`. The instruction pointer is in code, and so are the bytes before it: no
    // function begins at the very start of the code.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let next = (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as *const u8;
        next.sub(2).cast::<[u8; 2]>().read() == SYSCALL
    }
}

/// A signal for other memory has the effect it had without this handler: the instruction is tried again, or the signal sent
/// again, under the action of before.
fn act_as_before(code: libc::c_int) {
    if let Some(before) = BEFORE.get() {
        // SAFETY: an action that was in force before.
        unsafe { libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()) };
    }
    // Sent by a process, no instruction brings it again.
    if code <= 0 {
        // SAFETY: raises a signal, which stays blocked until the handler returns.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
