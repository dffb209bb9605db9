//! Init of the emulated host: sets it up, runs the command, says how it ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::names::{Seat, with_addresses};
use lab::wire::{BEAT, Frame, JOB_PATH, Job, Mount, PORT, Screen};

use crate::drivers::Drivers;
use crate::idle_vm::IdleVm;
use crate::pty::{self, Ends};
use crate::{nvme, system};

const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

/// How long the port and the disks may take to appear.
const PORT_LIMIT: Duration = Duration::from_secs(60);
const DISK_LIMIT: Duration = Duration::from_secs(60);

/// The port to the outer machine, shared by all who speak.
type Port = Arc<Mutex<File>>;

/// Does the job of this host.
pub fn run() {
    system::mount_the_usual();
    let drivers = Drivers::of_this_kernel();
    let port = match connect(&drivers) {
        Ok(port) => Arc::new(Mutex::new(port)),
        Err(error) => return eprintln!("lab: no port to the outer machine: {error}"),
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    say(&port, &Frame::Hello(release.trim().to_owned()));
    beat(&port);
    let end = match serve(&drivers, &port) {
        Ok(status) => Frame::Exit(status),
        Err(error) => Frame::Failure(error.to_string()),
    };
    system::sync();
    say(&port, &end);
}

fn serve(drivers: &Drivers, port: &Port) -> io::Result<i32> {
    let job = Job::decode(&fs::read(JOB_PATH)?)?;
    // Loading modules and mounting folders wait for different things: do both at once.
    thread::scope(|scope| {
        let folders = scope.spawn(|| {
            drivers.load(&["9p", "9pnet_virtio"])?;
            job.mounts.iter().try_for_each(mount_folder)?;
            job.overlay.iter().try_for_each(|at| {
                drivers.load(&["overlay"])?;
                overlay(at, &job.mounts)
            })
        });
        let hypervisor = scope.spawn(|| drivers.load(&["kvm-amd", "vfio-pci", "vfio_iommu_type1", "loop"]));
        let (mut complaints, found) = drivers.load_until_disks(job.disks, DISK_LIMIT);
        complaints.extend(hypervisor.join().ok().and_then(Result::err).map(|error| error.to_string()));
        for complaint in complaints {
            say(port, &Frame::Note(complaint));
        }
        folders.join().unwrap_or(Ok(()))?;
        if found < job.disks {
            return Err(io::Error::other(format!("only {found} of {} disks appeared", job.disks)));
        }
        nvme::number_by_address(job.disks, DISK_LIMIT)
    })?;
    // The loopback interface is one ioctl away, but busybox has it.
    let _without_network = Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status();
    let idle = IdleVm::create();
    if let Err(error) = &idle {
        say(port, &Frame::Note(format!("KVM refuses the idle VM, so guests may crash: {error}")));
    }
    let addresses = addresses(&job.seats)?;
    say(port, &Frame::Started);
    let words = with_addresses(&job.command, &addresses);
    let status = match &job.screen {
        Some(screen) => at_a_terminal(&words, screen, port),
        None => to_pipes(&words, port),
    };
    drop(idle);
    status
}

/// Loads what the port needs and opens it.
fn connect(drivers: &Drivers) -> io::Result<File> {
    drivers.load(&["virtio_pci", "virtio_console"])?;
    let deadline = Instant::now() + PORT_LIMIT;
    loop {
        for port in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            let device = format!("/dev/{}", port.file_name().to_string_lossy());
            if name.trim() == PORT && fs::exists(&device)? {
                return File::options().read(true).write(true).open(device);
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("no virtio-serial port is called {PORT}")));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn say(port: &Port, frame: &Frame) {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = frame.write(&mut *port) {
        eprintln!("lab: cannot speak to the outer machine: {error}");
    }
}

/// Says every few seconds that this host is alive, for as long as it is.
fn beat(port: &Port) {
    let port = Arc::clone(port);
    thread::spawn(move || {
        loop {
            thread::sleep(BEAT);
            say(&port, &Frame::Alive);
        }
    });
}

fn mount_folder(mount: &Mount) -> io::Result<()> {
    let Mount { tag, at, writable } = mount;
    // A read-only tree does not change under us; a shared folder may, from both sides.
    let (flags, cache) = if *writable { (0, "mmap") } else { (libc::MS_RDONLY, "loose") };
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,cache={cache}");
    system::mount("9p", tag, at, flags, &options)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot mount {at} by 9p: {e}")))
}

/// Makes the outer machine's root a writable tree at `at`: what is written goes to RAM. The host's own
/// devices, processes and folders are seen in it.
fn overlay(at: &str, mounts: &[Mount]) -> io::Result<()> {
    let what =
        |e: io::Error| io::Error::new(e.kind(), format!("cannot make {at} of the outer machine's /: {e}"));
    system::mount("tmpfs", "tmpfs", "/run/overlay", 0, "").map_err(what)?;
    fs::create_dir_all("/run/overlay/upper")?;
    fs::create_dir_all("/run/overlay/work")?;
    let options = "lowerdir=/run/root,upperdir=/run/overlay/upper,workdir=/run/overlay/work";
    system::mount("overlay", "overlay", at, 0, options).map_err(what)?;
    let own = ["/dev", "/proc", "/sys", "/tmp"].into_iter();
    let folders = mounts.iter().map(|mount| mount.at.as_str()).filter(|folder| *folder != "/run/root");
    for folder in own.chain(folders) {
        let inside = format!("{at}{folder}");
        system::mount("", folder, &inside, libc::MS_BIND | libc::MS_REC, "").map_err(what)?;
    }
    fs::copy("/lab/disks.json", format!("{at}/lab/disks.json")).map(|_| ()).map_err(what)
}

/// The PCI addresses of the devices in these seats, by their names. What is not there has none.
fn addresses(seats: &[Seat]) -> io::Result<BTreeMap<String, String>> {
    let mut addresses = BTreeMap::new();
    for Seat { name, slot, behind_port } in seats {
        let root = format!("0000:00:{slot:02x}.0");
        let folder = format!("/sys/bus/pci/devices/{root}");
        if !fs::exists(&folder)? {
            continue;
        }
        let mut address = Some(root);
        if *behind_port {
            let names =
                fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let names: Vec<String> = names.collect::<io::Result<_>>()?;
            // A root port has one device behind it, and services of its own, called ROOT:pcie….
            address = names.into_iter().find(|name| name.starts_with("0000:") && !name.contains("pcie"));
        }
        addresses.extend(address.map(|address| (name.clone(), address)));
    }
    Ok(addresses)
}

/// Runs the command to its end and passes on all that it writes. Its status as a shell gives it.
fn to_pipes(words: &[String], port: &Port) -> io::Result<i32> {
    let mut command = prepared(words, "dumb")?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the closure calls only setsid, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(not_started(&error, words, port)),
    };
    let stdout = child.stdout.take().map(|s| Pump::start(s.into(), Frame::Stdout, port)).transpose()?;
    let stderr = child.stderr.take().map(|s| Pump::start(s.into(), Frame::Stderr, port)).transpose()?;
    let status = reap_until(child.id())?;
    stdout.into_iter().chain(stderr).for_each(|pump| pump.wait_until_empty());
    Ok(status)
}

/// Runs the command to its end at a terminal of this host, whose other end is that of the outer machine.
fn at_a_terminal(words: &[String], screen: &Screen, port: &Port) -> io::Result<i32> {
    let Ends { other_end, terminal } = pty::open(screen.size)?;
    let mut command = prepared(words, &screen.kind)?;
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    pty::owned_by(&mut command);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(not_started(&error, words, port)),
    };
    // It holds the terminal open as well, and would never see its end.
    drop(command);
    let (keys, from) =
        (other_end.try_clone()?, port.lock().unwrap_or_else(PoisonError::into_inner).try_clone()?);
    thread::spawn(move || pty::pass_on(from, keys));
    let pump = Pump::start(other_end.into(), Frame::Stdout, port)?;
    let status = reap_until(child.id())?;
    // A terminal passes on with a delay of its own what was written to it.
    thread::sleep(Duration::from_millis(100));
    pump.wait_until_empty();
    Ok(status)
}

/// The command in the surroundings that every command here has.
fn prepared(words: &[String], terminal: &str) -> io::Result<Command> {
    let [program, arguments @ ..] = words else { return Err(io::Error::other("there is no command")) };
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/root");
    command.env_clear().envs([("PATH", PATH), ("HOME", "/root"), ("TERM", terminal), ("LC_ALL", "C.UTF-8")]);
    // The search for the program is that of the command's own PATH, not of init's.
    // SAFETY: nothing else runs in this process that reads the environment: of its threads only the one of `beat`
    // is left, which sleeps and writes to the port.
    unsafe { std::env::set_var("PATH", PATH) };
    Ok(command)
}

/// Says why a command did not start, and gives the status that a shell has for it.
fn not_started(error: &io::Error, words: &[String], port: &Port) -> i32 {
    let program = words.first().map_or("", String::as_str);
    say(port, &Frame::Stderr(format!("lab: cannot start {program}: {error}\n").into_bytes()));
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// How long what a command wrote may take to be passed on once it has ended.
const PUMP_LIMIT: Duration = Duration::from_secs(30);

/// Passes on what is written to a pipe or terminal, until its end.
struct Pump {
    pipe: File,
    /// Held from before something is taken out of the pipe until it is passed on.
    turn: Arc<Mutex<()>>,
}

impl Pump {
    fn start(pipe: OwnedFd, frame: fn(Vec<u8>) -> Frame, port: &Port) -> io::Result<Pump> {
        let pipe = File::from(pipe);
        grow(&pipe);
        let (mut from, turn, port) = (pipe.try_clone()?, Arc::<Mutex<()>>::default(), Arc::clone(port));
        let pump = Pump { pipe, turn: turn.clone() };
        thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            loop {
                wait_for_bytes(&from);
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                match from.read(&mut bytes) {
                    Ok(0) => break,
                    Ok(n) => say(&port, &frame(bytes[..n].to_vec())),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        });
        Ok(pump)
    }

    /// Waits until what was written is passed on. Whoever the command left behind may hold the pipe open for ever.
    fn wait_until_empty(&self) {
        let begin = Instant::now();
        while begin.elapsed() < PUMP_LIMIT {
            if self.turn.try_lock().is_ok_and(|_turn| bytes_in(&self.pipe) == 0) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Waits until there is something to read, or nobody who could write.
fn wait_for_bytes(pipe: &File) {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure of ours.
    while unsafe { libc::poll(&raw mut poll, 1, -1) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// How many bytes wait to be read; none if that cannot be known.
fn bytes_in(pipe: &File) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, which is ours.
    unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    bytes
}

/// Gives a pipe more room, so that the command waits less.
fn grow(pipe: &File) {
    // SAFETY: fcntl with F_SETPIPE_SZ takes no memory.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) };
}

/// Reaps whoever ends, as init must, until it is the child of this number.
fn reap_until(child: u32) -> io::Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: the status lives through the call.
        let id = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        match io::Error::last_os_error() {
            _ if id > 0 && id.cast_unsigned() == child => {
                return Ok(system::shell_status(std::os::unix::process::ExitStatusExt::from_raw(status)));
            }
            _ if id > 0 => {}
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
}
