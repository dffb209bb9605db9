//! What processes that were killed left in the kernel's tracing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where tracefs is.
const PLACES: [&str; 2] = ["sys/kernel/tracing", "sys/kernel/debug/tracing"];
/// The names of our instances, and of the groups of our probes, are this, the process, when it started, and a number.
const PREFIX: &str = "skep_";

/// The place of tracefs below the root of a file system.
pub(super) fn tracefs(root: &Path) -> io::Result<PathBuf> {
    let place =
        PLACES.into_iter().map(|place| root.join(place)).find(|place| place.join("instances").is_dir());
    place.ok_or_else(|| io::Error::other("tracefs is not mounted, or not for us"))
}

/// A process of this moment. Its number may come again, but not with the same start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    id: u32,
    /// In clock ticks since boot (proc_pid_stat(5), field 22).
    started: u64,
}

impl Process {
    /// The process of a number, if there is one.
    fn of(root: &Path, id: u32) -> Option<Process> {
        let text = fs::read_to_string(root.join(format!("proc/{id}/stat"))).ok()?;
        // The second field is the program's name in brackets and may hold anything.
        let started = text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Process { id, started })
    }

    /// This one.
    pub fn this() -> io::Result<Process> {
        let this = Process::of(Path::new("/"), std::process::id());
        this.ok_or_else(|| io::Error::other("/proc does not show when this process started"))
    }

    /// The name of its instance of this number.
    pub fn name(self, number: u32) -> String {
        format!("{PREFIX}{}_{}_{number}", self.id, self.started)
    }

    /// The process that made the instance, or the probe group, of this name.
    fn that_made(name: &str) -> Option<Process> {
        let mut parts = name.strip_prefix(PREFIX)?.split('_');
        let process = Process { id: parts.next()?.parse().ok()?, started: parts.next()?.parse().ok()? };
        let number: u32 = parts.next()?.parse().ok()?;
        // Whatever else looks like it is somebody else's.
        (process.name(number) == name).then_some(process)
    }
}

/// An instance of the kernel's tracing with its probes, whose process is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What it is called in tracefs.
    pub name: String,
    /// The process that had made it.
    pub pid: u32,
    tracefs: PathBuf,
    probes: Vec<String>,
}

impl Leftover {
    /// Those on the host whose `/sys` and `/proc` lie below `root`. None where tracefs cannot be read.
    pub fn all(root: &Path) -> Vec<Leftover> {
        let Ok(tracefs) = tracefs(root) else { return Vec::new() };
        // Where no process is seen, none can be known to be gone.
        if !root.join("proc/self").exists() {
            return Vec::new();
        }
        let instances = fs::read_dir(tracefs.join("instances")).into_iter().flatten().flatten();
        let instances = instances.filter_map(|entry| Some((entry.file_name().into_string().ok()?, None)));
        // Lines are `p:GROUP/NAME dmar_fault …`.
        let text = fs::read_to_string(tracefs.join("kprobe_events")).unwrap_or_default();
        let probes = text.lines().filter_map(|line| {
            let (group, probe) = line.split_once(':')?.1.split(' ').next()?.split_once('/')?;
            Some((group.to_owned(), Some(probe.to_owned())))
        });
        let mut all: Vec<Leftover> = Vec::new();
        for (name, probe) in instances.chain(probes) {
            let Some(maker) = Process::that_made(&name) else { continue };
            if Process::of(root, maker.id) == Some(maker) {
                continue;
            }
            match all.iter_mut().find(|left| left.name == name) {
                Some(left) => left.probes.extend(probe),
                None => {
                    let (tracefs, probes) = (tracefs.clone(), probe.into_iter().collect());
                    all.push(Leftover { name, pid: maker.id, tracefs, probes });
                }
            }
        }
        all
    }

    /// Removes it. Tries all of it; what is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.tracefs, &self.name, &self.probes)
    }
}

/// Removes an instance and then its probes, which are busy while an instance has them switched on. The kernel does
/// not remove an instance that somebody reads.
pub(super) fn remove(tracefs: &Path, name: &str, probes: &[String]) -> io::Result<()> {
    let instance = tracefs.join("instances").join(name);
    let mut done = forgive(fs::remove_dir(&instance).map_err(|cause| named(&instance, &cause)));
    for probe in probes {
        done = done.and(forgive(write(&tracefs.join("kprobe_events"), &format!("-:{name}/{probe}"), true)));
    }
    done
}

fn forgive(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Writes to a file of tracefs.
pub(super) fn write(path: &Path, text: &str, append: bool) -> io::Result<()> {
    use std::io::Write;
    let mut file =
        fs::File::options().write(true).append(append).open(path).map_err(|cause| named(path, &cause))?;
    // In one piece: each write is a command.
    file.write_all(text.as_bytes()).map_err(|cause| named(path, &cause))
}

fn named(path: &Path, cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("{}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which process 7 runs since tick 100, and these instances and probes are.
    fn host(instances: &[&str], probes: &str) -> PathBuf {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("skep-leftovers-{}-{number}", std::process::id()));
        drop(fs::remove_dir_all(&root));
        fs::create_dir_all(root.join("proc/7")).unwrap();
        fs::create_dir_all(root.join("proc/self")).unwrap();
        let rest = "S 1".to_owned() + &" 0".repeat(17) + " 100 0";
        fs::write(root.join("proc/7/stat"), format!("7 (skep) x) {rest}")).unwrap();
        let tracefs = root.join(PLACES[0]);
        fs::create_dir_all(tracefs.join("instances")).unwrap();
        for instance in instances {
            fs::create_dir(tracefs.join("instances").join(instance)).unwrap();
        }
        fs::write(tracefs.join("kprobe_events"), probes).unwrap();
        root
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = Leftover::all(root).into_iter().map(|left| left.name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_live_process_has_is_never_left_over() {
        let root = host(&["skep_7_100_0"], "p:skep_7_100_0/dmar_220 dmar_fault cap=+0x8(+0(%si)):x64\n");
        assert_eq!(names(&root), [""; 0]);
        fs::remove_dir_all(root.join("proc/7")).unwrap();
        assert_eq!(names(&root), ["skep_7_100_0"]);
        fs::remove_dir_all(root.join("proc/self")).unwrap();
        assert_eq!(names(&root), [""; 0], "without /proc nobody is known to be gone");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_an_earlier_process_of_the_same_number_had_is_left_over() {
        let root = host(&["skep_7_99_0", "skep_7_100_0"], "");
        assert_eq!(names(&root), ["skep_7_99_0"]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_others_made_is_not_touched() {
        let root =
            host(&["skep_x", "skep_8_1", "skep_08_1_0", "skep_8_1_0_1", "mine"], "p:kprobes/skep_8_1_0 f\n");
        assert_eq!(names(&root), [""; 0]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_instance_goes_with_its_probes_and_a_probe_without_an_instance_too() {
        let probes =
            "p:skep_8_1_0/dmar_220 dmar_fault\np:skep_8_1_0/dmar_400 dmar_fault\np:skep_9_1_0/dmar_220 x\n";
        let root = host(&["skep_8_1_0"], probes);
        let left = Leftover::all(&root);
        assert_eq!(
            left.iter().map(|left| (left.pid, left.probes.len())).collect::<Vec<_>>(),
            [(8, 2), (9, 1)]
        );
        left.iter().for_each(|left| left.remove().unwrap());
        let tracefs = root.join(PLACES[0]);
        assert_eq!(fs::read_dir(tracefs.join("instances")).unwrap().count(), 0);
        let commands = fs::read_to_string(tracefs.join("kprobe_events")).unwrap();
        let commands = commands.strip_prefix(probes).unwrap();
        assert_eq!(commands, "-:skep_8_1_0/dmar_220-:skep_8_1_0/dmar_400-:skep_9_1_0/dmar_220");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_is_an_error_that_names_it() {
        let root = host(&["skep_8_1_0"], "");
        fs::create_dir(root.join(PLACES[0]).join("instances/skep_8_1_0/busy")).unwrap();
        let error = Leftover::all(&root)[0].remove().unwrap_err().to_string();
        assert!(error.contains("instances/skep_8_1_0: "), "{error}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn this_process_is_known_by_the_name_that_it_gives() {
        let this = Process::this().unwrap();
        assert_eq!(Process::that_made(&this.name(3)), Some(this));
        assert_eq!(Process::of(Path::new("/"), this.id), Some(this));
    }
}
