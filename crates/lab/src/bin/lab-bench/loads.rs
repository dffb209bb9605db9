//! Reads in a guest: from a physical disk behind each model of a controller, from an NVMe controller that the
//! monitor drives, and from an assigned one.

use std::io;
use std::time::Duration;

use crate::Sample;
use crate::guest::Guest;
use crate::host::{self, Bound};
use crate::vmm::{Hardware, Model, Vmm};

/// How long a guest may take for one step.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// How often each load runs in one guest.
const TIMES: u32 = 2;

/// A load: its name, and what `lab-io` is told before and after the disk.
type Load = (&'static str, &'static str, &'static str);

const ALONE: Load = ("4 KiB random at depth 1, IOPS", "randread", "4K 1");
const DEEP: Load = ("4 KiB random at depth 16, IOPS", "randread", "4K 16");
const SEQUENTIAL: Load = ("1 MiB seq, MB/s", "seqread", "1M 4");

/// Something that the guest reads from: how the metric begins, the guest's name for it, and how it is read.
struct Target {
    name: &'static str,
    device: &'static str,
    loads: &'static [Load],
}

impl Hardware<'_> {
    fn targets(&self) -> Vec<Target> {
        let disk = self.disk.map(|(_, model)| (model.name(), model.device(), &[ALONE, DEEP, SEQUENTIAL][..]));
        let assigned = self.assigned.map(|_| ("assigned", "/dev/nvme0n1", &[DEEP, SEQUENTIAL][..]));
        let driven = self.driven.map(|_| ("driver", "/dev/vda", &[ALONE, DEEP][..]));
        let there = [disk, assigned, driven].into_iter().flatten();
        there.map(|(name, device, loads)| Target { name, device, loads }).collect()
    }
}

/// Boots a guest with this hardware, runs all loads on each part of it, and switches it off.
pub fn measure(vmm: Vmm, hardware: &Hardware<'_>, seconds: f64) -> io::Result<Vec<Sample>> {
    let device = hardware.assigned.or(hardware.driven);
    let bound = device.filter(|_| !vmm.binds()).map(Bound::to_vfio).transpose()?;
    let targets = hardware.targets();
    let script = encode(script(&targets, seconds).as_bytes());
    let mut guest = Guest::start(vmm.command(hardware, &format!("lab.run={script}")))?;
    let mut samples = Vec::new();
    guest.wait_for("MARK ready", STEP_LIMIT)?;
    if matches!(hardware.disk, Some((_, Model::VirtioBlk))) {
        samples.push(Sample::new("memory beside RAM, KiB", host::beside_ram(guest.id())?.resident as f64));
    }
    for _ in 0..TIMES {
        for target in &targets {
            // What a run costs that reads nothing: its start, its end, the marks.
            let overhead = window(&mut guest)?.exits;
            for (load, program, _) in target.loads {
                let Window { exits, result } = window(&mut guest)?;
                let (ios, value) = read_result(&result, program)
                    .ok_or_else(|| io::Error::other(format!("lab-io said {result:?}")))?;
                let per_io = exits.saturating_sub(overhead) as f64 / ios.max(1.0);
                let metric = format!("{} {load}", target.name);
                samples.push(Sample { metric, value, exits_per_io: Some(per_io) });
            }
        }
    }
    guest.wait_for("lab: exit 0", STEP_LIMIT)?;
    guest.end(STEP_LIMIT)?;
    drop(bound);
    device.map_or(Ok(()), host::settle)?;
    Ok(samples)
}

/// What the guest's shell does.
fn script(targets: &[Target], seconds: f64) -> String {
    let mut script =
        String::from("w() { echo MARK begin; lab-io $*; sleep 0.1; echo MARK end; sleep 0.1; }\n");
    script += "for disk in /sys/block/sd*; do case $(cat $disk/device/vendor) in ATA*) SATA=/dev/${disk##*/};; esac; done\n";
    script += "echo MARK ready; sleep 0.5\n";
    for time in 0..TIMES {
        for Target { device, loads, .. } in targets {
            script += &format!("w randread {device} 4K 16 0\n");
            for (_, program, how) in *loads {
                let seed = if *program == "randread" { format!(" {}", time + 1) } else { String::new() };
                script += &format!("w {program} {device} {how} {seconds}{seed}\n");
            }
        }
    }
    script
}

/// What happened between two marks.
struct Window {
    exits: u64,
    result: String,
}

fn window(guest: &mut Guest) -> io::Result<Window> {
    let begin = guest.wait_for("MARK begin", STEP_LIMIT)?;
    let result = guest.wait_for("read /dev/", STEP_LIMIT)?;
    let end = guest.wait_for("MARK end", STEP_LIMIT)?;
    Ok(Window { exits: end.exits.saturating_sub(begin.exits), result: result.text })
}

/// Reads done, and IOPS or MB/s, from a line of `lab-io`.
fn read_result(line: &str, program: &str) -> Option<(f64, f64)> {
    let (_, numbers) = line.split_once(": ")?;
    let mut parts = numbers.split(", ");
    let mut number = || parts.next()?.split_whitespace().next()?.parse::<f64>().ok();
    let (ios, megabytes, rate) = (number()?, number()?, number()?);
    Some((ios, if program == "randread" { rate } else { megabytes }))
}

/// Base64 (RFC 4648, section 4).
pub fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word =
            three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= three.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}
