//! The small systems that the emulated host and its guests run: busybox, kernel modules, the lab's programs.
//! What does not change between runs is made once and kept in the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::LabError;
use crate::archive::Archive;
use crate::kernel::modules::{Aliases, Dependencies};
use crate::kernel::{self, Ready};
use crate::places::{CacheLock, INIT, Places, write_whole};
use crate::process;
use crate::wire::{JOB_PATH, Job};

/// Changes when what goes into a base archive does.
const FORMAT: &[u8] = b"3";

/// Modules that the host has at hand. Those for devices that are present are loaded at the start, with
/// [`crate::wire`]'s needs and KVM and VFIO; the others when something asks for them.
const HOST_MODULES: &str = "\
    virtio_pci virtio_console virtio_blk virtio_net virtio_scsi virtio_balloon virtio_rng virtio_mem virtio_pmem virtiofs \
    9p 9pnet_virtio overlay loop kvm-amd vfio-pci vfio_iommu_type1 iommufd \
    ahci nvme sd_mod sr_mod sg xhci_pci ehci_pci uhci_hcd usb-storage uas usbhid megaraid_sas mpt3sas sym53c8xx vmw_pvscsi \
    e1000 e1000e igb igbvf tun tap macvtap bridge veth dummy vhost_net vhost_vsock vhost_scsi vsock_loopback \
    dm_mod dm-flakey dm-delay dm-dust dm-log-writes dm-thin-pool dm-snapshot dm-crypt dm-mirror md_mod raid0 raid1 \
    scsi_debug null_blk nbd brd ublk_drv target_core_mod tcm_loop target_core_file target_core_iblock \
    ext4 xfs vfat squashfs erofs isofs nls_ascii nls_cp437 nls_utf8 crc32c_generic crc32c-intel crct10dif_generic \
    crct10dif-pclmul crct10dif_common crc64_rocksoft_generic configfs efivarfs msr cpuid qemu_fw_cfg i6300esb iTCO_wdt \
    pvpanic-pci pcspkr tpm_tis tpm_crb tpm_vtpm_proxy uio_pci_generic pci-stub nvmet nvme-loop";

/// Modules that a guest has at hand; all are for devices, so it loads those it finds.
const GUEST_MODULES: &str = "\
    virtio_pci virtio_mmio virtio_console virtio_blk virtio_net virtio_scsi virtio_balloon virtio_rng virtio_mem \
    virtiofs 9p 9pnet_virtio vmw_vsock_virtio_transport ahci nvme sd_mod sr_mod sg xhci_pci usb-storage uas usbhid \
    e1000 e1000e igb igbvf ext4 vfat isofs nls_ascii nls_cp437 crc32c_generic crc32c-intel crct10dif_generic \
    crct10dif_common crc64_rocksoft_generic qemu_fw_cfg efivarfs i6300esb pvpanic-pci tpm_crb tpm_tis loop msr button \
    evdev";

/// There is nothing in sbin: the kernel looks there for modprobe long before there is anything to load, and a
/// program that starts only to find nothing costs 35 CPUID exits a time. Init tells it where modprobe is.
const FOLDERS: [&str; 13] =
    ["dev", "proc", "sys", "tmp", "run", "root", "mnt", "var", "share", "tree", "host", "lab/guest", "sbin"];

/// OVMF, where Debian has it and skep looks for it: its code, and variables without and with keys for Secure Boot.
const FIRMWARE: [&str; 3] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
];

const BUSYBOX: &str = "busybox";

/// Everything that a boot of the emulated host needs from the cache.
pub struct System {
    /// The kernel.
    pub kernel: Ready,
    /// The host's initramfs without what belongs to one run.
    pub host: PathBuf,
    /// The folder shown at /lab/guest.
    pub guest: PathBuf,
}

impl System {
    /// Makes what is missing, and finds the rest.
    pub fn prepare(kernel: &crate::Kernel, places: &Places) -> Result<System, LabError> {
        let lock = CacheLock::take(&places.cache)?;
        let kernel = kernel::prepare(kernel, places, &lock)?;
        let busybox = Busybox::find()?;
        let host = base(&kernel, &busybox, HOST_MODULES, places, &lock)?;
        let guest = guest(&kernel, &busybox, places, &lock)?;
        Ok(System { kernel, host, guest })
    }
}

/// The archive that belongs to one run: the lab's programs as just built, the job, the table of disks; and firmware for
/// guests, if this machine has it.
pub fn of_this_run(places: &Places, job: &Job, disks: &str, firmware: bool) -> Result<Vec<u8>, LabError> {
    let program = |name: &str| {
        let path = places.dist.join(name);
        fs::read(&path).map_err(LabError::path("read", &path))
    };
    let init = program(INIT)?;
    let (io, edu) = (program("lab-io")?, program("lab-edu")?);
    let skep = places.dist.join("skep").is_file().then(|| program("skep")).transpose()?;
    let firmware = FIRMWARE.into_iter().filter(|path| firmware && Path::new(path).is_file());
    let firmware = firmware.map(|path| match fs::read(path) {
        Ok(bytes) => Ok((path, bytes)),
        Err(error) => Err(LabError::system("read", path, error)),
    });
    let firmware = firmware.collect::<Result<Vec<_>, _>>()?;
    let build = || {
        let mut archive = Archive::new();
        archive.file("init", 0o755, &init)?;
        archive.link("bin/lab-initrd", "/init")?;
        archive.file("bin/lab-io", 0o755, &io)?;
        archive.file("bin/lab-edu", 0o755, &edu)?;
        if let Some(skep) = &skep {
            archive.file("bin/skep", 0o755, skep)?;
        }
        archive.file(JOB_PATH.trim_start_matches('/'), 0o644, &job.encode())?;
        archive.file("lab/disks.json", 0o644, disks.as_bytes())?;
        for (path, bytes) in &firmware {
            archive.file(path.trim_start_matches('/'), 0o644, bytes)?;
        }
        archive.finish()
    };
    build().map_err(|e| LabError::system("pack", "the lab's programs", e))
}

/// A name for these parts together, fit for a file.
pub fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether there is a busybox here that runs without shared libraries, as the emulated host needs it.
pub fn has_static_busybox() -> bool {
    Busybox::find().is_ok()
}

/// The static shell and its tools.
struct Busybox {
    program: Vec<u8>,
    path: PathBuf,
}

impl Busybox {
    fn find() -> Result<Self, LabError> {
        let missing = || LabError::Missing {
            program: "busybox-static".into(),
            purpose: "it is the shell and the tools of the emulated host",
            command: "apt-get install -y busybox-static (as root)",
        };
        let path = process::find(BUSYBOX).ok_or_else(missing)?;
        let program = fs::read(&path).map_err(LabError::path("read", &path))?;
        // A busybox that needs shared libraries names their loader.
        if program.windows(11).any(|window| window == b"/ld-linux-x") {
            return Err(missing());
        }
        Ok(Busybox { program, path })
    }

    /// The names it answers to.
    fn applets(&self) -> Result<Vec<String>, LabError> {
        let said = process::run(Command::new(&self.path).arg("--list"), Duration::from_secs(20))
            .map_err(LabError::path("start", &self.path))?;
        Ok(said.stdout.lines().map(str::to_owned).filter(|applet| applet != BUSYBOX).collect())
    }
}

/// The archive with busybox and these modules, from the cache if it is there.
fn base(
    kernel: &Ready,
    busybox: &Busybox,
    modules: &str,
    places: &Places,
    lock: &CacheLock,
) -> Result<PathBuf, LabError> {
    let folder = kernel.modules.as_deref().map(|folder| folder.display().to_string()).unwrap_or_default();
    let path = places.cache.join("base").join(key(&[
        FORMAT,
        folder.as_bytes(),
        &busybox.program,
        modules.as_bytes(),
    ]));
    if path.is_file() {
        return Ok(path);
    }
    let applets = busybox.applets()?;
    let mut archive = Archive::new();
    let skeleton = |archive: &mut Archive| -> io::Result<()> {
        for folder in FOLDERS {
            archive.folder(folder)?;
        }
        archive.file("bin/busybox", 0o755, &busybox.program)?;
        for applet in &applets {
            archive.link(&format!("bin/{applet}"), BUSYBOX)?;
        }
        archive.link("usr/bin", "../bin")?;
        archive.link("usr/sbin", "../bin")?;
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        archive.file("etc/group", 0o644, b"root:x:0:\n")
    };
    skeleton(&mut archive).map_err(|e| LabError::system("pack", BUSYBOX, e))?;
    if let Some(folder) = &kernel.modules {
        add_modules(&mut archive, folder, modules)?;
    }
    let bytes = archive.finish().map_err(|e| LabError::system("pack", &folder, e))?;
    write_whole(lock, &path, &[&bytes])?;
    Ok(path)
}

/// Adds the modules of these names and what they need, unpacked, in one folder.
fn add_modules(archive: &mut Archive, folder: &Path, names: &str) -> Result<(), LabError> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(LabError::path("read", &path))
    };
    let dependencies = Dependencies::parse(&read("modules.dep")?);
    let order = dependencies.in_order(names.split_whitespace());
    let version = folder.file_name().unwrap_or_default().to_string_lossy();
    let inside = format!("lib/modules/{version}");
    let pack = |e| LabError::system("pack", folder.display(), e);
    for name in &order {
        let path = folder.join(dependencies.path(name).unwrap_or_default());
        let packed = fs::read(&path).map_err(LabError::path("read the module", &path))?;
        let module = kernel::unpack(&packed).map_err(|why| LabError::Kernel { path, why })?;
        archive.file(&format!("{inside}/{name}.ko"), 0o644, &module).map_err(pack)?;
    }
    let aliases = Aliases::parse(&read("modules.alias")?).only(&order);
    archive
        .file(&format!("{inside}/modules.dep"), 0o644, dependencies.flat(&order).as_bytes())
        .map_err(pack)?;
    archive.file(&format!("{inside}/modules.alias"), 0o644, aliases.as_bytes()).map_err(pack)
}

/// The folder with the guest's kernel, in both forms, its initramfs, and two of one
/// program alone to measure boots by: of init, and of lab-count.
fn guest(kernel: &Ready, busybox: &Busybox, places: &Places, lock: &CacheLock) -> Result<PathBuf, LabError> {
    let base = base(kernel, busybox, GUEST_MODULES, places, lock)?;
    let program = |name: &str| {
        let path = places.dist.join(name);
        fs::read(&path).map_err(LabError::path("read", &path))
    };
    let (init, io, edu) = (program(INIT)?, program("lab-io")?, program("lab-edu")?);
    let count = program("lab-count")?;
    let name = |path: &Path| path.as_os_str().as_encoded_bytes().to_owned();
    let bzimage = kernel.bzimage.as_deref();
    let all = places.cache.join("guests");
    let folder = all.join(key(&[
        FORMAT,
        &name(&base),
        &name(&kernel.elf),
        &bzimage.map(name).unwrap_or_default(),
        &init,
        &io,
        &edu,
        &count,
    ]));
    if !folder.join("initrd").is_file() {
        sweep(&all);
        let tools = || {
            let mut archive = Archive::new();
            archive.file("init", 0o755, &init)?;
            archive.file("bin/lab-io", 0o755, &io)?;
            archive.file("bin/lab-edu", 0o755, &edu)?;
            archive.finish()
        };
        let tools = tools().map_err(|e| LabError::system("pack", "the guest's programs", e))?;
        let base = fs::read(&base).map_err(LabError::path("read", &base))?;
        fs::create_dir_all(&folder).map_err(LabError::path("make the folder", &folder))?;
        place(&kernel.elf, &folder.join("vmlinux"))?;
        if let Some(bzimage) = bzimage {
            place(bzimage, &folder.join("vmlinuz"))?;
        }
        let alone = |init: &[u8]| {
            let mut archive = Archive::new();
            let pack = archive.folder("proc").and_then(|()| archive.file("init", 0o755, init));
            pack.and_then(|()| archive.finish()).map_err(|e| LabError::system("pack", "the guest's init", e))
        };
        write_whole(lock, &folder.join("initrd-init"), &[&alone(&init)?])?;
        write_whole(lock, &folder.join("initrd-count"), &[&alone(&count)?])?;
        write_whole(lock, &folder.join("initrd"), &[&base, &tools])?;
    }
    // The date says when it was last used, for `sweep`.
    let opened = fs::File::open(&folder).and_then(|file| file.set_modified(SystemTime::now()));
    opened.map_err(LabError::path("date", &folder))?;
    Ok(folder)
}

/// Puts a file there as well: by a hard link, or by a copy from another file system.
fn place(from: &Path, to: &Path) -> Result<(), LabError> {
    let again = || {
        if to.exists() {
            fs::remove_file(to)?;
        }
        fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(|_| ()))
    };
    again().map_err(LabError::path("write", to))
}

/// Removes guests that no lab used for a week: each build of the lab's programs makes another.
fn sweep(guests: &Path) {
    let week = Duration::from_secs(7 * 24 * 3600);
    let Ok(folders) = fs::read_dir(guests) else { return };
    for entry in folders.flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|date| date.elapsed().ok());
        if age.is_some_and(|age| age > week)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            eprintln!("lab: cannot remove {}, which is no longer used: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_where_one_part_ends() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"ab", b"c"]), key(&[b"ab", b"c"]));
        assert_eq!(key(&[]).len(), 32);
    }
}
