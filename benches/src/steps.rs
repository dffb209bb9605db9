//! Instructions of a thread, counted one by one.
//!
//! Counters of the CPU are not to be had in most virtual machines, and valgrind stops all threads while one waits in a
//! ring. So the thread is stepped by ptrace: slow, but exact, and the same on every machine. What the kernel does counts
//! as one instruction, that which enters it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A thread of another process that stands still.
pub struct Stepped {
    thread: libc::pid_t,
}

/// What a thread did.
#[derive(Default, Debug)]
pub struct Steps {
    /// How many instructions.
    pub instructions: u64,
    /// How often each address was at, if that was asked for.
    pub addresses: BTreeMap<u64, u64>,
}

impl Stepped {
    /// Stops the first thread of process `pid` whose name begins with `name`.
    pub fn stop(pid: u32, name: &str) -> Result<Stepped> {
        let thread = find(pid, name)?;
        // SAFETY: seizing and interrupting take no memory of ours. The thread is one of our own child's.
        let asked = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, 0, 0) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0) == 0
        };
        ensure!(asked, "cannot trace thread {thread}: {}", io::Error::last_os_error());
        let stepped = Stepped { thread };
        ensure!(stepped.wait()?.is_some(), "thread {thread} has ended");
        Ok(stepped)
    }

    /// Steps the thread until its process has ended. With `addresses` it is noted where it was, which takes longer.
    pub fn to_the_end(self, addresses: bool) -> Result<Steps> {
        let mut steps = Steps::default();
        loop {
            // SAFETY: the thread stands still, and no signal is given to it.
            let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.thread, 0, 0) };
            match (stepped, io::Error::last_os_error()) {
                (0, _) => {}
                // It was killed while it stood still. Its end is for us to see, or its process has none.
                (_, error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    while self.wait()?.is_some() {}
                    return Ok(steps);
                }
                (_, error) => return Err(error).context("cannot step the thread"),
            }
            match self.wait()? {
                // Of stops only those are steps.
                Some(libc::SIGTRAP) => steps.instructions += 1,
                Some(_) => continue,
                None => return Ok(steps),
            }
            if addresses {
                *steps.addresses.entry(self.address()?).or_default() += 1;
            }
        }
    }

    /// The signal that the thread stopped with; `None` when it has ended.
    fn wait(&self) -> Result<Option<libc::c_int>> {
        let mut status = 0;
        // SAFETY: the status is ours.
        let waited = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        if waited < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error.into()) };
        }
        Ok(libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status)))
    }

    fn address(&self) -> Result<u64> {
        // SAFETY: plain data, for which all zeroes are valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one such structure; the thread stands still.
        let got = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.thread, 0, &raw mut registers) };
        ensure!(got == 0, "cannot read the thread's registers: {}", io::Error::last_os_error());
        Ok(registers.rip)
    }
}

fn find(pid: u32, name: &str) -> Result<libc::pid_t> {
    let tasks = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))?;
    let is_it = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(name));
    let task = entries.flatten().find(|task| is_it(&task.path()));
    let task = task.with_context(|| format!("process {pid} has no thread {name}"))?;
    Ok(task.file_name().to_string_lossy().parse()?)
}
