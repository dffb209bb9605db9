//! A host in a scratch folder, with a kernel that answers the few writes this crate makes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::kernel::Kernel;
use crate::{Host, attribute, link_name};

/// What the fake kernel will do.
#[derive(Default)]
struct Plan {
    writes: usize,
    fail_at: Option<usize>,
    refuse: Vec<String>,
    passes_over: usize,
    no_modules: bool,
    exclusive: Vec<String>,
    times_out: bool,
}

pub(crate) struct FakeHost {
    dir: TempDir,
    plan: Arc<Mutex<Plan>>,
}

impl FakeHost {
    pub fn new() -> FakeHost {
        let fake = FakeHost { dir: tempfile::tempdir().unwrap(), plan: Arc::default() };
        fake.dir("/sys/bus/pci/drivers/vfio-pci");
        fake.file("/proc/self/mountinfo", "");
        fake.file(format!("/proc/{}/stat", std::process::id()), &stat('S', 4711));
        fake
    }

    pub fn host(&self) -> Host {
        let kernel = FakeKernel { root: self.dir.path().to_owned(), plan: self.plan.clone() };
        Host { root: self.dir.path().to_owned(), kernel: Arc::new(kernel) }
    }

    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(absolute.as_ref().strip_prefix("/").unwrap())
    }

    pub fn dir(&self, path: impl AsRef<Path>) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub fn file(&self, path: impl AsRef<Path>, text: &str) {
        self.dir(path.as_ref().parent().unwrap());
        fs::write(self.path(&path), text).unwrap();
    }

    pub fn mode(&self, path: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn link(&self, at: impl AsRef<Path>, to: impl AsRef<Path>) {
        self.dir(at.as_ref().parent().unwrap());
        drop(fs::remove_file(self.path(&at)));
        symlink(self.path(to), self.path(at)).unwrap();
    }

    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            .unwrap();
    }

    pub fn pci(&self, address: &str, class: u32, driver: Option<&str>, group: u32) {
        let home = format!("/sys/devices/pci0000:00/{address}");
        self.file(format!("{home}/vendor"), "0x1b36\n");
        self.file(format!("{home}/device"), "0x0010\n");
        self.file(format!("{home}/class"), &format!("{class:#08x}\n"));
        self.file(format!("{home}/driver_override"), "(null)\n");
        self.link(format!("/sys/bus/pci/devices/{address}"), &home);
        self.link(format!("{home}/iommu_group"), format!("/sys/kernel/iommu_groups/{group}"));
        self.link(format!("/sys/kernel/iommu_groups/{group}/devices/{address}"), &home);
        if let Some(driver) = driver {
            self.dir(format!("/sys/bus/pci/drivers/{driver}"));
            self.link(format!("{home}/driver"), format!("/sys/bus/pci/drivers/{driver}"));
            self.file(format!("{home}/first_driver"), driver);
        }
    }

    pub fn nvme(&self, address: &str, group: u32) {
        self.pci(address, 0x010802, Some("nvme"), group);
    }

    /// A disk below a PCI function; `place` is the path below it.
    pub fn disk(&self, address: &str, place: &str, number: &str) {
        self.block(&format!("/sys/devices/pci0000:00/{address}/{place}"), number);
    }

    pub fn virtual_block(&self, place: &str, number: &str) {
        self.block(&format!("/sys/devices/virtual/{place}"), number);
    }

    pub fn virtual_disk(&self, name: &str, number: &str, dm_name: Option<&str>) {
        self.virtual_block(&format!("block/{name}"), number);
        if let Some(dm_name) = dm_name {
            self.file(format!("/sys/devices/virtual/block/{name}/dm/name"), dm_name);
            self.file(format!("/dev/{name}"), "");
            self.link(format!("/dev/mapper/{dm_name}"), format!("/dev/{name}"));
        }
    }

    fn block(&self, home: &str, number: &str) {
        let name = Path::new(home).file_name().unwrap().to_str().unwrap().to_owned();
        self.file(format!("{home}/dev"), number);
        self.link(format!("/sys/dev/block/{number}"), home);
        self.link(format!("/sys/block/{name}"), home);
        self.link(format!("/sys/class/block/{name}"), home);
    }

    pub fn partition(&self, disk: &str, name: &str, number: &str) {
        let home = fs::read_link(self.path(format!("/sys/block/{disk}"))).unwrap().join(name);
        let home = Path::new("/").join(home.strip_prefix(self.dir.path()).unwrap());
        self.file(home.join("dev"), number);
        self.file(home.join("partition"), "1");
        self.link(format!("/sys/dev/block/{number}"), &home);
        self.link(format!("/sys/class/block/{name}"), &home);
    }

    pub fn holder(&self, block: &str, holder: &str) {
        self.link(format!("/sys/class/block/{block}/holders/{holder}"), format!("/sys/class/block/{holder}"));
    }

    pub fn interface(&self, address: &str, name: &str, flags: &str, carrier: &str) {
        let home = format!("/sys/devices/pci0000:00/{address}/net/{name}");
        self.file(format!("{home}/flags"), flags);
        self.file(format!("{home}/carrier"), carrier);
        self.link(format!("/sys/class/net/{name}"), home);
    }

    pub fn set_override(&self, address: &str, driver: &str) {
        self.file(format!("/sys/devices/pci0000:00/{address}/driver_override"), driver);
    }

    /// The driver and the override of a device now.
    pub fn state(&self, address: &str) -> (Option<String>, Option<String>) {
        let home = self.path(format!("/sys/devices/pci0000:00/{address}"));
        let chosen =
            attribute(&home.join("driver_override")).filter(|text| !text.is_empty() && text != "(null)");
        (link_name(&home.join("driver")), chosen)
    }

    pub fn writes(&self) -> usize {
        self.plan.lock().writes
    }

    /// The write with this number, counted from 0, fails.
    pub fn fail_at(&self, call: usize) {
        self.plan.lock().fail_at = Some(call);
    }

    pub fn refuse(&self, driver: &str) {
        self.plan.lock().refuse.push(driver.to_owned());
    }

    /// The next probes find the kernel still busy with the device.
    pub fn pass_over(&self, probes: usize) {
        self.plan.lock().passes_over = probes;
    }

    pub fn no_modules(&self) {
        self.plan.lock().no_modules = true;
    }

    /// Somebody has these block devices open exclusively.
    pub fn open_exclusively(&self, blocks: &[&str]) {
        self.plan.lock().exclusive = blocks.iter().map(|&name| name.to_owned()).collect();
    }

    /// A process has a file open.
    pub fn opens(&self, pid: u32, name: &str, file: &str) {
        self.file(format!("/proc/{pid}/comm"), name);
        self.link(format!("/proc/{pid}/fd/3"), file);
    }

    /// A process that lives, and when it began.
    pub fn process(&self, pid: u32, name: &str, started: u64) {
        self.file(format!("/proc/{pid}/comm"), name);
        self.file(format!("/proc/{pid}/stat"), &stat('S', started));
    }

    /// No write is answered any more.
    pub fn time_out(&self) {
        self.plan.lock().times_out = true;
    }

    /// The process number is now another process's.
    pub fn kill_owner(&self) {
        self.file(format!("/proc/{}/stat", std::process::id()), &stat('S', 9999));
    }

    /// The process's first thread has ended and nobody has waited for it; a second one is in this state.
    pub fn end_owner(&self, second: char) {
        let process = std::process::id();
        self.file(format!("/proc/{process}/stat"), &stat('Z', 4711));
        self.file(format!("/proc/{process}/task/{process}/stat"), &stat('Z', 4711));
        self.file(format!("/proc/{process}/task/99/stat"), &stat(second, 4712));
    }
}

fn stat(state: char, started: u64) -> String {
    format!("1 (a ) name) {state} {} {started} 0 0\n", "0 ".repeat(18).trim_end())
}

struct FakeKernel {
    root: PathBuf,
    plan: Arc<Mutex<Plan>>,
}

impl Kernel for FakeKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut plan = self.plan.lock();
        plan.writes += 1;
        if plan.times_out {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
        }
        if plan.fail_at == Some(plan.writes - 1) {
            return Err(io::Error::from_raw_os_error(13));
        }
        if path.ends_with("driver_override") {
            return fs::write(path, text);
        }
        let home = self.root.join("sys/bus/pci/devices").join(text).canonicalize()?;
        if path.ends_with("unbind") {
            return fs::remove_file(home.join("driver"));
        }
        assert!(path.ends_with("drivers_probe"), "{path:?}");
        if plan.passes_over > 0 {
            plan.passes_over -= 1;
            return Ok(());
        }
        let chosen =
            attribute(&home.join("driver_override")).filter(|name| !name.is_empty() && name != "(null)");
        let driver = chosen.or_else(|| attribute(&home.join("first_driver")));
        match driver.filter(|driver| !plan.refuse.contains(driver)) {
            Some(driver) => symlink(self.root.join("sys/bus/pci/drivers").join(driver), home.join("driver")),
            None => Ok(()),
        }
    }

    fn load(&self, module: &str) -> io::Result<()> {
        if self.plan.lock().no_modules {
            return Err(io::Error::other("module not found"));
        }
        fs::create_dir_all(self.root.join("sys/bus/pci/drivers").join(module))
    }

    fn can_load(&self, _: &str) -> io::Result<()> {
        match self.plan.lock().no_modules {
            true => Err(io::Error::other("module not found")),
            false => Ok(()),
        }
    }

    fn open_exclusively(&self, path: &Path) -> io::Result<()> {
        let name = path.strip_prefix(self.root.join("dev")).unwrap().to_str().unwrap();
        match self.plan.lock().exclusive.iter().any(|other| other == name) {
            true => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }
}
