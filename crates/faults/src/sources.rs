//! Which sources there are, opened while they may be.

use std::fmt;
use std::io;

use crate::interrupts::Interrupts;
use crate::kmsg::KernelLog;
use crate::tracing::Tracing;

/// The sources of faults, open. To be opened before the VM's devices can do DMA, and before privileges go.
#[derive(Debug)]
pub struct Inputs {
    pub(super) log: Option<KernelLog>,
    pub(super) interrupts: Option<Interrupts>,
    pub(super) tracing: Option<Tracing>,
    sources: Sources,
}

/// Which sources of faults are in use, and why others are not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    active: Vec<&'static str>,
    missing: Vec<(&'static str, String)>,
    names: bool,
}

impl Inputs {
    /// Opens what this host has and permits. None of it is needed for the VM to run; [`Sources`] says what there is.
    ///
    /// An instance of the kernel's tracing is made for it, and on VT-d a probe on the kernel's fault handler, which
    /// is the only way to learn of faults that the log withholds. Both are removed with the [`Watch`](crate::Watch).
    pub fn open() -> Inputs {
        Inputs::with(Tracing::open())
    }

    /// Opens only what changes nothing in the kernel: its log, and the interrupt counts.
    pub fn passive() -> Inputs {
        Inputs::with(Err(io::Error::other("it was not to be used")))
    }

    fn with(tracing: io::Result<Tracing>) -> Inputs {
        let mut sources = Sources::default();
        let log = sources.add("the kernel's log (/dev/kmsg)", KernelLog::open());
        // On VT-d the tracepoint is there but never fires.
        let kind = match &tracing {
            Ok(tracing) if tracing.has_probe() => "a probe on VT-d's fault records (tracefs)",
            _ => "the tracepoint iommu:io_page_fault (tracefs)",
        };
        let tracing = sources.add(kind, tracing);
        sources.names = log.is_some() || tracing.is_some();
        let interrupts = sources.add("the IOMMU's interrupt counts (/proc/interrupts)", Interrupts::open());
        Inputs { log, interrupts, tracing, sources }
    }

    /// Which sources these are.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    #[cfg(test)]
    pub(super) fn over(log: KernelLog, interrupts: Interrupts) -> Inputs {
        Inputs { log: Some(log), interrupts: Some(interrupts), tracing: None, sources: Sources::default() }
    }
}

impl Sources {
    /// Whether any source can name the device of a fault. Without one, faults are counted at best.
    pub fn name_devices(&self) -> bool {
        self.names
    }

    fn add<S>(&mut self, name: &'static str, source: io::Result<S>) -> Option<S> {
        match source {
            Ok(source) => {
                self.active.push(name);
                Some(source)
            }
            Err(error) => {
                self.missing.push((name, error.to_string()));
                None
            }
        }
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.active.as_slice() {
            [] => write!(f, "DMA faults cannot be seen on this host")?,
            active => write!(f, "DMA faults are seen by {}", active.join(", "))?,
        }
        for (name, why) in &self.missing {
            write!(f, "; not by {name}: {why}")?;
        }
        if !self.names {
            write!(f, ". Run skep as root, or with CAP_SYSLOG, so that faults can be assigned to devices")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_its_reason_and_a_hint() {
        let mut sources = Sources::default();
        sources.add("the kernel's log", Err::<(), _>(io::Error::from_raw_os_error(libc::EPERM)));
        sources.add("the counts", Ok(()));
        assert_eq!(
            sources.to_string(),
            "DMA faults are seen by the counts; not by the kernel's log: Operation not permitted (os error 1). Run \
             skep as root, or with CAP_SYSLOG, so that faults can be assigned to devices"
        );
    }
}
