//! One boot of the emulated host, followed to its end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::console::{Console, SILENCE, emulator_says, last_lines, patience};
use super::emulator::{Deadline, Running, Watch, hint, lock, spawn};
use super::nudge::Nudge;
use super::{Event, Outcome, Stream};
use crate::compile::Library;
use crate::count::{Clock, Count};
use crate::image::in_memory;
use crate::machine::Machine;
use crate::places::Places;
use crate::spec::{IommuModel, Kernel};
use crate::system::{System, of_this_run};
use crate::wire::{Frame, HOST_WORD, Job, Mount};
use crate::{Lab, LabError, Terminal, clock};

/// How much of the console an error shows, in lines.
const CONSOLE_SHOWN: usize = 25;

/// Takes a lock that QEMU forgets; see the source.
pub(crate) const BIG_LOCK: Library = Library {
    name: "bql",
    source: include_bytes!("../../shim/bql.c"),
    purpose: "it compiles a work-around for QEMU, for guests with firmware",
};

/// How long an emulator that closed its end of the wire may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// What a kernel need not do in an emulated machine, where it takes long: guard against faults of real CPUs, test its own
/// ciphers, and make terminals of an old kind.
const QUICK_BOOT: [&str; 4] =
    ["mitigations=off", "cryptomgr.notests", "initcall_blacklist=crypto_kdf108_init", "pty.legacy_count=0"];

/// Why a boot did not end with the command's status.
pub enum Failed {
    /// The host did not come up; another try may help.
    Retry { why: String, console: String },
    /// Another try would not help.
    Final(LabError),
}

/// An emulator that runs.
pub struct Boot {
    qemu: Arc<Mutex<Running>>,
    started: Instant,
    nudge: Nudge,
    frames: Receiver<io::Result<Frame>>,
    console: Arc<Console>,
    emulator: thread::JoinHandle<String>,
    disks: serde_json::Value,
}

impl Boot {
    /// Starts the emulator with everything that `lab` asks for.
    pub fn start(
        lab: &Lab,
        command: &[&str],
        places: &Places,
        qemu: &Path,
        system: &System,
        attempt: u32,
    ) -> Result<Boot, LabError> {
        let mut machine = Machine::new(lab);
        machine.furnish(lab, &places.cache)?;
        let folders = folders(lab, places, system)?;
        for (index, (folder, mount)) in folders.iter().enumerate() {
            // There are at most four.
            machine.folder(folder, mount, index as u8);
        }
        let job = Job {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            mounts: folders.into_iter().map(|(_, mount)| mount).collect(),
            overlay: lab.host_root.then(|| "/host".to_owned()),
            disks: machine.disks().len(),
            seats: machine.seats().to_vec(),
            screen: lab.terminal.as_ref().map(Terminal::screen),
        };
        let disks = serde_json::Value::from(machine.disks());
        let table = format!("{disks:#}\n");
        let initrd = initrd(&system.host, &of_this_run(places, &job, &table, lab.guest_firmware)?)?;
        // The second time, the kernel says all it has to say.
        machine.boot(&system.kernel.elf, initrd, &command_line(lab, attempt > 1));
        let (ours, theirs) = UnixStream::pair().map_err(|e| LabError::system("make", "a socket pair", e))?;
        machine.wire(File::from(OwnedFd::from(theirs)));
        let share = || ours.try_clone().map_err(|e| LabError::system("share", "a socket", e));
        if let Some(terminal) = &lab.terminal {
            terminal.connect(share()?);
        }
        let nudge = Nudge::over(share()?, lab.silence.unwrap_or(SILENCE));
        let (arguments, inherited) = machine.finish();

        let started = Instant::now();
        let preloaded = lab.guest_firmware.then(|| BIG_LOCK.ready()).transpose()?;
        let mut child = spawn(qemu, &arguments, &inherited, preloaded.as_deref())?;
        drop(inherited);
        let console = Arc::new(Console::new(lab.verbose));
        if let Some(stdout) = child.stdout.take() {
            let console = Arc::clone(&console);
            thread::spawn(move || console.record(stdout));
        }
        let stderr = child.stderr.take();
        let emulator = thread::spawn(move || stderr.map(emulator_says).unwrap_or_default());
        let (sender, frames) = sync_channel(64);
        thread::spawn(move || {
            let mut wire = io::BufReader::with_capacity(1 << 16, ours);
            loop {
                let frame = Frame::read(&mut wire);
                let ended = frame.is_err();
                if sender.send(frame).is_err() || ended {
                    return;
                }
            }
        });
        let qemu = Arc::new(Mutex::new(Running::new(child)));
        Ok(Boot { qemu, started, nudge, frames, console, emulator, disks })
    }

    /// Follows what init says until the command's status is there.
    ///
    /// A host that is silent for longer than `silence` is stopped. While it boots, what its console says is a sign of life,
    /// and the limit is that of [`patience`]; from init's first word on, every frame is one, and a host without any is
    /// nudged before it is given up.
    pub fn follow(
        mut self,
        deadline: Option<Deadline>,
        silence: Option<Duration>,
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<Outcome, Failed> {
        let watch = deadline.map(|deadline| Watch::set(&self.qemu, deadline));
        let mut kernel = None;
        let mut boot = None;
        let mut last_frame = self.started;
        let end = loop {
            let frame = self.frames.recv_timeout(Duration::from_secs(1));
            if boot.is_none() {
                on_event(Event::StillBooting(self.started.elapsed()));
            }
            let spoke = frame.is_ok();
            match frame {
                Ok(Ok(Frame::Hello(name))) => kernel = Some(name),
                Ok(Ok(Frame::Started)) => {
                    boot = Some(self.started.elapsed());
                    on_event(Event::Up);
                }
                Ok(Ok(Frame::Stdout(bytes))) => on_event(Event::Output(Stream::Stdout, &bytes)),
                Ok(Ok(Frame::Stderr(bytes))) => on_event(Event::Output(Stream::Stderr, &bytes)),
                Ok(Ok(Frame::Note(text))) => on_event(Event::Note(&text)),
                Ok(Ok(Frame::Failure(why))) => break End::Failure(why),
                Ok(Ok(Frame::Exit(status))) => break End::Exit(status),
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => break End::Gone,
                Err(RecvTimeoutError::Timeout) if kernel.is_none() => {
                    let silence = self.console.silence(self.started);
                    if silence > patience() {
                        break End::Stalled(silence);
                    }
                }
                Ok(Ok(Frame::Alive)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let silent = last_frame.elapsed();
                    if silent > silence.unwrap_or_else(patience) {
                        break End::Silent(silent);
                    }
                    if self.nudge.after(silent) {
                        on_event(Event::Note("the emulated host is silent, and gets an interrupt"));
                    }
                }
            }
            // Taken here, so that the time which the reader of the output takes does not count.
            if spoke {
                last_frame = Instant::now();
            }
        };
        drop(watch);
        self.finish(end, kernel, boot, deadline)
    }

    /// Ends the emulator and says how it went.
    fn finish(
        self,
        end: End,
        kernel: Option<String>,
        boot: Option<Duration>,
        deadline: Option<Deadline>,
    ) -> Result<Outcome, Failed> {
        let (status, timed_out) = {
            let mut qemu = lock(&self.qemu);
            // What the host wrote is with QEMU or beyond when init says that it is done: init syncs first.
            let grace = if matches!(end, End::Gone) { GRACE } else { Duration::ZERO };
            let status = qemu.end(grace).map_err(|e| Failed::Final(LabError::system("end", "QEMU", e)))?;
            (status, qemu.timed_out())
        };
        let emulator = self.emulator.join().unwrap_or_default();
        let console = self.console.text();
        let shown = last_lines(&console, CONSOLE_SHOWN);
        let during = match (&kernel, boot) {
            (None, _) => "the emulated host was booting",
            (_, None) => "the emulated host was being set up",
            _ => "the command was running",
        };
        let error = match end {
            End::Exit(status) => {
                return Ok(Outcome {
                    status,
                    output: String::new(),
                    errors: String::new(),
                    console,
                    emulator,
                    kernel: kernel.unwrap_or_default(),
                    boot: boot.unwrap_or_default(),
                    total: Duration::ZERO,
                    boots: 1,
                    disks: self.disks,
                });
            }
            _ if timed_out => {
                let after = deadline.map_or(Duration::ZERO, |deadline| deadline.limit.time());
                LabError::TimedOut { after, during, console: shown }
            }
            End::Silent(silence) => LabError::Silent { silence, during, console: shown },
            End::Failure(why) => LabError::Inside { why, console: shown },
            End::Stalled(silence) => {
                let why = format!("its boot made no progress for {} s", silence.as_secs());
                return Err(Failed::Retry { why, console: shown });
            }
            // It says what it does not like, and ends before the first instruction; killed, it says nothing.
            End::Gone if kernel.is_none() && console.is_empty() && status.code().is_some() => {
                let message = last_lines(&emulator, 3).trim().replace('\n', "; ");
                LabError::Qemu { status: status.to_string(), hint: hint(&message), message }
            }
            End::Gone if kernel.is_none() => {
                return Err(Failed::Retry {
                    why: format!("it died while booting ({status})"),
                    console: shown,
                });
            }
            End::Gone => {
                let why = last_lines(&emulator, 3).trim().replace('\n', "; ");
                LabError::Died { status: status.to_string(), why, console: shown }
            }
        };
        Err(Failed::Final(error))
    }
}

/// How the conversation with init ended.
enum End {
    Exit(i32),
    Failure(String),
    Stalled(Duration),
    Silent(Duration),
    Gone,
}

/// The folders that this host sees, and where.
fn folders(lab: &Lab, places: &Places, system: &System) -> Result<Vec<(PathBuf, Mount)>, LabError> {
    let mount = |tag: &str, at: &str, writable| Mount { tag: tag.into(), at: at.into(), writable };
    let mut folders = vec![
        (system.guest.clone(), mount("guest", "/lab/guest", false)),
        (places.tree.clone(), mount("tree", "/tree", false)),
    ];
    if let Some(share) = &lab.share {
        let folder = share.canonicalize().map_err(LabError::path("share the folder", share))?;
        if !folder.is_dir() {
            return Err(LabError::Description {
                why: format!("{} is no folder", share.display()),
                hint: "Give --share a folder",
            });
        }
        folders.push((folder, mount("share", "/share", true)));
    }
    if lab.host_root {
        folders.push(("/".into(), mount("root", "/run/root", false)));
    }
    Ok(folders)
}

fn command_line(lab: &Lab, talkative: bool) -> String {
    let mut words = vec!["console=ttyS0", "no_timer_check", "panic=-1", HOST_WORD];
    words.extend(QUICK_BOOT);
    if !(lab.verbose || talkative) {
        words.push("quiet");
    }
    words.extend(match lab.iommu.model {
        IommuModel::Intel => vec!["intel_iommu=on", "iommu=nopt"],
        IommuModel::Amd => vec!["iommu=nopt"],
        IommuModel::None => vec![],
    });
    let hugepages = format!("hugepagesz=2M hugepages={}", lab.hugepages);
    if lab.hugepages > 0 {
        words.push(&hugepages);
    }
    if matches!(lab.kernel, Kernel::Lab) {
        // Built in, it would make a disk at once and be /dev/sda.
        words.push("scsi_debug.add_host=0");
    }
    let frequency = match lab.count.as_ref().map(Count::clock) {
        Some(Clock::Instructions) => Some(clock::TSC_KHZ_BY_INSTRUCTIONS),
        _ => clock::tsc_khz(),
    };
    let frequency = frequency.map(|khz| format!("tsc_early_khz={khz}"));
    words.extend(frequency.as_deref());
    words.push(&lab.append);
    words.join(" ").trim_end().to_owned()
}

/// The initramfs of this run in one file in RAM.
fn initrd(base: &Path, own: &[u8]) -> Result<File, LabError> {
    let base_bytes = std::fs::read(base).map_err(LabError::path("read", base))?;
    let write = || {
        let mut file = in_memory("skep-lab-initrd")?;
        file.write_all(&base_bytes)?;
        file.write_all(own)?;
        Ok(file)
    };
    write().map_err(|e| LabError::system("write", "the initramfs", e))
}
