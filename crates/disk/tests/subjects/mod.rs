//! Every kind of disk that the conformance suite is run over. Each test program uses a part of this.
#![allow(dead_code)]

pub mod bench;
pub mod nbd_peer;
pub mod nbd_server;
pub mod qemu_img;

use std::any::Any;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use disk::nvme::model::{self, Model};
use disk::nvme::{NvmeController, NvmeOptions};
use disk::{
    Access, Allowed, BufferTable, Disk, DiskOptions, Durability, Event, Format, Operation, Request, Sectors,
    Source,
};
use dma::fake::FakeIommu;
use dma::vfio::Group;
use dma::{Domain, Kind};
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatCreateBuilder, Storage, StorageCreateOptions};
use memory::{Buffers, Gpa, GpaRange, MemoryMap, Ram};
use nbd_server::{EVERYTHING, LITTLE, Server};

/// Bytes of every disk.
pub const SIZE: u64 = 16 << 20;

/// A disk to test.
pub struct Subject {
    pub name: &'static str,
    how: How,
    /// Whether aligned requests for what was written before go without a copy.
    pub direct: bool,
    /// Whether misaligned memory is bounced, as direct I/O demands.
    pub bounces: bool,
    /// Whether RAM is registered for it, where the kernel can.
    registered: bool,
    /// What must live as long.
    _held: Vec<Box<dyn Any>>,
}

/// How it is opened.
enum How {
    Options(DiskOptions),
    /// A controller in software, with blocks of so many bytes.
    Nvme(u32),
    /// A controller of this host that vfio-pci has: its IOMMU group and its address.
    RealNvme(u32, String),
}

/// Names a controller that the suite is run over instead of all else, as GROUP:ADDRESS. All of its first namespace is
/// overwritten.
const REAL_NVME: &str = "SKEP_TEST_NVME";

impl Subject {
    fn new(name: &'static str, options: DiskOptions) -> Subject {
        Subject::made(name, How::Options(options))
    }

    fn made(name: &'static str, how: How) -> Subject {
        Subject { name, how, direct: true, bounces: true, registered: false, _held: Vec::new() }
    }

    /// Opens it, for the use with this RAM.
    pub fn open(&self, ram: &Arc<Ram>, access: Access) -> Disk {
        match &self.how {
            How::Options(options) => {
                let disk = Disk::open(&DiskOptions { access, ..options.clone() }).unwrap();
                if self.registered
                    && let Ok(table) = BufferTable::new().map(Arc::new)
                {
                    MemoryMap::new(ram.clone()).attach(table.clone()).unwrap();
                    assert!(disk.use_buffers(&table));
                }
                disk
            }
            How::Nvme(block) => {
                let iommu = FakeIommu::new();
                let domain = iommu.domain("host", Kind::Host);
                MemoryMap::new(ram.clone()).attach(domain.clone()).unwrap();
                let model = Model::new(&iommu, vec![model::Namespace { bytes: SIZE, block: *block }]);
                let options = NvmeOptions::new(Arc::new(|trouble| panic!("{trouble}")));
                let controller = NvmeController::over(model.function(), &domain, options).unwrap();
                first_namespace("0000:aa:00.0", &controller, access)
            }
            How::RealNvme(group, address) => {
                let groups = vec![Group::open(*group).unwrap()];
                let domain = Domain::type1("host", Kind::Host, groups).unwrap();
                MemoryMap::new(ram.clone()).attach(domain.clone()).unwrap();
                let device = domain.open_device(*group, address).unwrap();
                let options = NvmeOptions::new(Arc::new(|trouble| panic!("{trouble}")));
                let controller = NvmeController::new(&device, &domain, options).unwrap();
                first_namespace(address, &controller, access)
            }
        }
    }

    /// A controller of this host, with nothing but zeroes on its disk.
    fn real(which: &str) -> Subject {
        let (group, address) = which.split_once(':').expect("GROUP:ADDRESS");
        let how = How::RealNvme(group.parse().expect("a number"), address.to_owned());
        let subject = Subject::made("NVMe controller of this host", how);
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), SIZE).unwrap()]).unwrap());
        let mut queue = subject.open(&ram, Access::ReadWrite).prepare_queue(1).unwrap().start().unwrap();
        let mut buffers = Buffers::new(ram);
        buffers.push(Gpa(0), SIZE).unwrap();
        let operation = Operation::Write { at: Sectors(0), durability: Durability::Stable };
        queue.submit(Request { tag: 0, operation, buffers }).unwrap();
        let mut events = Vec::new();
        queue.drain(&mut events).unwrap();
        assert!(matches!(events[..], [Event::Done { result: Ok(()), .. }]), "{events:?}");
        subject
    }

    /// Its options, if it is opened with some.
    pub fn options(&self) -> Option<&DiskOptions> {
        match &self.how {
            How::Options(options) => Some(options),
            How::Nvme(_) | How::RealNvme(..) => None,
        }
    }

    /// Whether nothing of it is there the next time it is opened.
    pub fn is_forgotten(&self) -> bool {
        match &self.how {
            How::Options(options) => {
                options.changes == disk::Changes::ThrownAway || matches!(options.source, Source::Memory(_))
            }
            How::Nvme(_) => true,
            How::RealNvme(..) => false,
        }
    }

    fn copied(self) -> Subject {
        Subject { direct: false, bounces: false, ..self }
    }

    fn registered(self) -> Subject {
        Subject { registered: true, ..self }
    }

    fn holding(mut self, held: impl Any) -> Subject {
        self._held.push(Box::new(held));
        self
    }
}

fn first_namespace(name: &str, controller: &NvmeController, access: Access) -> Disk {
    let namespace = controller.namespace(1).unwrap();
    let namespace = if access == Access::ReadOnly { namespace.read_only() } else { namespace };
    Disk::new(name, Box::new(namespace))
}

/// A loop device over a file, gone with the value.
pub struct Loop(pub PathBuf);

impl Loop {
    /// `None` where loop devices cannot be made, which is then said.
    pub fn over(file: &Path, block: u32) -> Option<Loop> {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=off", "--sector-size", &block.to_string()])
            .arg(file)
            .output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Loop(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())))
            }
            other => {
                eprintln!("skipped the loop device (run as root with losetup): {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()), "loop device {} stays", self.0.display());
    }
}

/// A folder beside the program, for where temporary files are kept there may be no direct I/O.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A raw image without data.
pub fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.raw");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

/// A qcow2 image without data, on another image if one is given.
pub fn qcow2(path: &Path, backing: Option<(&Path, Format)>) {
    let create = StorageCreateOptions::new().filename(path).size(0);
    let file = imago::file::File::create_open(create).unwrap();
    let builder = Qcow2::<imago::file::File>::create_builder(file).size(SIZE);
    let builder = match backing {
        Some((below, format)) => builder.backing(below.display().to_string(), format.to_string()),
        None => builder,
    };
    builder
        .create_open(DenyImplicitOpenGate::default(), |file| Ok(Qcow2::builder(file).backing(None)))
        .map(imago::FormatAccess::new)
        .unwrap()
        .flush()
        .unwrap();
}

/// QEMU's storage daemon serving a raw file by NBD, gone with the value.
struct Daemon(Child);

impl Daemon {
    fn over(file: &Path, socket: &Path) -> Option<Daemon> {
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &format!("driver=file,node-name=disk,filename={}", file.display())])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())])
            .args(["--export", "type=nbd,id=vm,node-name=disk,name=vm,writable=on"])
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped QEMU's NBD server: there is no qemu-storage-daemon");
            return None;
        };
        let daemon = Daemon(child);
        for _ in 0..200 {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Some(daemon);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("QEMU's storage daemon does not serve");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn nbd(url: &str) -> DiskOptions {
    DiskOptions::over(Source::Nbd(url.parse().unwrap()))
}

/// Runs a test over every kind of disk that can be had here.
pub fn over_every_disk(test: impl Fn(&Subject) + Sync) {
    let run = |subject: Subject| {
        eprintln!("{}", subject.name);
        test(&subject);
    };
    if let Ok(which) = std::env::var(REAL_NVME) {
        return run(Subject::real(&which));
    }
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    run(Subject::new("raw file", DiskOptions::new(image(folder.path())).format(Format::Raw)));
    let registered = Subject::new("raw file, RAM registered", DiskOptions::new(image(folder.path())));
    run(registered.registered());
    if let Some(device) = Loop::over(&image(folder.path()), 4096) {
        let options = DiskOptions::new(&device.0);
        run(Subject::new("loop device of 4096, RAM registered", options).registered().holding(device));
    }
    for (name, block) in [("loop device of 512", 512), ("loop device of 4096", 4096)] {
        if let Some(device) = Loop::over(&image(folder.path()), block) {
            run(Subject::new(name, DiskOptions::new(&device.0)).holding(device));
        }
    }
    if let Some(device) = Loop::over(&image(folder.path()), 4096) {
        let options = DiskOptions { logical_block: Some(512), ..DiskOptions::new(&device.0) };
        run(Subject::new("512 on 4096", options).holding(device));
    }
    run(Subject::new("memory", DiskOptions::over(Source::Memory(Sectors(SIZE / 512)))).copied());
    qcow2(&at("disk.qcow2"), None);
    run(Subject::new("qcow2", DiskOptions::new(at("disk.qcow2")).format(Format::Qcow2)));
    qcow2(&at("registered.qcow2"), None);
    let options = DiskOptions::new(at("registered.qcow2")).format(Format::Qcow2);
    run(Subject::new("qcow2, RAM registered", options).registered());
    qcow2(&at("top.qcow2"), Some((&image(folder.path()), Format::Raw)));
    let options = DiskOptions::new(at("top.qcow2")).format(Format::Qcow2).chain([Allowed::SameFolder]);
    run(Subject::new("qcow2 on raw", options));
    run(Subject::new("snapshot", DiskOptions::new(image(folder.path())).throw_away()).copied());
    let server = Server::new(folder.path(), SIZE as usize, EVERYTHING);
    run(Subject::new("nbd", nbd(&server.url())).copied());
    let server = Server::new(folder.path(), SIZE as usize, LITTLE);
    run(Subject::new("nbd, little of it", nbd(&server.url())).copied());
    if let Some(daemon) = Daemon::over(&image(folder.path()), &at("qemu.sock")) {
        let url = format!("nbd+unix:///vm?socket={}", at("qemu.sock").display());
        run(Subject::new("nbd by QEMU", nbd(&url)).copied().holding(daemon));
    }
    run(Subject::made("NVMe of 512", How::Nvme(512)));
    run(Subject::made("NVMe of 4096", How::Nvme(4096)));
    without_io_uring(|| {
        run(Subject::new("raw file by threads", DiskOptions::new(image(folder.path()))));
        run(Subject::new("qcow2 by threads", DiskOptions::new(at("disk.qcow2")).format(Format::Qcow2)));
    });
}

/// Runs something on a thread that may not use io_uring, as in a container.
pub fn without_io_uring(run: impl FnOnce() + Send) {
    refusing(libc::SYS_io_uring_setup, Argument::Any, libc::EPERM, run);
}

/// Runs something on a thread for which no file can be locked, as on NFS without its lock service.
pub fn without_locks(run: impl FnOnce() + Send) {
    refusing(libc::SYS_fcntl, Argument::Is(1, libc::F_OFD_SETLK), libc::ENOLCK, run);
}

/// Runs something on a thread for which no file can be opened past the page cache.
pub fn without_direct_io(run: impl FnOnce() + Send) {
    refusing(libc::SYS_openat, Argument::Has(2, libc::O_DIRECT), libc::EINVAL, run);
}

/// Which calls are refused, by one of their arguments.
#[derive(Clone, Copy)]
enum Argument {
    Any,
    Is(u32, libc::c_int),
    Has(u32, libc::c_int),
}

/// Runs something on a thread to which the kernel refuses a system call.
fn refusing(call: libc::c_long, argument: Argument, errno: libc::c_int, run: impl FnOnce() + Send) {
    // BPF_JMP with a constant: greater or equal, equal, has one of these bits.
    let (number, test, value) = match argument {
        Argument::Any => (0, 0x35, 0),
        Argument::Is(number, value) => (number, 0x15, value),
        Argument::Has(number, bits) => (number, 0x45, bits),
    };
    let filter = |code: u16, jf: u8, k: u32| libc::sock_filter { code, jt: 0, jf, k };
    let mut program = [
        // The number of the call, then the argument's lower half (struct seccomp_data).
        filter(0x20, 0, 0),
        filter(0x15, 3, call as u32),
        filter(0x20, 0, 16 + 8 * number),
        filter(test, 1, value as u32),
        filter(0x06, 0, 0x0005_0000 | errno as u32),
        filter(0x06, 0, 0x7fff_0000),
    ];
    let mut install = move || {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the program lives as long as the call, which copies it.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
        }
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            install();
            run();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
