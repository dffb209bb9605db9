//! The emulated host as QEMU's command line: slots, controllers, disks, devices, folders.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::json;

use crate::count::{Clock, Count};
use crate::image::Image;
use crate::names::Seat;
use crate::spec::{Bus, Contents, Device, Disk, IommuModel};
use crate::wire::Mount;
use crate::{Lab, LabError};

/// Slots of the root bus for what was asked for; the lab's own devices follow, the chipset's come last.
const FIRST_SLOT: u8 = 4;
const LAST_SLOT: u8 = 0x17;
const WIRE_SLOT: u8 = 0x18;
const FOLDER_SLOT: u8 = 0x19;

/// An AHCI controller has so many ports.
const AHCI_PORTS: usize = 6;

/// QEMU's arguments in the making, and the open files that go with them.
pub struct Machine {
    arguments: Vec<String>,
    inherited: Vec<File>,
    slot: u8,
    iommu: IommuModel,
    ahci: Vec<usize>,
    xhci: bool,
    scsi: bool,
    disks: Vec<serde_json::Value>,
    seats: Vec<Seat>,
}

impl Machine {
    /// A machine with the CPUs, the RAM and the IOMMU of `lab`, and nothing in its slots.
    pub fn new(lab: &Lab) -> Machine {
        let mut machine = Machine {
            arguments: Vec::new(),
            inherited: Vec::new(),
            slot: FIRST_SLOT,
            iommu: lab.iommu.model,
            ahci: Vec::new(),
            xhci: false,
            scsi: false,
            disks: Vec::new(),
            seats: Vec::new(),
        };
        let memory = lab.memory.as_bytes().div_ceil(1 << 20) + 2 * u64::from(lab.hugepages);
        // A clock that counts instructions counts those of one thread.
        let by_instructions = lab.count.as_ref().is_some_and(|count| count.clock() == Clock::Instructions);
        machine.words(if by_instructions {
            "-accel tcg,thread=single -icount shift=0"
        } else {
            "-accel tcg,thread=multi"
        });
        for word in lab.count.iter().flat_map(Count::arguments) {
            machine.word(&word);
        }
        machine.words("-machine q35,kernel-irqchip=split -cpu EPYC,+svm,+npt");
        machine.words("-no-user-config -nodefaults -display none -monitor none -serial stdio -no-reboot");
        machine.words(&format!("-smp {} -m {memory}M", lab.cpus));
        let device = match lab.iommu.model {
            IommuModel::Intel => "intel-iommu",
            IommuModel::Amd => "amd-iommu",
            IommuModel::None => return machine,
        };
        let mut options = lab.iommu.options.clone();
        if !options.iter().any(|(key, _)| key == "intremap") {
            options.insert(0, ("intremap".into(), "on".into()));
        }
        machine.device(device, &options_text(&options));
        machine
    }

    /// Puts in everything that `lab` asks for, in its order.
    pub fn furnish(&mut self, lab: &Lab, cache: &Path) -> Result<(), LabError> {
        let mut serials: Vec<String> = Vec::new();
        for disk in &lab.disks {
            let serial = match &disk.serial {
                Some(serial) => serial.clone(),
                None => (0..)
                    .map(|n| format!("{}{n}", disk.bus.name().to_uppercase()))
                    .find(|serial| !serials.contains(serial) && !named(lab, serial))
                    .unwrap_or_default(),
            };
            if serials.contains(&serial) {
                return Err(LabError::Description {
                    why: format!("two disks have the serial number {serial:?}"),
                    hint: "Give each its own with serial=",
                });
            }
            self.disk(disk, &serial, cache)?;
            serials.push(serial);
        }
        lab.devices.iter().enumerate().try_for_each(|(index, device)| self.other(index, device))
    }

    /// Offers the port on which init speaks, whose other end is `wire`.
    pub fn wire(&mut self, wire: File) {
        let fd = self.inherit(wire);
        self.words(&format!("-device virtio-serial-pci,id=serial,addr={WIRE_SLOT:#x}"));
        self.words(&format!("-chardev socket,id=wire,fd={fd}"));
        self.device("virtserialport", &format!(",bus=serial.0,chardev=wire,name={}", crate::wire::PORT));
    }

    /// Offers a folder of this machine by 9p.
    pub fn folder(&mut self, folder: &Path, mount: &Mount, index: u8) {
        let (tag, path) = (&mount.tag, folder.display().to_string().replace(',', ",,"));
        let access = if mount.writable { "" } else { ",readonly=on" };
        let slot = FOLDER_SLOT + index;
        self.word("-fsdev");
        self.word(&format!("local,id={tag},path={path},security_model=none,multidevs=remap{access}"));
        self.device("virtio-9p-pci", &format!(",fsdev={tag},mount_tag={tag},addr={slot:#x}"));
    }

    /// Boots this kernel with this initramfs.
    pub fn boot(&mut self, kernel: &Path, initrd: File, command_line: &str) {
        let fd = self.inherit(initrd);
        for word in [
            "-kernel",
            &kernel.display().to_string(),
            "-initrd",
            &format!("/dev/fd/{fd}"),
            "-append",
            command_line,
        ] {
            self.word(word);
        }
    }

    /// The arguments, and the files that QEMU must inherit under the same numbers.
    pub fn finish(self) -> (Vec<String>, Vec<File>) {
        (self.arguments, self.inherited)
    }

    /// The table of disks as it is shown in the emulated host.
    pub fn disks(&self) -> &[serde_json::Value] {
        &self.disks
    }

    /// The devices that the command may name, and where they are.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Gives the device that took the last slot a name: its kind, and its number among those of its kind.
    fn name(&mut self, kind: &str, behind_port: bool) {
        let mut names = (0..).map(|n| format!("{kind}{n}"));
        let free = |name: &String| self.seats.iter().all(|seat| seat.name != *name);
        let name = names.find(free).unwrap_or_default();
        self.seats.push(Seat { name, slot: self.slot - 1, behind_port });
    }

    fn disk(&mut self, disk: &Disk, serial: &str, cache: &Path) -> Result<(), LabError> {
        let image = Image::open(disk, serial, cache)?;
        self.disks.push(json!({
            "bus": disk.bus.name(), "serial": serial, "size": image.size.as_bytes(), "sha256": image.sha256,
            "logical": disk.logical.bytes(), "physical": disk.physical.bytes(),
        }));
        let index = self.disks.len() - 1;
        let fd = self.inherit(image.file);
        // Only images of the user can be in someone else's hands, and need what was written to last.
        let own = !matches!(disk.contents, Contents::Image(_));
        let care = if own { "locking=off,cache.no-flush=on" } else { "locking=auto" };
        self.words(&format!("-add-fd fd={fd},set={index}"));
        self.words(&format!(
            "-blockdev driver=file,node-name=disk{index},filename=/dev/fdset/{index},discard=unmap,{care}"
        ));
        let (logical, physical) = (disk.logical.bytes(), disk.physical.bytes());
        let drive = format!(
            ",drive=disk{index},serial={serial},logical_block_size={logical},physical_block_size={physical}"
        );
        match disk.bus {
            Bus::Ahci => {
                let (controller, port) = self.ahci_port(disk.controller)?;
                self.device("ide-hd", &format!("{drive},bus=ahci{controller}.{port}"));
            }
            Bus::Nvme => {
                let seat = self.port(&format!("port{index}"))?;
                self.name("nvme", seat.starts_with(",bus="));
                self.device("nvme", &format!("{drive}{seat}"));
            }
            Bus::Virtio => {
                let seat = self.seat()?;
                self.name("virtio", false);
                self.device("virtio-blk-pci", &format!("{drive}{seat}"));
            }
            Bus::Usb => {
                if !self.xhci {
                    let seat = self.seat()?;
                    self.name("xhci", false);
                    self.device("qemu-xhci", &format!(",id=xhci,p2=15,p3=15{seat}"));
                    self.xhci = true;
                }
                // Linux asks USB disks for no SCSI serial number, so the USB device has it too.
                self.device("usb-bot", &format!(",id=usb{index},bus=xhci.0,serial={serial}"));
                self.device("scsi-hd", &format!("{drive},bus=usb{index}.0"));
            }
            Bus::Scsi => {
                if !self.scsi {
                    let seat = self.seat()?;
                    self.name("scsi", false);
                    self.device("virtio-scsi-pci", &format!(",id=scsi{seat}"));
                    self.scsi = true;
                }
                self.device("scsi-hd", &format!("{drive},bus=scsi.0"));
            }
        }
        Ok(())
    }

    fn other(&mut self, index: usize, device: &Device) -> Result<(), LabError> {
        let seat = self.seat()?;
        self.name(device.model().trim_start_matches("qemu-"), false);
        let options = options_text(device.options());
        let network = if device.is_network_card() {
            self.words(&format!("-netdev user,id=net{index},restrict=on"));
            format!(",netdev=net{index}")
        } else {
            String::new()
        };
        self.device(device.model(), &format!("{network}{seat}{options}"));
        Ok(())
    }

    /// A free port of the controller of this number, or of the last one; controllers are made as needed.
    fn ahci_port(&mut self, controller: Option<u8>) -> Result<(usize, usize), LabError> {
        let last = self.ahci.len().saturating_sub(1);
        let full = self.ahci.get(last).is_some_and(|used| *used == AHCI_PORTS);
        let controller = controller.map_or(if full { last + 1 } else { last }, usize::from);
        while self.ahci.len() <= controller {
            let seat = self.seat()?;
            self.name("ahci", false);
            let id = self.ahci.len();
            self.device("ahci", &format!(",id=ahci{id}{seat}"));
            self.ahci.push(0);
        }
        let used = &mut self.ahci[controller];
        if *used == AHCI_PORTS {
            return Err(LabError::Description {
                why: format!("AHCI controller {controller} has {AHCI_PORTS} ports, and more disks than that"),
                hint: "Put some of them on another with controller=",
            });
        }
        *used += 1;
        Ok((controller, *used - 1))
    }

    /// A slot of the root bus.
    fn seat(&mut self) -> Result<String, LabError> {
        if self.slot > LAST_SLOT {
            return Err(LabError::Description {
                why: format!(
                    "there is room for {} controllers and devices, not more",
                    LAST_SLOT - FIRST_SLOT + 1
                ),
                hint: "Hang several ahci, usb or scsi disks on one controller",
            });
        }
        self.slot += 1;
        Ok(format!(",addr={:#x}", self.slot - 1))
    }

    /// A seat in an IOMMU group of its own: behind a root port where the IOMMU's model can tell what is there.
    fn port(&mut self, id: &str) -> Result<String, LabError> {
        let seat = self.seat()?;
        if self.iommu == IommuModel::Amd {
            return Ok(seat);
        }
        self.device("pcie-root-port", &format!(",id={id},chassis={}{seat}", self.slot));
        Ok(format!(",bus={id}"))
    }

    fn inherit(&mut self, file: File) -> i32 {
        let fd = file.as_raw_fd();
        self.inherited.push(file);
        fd
    }

    fn device(&mut self, model: &str, options: &str) {
        self.word("-device");
        self.word(&format!("{model}{options}"));
    }

    fn words(&mut self, words: &str) {
        self.arguments.extend(words.split_whitespace().map(str::to_owned));
    }

    fn word(&mut self, word: &str) {
        self.arguments.push(word.to_owned());
    }
}

/// Whether a disk was given this serial number.
fn named(lab: &Lab, serial: &str) -> bool {
    lab.disks.iter().any(|disk| disk.serial.as_deref() == Some(serial))
}

fn options_text(options: &[(String, String)]) -> String {
    options.iter().map(|(key, value)| format!(",{key}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Iommu, Size};

    fn arguments(lab: Builder) -> Result<String, LabError> {
        let cache = tempfile::tempdir().unwrap();
        let lab = lab.build();
        let mut machine = Machine::new(&lab);
        machine.furnish(&lab, cache.path())?;
        Ok(machine.finish().0.join(" "))
    }

    fn with(disks: &[&str]) -> Result<String, LabError> {
        arguments(disks.iter().map(|d| d.parse().unwrap()).fold(Lab::builder(), Builder::disk))
    }

    #[test]
    fn nvme_controllers_sit_behind_root_ports_with_vt_d_and_on_the_root_bus_with_amd() {
        let intel = arguments(Lab::builder()).unwrap();
        assert_eq!(intel.matches("pcie-root-port").count(), 2, "{intel}");
        let amd = arguments(Lab::builder().iommu(Iommu::amd())).unwrap();
        assert!(!amd.contains("pcie-root-port") && amd.contains("amd-iommu,intremap=on"), "{amd}");
    }

    #[test]
    fn devices_are_named_by_their_kind_in_the_order_given() {
        let described =
            ["nvme:1M", "ahci:1M", "nvme:1M", "ahci:1M", "usb:1M"].map(|disk| disk.parse().unwrap());
        for (iommu, behind_port) in [(Iommu::intel(), true), (Iommu::amd(), false)] {
            let lab = described.iter().cloned().fold(Lab::builder(), Builder::disk).iommu(iommu);
            let lab = lab.device("e1000".parse().unwrap()).device("e1000e".parse().unwrap()).build();
            let mut machine = Machine::new(&lab);
            machine.furnish(&lab, tempfile::tempdir().unwrap().path()).unwrap();
            let names = machine.seats().iter().map(|seat| (seat.name.as_str(), seat.slot, seat.behind_port));
            let wanted = [
                ("nvme0", 4, behind_port),
                ("ahci0", 5, false),
                ("nvme1", 6, behind_port),
                ("xhci0", 7, false),
                ("e10000", 8, false),
                ("e1000e0", 9, false),
            ];
            assert!(names.eq(wanted), "{:?}", machine.seats());
        }
    }

    #[test]
    fn ahci_disks_fill_a_controller_before_the_next() {
        let text = with(&["ahci:1M"; 7]).unwrap();
        assert!(text.contains("bus=ahci0.5") && text.contains("bus=ahci1.0"), "{text}");
        let text = with(&["ahci:1M", "ahci:1M,controller=1", "ahci:1M,controller=0"]).unwrap();
        assert!(text.contains("bus=ahci1.0") && text.contains("bus=ahci0.1"), "{text}");
        let error = with(&["ahci:1M,controller=0"; 7]).unwrap_err().to_string();
        assert!(error.contains("controller 0 has 6 ports"), "{error}");
    }

    #[test]
    fn serial_numbers_count_by_bus_and_skip_those_that_were_given() {
        let text = with(&["nvme:1M", "nvme:1M,serial=NVME1", "nvme:1M", "usb:1M"]).unwrap();
        for serial in ["NVME0", "NVME1", "NVME2", "USB0"] {
            assert_eq!(text.matches(&format!("serial={serial},")).count(), 1, "{text}");
        }
        assert!(with(&["nvme:1M,serial=X", "usb:1M,serial=X"]).unwrap_err().to_string().contains("\"X\""));
    }

    #[test]
    fn one_usb_and_one_scsi_controller_serve_all() {
        let text = with(&["usb:1M", "usb:1M", "scsi:1M", "scsi:1M,logical=4096"]).unwrap();
        assert_eq!(text.matches("qemu-xhci").count(), 1);
        assert_eq!(text.matches("virtio-scsi-pci").count(), 1);
        assert!(text.contains("logical_block_size=4096"));
    }

    #[test]
    fn more_devices_than_slots_are_an_error() {
        assert!(with(&["virtio:1M"; 21]).unwrap_err().to_string().contains("room for 20"));
    }

    #[test]
    fn huge_pages_come_on_top_of_the_memory() {
        let text = arguments(Lab::builder().memory(Size::mib(512)).hugepages(64)).unwrap();
        assert!(text.contains("-m 640M"), "{text}");
    }
}
