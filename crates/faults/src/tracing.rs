//! The kernel's tracing (tracefs), in an instance of our own.
//!
//! AMD's fault handler, like most, passes every fault by the tracepoint `iommu:io_page_fault`. Intel's does not,
//! and prints no more than about three faults in five seconds for the whole host. So a probe is set where Intel's
//! handler begins (`dmar_fault`), which notes the IOMMU's fault records before they are cleared. It reads
//! registers, and changes nothing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::fault::Direction;
use crate::intel;
use crate::line::{Report, hex};
use crate::stale_tracing::{Leftover, Process, remove, tracefs, write};
use dma::Iova;

/// A probe's name: this, and in hexadecimal where the records are that it reads.
const PROBE: &str = "dmar_";
/// A probe notes so many fault records of a unit at most; more wait in the hardware only under a storm.
const RECORDS: u64 = 8;
/// No line is longer.
const LONGEST: usize = 4096;

/// What a trace says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// The tracepoint fired.
    Fault(Report),
    /// The probe saw an interrupt of VT-d, with these faults in its records.
    Records(Vec<Report>),
}

/// An instance of tracing with what is of use here switched on.
#[derive(Debug)]
pub struct Tracing {
    root: PathBuf,
    name: String,
    /// The names of the probes set, in our group.
    probes: Vec<String>,
    pipe: Option<File>,
    rest: Vec<u8>,
}

impl Tracing {
    /// Makes an instance. On failure nothing is left of it. Leftovers of processes that were killed are removed.
    pub fn open() -> io::Result<Tracing> {
        let host = Path::new("/");
        let root = tracefs(host)?;
        for left in Leftover::all(host) {
            // What cannot be removed does no harm here; `skep host give-back` says why.
            drop(left.remove());
        }
        Tracing::within(&root)
    }

    fn within(root: &Path) -> io::Result<Tracing> {
        let name = fresh(&root.join("instances"))?;
        let mut made =
            Tracing { root: root.to_owned(), name, probes: Vec::new(), pipe: None, rest: Vec::new() };
        // Times that other programs understand; a small buffer for each CPU; waking for the first event.
        made.set("trace_clock", "mono")?;
        made.set("buffer_size_kb", "64")?;
        made.set("buffer_percent", "0").or_else(|error| match error.kind() {
            // Kernels before 5.0 have no such thing, and wake at once.
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let tracepoint = made.set("events/iommu/io_page_fault/enable", "1");
        for offset in intel_units() {
            made.probe(offset)?;
        }
        if made.probes.is_empty() {
            tracepoint?;
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let pipe = File::options().read(true).custom_flags(flags).open(made.folder().join("trace_pipe"))?;
        made.pipe = Some(pipe);
        Ok(made)
    }

    /// Whether Intel's fault records are seen.
    pub fn has_probe(&self) -> bool {
        !self.probes.is_empty()
    }

    /// What is next: microseconds since boot by CLOCK_MONOTONIC, and what was traced. `None` when all that there
    /// is now was read.
    pub fn read(&mut self) -> io::Result<Option<(u64, Trace)>> {
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if let Some(trace) = parse(&String::from_utf8_lossy(&line)) {
                    return Ok(Some(trace));
                }
            }
            if self.rest.len() > LONGEST {
                self.rest.clear();
            }
            let mut chunk = [0; LONGEST];
            let Some(pipe) = &mut self.pipe else { return Ok(None) };
            match pipe.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(read) => self.rest.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets the probe for units whose fault records begin at `offset`. The arguments follow the handler's second
    /// parameter to `struct intel_iommu`, whose first member points to the unit's registers.
    fn probe(&mut self, (offset, count): (u64, u64)) -> io::Result<()> {
        let name = format!("{PROBE}{offset:x}");
        let mut text = format!("p:{}/{name} dmar_fault", self.name);
        text.push_str(" cap=+0x8(+0(%si)):x64");
        for index in 0..count.min(RECORDS) {
            let (low, high) = (offset + 16 * index, offset + 16 * index + 8);
            text.push_str(&format!(" l{index}=+{low:#x}(+0(%si)):x64 h{index}=+{high:#x}(+0(%si)):x64"));
        }
        write(&self.root.join("kprobe_events"), &text, true)?;
        self.probes.push(name.clone());
        self.set(&format!("events/{}/{name}/enable", self.name), "1")
    }

    fn folder(&self) -> PathBuf {
        self.root.join("instances").join(&self.name)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        write(&self.folder().join(file), value, false)
    }
}

impl AsFd for Tracing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_ref().expect("an instance that was made has its pipe").as_fd()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        self.pipe = None;
        // What cannot be removed does no harm, and the next process tries again.
        drop(remove(&self.root, &self.name, &self.probes));
    }
}

/// Makes an instance with a name that is free.
fn fresh(instances: &Path) -> io::Result<String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let this = Process::this()?;
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = this.name(number);
        match fs::create_dir(instances.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 100 => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(name),
        }
    }
}

/// Where the fault records of this host's VT-d units are, and how many: each kind once.
fn intel_units() -> Vec<(u64, u64)> {
    let units = fs::read_dir("/sys/class/iommu").into_iter().flatten().flatten();
    let capabilities = units.filter_map(|unit| {
        let text = fs::read_to_string(unit.path().join("intel-iommu/cap")).ok()?;
        hex(text.trim())
    });
    let mut records: Vec<(u64, u64)> = capabilities.map(intel::records).collect();
    records.sort_unstable();
    // One probe for each offset, that sees the most records there are.
    records.reverse();
    records.dedup_by_key(|(offset, _)| *offset);
    records
}

/// Reads `TASK-ID [CPU] FLAGS SECONDS.MICROSECONDS: NAME: …`. The task's name is of its own choosing, but has 15
/// bytes at most, and so cannot be mistaken for what follows it.
fn parse(line: &str) -> Option<(u64, Trace)> {
    let line = line.trim_end();
    let (front, trace) = if let Some((front, fault)) = line.rsplit_once(": io_page_fault: IOMMU:") {
        (front, tracepoint(fault)?)
    } else {
        let (front, arguments) = line.rsplit_once("(dmar_fault+")?;
        let (front, name) = front.trim_end().strip_suffix(':')?.rsplit_once(": ")?;
        (front, records(hex(name.strip_prefix(PROBE)?)?, arguments)?)
    };
    let (seconds, micros) = front.rsplit(' ').next()?.split_once('.')?;
    let stamp = seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?;
    Some((stamp.checked_add(micros.parse().ok().filter(|micros| *micros < 1_000_000)?)?, trace))
}

/// `DRIVER 0000:02:00.0 iova=0x0000000064a7f000 flags=0x0001`.
fn tracepoint(text: &str) -> Option<Trace> {
    let mut words = text.split(' ').rev();
    let flags = hex(words.next()?.strip_prefix("flags=")?)?;
    let iova = Iova(hex(words.next()?.strip_prefix("iova=")?)?);
    let device = words.next()?.parse().ok()?;
    let direction = if flags & 1 != 0 { Direction::Write } else { Direction::Read };
    let reason = "nothing is mapped there, or not that way".to_owned();
    Some(Trace::Fault(Report { device, direction: Some(direction), iova: Some(iova), pasid: None, reason }))
}

/// `0x0/0x190) cap=0xd2008c22260206 l0=0x200000 h0=0x80ffff0500000020 …`, of a unit whose records are at `offset`.
/// Every probe sees the interrupts of all units; those of units whose records are elsewhere are for another probe.
fn records(offset: u64, text: &str) -> Option<Trace> {
    let mut values =
        text.split(' ').skip(1).map(|pair| pair.split_once('=').and_then(|(_, value)| hex(value)));
    let (at, count) = intel::records(values.next()??);
    let mut faults = Vec::new();
    for _ in 0..count {
        let (Some(Some(low)), Some(Some(high))) = (values.next(), values.next()) else { break };
        faults.extend(intel::record(low, high));
    }
    (at == offset).then_some(Trace::Records(faults))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_probe_noted_is_read() {
        let line = "          <idle>-0       [000] d.h1.     4.330273: dmar_220: (dmar_fault+0x0/0x190) \
                    cap=0xd2008c22260206 l0=0x200000 h0=0x80ffff0500000020 l1=0x0 h1=0x80ffff0500000020\n";
        let (stamp, trace) = parse(line).unwrap();
        let Trace::Records(faults) = trace else { panic!("{trace:?}") };
        assert_eq!((stamp, faults.len()), (4_330_273, 1), "the unit has one record only");
        assert_eq!((faults[0].device, faults[0].iova), ("00:04.0".parse().unwrap(), Some(Iova(0x20_0000))));
        assert_eq!(parse(&line.replace("dmar_220", "dmar_400")), None, "another probe's unit");
    }

    #[test]
    fn what_the_tracepoint_says_is_read_whatever_the_task_calls_itself() {
        let line = "irq/25-AMD: x: -98      [003] .....   100.000001: io_page_fault: IOMMU:vfio-pci 0000:02:00.0 \
                    iova=0x0000000064a7f000 flags=0x0001";
        let (stamp, trace) = parse(line).unwrap();
        let Trace::Fault(report) = trace else { panic!("{trace:?}") };
        assert_eq!((stamp, report.device), (100_000_001, "0000:02:00.0".parse().unwrap()));
        assert_eq!((report.direction, report.iova), (Some(Direction::Write), Some(Iova(0x64a7_f000))));
    }

    #[test]
    fn lost_events_and_other_lines_say_nothing() {
        for line in
            ["CPU:0 [LOST 12 EVENTS]", "", "x", ": (dmar_fault+", "1.9999999: a: (dmar_fault+0x0 a=1 b=2"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _trace = parse(&text);
            let _probe = parse(&format!("a-1 [0] d 1.5: dmar_220: (dmar_fault+0x0/0x1) {text}"));
            let _tracepoint = parse(&format!("a-1 [0] d 1.5: io_page_fault: IOMMU:{text}"));
        }
    }
}
