//! `skep disks`: the host's disks, what is on them, who uses them, and how to give one to a VM.

use std::io::Write;

use ::host::{Content, Host, HostDisk, VfioController};
use clap::Args;
use serde_json::{Value, json};

use crate::ask::{self, Failure};
use crate::table::{bytes, plain};

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// Print JSON: an array with what is known of each disk
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Reads /sys, /proc and the first bytes of each disk, and writes nothing. This host does not see the disks of controllers
that are bound to vfio-pci for VMs: it lists those controllers instead (not with --json). Only root sees what is on the
disks, and whether a program has one open exclusively.

Exit status:
  0  done, whether there are disks or not
  1  the list cannot be written
  2  the command line is wrong";

/// Runs the command.
pub fn run(arguments: &Arguments, output: &mut impl Write) -> Result<(), Failure> {
    let host = Host::here();
    let disks = host.disks();
    let text = match arguments.json {
        true => ask::json(&disks.iter().map(facts).collect::<Vec<_>>()),
        false => text(&disks, &host.controllers_with_vfio()),
    };
    Ok(output.write_all(text.as_bytes())?)
}

/// A disk for programs: what is known, and what to write to give it to a VM.
fn facts(disk: &HostDisk) -> Value {
    let mut facts = serde_json::to_value(disk).unwrap_or_default();
    facts["config"] = json!({ "flag": flag(disk), "file": entry(disk) });
    facts["nvme"] = json!(nvme(disk));
    facts
}

fn text(disks: &[HostDisk], unseen: &[VfioController]) -> String {
    if disks.is_empty() && unseen.is_empty() {
        return "There are no disks on this host, or /sys is not mounted.\n".to_owned();
    }
    disks.iter().map(described).chain(unseen.iter().map(unseen_disks)).collect::<Vec<_>>().join("\n")
}

/// A controller whose disks this host does not see.
fn unseen_disks(controller: &VfioController) -> String {
    let VfioController { device, used } = controller;
    let mut lines = vec![format!("disks of {}: not seen by this host", device.address)];
    let mut line = |name: &str, what: &str| lines.push(format!("  {name:<11}{}", plain(what)));
    line("controller", &device.to_string());
    used.iter().for_each(|reason| line("in use", reason));
    if used.is_empty() {
        line("to a VM", &format!("--assign {}", device.address));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn described(disk: &HostDisk) -> String {
    let mut lines = vec![format!("{} ({})", disk.path().display(), disk.name)];
    let mut line = |name: &str, what: &str| lines.push(format!("  {name:<11}{}", plain(what)));
    line("size", &shape(disk));
    if disk.model.is_some() || disk.serial.is_some() {
        let model = disk.model.as_deref().unwrap_or("unknown");
        line("model", &format!("{model}, serial number {}", disk.serial.as_deref().unwrap_or("unknown")));
    }
    if let Some(controller) = &disk.controller {
        let driver = controller.driver.as_deref().unwrap_or("none");
        let group =
            controller.group.map_or("no IOMMU group".to_owned(), |group| format!("IOMMU group {group}"));
        line("controller", &format!("{}, driver {driver}, {group}", controller.address));
    }
    line("holds", &contents(disk.contents.as_deref(), !disk.partitions.is_empty()));
    for part in &disk.partitions {
        let label = part.label.as_ref().map_or(String::new(), |label| format!(" {label:?}"));
        let holds = contents(part.contents.as_deref(), false);
        line("", &format!("{}{label}: {}, {holds}", part.name, bytes(part.bytes)));
    }
    for reason in &disk.used {
        line("in use", reason);
    }
    if disk.used.is_empty() {
        line("to a VM", &format!("--disk {}", flag(disk)));
        line("or in file", "[[disk]]");
        entry(disk).lines().for_each(|entry| line("", entry));
        if let Some(nvme) = nvme(disk) {
            line("or driven", &format!("--disk {nvme}   by skep itself, all of the controller"));
        }
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn shape(disk: &HostDisk) -> String {
    let mut shape = format!("{}, sectors of {} bytes", bytes(disk.bytes), disk.logical_sector);
    if disk.physical_sector != disk.logical_sector {
        shape += &format!(" ({} physical)", disk.physical_sector);
    }
    let traits = [(disk.rotational, "spins"), (disk.removable, "removable"), (disk.read_only, "read-only")];
    traits.iter().filter(|(has, _)| *has).for_each(|(_, what)| shape += &format!(", {what}"));
    shape
}

fn contents(contents: Option<&[Content]>, has_partitions: bool) -> String {
    match contents {
        None => "unknown, for it cannot be read".to_owned(),
        Some([]) if has_partitions => "partitions".to_owned(),
        Some([]) => "nothing that is known here".to_owned(),
        Some(known) => known.iter().map(Content::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The value of --disk, where a comma is written twice.
fn flag(disk: &HostDisk) -> String {
    let readonly = if disk.read_only { ",readonly=on" } else { "" };
    disk.path().display().to_string().replace(',', ",,") + readonly
}

/// What a configuration file says below `[[disk]]`.
fn entry(disk: &HostDisk) -> String {
    // As TOML's basic strings have them, JSON writes quotes and backslashes.
    let readonly = if disk.read_only { "\nreadonly = true" } else { "" };
    format!("path = {}{readonly}", json!(disk.path().display().to_string()))
}

/// The value of --disk for a namespace whose controller skep could drive itself, which takes an IOMMU.
fn nvme(disk: &HostDisk) -> Option<String> {
    let controller = disk.controller.as_ref().filter(|controller| controller.group.is_some())?;
    let namespace = disk.namespace?;
    let is_nvme = matches!(controller.driver.as_deref(), Some("nvme" | "vfio-pci"));
    is_nvme.then(|| format!("nvme={},namespace={namespace}", controller.address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::host::{Controller, Partition};

    fn disk(name: &str) -> HostDisk {
        HostDisk {
            name: name.into(),
            stable: Some(format!("/dev/disk/by-id/one,{name}").into()),
            bytes: 3 << 30,
            logical_sector: 512,
            physical_sector: 4096,
            model: Some("Fast\x1b One".into()),
            serial: None,
            rotational: true,
            read_only: false,
            removable: false,
            controller: Some(Controller {
                address: "0000:03:00.0".parse().unwrap(),
                driver: Some("nvme".into()),
                group: Some(7),
            }),
            namespace: Some(6),
            contents: Some(vec![Content { kind: "GPT", label: None }]),
            partitions: vec![Partition {
                name: format!("{name}p1"),
                label: Some("root".into()),
                bytes: 1 << 20,
                contents: Some(vec![Content { kind: "ext4", label: Some("r".into()) }]),
            }],
            used: Vec::new(),
        }
    }

    #[test]
    fn a_free_disk_comes_with_what_to_write_to_give_it_to_a_vm() {
        let text = text(&[disk("nvme0n2")], &[]);
        let expected = "\
/dev/disk/by-id/one,nvme0n2 (nvme0n2)
  size       3 GiB, sectors of 512 bytes (4096 physical), spins
  model      Fast? One, serial number unknown
  controller 0000:03:00.0, driver nvme, IOMMU group 7
  holds      GPT
             nvme0n2p1 \"root\": 1 MiB, ext4 \"r\"
  to a VM    --disk /dev/disk/by-id/one,,nvme0n2
  or in file [[disk]]
             path = \"/dev/disk/by-id/one,nvme0n2\"
  or driven  --disk nvme=0000:03:00.0,namespace=6   by skep itself, all of the controller
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_namespace_whose_number_is_unknown_is_not_guessed_from_its_name() {
        let text = text(&[HostDisk { namespace: None, ..disk("nvme0n2") }], &[]);
        assert!(text.contains("--disk /dev/disk") && !text.contains("namespace="), "{text}");
    }

    #[test]
    fn a_disk_that_cannot_be_written_is_given_as_one_that_is_only_read() {
        let text = text(&[HostDisk { read_only: true, ..disk("sr0") }], &[]);
        assert!(text.contains("one,,sr0,readonly=on\n"), "{text}");
        assert!(text.contains("one,sr0\"\n             readonly = true\n"), "{text}");
    }

    #[test]
    fn a_disk_in_use_comes_with_its_users_instead() {
        let used = HostDisk { used: vec!["sda1 is mounted on /".into()], controller: None, ..disk("sda") };
        let text = text(&[used], &[]);
        assert!(text.contains("  in use     sda1 is mounted on /\n") && !text.contains("--disk"), "{text}");
        assert!(super::text(&[], &[]).contains("no disks"));
    }

    #[test]
    fn a_controller_with_vfio_is_there_in_the_place_of_its_disks() {
        let controller = |used: &[&str]| VfioController {
            device: ::host::PciDevice {
                address: "0000:03:00.0".parse().unwrap(),
                vendor: 0x144d,
                device: 0xa808,
                class: 0x010802,
                driver: Some("vfio-pci".into()),
                group: Some(7),
            },
            used: used.iter().map(|reason| (*reason).to_owned()).collect(),
        };
        let text = super::text(&[], &[controller(&[]), controller(&["open in process 7 (skep)"])]);
        let (free, used) = text.split_once("\n\n").unwrap();
        assert!(free.starts_with(
            "disks of 0000:03:00.0: not seen by this host\n  controller 0000:03:00.0 [144d:a808]"
        ));
        assert!(free.ends_with("to a VM    --assign 0000:03:00.0"), "{free}");
        assert!(
            used.ends_with("in use     open in process 7 (skep)\n") && !used.contains("--assign"),
            "{used}"
        );
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let facts = facts(&disk("nvme0n1"));
        assert_eq!(facts["controller"]["address"], "0000:03:00.0");
        assert_eq!(facts["config"]["flag"], "/dev/disk/by-id/one,,nvme0n1");
        assert_eq!(facts["nvme"], "nvme=0000:03:00.0,namespace=6");
        assert_eq!(facts["partitions"][0]["contents"][0]["kind"], "ext4");
    }
}
