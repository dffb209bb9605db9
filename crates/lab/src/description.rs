use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Terminal;
use crate::count::Count;
use crate::spec::{Bus, Device, Disk, Iommu, Kernel, Size};

/// How long a run may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// By the clock.
    Clock(Duration),
    /// Without the time in which the emulator waits for a CPU of this machine, which does other things.
    OwnTime(Duration),
}

impl Limit {
    pub(crate) fn time(self) -> Duration {
        match self {
            Limit::Clock(time) | Limit::OwnTime(time) => time,
        }
    }
}

/// An emulated host before it is switched on: what it has, and how long it may take.
#[derive(Debug, Clone)]
pub struct Lab {
    pub(crate) iommu: Iommu,
    pub(crate) cpus: u32,
    pub(crate) memory: Size,
    pub(crate) kernel: Kernel,
    pub(crate) disks: Vec<Disk>,
    pub(crate) devices: Vec<Device>,
    pub(crate) share: Option<PathBuf>,
    pub(crate) host_root: bool,
    pub(crate) hugepages: u32,
    pub(crate) timeout: Option<Limit>,
    pub(crate) silence: Option<Duration>,
    pub(crate) append: String,
    pub(crate) verbose: bool,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) count: Option<Count>,
    pub(crate) guest_firmware: bool,
}

/// Describes a [`Lab`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder(Lab);

impl Lab {
    /// The usual host: Intel IOMMU, one CPU, 1 GiB, Debian's kernel, as long as it takes.
    pub fn builder() -> Builder {
        Builder(Lab {
            iommu: Iommu::intel(),
            cpus: 1,
            memory: Size::mib(1024),
            kernel: Kernel::Debian,
            disks: Vec::new(),
            devices: Vec::new(),
            share: None,
            host_root: false,
            hugepages: 0,
            timeout: None,
            silence: None,
            append: String::new(),
            verbose: false,
            terminal: None,
            count: None,
            guest_firmware: false,
        })
    }
}

impl Builder {
    /// The IOMMU.
    pub fn iommu(mut self, iommu: impl Into<Iommu>) -> Self {
        self.0.iommu = iommu.into();
        self
    }

    /// How many CPUs it has. With more than one, guests may die of the emulator (docs/lab.md).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.0.cpus = cpus;
        self
    }

    /// Its RAM, huge pages not counted.
    pub fn memory(mut self, memory: Size) -> Self {
        self.0.memory = memory;
        self
    }

    /// Its kernel, which is its guests' too.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.0.kernel = kernel;
        self
    }

    /// One more disk. With no disk and no device named, the host has the usual set.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.0.disks.push(disk);
        self
    }

    /// One more device. With no disk and no device named, the host has the usual set.
    pub fn device(mut self, device: Device) -> Self {
        self.0.devices.push(device);
        self
    }

    /// A folder of this machine, writable at `/share`.
    pub fn share(mut self, folder: impl AsRef<Path>) -> Self {
        self.0.share = Some(folder.as_ref().to_owned());
        self
    }

    /// Shows this machine's `/` at `/host`; what is written there is forgotten.
    pub fn host_root(mut self, wanted: bool) -> Self {
        self.0.host_root = wanted;
        self
    }

    /// Huge pages of 2 MiB to set aside; the RAM grows by them.
    pub fn hugepages(mut self, pages: u32) -> Self {
        self.0.hugepages = pages;
        self
    }

    /// How long boot and command may take together. Without it the command takes as long as it needs, while the host
    /// is alive.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout = Some(Limit::Clock(timeout));
        self
    }

    /// The same, but the time in which the emulator waits for a CPU of this machine does not count, so that a busy machine
    /// gives it as much as a quiet one.
    pub fn own_time(mut self, time: Duration) -> Self {
        self.0.timeout = Some(Limit::OwnTime(time));
        self
    }

    /// How long the host may give no sign of life once it is up. It gives one every three seconds while its CPUs work.
    /// Without it: a minute, and longer when more wants to run on this machine than it has CPUs for.
    pub fn silence(mut self, limit: Duration) -> Self {
        self.0.silence = Some(limit);
        self
    }

    /// More words for the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.0.append = words.to_owned();
        self
    }

    /// Shows the kernel's console on stderr as it is written.
    pub fn verbose(mut self, wanted: bool) -> Self {
        self.0.verbose = wanted;
        self
    }

    /// Runs the command at this terminal: a terminal of the emulated host becomes its standard input, output and error, and
    /// what it writes there is its standard output. Without one its standard input is empty.
    pub fn terminal(mut self, terminal: &Terminal) -> Self {
        self.0.terminal = Some(terminal.clone());
        self
    }

    /// Lets guests have firmware: QEMU gets a work-around, without which it aborts when a guest's firmware ends an interrupt
    /// (docs/lab.md).
    pub fn guest_firmware(mut self) -> Self {
        self.0.guest_firmware = true;
        self
    }

    /// Counts the instructions that the host and its guests execute.
    pub fn count(mut self, count: Count) -> Self {
        self.0.count = Some(count);
        self
    }

    /// The description as a whole. Without any disk and device the host gets the usual set: an AHCI disk
    /// (`AHCI0`), two NVMe controllers (`NVME0`, `NVME1`), an e1000e and the edu device.
    #[must_use]
    pub fn build(self) -> Lab {
        let mut lab = self.0;
        if lab.disks.is_empty() && lab.devices.is_empty() {
            let usual = |bus| Disk::generated(bus, Size::mib(64));
            lab.disks = vec![usual(Bus::Ahci), usual(Bus::Nvme), usual(Bus::Nvme)];
            lab.devices = vec![Device::of_model("e1000e"), Device::of_model("edu")];
        }
        lab
    }
}
