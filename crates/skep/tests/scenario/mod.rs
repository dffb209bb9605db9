//! Scenarios: a story as a shell script in an emulated host, and what must have been seen at its end.
//!
//! A boot of the host is most of many of them, so some are played in one: `together`.
//!
//! The functions that scripts share, in the host and in its guests, are in `host.sh`, `both.sh` and `fio.sh`.

// Each file of scenarios is a program of its own and uses its part of this.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod firmware;
pub mod installed;
pub mod packages;
mod programs;
mod silence;
pub mod tiny;
pub mod together;
pub mod tpm;
pub mod warnings;

use std::fmt::{self, Write as _};
use std::time::Duration;

use lab::{Builder, Iommu, Kernel, Lab, LabError, Outcome, Size};
use together::Faults;

const HOST: &str = include_str!("host.sh");
const BOTH: &str = concat!(include_str!("both.sh"), include_str!("fio.sh"));

/// The line after which the host shows its log, which shows that it was looked at.
const LOG: &str = "host: its log";

/// What the host's log may not hold at the end: blocked DMA, unless it is what the scenario is about, ...
const FAULTS: [&str; 4] =
    ["Request device [", "handling fault status", "IO_PAGE_FAULT", "callbacks suppressed"];
/// ... and a kernel that was hurt.
const HURT: [&str; 4] = ["BUG:", "Oops", "WARNING: CPU", "Call Trace"];

/// An empty image of 64 MiB in version 2 of the format: header, table of reference counts, one block of them, and the
/// first level of the table of clusters, in a cluster of 64 KiB each.
pub const EMPTY_QCOW2: &str = r"
    image() {
        truncate -s 256K $1
        put() { printf $2 | dd of=$IMAGE bs=1 seek=$1 conv=notrunc 2> /dev/null; }
        IMAGE=$1
        put 0 '\121\106\111\373\0\0\0\2'
        put 20 '\0\0\0\020'
        put 24 '\0\0\0\0\4\0\0\0'
        put 36 '\0\0\0\1\0\0\0\0\0\3\0\0'
        put 48 '\0\0\0\0\0\1\0\0\0\0\0\1'
        put 65536 '\0\0\0\0\0\2\0\0'
        put 131072 '\0\1\0\1\0\1\0\1'
    }
";

/// An emulated host in which something is to happen.
pub struct Scenario(Builder);

/// So long an installed system may take from skep's start to the end of its power-off, on a bad day.
pub const EACH_INSTALLED_BOOT: Duration = Duration::from_secs(1000);

impl Scenario {
    /// In a host with Debian's kernel, which is what people run, and the usual devices.
    pub fn new() -> Scenario {
        // Emulation has its bad days. What else this machine does is not counted.
        Scenario(Lab::builder().own_time(Duration::from_secs(600)))
    }

    /// In a host with the lab kernel, which boots faster, where the kernel makes no difference. Without one it
    /// is Debian's.
    pub fn quick() -> Scenario {
        let Scenario(lab) = Scenario::new();
        match lab::lab_kernel() {
            Some(_) => Scenario(lab.kernel(Kernel::Lab)),
            None => {
                eprintln!(
                    "There is no lab kernel (`cargo xtask lab-kernel`, SKEP_LAB_KERNEL): Debian's does, but is slower."
                );
                Scenario(lab)
            }
        }
    }

    /// In a host with the lab kernel, where it does make a difference: it has iommufd, which Debian's has not.
    /// `None`, with a word about it, where there is none.
    pub fn with_iommufd(test: &str) -> Option<Scenario> {
        let Scenario(lab) = Scenario::new();
        if lab::lab_kernel().is_none() {
            println!("{test}: skipped, there is no lab kernel. Make it with: cargo xtask lab-kernel");
            return None;
        }
        Some(Scenario(lab.kernel(Kernel::Lab)))
    }

    /// With so much time, on a bad day. The time in which this machine does other things is not counted.
    pub fn patience(self, time: Duration) -> Scenario {
        Scenario(self.0.own_time(time))
    }

    /// With two CPUs in the host, for a story that is about things at the same time; see docs/lab.md.
    pub fn two_cpus(self) -> Scenario {
        Scenario(self.0.cpus(2))
    }

    /// With this IOMMU.
    pub fn iommu(self, iommu: Iommu) -> Scenario {
        Scenario(self.0.iommu(iommu))
    }

    /// With so much RAM.
    pub fn memory(self, memory: Size) -> Scenario {
        Scenario(self.0.memory(memory))
    }

    /// With so many huge pages of 2 MiB, beside its RAM.
    pub fn hugepages(self, pages: u32) -> Scenario {
        Scenario(self.0.hugepages(pages))
    }

    /// With Debian's programs in the guests (fio, nvme and more), and this machine's `/` at `/host`.
    pub fn programs(self) -> Scenario {
        Scenario(self.0.share(programs::folder()).host_root(true))
    }

    /// With guests that have firmware; see docs/lab.md.
    pub fn guest_firmware(self) -> Scenario {
        Scenario(self.0.guest_firmware())
    }

    /// With this machine's `/` at `/host`, where its programs run.
    pub fn outer_root(self) -> Scenario {
        Scenario(self.0.host_root(true))
    }

    /// With this folder at `/share`.
    pub fn share(self, folder: &std::path::Path) -> Scenario {
        Scenario(self.0.share(folder))
    }

    /// With one more disk, and without the usual devices.
    pub fn disk(self, disk: &str) -> Scenario {
        Scenario(self.0.disk(disk.parse().unwrap()))
    }

    /// With one more device, and without the usual ones.
    pub fn device(self, device: &str) -> Scenario {
        Scenario(self.0.device(device.parse().unwrap()))
    }

    /// Runs the script in the host, with what it writes passed on as it comes. The script ends at the first
    /// command that fails, and the test with it; so it does when the host's log has a fault.
    pub fn run(self, script: &str) -> Seen {
        let seen = self.tell(Faults::Forbidden, script);
        seen.log_is_without(&FAULTS);
        let outside = seen.0.emulator.lines().find(|line| line.contains("translation failure"));
        assert_eq!(outside, None, "the emulated IOMMU blocked DMA\n{seen}");
        seen
    }

    /// Runs the script in the host until it resets the host, as if its power had been cut. Returns the lines that came
    /// out before.
    pub fn run_until_reset(self, script: &str) -> Vec<String> {
        let mut tries = silence::Tries::default();
        loop {
            let mut lines = Vec::new();
            let outcome = self.0.clone().build().run(&["sh", "-c", &whole(script)], |line| {
                println!("{}", line.text);
                lines.push(line.text.trim_end().to_owned());
            });
            match outcome {
                Err(LabError::Died { .. }) => return lines,
                Err(error) if tries.another(&error) => {}
                Err(error) => panic!("{error}"),
                Ok(outcome) => panic!("the host was not reset\n{}", Seen(outcome)),
            }
        }
    }

    /// The same, where DMA is to be blocked.
    pub fn run_into_faults(self, script: &str) -> Seen {
        self.tell(Faults::Wanted, script)
    }

    fn tell(self, faults: Faults, script: &str) -> Seen {
        let mut outcome = together::shared(&self.0, faults, script).unwrap_or_else(|| alone(&self.0, script));
        outcome.output = in_one_piece(&outcome.output);
        let seen = Seen(outcome);
        assert_eq!(seen.0.boots, 1, "the host came up only at the second try\n{seen}");
        assert_eq!(seen.0.status, 0, "the script in the host failed\n{seen}");
        seen.log_is_without(&HURT);
        seen
    }
}

/// Plays the script in a host of its own.
fn alone(lab: &Builder, script: &str) -> Outcome {
    let mut tries = silence::Tries::default();
    loop {
        let mut story = true;
        let outcome = lab.clone().build().run(&["sh", "-c", &whole(script)], |line| {
            story &= line.text != LOG;
            if story {
                println!("{}", line.text);
            }
        });
        match outcome {
            Ok(outcome) => return outcome,
            Err(error) if tries.another(&error) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The script with all that it uses.
fn whole(script: &str) -> String {
    stories(&[script]) + "play story_0\nexit $status\n"
}

/// Scripts that are played one after the other, with all that they use.
fn whole_of_all(scripts: &[&str]) -> String {
    format!("{}play_all {}\n", stories(scripts), scripts.len())
}

/// The functions of the host, and one for each script.
fn stories(scripts: &[&str]) -> String {
    let mut all = format!("{HOST}\n{BOTH}\nboth() {{ cat <<'END-OF-BOTH'\n{BOTH}\nEND-OF-BOTH\n}}\n");
    for (number, script) in scripts.iter().enumerate() {
        writeln!(all, "story_{number}() {{\n{script}\n}}").expect("a String takes all text");
    }
    all
}

/// What a line of the host begins with. It may come in the middle of one that a guest's console is just writing.
const OF_HOST: &str = "host: ";
/// What lines of guests begin with.
const OF_GUESTS: [&str; 2] = ["guest: ", "lab: "];

/// The output with the lines of guests in one piece again, behind those that the host said in the middle of them.
pub fn in_one_piece(output: &str) -> String {
    let (mut all, mut begun) = (String::new(), String::new());
    for line in output.lines() {
        let begins = line == LOG || OF_GUESTS.iter().any(|start| line.starts_with(start));
        // Its guest was killed.
        if begins && !begun.is_empty() {
            all.extend([&*std::mem::take(&mut begun), "\n"]);
        }
        let in_the_middle = begins || !begun.is_empty();
        match line.find(OF_HOST) {
            Some(at) if at > 0 && in_the_middle => begun.push_str(&line[..at]),
            Some(0) => {}
            _ => {
                all.extend([&*std::mem::take(&mut begun), line, "\n"]);
                continue;
            }
        }
        let of_host = &line[line.find(OF_HOST).unwrap_or_default()..];
        // The guest will not end its line.
        if of_host.starts_with("host: skep ended with") && !begun.is_empty() {
            all.extend([&*std::mem::take(&mut begun), "\n"]);
        }
        all.extend([of_host, "\n"]);
    }
    if !begun.is_empty() {
        all.extend([&*begun, "\n"]);
    }
    all
}

/// What was seen of a scenario.
pub struct Seen(Outcome);

impl Seen {
    /// The lines of the host and of its guests, without the console's carriage returns.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.output.lines().map(str::trim_end)
    }

    /// This line must be there.
    pub fn expect(&self, line: &str) {
        assert!(self.count(line) > 0, "there is no line {line:?}\n{self}");
    }

    /// How often the line is there.
    pub fn count(&self, line: &str) -> usize {
        self.lines().filter(|seen| *seen == line || seen.ends_with(line) && line.starts_with(OF_HOST)).count()
    }

    /// What follows `start` on the lines that start with it.
    pub fn after(&self, start: &str) -> Vec<&str> {
        let rest = |line: &'_ str| match start.starts_with(OF_HOST) {
            true => line.find(start).map(|at| at + start.len()),
            false => line.starts_with(start).then_some(start.len()),
        };
        self.lines().filter_map(|line| rest(line).map(|at| &line[at..])).collect()
    }

    /// The runs of skep ended with these statuses, one after the other.
    pub fn ended_with(&self, statuses: &[i32]) {
        // A guest that is stopped in the middle of a line leaves its half before this one.
        let ends = self.lines().filter_map(|line| line.split_once("host: skep ended with "));
        let seen: Vec<i32> = ends.map(|(_, status)| status.parse().unwrap()).collect();
        assert_eq!(seen, statuses, "the exit statuses of skep\n{self}");
    }

    /// What came out up to the end of each run of skep.
    pub fn each_vm(&self) -> Vec<Vec<&str>> {
        let mut runs = vec![Vec::new()];
        for line in self.lines() {
            runs.last_mut().expect("there is one").push(line);
            if line.contains("host: skep ended with ") {
                runs.push(Vec::new());
            }
        }
        runs.pop();
        runs
    }

    /// The SHA-256 of the disk with this serial number, as it was when the host was switched on.
    pub fn sum(&self, serial: &str) -> &str {
        let disk =
            self.0.disks.as_array().and_then(|disks| disks.iter().find(|disk| disk["serial"] == serial));
        disk.and_then(|disk| disk["sha256"].as_str()).unwrap_or_else(|| panic!("no disk {serial}\n{self}"))
    }

    fn log_is_without(&self, faults: &[&str]) {
        let (_, log) = self.0.output.split_once(LOG).expect("the host showed its log");
        let found: Vec<&str> =
            log.lines().filter(|line| faults.iter().any(|fault| line.contains(fault))).collect();
        assert!(found.is_empty(), "the host's log has {found:#?}\n{self}");
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { output, errors, console, .. } = &self.0;
        let story = output.split(LOG).next().unwrap_or_default();
        write!(f, "--- output:\n{story}--- errors:\n{errors}--- the host's console:\n{console}")
    }
}
