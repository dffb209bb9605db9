use std::path::PathBuf;
use std::str::FromStr;

use crate::installed::Loader;

use super::{Size, SpecError, split_options};

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bus {
    /// SATA, on an AHCI controller that may hold five more.
    Ahci,
    /// An NVMe controller of its own, in an IOMMU group of its own.
    Nvme,
    /// virtio-blk.
    Virtio,
    /// USB mass storage on an xHCI controller.
    Usb,
    /// SCSI on a virtio-scsi controller.
    Scsi,
}

impl Bus {
    const ALL: [Bus; 5] = [Bus::Ahci, Bus::Nvme, Bus::Virtio, Bus::Usb, Bus::Scsi];

    /// The bus as it is written in a description.
    pub fn name(self) -> &'static str {
        match self {
            Bus::Ahci => "ahci",
            Bus::Nvme => "nvme",
            Bus::Virtio => "virtio",
            Bus::Usb => "usb",
            Bus::Scsi => "scsi",
        }
    }

    /// The longest serial number, in characters, that reaches the host unchanged.
    fn serial_limit(self) -> usize {
        match self {
            Bus::Ahci | Bus::Nvme | Bus::Virtio => 20,
            Bus::Usb | Bus::Scsi => 36,
        }
    }
}

/// A size of blocks: 512 or 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            BlockSize::B512 => 512,
            BlockSize::B4096 => 4096,
        }
    }
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Pseudo-random bytes that depend on the serial number and the size alone.
    Generated(Size),
    /// An installed Debian with this boot loader; what is written is forgotten.
    Installed(Loader),
    /// A raw image, used in place: what the host writes stays in it.
    Image(PathBuf),
}

/// A disk: `BUS:SIZE|debian|debian-grub|PATH[,serial=S][,logical=512|4096][,physical=512|4096][,controller=N]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What it hangs on.
    pub bus: Bus,
    /// What is on it.
    pub contents: Contents,
    /// Its serial number; without one it becomes `AHCI0`, `NVME1` and so on, counted by bus.
    pub serial: Option<String>,
    /// The blocks it is addressed in.
    pub logical: BlockSize,
    /// The blocks it is made of.
    pub physical: BlockSize,
    /// Which AHCI controller it hangs on, counted from 0; without, the last one that has a port left.
    pub controller: Option<u8>,
}

const HINT: &str = "Write it like ahci:64M, nvme:1G,serial=A,logical=4096, nvme:debian or usb:/path/to/image";

impl Disk {
    /// A generated disk with the usual blocks.
    pub fn generated(bus: Bus, size: Size) -> Self {
        let contents = Contents::Generated(size);
        let logical = BlockSize::B512;
        Disk { bus, contents, serial: None, logical, physical: logical, controller: None }
    }

    /// The same disk with this serial number.
    #[must_use]
    pub fn with_serial(mut self, serial: &str) -> Self {
        self.serial = Some(serial.to_owned());
        self
    }
}

impl FromStr for Disk {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error = |why: String| SpecError::new("disk", text, why, HINT);
        let (head, options) = split_options(text).map_err(error)?;
        let (bus, what) =
            head.split_once(':').ok_or_else(|| error("it has no BUS:SIZE or BUS:PATH".into()))?;
        let bus = Bus::ALL
            .into_iter()
            .find(|known| known.name() == bus)
            .ok_or_else(|| error(format!("bus {bus:?} is not ahci, nvme, virtio, usb or scsi")))?;
        let installed = [Loader::SystemdBoot, Loader::Grub].into_iter().find(|loader| loader.disk() == what);
        let contents = match (what.parse::<Size>(), installed) {
            (Ok(size), _) => Contents::Generated(size),
            (_, Some(loader)) => Contents::Installed(loader),
            _ if what.is_empty() => return Err(error("it has neither size nor path".into())),
            _ => Contents::Image(PathBuf::from(what)),
        };
        let (mut serial, mut logical, mut physical, mut controller) = (None, None, None, None);
        for (key, value) in options {
            match key {
                "serial" => serial = Some(value.to_owned()),
                "logical" => logical = Some(block_size(value).map_err(error)?),
                "physical" => physical = Some(block_size(value).map_err(error)?),
                "controller" if bus == Bus::Ahci => {
                    controller =
                        Some(value.parse().map_err(|_| error(format!("controller {value:?} is no number")))?);
                }
                "controller" => return Err(error("only ahci disks share controllers".into())),
                _ => return Err(error(format!("{key:?} is not serial, logical, physical or controller"))),
            }
        }
        let logical = logical.unwrap_or(BlockSize::B512);
        let physical = physical.unwrap_or(logical);
        let disk = Disk { bus, contents, serial, logical, physical, controller };
        disk.check().map_err(error)?;
        Ok(disk)
    }
}

impl Disk {
    /// Whether such a disk can be built.
    fn check(&self) -> Result<(), String> {
        if self.bus == Bus::Ahci && self.logical != BlockSize::B512 {
            return Err("QEMU's AHCI disks have logical blocks of 512 bytes only".into());
        }
        if matches!(self.contents, Contents::Installed(_)) && self.logical != BlockSize::B512 {
            return Err("the installed Debian's partition table is one of logical blocks of 512 bytes".into());
        }
        if self.physical.bytes() < self.logical.bytes() {
            return Err("physical blocks cannot be smaller than logical ones".into());
        }
        if let Contents::Generated(size) = self.contents
            && size.as_bytes() % self.logical.bytes() != 0
        {
            return Err(format!("{size} is not a whole number of {}-byte blocks", self.logical.bytes()));
        }
        if let Some(serial) = &self.serial {
            let limit = self.bus.serial_limit();
            if serial.is_empty()
                || serial.len() > limit
                || !serial.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                return Err(format!("a serial number has 1 to {limit} letters, digits, -, _ or ."));
            }
        }
        Ok(())
    }
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    match text {
        "512" => Ok(BlockSize::B512),
        "4096" | "4K" | "4k" => Ok(BlockSize::B4096),
        _ => Err(format!("blocks have 512 or 4096 bytes, not {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_generated_debian_is_installed_and_a_path_is_an_image() {
        let disk: Disk = "ahci:64M".parse().unwrap();
        assert_eq!(disk, Disk::generated(Bus::Ahci, Size::mib(64)));
        let disk: Disk = "usb:/tmp/a.img,serial=U".parse().unwrap();
        assert_eq!(disk.contents, Contents::Image("/tmp/a.img".into()));
        assert_eq!(disk.serial.as_deref(), Some("U"));
        let disk: Disk = "nvme:debian,serial=D".parse().unwrap();
        assert_eq!(disk.contents, Contents::Installed(Loader::SystemdBoot));
        let disk: Disk = "ahci:debian-grub".parse().unwrap();
        assert_eq!(disk.contents, Contents::Installed(Loader::Grub));
        let disk: Disk = "ahci:./debian".parse().unwrap();
        assert_eq!(disk.contents, Contents::Image("./debian".into()));
    }

    #[test]
    fn physical_blocks_follow_logical_ones_unless_given() {
        let disk: Disk = "nvme:64M,logical=4096".parse().unwrap();
        assert_eq!((disk.logical, disk.physical), (BlockSize::B4096, BlockSize::B4096));
        let disk: Disk = "ahci:64M,physical=4096".parse().unwrap();
        assert_eq!((disk.logical, disk.physical), (BlockSize::B512, BlockSize::B4096));
    }

    #[test]
    fn a_disk_that_cannot_be_built_is_an_error_that_says_why() {
        for (text, why) in [
            ("floppy:1M", "floppy"),
            ("ahci", "BUS:SIZE"),
            ("ahci:", "neither size nor path"),
            ("ahci:64M,logical=4096", "512 bytes only"),
            ("nvme:64M,logical=520", "520"),
            ("nvme:64M,logical=4096,physical=512", "smaller"),
            ("nvme:1000,logical=4096", "whole number"),
            ("nvme:debian,logical=4096", "partition table"),
            ("nvme:64M,controller=1", "only ahci"),
            ("ahci:64M,controller=x", "no number"),
            ("scsi:64M,colour=red", "colour"),
            ("virtio:64M,serial=123456789012345678901", "1 to 20"),
            ("virtio:64M,serial=", "1 to 20"),
        ] {
            let error = text.parse::<Disk>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{text}: {error}");
        }
    }
}
