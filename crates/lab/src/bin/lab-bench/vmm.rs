//! The monitors that are compared, and how each is asked for the same guest.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNEL: &str = "/lab/guest/vmlinux";
const INITRD: &str = "/lab/guest/initrd";
/// Init alone, for a guest that is to boot and nothing else: unpacking more would only blur the boot.
const INIT_ALONE: &str = "/lab/guest/initrd-init";

/// RAM of a guest in MiB.
pub const MEMORY: u64 = 256;

/// The outer machine's root, where QEMU is installed.
const QEMU_ROOT: &std::ffi::CStr = c"/host";
const ROOT: &str = "/host";
/// Where QEMU's firmware lies there.
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// A monitor, with what it uses to reach a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// skep.
    Skep,
    /// QEMU with `aio=native`.
    QemuNative,
    /// QEMU with `aio=io_uring`.
    QemuUring,
}

/// What the guest has.
#[derive(Default)]
pub struct Hardware<'a> {
    /// The host's disk, and how the guest sees it.
    pub disk: Option<(&'a str, Model)>,
    /// A host PCI function to assign.
    pub assigned: Option<&'a str>,
    /// A host NVMe controller that the monitor drives itself, for a virtio block device.
    pub driven: Option<&'a str>,
}

/// A guest without the host's hardware: its kernel, and how large it is.
#[derive(Clone)]
pub struct Shape<'a> {
    /// An ELF kernel with a PVH entry.
    pub kernel: &'a str,
    /// Its initramfs.
    pub initrd: Option<&'a str>,
    /// Its command line.
    pub line: &'a str,
    /// RAM in MiB.
    pub memory: u64,
    /// How many vCPUs.
    pub vcpus: u32,
    /// Raw files, each behind a virtio block device.
    pub disks: &'a [String],
}

/// What a guest finds its disk behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// virtio-blk on PCI.
    VirtioBlk,
    /// A SATA disk on an AHCI controller; QEMU's is that of the ICH9.
    Ahci,
    /// An NVMe controller.
    Nvme,
}

impl Model {
    /// All of them.
    pub const ALL: [Model; 3] = [Model::VirtioBlk, Model::Ahci, Model::Nvme];

    /// Its name, for skep and in the results.
    pub fn name(self) -> &'static str {
        match self {
            Model::VirtioBlk => "virtio-blk",
            Model::Ahci => "ahci",
            Model::Nvme => "nvme",
        }
    }

    /// What a Linux guest's shell calls the only disk of this kind; `SATA` is set to that.
    pub fn device(self) -> &'static str {
        match self {
            Model::VirtioBlk => "/dev/vda",
            Model::Ahci => "$SATA",
            Model::Nvme => "/dev/nvme0n1",
        }
    }

    /// QEMU's device; its board with PCI Express has an AHCI controller.
    fn of_qemu(self) -> &'static str {
        match self {
            Model::VirtioBlk => "virtio-blk-pci,drive=d0,num-queues=1",
            Model::Ahci => "ide-hd,drive=d0,bus=ide.0",
            Model::Nvme => "nvme,drive=d0,serial=bench",
        }
    }
}

impl Hardware<'_> {
    fn is_plain(&self) -> bool {
        self.disk.is_none() && self.assigned.is_none() && self.driven.is_none()
    }
}

impl Vmm {
    /// All of them: skep, and QEMU in each way.
    pub const ALL: [Vmm; 3] = [Vmm::Skep, Vmm::QemuNative, Vmm::QemuUring];

    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Vmm::Skep => "skep",
            Vmm::QemuNative => "qemu-native",
            Vmm::QemuUring => "qemu-io_uring",
        }
    }

    /// Its name without what it uses to reach a disk.
    pub fn family(self) -> &'static str {
        self.name().split('-').next().unwrap_or_default()
    }

    /// Whether it binds an assigned device itself.
    pub fn binds(self) -> bool {
        self == Vmm::Skep
    }

    /// The command that starts it with the guest's console on standard output. A guest without hardware gets
    /// QEMU's simplest board, one with PCI devices the board with PCI Express.
    pub fn command(self, hardware: &Hardware<'_>, words: &str) -> Command {
        let line = format!("console=ttyS0 quiet no_timer_check panic=-1 {words}");
        if self == Vmm::Skep {
            return skep(hardware, &line);
        }
        let aio = if self == Vmm::QemuNative { "native" } else { "io_uring" };
        qemu(hardware, &line, aio)
    }
}

impl Vmm {
    /// The command that starts it with such a guest, whose console is on standard output. QEMU gets its simplest board.
    pub fn bare(self, shape: &Shape<'_>) -> Command {
        let Shape { kernel, initrd, line, memory, vcpus, disks } = shape;
        let memory = format!("{memory}M");
        let vcpus = vcpus.to_string();
        let mut command;
        if self == Vmm::Skep {
            command = Command::new("/bin/skep");
            command.args(["run", "--memory", &memory, "--cpus", &vcpus, "--kernel", kernel]);
            command.args(["--cmdline", line]);
            for disk in *disks {
                command.args(["--disk", &format!("path={disk}")]);
            }
            command.args(initrd.iter().flat_map(|initrd| ["--initrd", initrd]));
        } else {
            command = qemu_of("pc", &memory, &vcpus);
            command.args(["-kernel", kernel, "-append", line]);
            command.args(initrd.iter().flat_map(|initrd| ["-initrd", initrd]));
            for (number, disk) in disks.iter().enumerate() {
                // The board has fewer slots than we have disks: eight share a slot, each as a function of its own.
                let (slot, function) = (4 + number / 8, number % 8);
                let file = "driver=raw,file.driver=file,file.cache.direct=off";
                command.args(["-blockdev", &format!("{file},node-name=d{number},file.filename={disk}")]);
                let seat = format!("addr={slot:#x}.{function},multifunction=on");
                command.args(["-device", &format!("virtio-blk-pci,drive=d{number},num-queues=1,{seat}")]);
            }
            chroot(&mut command);
        }
        command
    }
}

/// OVMF of the outer machine: code, and variables of a new VM.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];
/// A kernel that is a program for UEFI, too.
const EFI_KERNEL: &str = "/lab/guest/vmlinuz";
/// The variables of the VM that is measured.
const VARIABLES: &str = "/tmp/bench-variables";

impl Vmm {
    /// The command that has firmware start a kernel, with variables as they are at a VM's first start.
    pub fn with_firmware(self, words: &str) -> io::Result<Command> {
        // Not quiet: it is to say when it is there.
        let line = format!("console=ttyS0 no_timer_check panic=-1 {words}");
        let [code, variables] = OVMF;
        let memory = format!("{MEMORY}M");
        let own = if self == Vmm::Skep { VARIABLES.to_owned() } else { format!("{ROOT}{VARIABLES}") };
        fs::copy(format!("{ROOT}{variables}"), &own)?;
        if self == Vmm::Skep {
            let mut command = Command::new("/bin/skep");
            command.args(["run", "--memory", &memory, "--firmware-vars", &own, "--firmware"]);
            command.arg(format!("{ROOT}{code},vars={ROOT}{variables}"));
            command.args(["--kernel", EFI_KERNEL, "--initrd", INIT_ALONE, "--cmdline", &line]);
            return Ok(command);
        }
        let mut command = qemu_of("pc", &memory, "1");
        let flash = format!("if=pflash,format=raw,unit=0,readonly=on,file={code}");
        command.args(["-drive", &flash, "-drive", &format!("if=pflash,format=raw,unit=1,file={VARIABLES}")]);
        command.args(["-kernel", EFI_KERNEL, "-initrd", INIT_ALONE, "-append", &line]);
        chroot(&mut command);
        Ok(command)
    }
}

/// The initramfs that a guest needs for its hardware.
fn initrd(hardware: &Hardware<'_>) -> &'static str {
    if hardware.is_plain() { INIT_ALONE } else { INITRD }
}

fn skep(hardware: &Hardware<'_>, line: &str) -> Command {
    let mut command = Command::new("/bin/skep");
    command.args([
        "run",
        "--memory",
        &format!("{MEMORY}M"),
        "--kernel",
        KERNEL,
        "--initrd",
        initrd(hardware),
    ]);
    command.args(["--cmdline", line]);
    if let Some((disk, model)) = hardware.disk {
        command.args(["--disk", &format!("path={disk},model={}", model.name())]);
    }
    if let Some(device) = hardware.driven {
        command.args(["--disk", &format!("nvme={device},namespace=1,readonly=on")]);
    }
    if let Some(device) = hardware.assigned {
        command.args(["--assign", device]);
    }
    command
}

fn qemu(hardware: &Hardware<'_>, line: &str, aio: &str) -> Command {
    let plain = hardware.is_plain();
    let mut command = qemu_of(if plain { "pc" } else { "q35" }, &format!("{MEMORY}M"), "1");
    command.args(["-kernel", KERNEL, "-initrd", initrd(hardware), "-append", line]);
    if let Some((disk, model)) = hardware.disk {
        let file = "driver=host_device,node-name=d0,cache.direct=on";
        command.args(["-blockdev", &format!("{file},filename={disk},aio={aio}")]);
        command.args(["-device", model.of_qemu()]);
    }
    if let Some(device) = hardware.driven {
        let driver = format!("driver=nvme,node-name=d1,read-only=on,device={device},namespace=1");
        command.args(["-blockdev", &driver, "-device", "virtio-blk-pci,drive=d1,num-queues=1"]);
    }
    if let Some(device) = hardware.assigned {
        command.args(["-device", &format!("vfio-pci,host={device}")]);
    }
    chroot(&mut command);
    command
}

/// QEMU with a board, and nothing on it but a serial port.
fn qemu_of(board: &str, memory: &str, vcpus: &str) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-M", board, "-accel", "kvm", "-cpu", "host", "-smp", vcpus, "-m", memory]);
    command.args(["-nodefaults", "-vga", "none", "-nographic", "-no-reboot", "-serial", "stdio"]);
    command
}

/// The files in the memory of a process that runs in the outer machine's root, as this host calls them.
pub fn files(process: u32) -> io::Result<Vec<PathBuf>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    let mut files: Vec<PathBuf> = paths
        .map(|path| Path::new(ROOT).join(path.strip_prefix(ROOT).unwrap_or(path).trim_start_matches('/')))
        // Memory may have a name and no file.
        .filter(|path| path.is_file())
        .collect();
    files.dedup();
    Ok(files)
}

/// Puts these files and QEMU's firmware into RAM: what is opened to be written in the outer machine's root is copied there.
pub fn into_ram(files: &[PathBuf]) -> io::Result<()> {
    let firmware =
        FIRMWARE.iter().flat_map(|folder| fs::read_dir(Path::new(ROOT).join(folder)).into_iter().flatten());
    let firmware = firmware.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    for path in files.iter().cloned().chain(firmware) {
        let opened = File::options().append(true).open(&path);
        opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// Starts the command in the outer machine's root.
fn chroot(command: &mut Command) {
    // SAFETY: the closure makes two system calls on constants, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let failed = libc::chroot(QEMU_ROOT.as_ptr()) != 0 || libc::chdir(c"/".as_ptr()) != 0;
            if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}
