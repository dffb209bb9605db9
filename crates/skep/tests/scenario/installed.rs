//! An installed Debian: systemd, the stock kernel with its initramfs, and a root file system on a disk.
//!
//! Made once from Debian's packages and kept in the lab's cache. `cargo xtask setup tests` installs what that needs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages beside the minimal set: an init, its bus (logind hears the power button over it), a kernel, and what the
/// kernel's initramfs checks the root file system with.
const PACKAGES: &str = "systemd-sysv,dbus,linux-image-amd64,initramfs-tools,kmod,udev,e2fsprogs,login";

/// Room for the system and for what it writes.
const SIZE: &str = "1400M";

/// The system's disk image, and its kernel and initramfs beside it.
pub struct Installed {
    folder: PathBuf,
}

impl Installed {
    /// Finds the system in the cache, or makes it, which takes some minutes.
    pub fn prepare() -> Installed {
        let all = lab::cache().unwrap().join("installed");
        fs::create_dir_all(&all).unwrap();
        // Tests that run at once wait for the one that makes it.
        let lock = File::create(all.join("lock")).unwrap();
        lock.lock().unwrap();
        let folder = all.join(format!("debian-{}", key()));
        if !folder.join("initrd").is_file() {
            let unfinished = tempfile::tempdir_in(&all).unwrap();
            make(unfinished.path());
            // Those of older descriptions are in nobody's use, and large.
            for old in fs::read_dir(&all).unwrap().flatten() {
                if old.file_name().to_string_lossy().starts_with("debian-") {
                    fs::remove_dir_all(old.path()).unwrap();
                }
            }
            fs::rename(unfinished.keep(), &folder).unwrap();
        }
        Installed { folder }
    }

    /// The folder with `vmlinuz` and `initrd`, to be shared with the emulated host.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A copy of the disk that one test may change: sparse, in a file of its own.
    pub fn copy(&self, to: &Path) {
        run(Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(self.folder.join("root.img"))
            .arg(to));
    }
}

/// Changes with what the system is made of.
fn key() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut key = DefaultHasher::new();
    (suite(), PACKAGES, SIZE, HOOK).hash(&mut key);
    format!("{:016x}", key.finish())
}

/// Debian's release here, which the packages come from.
fn suite() -> String {
    let facts = fs::read_to_string("/etc/os-release").unwrap();
    let name = facts.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.expect("this is no Debian").to_owned()
}

/// What an installer would ask: who may log in, the name, the root file system, and whether the initramfs has the
/// drivers of all machines or of this one.
const HOOK: &str = "chroot \"$1\" passwd -q -d root
    echo MODULES=list > \"$1/etc/initramfs-tools/conf.d/drivers\"
    printf '%s\\n' virtio_pci virtio_blk nvme ahci sd_mod ext4 crc32c_generic >> \"$1/etc/initramfs-tools/modules\"
    chroot \"$1\" update-initramfs -u
    echo installed > \"$1/etc/hostname\"
    echo '/dev/disk/by-label/root / ext4 defaults 0 1' > \"$1/etc/fstab\"
    rm -rf \"$1\"/var/cache/apt/* \"$1\"/usr/share/doc/* \"$1\"/usr/share/locale/*";

fn make(folder: &Path) {
    let root = folder.join("root");
    eprintln!("making an installed Debian from its packages (about 150 MB), once");
    run(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")])
        .arg(format!("--customize-hook={HOOK}"))
        .args([suite().as_str()])
        .arg(&root));
    for name in ["vmlinuz", "initrd"] {
        // The links at the root name the newest kernel's files.
        let link = root.join(if name == "initrd" { "initrd.img" } else { name });
        let target = fs::read_link(&link).unwrap_or_else(|error| panic!("{}: {error}", link.display()));
        fs::copy(root.join(target.strip_prefix("/").unwrap_or(&target)), folder.join(name)).unwrap();
    }
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", "root", "-d"])
        .arg(&root)
        .arg(folder.join("root.img"))
        .arg(SIZE));
    fs::remove_dir_all(&root).unwrap();
}

fn run(command: &mut Command) {
    let name = command.get_program().to_string_lossy().into_owned();
    let said = command.output().unwrap_or_else(|error| {
        panic!("cannot start {name} ({error}). Get it with: cargo xtask setup tests")
    });
    assert!(
        said.status.success(),
        "{name} failed ({}): {}",
        said.status,
        String::from_utf8_lossy(&said.stderr)
    );
}
