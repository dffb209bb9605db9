//! Starts that are counted by the plugin of the emulated host (`lab::count`): of whole guests, of guests that end with
//! their first instruction, and of guests that read and write a disk.
//!
//! A line of JSON for each start, in their order: what it was, and what the plugin cannot see. A start that failed has a
//! line as well, so that the n-th line belongs to the n-th mark of a start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use lab::count::{PROGRAM_STARTS, mark};
use serde_json::{Value, json};

use crate::guest::Guest;
use crate::vmm::{self, Hardware, MEMORY, Model, Shape, Vmm};
use crate::{host, mini};

/// The guest, and where it is put into RAM. Under a clock of instructions, waiting for the outer machine's files takes as
/// long as that machine makes it.
const KERNEL: (&str, &str) = ("/lab/guest/vmlinux", "/tmp/vmlinux");
const INITRD: (&str, &str) = ("/lab/guest/initrd-count", "/tmp/initrd");
const MINI: &str = "/tmp/mini";

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// QEMU's firmware waits for all vCPUs, spinning. With 64 of them on one emulated CPU it had not come up after three
/// minutes.
const MOST_VCPUS_OF_QEMU: u32 = 16;

/// KiB of swap with which the largest guest could have all its RAM.
const MUCH_SWAP: u64 = 128 << 20;

/// How long a guest may take for one step. An emulated host that counts is slow.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// A monitor that started has nothing left to do after so long; then its memory is looked at.
const SETTLED: Duration = Duration::from_millis(100);

/// A disk for a guest that does not read it.
const DISK: u64 = 16 << 20;

/// The loads on a disk: their names, what `lab-io count` is told before and after the disk, and how many transfers.
const LOADS: [(&str, &str, &str, u32); 5] = [
    ("4 KiB read, depth 1", "randread", "4K 1", 250),
    ("4 KiB read, depth 16", "randread", "4K 16", 1500),
    ("1 MiB read, depth 4", "seqread", "1M 4", 50),
    ("1 MiB write, depth 4", "seqwrite", "1M 4", 30),
    ("4 KiB write, depth 1", "randwrite", "4K 1", 100),
];

/// Counts starts of this kind.
pub fn run(kind: &str, rounds: u32, huge_pages: &str, few: bool) -> io::Result<()> {
    fs::write(HUGE_PAGES, huge_pages)?;
    match kind {
        "boot" => boots(rounds),
        "start" => starts(rounds, few),
        "disk" => disks(rounds),
        _ => Err(io::Error::other(format!("there is no kind {kind:?} of start"))),
    }
}

/// Whole guests, up to their init.
fn boots(rounds: u32) -> io::Result<()> {
    for (from, to) in [KERNEL, INITRD] {
        fs::copy(from, to)?;
    }
    let line = "console=ttyS0 quiet no_timer_check panic=-1";
    let shape =
        Shape { kernel: KERNEL.1, initrd: Some(INITRD.1), line, memory: MEMORY, vcpus: 1, disks: &[] };
    for vmm in [Vmm::Skep, Vmm::QemuNative] {
        warm_up(vmm, &shape);
    }
    for _ in 0..rounds {
        for vmm in [Vmm::Skep, Vmm::QemuNative] {
            tell("boot", vmm.family(), start(vmm, &shape));
        }
    }
    Ok(())
}

/// Guests of several sizes, up to their first instruction.
fn starts(rounds: u32, few: bool) -> io::Result<()> {
    // Guests have more RAM than the host, which they never touch.
    fs::write(OVERCOMMIT, "1")?;
    host::pretend_swap(MUCH_SWAP)?;
    fs::write(MINI, mini::elf())?;
    let paths: Vec<String> = (0..31).map(|number| format!("/tmp/disk{number}")).collect();
    for path in &paths {
        File::create(path)?.set_len(DISK)?;
    }
    let usual = Shape { kernel: MINI, initrd: None, line: "", memory: MEMORY, vcpus: 1, disks: &[] };
    let mut shapes = vec![("start".to_owned(), usual.clone())];
    let (gibibytes, vcpus, disks) = if few {
        (&[64][..], &[64][..], &[31][..])
    } else {
        (&[1, 4, 16, 64][..], &[4, 16, 64][..], &[1, 8, 31][..])
    };
    for number in gibibytes {
        shapes.push((format!("start, {number} GiB"), Shape { memory: number << 10, ..usual.clone() }));
    }
    for number in vcpus {
        shapes.push((format!("start, {number} vCPUs"), Shape { vcpus: *number, ..usual.clone() }));
    }
    for number in disks {
        let plural = if *number == 1 { "disk" } else { "disks" };
        shapes
            .push((format!("start, {number} {plural}"), Shape { disks: &paths[..*number], ..usual.clone() }));
    }
    for vmm in [Vmm::Skep, Vmm::QemuNative] {
        warm_up(vmm, &usual);
    }
    for _ in 0..rounds {
        for (name, shape) in &shapes {
            for vmm in [Vmm::Skep, Vmm::QemuNative] {
                if vmm != Vmm::Skep && shape.vcpus > MOST_VCPUS_OF_QEMU {
                    continue;
                }
                tell(name, vmm.family(), start(vmm, shape));
            }
        }
    }
    Ok(())
}

/// A guest that says that it lives: what that took, and the monitor's memory then.
fn start(vmm: Vmm, shape: &Shape<'_>) -> io::Result<Value> {
    let mut guest = Guest::start(marked(vmm.bare(shape)))?;
    let line = guest.wait_for("lab: init", STEP_LIMIT)?;
    thread::sleep(SETTLED);
    let memory = host::beside_ram(guest.id())?;
    let place = if vmm == Vmm::Skep { Some(host::place(guest.id(), "skep")?) } else { None };
    Ok(json!({
        "virtual_ms": line.after.as_secs_f64() * 1e3, "exits": line.exits,
        "resident": memory.resident, "anonymous": memory.anonymous, "place": place,
    }))
}

/// Guests that move blocks to and from a disk of the host, which is lost.
fn disks(rounds: u32) -> io::Result<()> {
    let disk = host::sata()?;
    let hardware = Hardware { disk: Some((&disk, Model::VirtioBlk)), ..Hardware::default() };
    for _ in 0..rounds {
        for vmm in Vmm::ALL {
            tell("disk", vmm.name(), loads(vmm, &hardware));
        }
    }
    Ok(())
}

fn loads(vmm: Vmm, hardware: &Hardware<'_>) -> io::Result<Value> {
    let mut script = "lab-io randread /dev/vda 4K 16 0.1\n".to_owned();
    for (_, load, how, times) in LOADS {
        script += &format!("sleep 0.1; lab-io count {load} /dev/vda {how} {times} || exit 1\n");
    }
    let words = format!("lab.run={}", crate::loads::encode(script.as_bytes()));
    let mut guest = Guest::start(marked(vmm.command(hardware, &words)))?;
    let end = guest.wait_for("lab: exit", STEP_LIMIT)?;
    if !end.text.contains("lab: exit 0") {
        return Err(io::Error::other(format!("a load failed: {}", end.text)));
    }
    let loads: Vec<Value> = LOADS.iter().map(|(name, _, _, times)| json!([name, times])).collect();
    Ok(json!({ "loads": loads }))
}

/// The command with the mark of a start as its last act before it becomes the monitor.
fn marked(mut command: Command) -> Command {
    // SAFETY: the closure executes one NOP between fork and exec.
    unsafe {
        command.pre_exec(|| {
            mark::<PROGRAM_STARTS>();
            Ok(())
        });
    }
    command
}

/// The first start of a program reads it from its disk, which is not what is counted. It has no mark. What it has read by
/// then is put into RAM.
fn warm_up(vmm: Vmm, shape: &Shape<'_>) {
    let warm = || {
        let mut guest = Guest::start(vmm.bare(shape))?;
        guest.wait_for("lab: init", STEP_LIMIT)?;
        let files = vmm::files(guest.id())?;
        // A program that runs may not be written to.
        drop(guest);
        if vmm == Vmm::Skep { Ok(()) } else { vmm::into_ram(&files) }
    };
    if let Err(error) = warm() {
        eprintln!("lab-bench: {} before it is counted: {error}", vmm.family());
    }
}

fn tell(what: &str, vmm: &str, measured: io::Result<Value>) {
    let found = measured.unwrap_or_else(|error| {
        eprintln!("lab-bench: {vmm}, {what}: {error}");
        json!({ "failed": error.to_string() })
    });
    // Nobody may be listening; the lab's end ends us then.
    let _unheard = writeln!(io::stdout(), "{}", json!({ "counted": what, "vmm": vmm, "found": found }));
}
