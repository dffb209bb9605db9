//! Disks with an installed Debian that plays its part in a scenario.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{ESP_AT, Installed, Loader, ROOT_AT};

const AT_BOOT: &str = include_str!("at-boot.sh");

/// The system in the lab's cache.
pub fn system() -> Installed {
    Installed::prepare().unwrap_or_else(|error| panic!("{error}"))
}

/// A disk of its own, as a file.
pub struct InstalledDisk(PathBuf);

impl InstalledDisk {
    /// A fresh copy in this folder, whose system does at boot what `at-boot.sh` says.
    pub fn new(folder: &Path, loader: Loader) -> InstalledDisk {
        let path = folder.join(format!("{loader}.img"));
        system().copy(loader, &File::create_new(&path).unwrap()).unwrap();
        let script = folder.join("at-boot");
        std::fs::write(&script, AT_BOOT).unwrap();
        let write = format!("write {} usr/local/sbin/at-boot", script.display());
        // debugfs succeeds also when it fails, and then names the file.
        let said = run(Command::new("debugfs").args(["-w", "-R", &write]).arg(at(&path, ROOT_AT)));
        assert!(!said.contains("usr/local"), "{said}");
        InstalledDisk(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Both file systems must be clean, as after a power-off.
    pub fn is_clean(&self) {
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(at(&self.0, ROOT_AT)));
        let esp = self.0.with_extension("esp");
        run(Command::new("dd")
            .args([
                "bs=1M",
                &format!("skip={}", ESP_AT >> 20),
                &format!("count={}", (ROOT_AT - ESP_AT) >> 20),
            ])
            .arg(format!("if={}", self.0.display()))
            .arg(format!("of={}", esp.display())));
        run(Command::new("fsck.vfat").arg("-n").arg(esp));
    }
}

/// A file system within an image, as e2fsprogs name it.
fn at(image: &Path, offset: u64) -> String {
    format!("{}?offset={offset}", image.display())
}

/// What a command says, which must succeed.
fn run(command: &mut Command) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let said = command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}. Get it with: cargo xtask setup tests"));
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{command:?} ({}): {text}", said.status);
    text
}
