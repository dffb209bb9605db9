//! `skep lab`: the emulated host on the command line.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use lab::{Builder, Device, Disk, Event, Iommu, Kernel, Lab, LabError, Outcome, Size, Stream};
use serde_json::json;

use person::Person;

mod person;

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot an emulated host, run a command in it, and end with the command's exit status
    #[command(after_help = EXEC_HELP)]
    Exec(Exec),
}

const EXEC_HELP: &str = "\
In the emulated host: skep, lab-io, lab-edu and busybox on the PATH; the folder that holds skep read-only at /tree;
/lab/disks.json with each disk's serial number, size and SHA-256; a guest at /lab/guest/vmlinux, vmlinuz and initrd,
which runs the shell script given as lab.run=BASE64 on its kernel command line. Standard input is empty, unless the
command has the terminal (--interactive).

Addresses: @NAME in the command becomes the PCI address of that controller or device, whatever the IOMMU: @nvme0, @nvme1,
@ahci0, @virtio0, @xhci0 (usb disks), @scsi0, @e1000e0, @edu0 …, counted from 0 by kind, in the order given.

The command takes as long as it needs, while the emulated host gives signs of life (--silence, --timeout).

Environment: SKEP_CACHE names the folder for kernels and initial RAM disks (else $XDG_CACHE_HOME/skep or ~/.cache/skep);
SKEP_LAB_KERNEL the kernel of --kernel lab; SKEP_LAB_QEMU the emulator (else qemu-system-x86_64 on the PATH).

Exit status: the command's own; 124 when the lab was stopped: its time was over, it gave no sign of life, or you ended
it (--interactive); 125 when the lab itself failed.";

#[derive(Args)]
struct Exec {
    /// intel, amd or none, with QEMU's options (intel,intremap=off)
    #[arg(long, value_name = "MODEL", default_value = "intel")]
    iommu: Iommu,
    /// CPUs of the emulated host. With more than one, guests may die of the emulator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// RAM of the emulated host
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: Size,
    /// Huge pages of 2 MiB to set aside beside it
    #[arg(long, value_name = "N", default_value_t = 0)]
    hugepages: u32,
    /// debian, lab (everything built in, with iommufd), or a bzImage or ELF kernel
    #[arg(long, value_name = "debian|lab|PATH", default_value = "debian")]
    kernel: Kernel,
    /// A device: e1000e, igb (QEMU 8.0 and newer), ahci, edu, xhci or another of QEMU's, with its options (xhci,p2=4).
    /// Without any --device and --disk: an AHCI disk, two NVMe controllers, an e1000e and the edu device
    #[arg(long = "device", value_name = "SPEC")]
    devices: Vec<Device>,
    /// A disk: ahci, nvme, virtio, usb or scsi, then :SIZE, :PATH, :debian or :debian-grub, then serial=, logical=,
    /// physical= and for ahci controller= (ahci:64M,serial=A). An image given by PATH is written back. debian is a small
    /// Debian, installed with systemd-boot or GRUB; it is made at first use (some minutes), and what is written to it is
    /// forgotten
    #[arg(long = "disk", value_name = "SPEC")]
    disks: Vec<Disk>,
    /// A folder of this machine, writable at /share
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// Show this machine's / at /host (chroot /host ...); what is written there is forgotten
    #[arg(long)]
    host_root: bool,
    /// Guests with firmware: this machine's OVMF, if it is installed, and a work-around for a fault of QEMU's, which would
    /// abort
    #[arg(long)]
    guest_firmware: bool,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Seconds for boot and command together; without it there is no such limit
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: Option<u64>,
    /// Seconds without a sign of life after which the emulated host is stopped once it is up; it gives one every three
    /// seconds. Without it: 60, and more on a busy machine
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(4..=86400))]
    silence: Option<u64>,
    /// Write how it went to a file, for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the emulated host's console on stderr
    #[arg(long)]
    verbose: bool,
    /// Work in the emulated host from this terminal: a shell there, or the command. Every key goes to it, also Ctrl-C;
    /// Ctrl-] ends the emulated host
    #[arg(long)]
    interactive: bool,
    /// The command and its arguments
    #[arg(required_unless_present = "interactive", last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command.
pub fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Exec(exec) => exec.run(),
    }
}

impl Exec {
    fn run(self) -> ExitCode {
        let person = match self.interactive.then(Person::at_standard_input).transpose() {
            Ok(person) => person,
            Err(why) => return failed(&why),
        };
        if let Some(limit) = self.timeout.map(Duration::from_secs) {
            // The lab ends in time by itself. It cannot when nobody reads our output any more: writing then waits.
            thread::spawn(move || {
                thread::sleep(limit + Duration::from_secs(30));
                std::process::exit(124);
            });
        }
        let command: Vec<&str> = match self.command.as_slice() {
            [] => vec!["sh"],
            words => words.iter().map(String::as_str).collect(),
        };
        let verbose = self.verbose;
        let mut lab = self.describe();
        if let Some(person) = &person {
            lab = lab.terminal(person.terminal());
        }
        let result = lab.build().stream(&command, |event| {
            show(&event, verbose);
            if let (Event::Up, Some(person)) = (&event, &person) {
                drop(writeln!(io::stderr(), "skep lab: {}", person::GREETING));
                if let Err(why) = person.begin() {
                    failed(&why);
                    std::process::exit(125);
                }
            }
        });
        if let Some(person) = &person {
            person.end();
        }
        if let Some(file) = &self.json
            && let Err(error) = fs::write(file, format!("{:#}\n", report(&result)))
        {
            drop(writeln!(io::stderr(), "skep lab: cannot write {}: {error}", file.display()));
            return ExitCode::from(125);
        }
        match result {
            // The status of a process has 8 bits, in the emulated host as here.
            Ok(outcome) => ExitCode::from(outcome.status as u8),
            Err(error) => {
                drop(writeln!(io::stderr(), "{}skep lab: {error}", fresh_line(verbose)));
                ExitCode::from(error.exit_status())
            }
        }
    }

    /// The flags as the lab's description.
    fn describe(&self) -> Builder {
        let mut lab = Lab::builder()
            .iommu(self.iommu.clone())
            .cpus(self.cpus)
            .memory(self.memory)
            .hugepages(self.hugepages)
            .kernel(self.kernel.clone())
            .host_root(self.host_root)
            .append(&self.append)
            .verbose(self.verbose);
        if let Some(limit) = self.timeout {
            lab = lab.timeout(Duration::from_secs(limit));
        }
        if self.guest_firmware {
            lab = lab.guest_firmware();
        }
        if let Some(limit) = self.silence {
            lab = lab.silence(Duration::from_secs(limit));
        }
        if let Some(folder) = &self.share {
            lab = lab.share(folder);
        }
        lab = self.disks.iter().cloned().fold(lab, Builder::disk);
        self.devices.iter().cloned().fold(lab, Builder::device)
    }
}

/// Says why the lab does not start.
fn failed(why: &str) -> ExitCode {
    drop(writeln!(io::stderr(), "skep lab: {why}."));
    ExitCode::from(125)
}

/// Passes on what happens in the lab. A reader that went away ends us as it ends every filter.
fn show(event: &Event<'_>, verbose: bool) {
    let written = match event {
        Event::Output(Stream::Stdout, bytes) => {
            io::stdout().write_all(bytes).and_then(|()| io::stdout().flush())
        }
        Event::Output(Stream::Stderr, bytes) => io::stderr().write_all(bytes),
        Event::Retrying(why) => {
            writeln!(io::stderr(), "{}skep lab: {why}; starting again", fresh_line(verbose))
        }
        Event::Note(text) if verbose => writeln!(io::stderr(), "skep lab: {text}"),
        // One line that counts, where somebody looks; the console's own lines say more.
        Event::StillBooting(after) if !fresh_line(verbose).is_empty() => {
            write!(
                io::stderr(),
                "{}skep lab: the emulated host boots ({} s)",
                fresh_line(verbose),
                after.as_secs()
            )
        }
        Event::Up => write!(io::stderr(), "{}", fresh_line(verbose)),
        Event::Booting | Event::StillBooting(_) | Event::Note(_) => Ok(()),
    };
    if written.is_err() {
        std::process::exit(125);
    }
}

/// What clears the line that counts while the host boots; nothing where there is none.
fn fresh_line(verbose: bool) -> &'static str {
    if verbose || !io::stderr().is_terminal() { "" } else { "\r\x1b[K" }
}

/// How it went, for programs.
fn report(result: &Result<Outcome, LabError>) -> serde_json::Value {
    match result {
        Ok(outcome) => json!({
            "status": outcome.status,
            "kernel": outcome.kernel,
            "boots": outcome.boots,
            "boot_seconds": outcome.boot.as_secs_f64(),
            "seconds": outcome.total.as_secs_f64(),
            "disks": outcome.disks,
        }),
        Err(error) => json!({ "status": error.exit_status(), "error": error.to_string() }),
    }
}
