//! What a VM boots, and in which order.

use super::table::{Given, Keys};
use crate::finding::{Finding, Place, Problem};
use crate::keys::{FwCfgKey, Key};
use crate::model::{
    Assign, BootFirmware, Disk, DiskModel, Distinct, FirmwareChoice, FirmwareImage, FwCfgContent, FwCfgFile,
    Once,
};
use crate::source::Table;
use crate::values::count::BootIndex;
use crate::values::path::HostPath;
use crate::values::text::Cmdline;

/// The keys that say what a VM boots.
pub(super) struct BootKeys {
    firmware: Given<FirmwareChoice>,
    variables: Given<HostPath>,
    secure_boot: Given<bool>,
    once: Given<Once>,
    menu: Given<bool>,
    kernel: Given<HostPath>,
    initrd: Given<HostPath>,
    cmdline: Given<Cmdline>,
}

/// What is right of a kernel.
pub(super) struct LinuxDraft {
    pub kernel: Option<HostPath>,
    pub initrd: Option<HostPath>,
    pub cmdline: Option<Cmdline>,
}

impl BootKeys {
    pub(super) fn read(keys: &mut Keys<'_, Key>) -> BootKeys {
        BootKeys {
            firmware: keys.get(Key::Firmware),
            variables: keys.get(Key::FirmwareVars),
            secure_boot: keys.get(Key::SecureBoot),
            once: keys.get(Key::Boot),
            menu: keys.get(Key::BootMenu),
            kernel: keys.get(Key::Kernel),
            initrd: keys.get(Key::Initrd),
            cmdline: keys.get(Key::Cmdline),
        }
    }

    /// What is right of it all. `whole` says whether all of the file could be read.
    pub(super) fn assemble(
        self,
        files: Distinct<FwCfgFile>,
        whole: bool,
        findings: &mut Vec<Finding>,
    ) -> (Option<BootFirmware>, LinuxDraft) {
        let none = self.is_without_firmware(whole);
        let image = image(self.firmware, &self.kernel, whole, findings);
        // Without the firmware these would be for nothing, and without the kernel that.
        let mut of_firmware = Needs { other: "firmware", there: !none, findings };
        let variables = of_firmware.get(self.variables, "firmware-vars");
        let secure_boot = of_firmware.switch(self.secure_boot, "secure-boot");
        let once = of_firmware.get(self.once, "boot");
        let menu = of_firmware.switch(self.menu, "boot-menu");
        let there = self.kernel.is_given() || !whole;
        let mut of_kernel = Needs { other: "kernel", there, findings };
        let initrd = of_kernel.get(self.initrd, "initrd");
        let cmdline = match self.cmdline {
            given @ Given::Yes(..) => of_kernel.get(given, "cmdline"),
            other => other.or_default(),
        };
        let firmware = image.map(|image| BootFirmware { image, variables, secure_boot, menu, once, files });
        let linux = LinuxDraft { kernel: self.kernel.value(), initrd, cmdline };
        (firmware, linux)
    }

    /// Whether it is certain that there is no firmware.
    fn is_without_firmware(&self, whole: bool) -> bool {
        match &self.firmware {
            Given::No => self.kernel.is_given() && whole,
            Given::Yes(_, FirmwareChoice::None) => true,
            Given::Yes(_, FirmwareChoice::Image(_)) | Given::Wrong => false,
        }
    }
}

/// Places in the boot order that are twice or for nothing, and CDs without a drive. `complete` says whether all disks and
/// devices are known.
pub(super) fn order(
    boot: &BootKeys,
    disks: &[(Place, Disk)],
    assigned: &[(Place, Assign)],
    complete: bool,
    findings: &mut Vec<Finding>,
) {
    let of_disks = disks.iter().map(|(place, disk)| (place, disk.boot_index));
    let of_devices = assigned.iter().map(|(place, assign)| (place, assign.boot_index));
    let mut taken: Vec<(BootIndex, &Place)> = Vec::new();
    for (place, index) in of_devices.chain(of_disks) {
        let Some(index) = index else { continue };
        let first = taken.iter().find(|(other, _)| *other == index).map(|(_, first)| (*first).clone());
        let problem = match first {
            _ if boot.is_without_firmware(complete) => {
                Problem::Without { key: "bootindex", other: "firmware" }
            }
            Some(first) => Problem::Repeated { what: format!("bootindex {index}"), first },
            None => {
                taken.push((index, place));
                continue;
            }
        };
        findings.push(Finding { place: place.clone(), problem });
    }
    let has_drive = || disks.iter().any(|(_, disk)| disk.model == DiskModel::AhciCd);
    if let Given::Yes(place, Once::Cd) = &boot.once
        && complete
        && !has_drive()
    {
        let drive = place.written("model=ahci-cd");
        findings.push(Finding { place: place.clone(), problem: Problem::NoDrive { drive } });
    }
}

/// Files for firmware that is not there.
pub(super) fn files(boot: &BootKeys, files: &[(Place, FwCfgFile)], whole: bool, findings: &mut Vec<Finding>) {
    if boot.is_without_firmware(whole) {
        let problem = Problem::Without { key: "fw-cfg", other: "firmware" };
        findings.extend(
            files.iter().map(|(place, _)| Finding { place: place.clone(), problem: problem.clone() }),
        );
    }
}

/// The file that a table describes.
pub(super) fn file(table: &Table, findings: &mut Vec<Finding>) -> Option<FwCfgFile> {
    const NO_CONTENT: &str = "Say what is in it: string=TEXT, or file=PATH.";
    const NO_CONTENT_IN_FILE: &str = "Say what is in it: string = \"TEXT\", or file = \"PATH\".";
    let mut keys = Keys::of(table, findings);
    let hint = keys.place().choose("Write name=opt/NAME.", "Write name = \"opt/NAME\".");
    let name = keys.required(FwCfgKey::Name, "this fw-cfg file", hint);
    let text: Given<String> = keys.get(FwCfgKey::String);
    let file: Given<HostPath> = keys.get(FwCfgKey::File);
    let place = file.place().unwrap_or_else(|| keys.place());
    match (text.is_given(), file.is_given()) {
        (true, true) => keys.found(&place, Problem::NotTogether { one: "string", other: "file" }),
        (false, false) => {
            let hint = place.choose(NO_CONTENT, NO_CONTENT_IN_FILE);
            keys.found(&place, Problem::Missing { within: "this fw-cfg file", key: "string", hint });
        }
        _ => {}
    }
    let content = text.value().map(FwCfgContent::Text).or(file.value().map(FwCfgContent::File));
    Some(FwCfgFile { name: name?, content: content? })
}

/// The firmware that is booted: what was chosen, or without a choice what is installed, if no kernel is named.
fn image(
    given: Given<FirmwareChoice>,
    kernel: &Given<HostPath>,
    whole: bool,
    findings: &mut Vec<Finding>,
) -> Option<FirmwareImage> {
    let no_kernel = !kernel.is_given() && whole;
    match given {
        Given::Yes(_, FirmwareChoice::Image(image)) => Some(image),
        Given::Yes(place, FirmwareChoice::None) => {
            if no_kernel {
                let hint = place.choose(
                    "Say what it boots: --kernel PATH, or leave --firmware none out.",
                    "Say what it boots: kernel = \"PATH\", or leave firmware = \"none\" out.",
                );
                findings.push(Finding {
                    place,
                    problem: Problem::Missing { within: "the VM", key: "kernel", hint },
                });
            }
            None
        }
        Given::No => no_kernel.then_some(FirmwareImage::Installed),
        Given::Wrong => None,
    }
}

/// What is for nothing without another key.
struct Needs<'a> {
    other: &'static str,
    there: bool,
    findings: &'a mut Vec<Finding>,
}

impl Needs<'_> {
    /// A switch, which needs nothing while it is off.
    fn switch(&mut self, given: Given<bool>, key: &'static str) -> bool {
        match given {
            Given::Yes(_, false) => false,
            on => self.get(on, key).unwrap_or_default(),
        }
    }

    fn get<T>(&mut self, given: Given<T>, key: &'static str) -> Option<T> {
        let Given::Yes(place, value) = given else { return None };
        if !self.there {
            self.findings.push(Finding { place, problem: Problem::Without { key, other: self.other } });
            return None;
        }
        Some(value)
    }
}
