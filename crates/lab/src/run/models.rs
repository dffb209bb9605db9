//! What devices the emulator knows: asked before the boot, so that one it does not know is refused by its name.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{Lab, LabError, process};

/// QEMU answers at once; on a machine that is very busy it may take a while.
const LIMIT: Duration = Duration::from_secs(60);

/// Devices that came with a later QEMU than a user may have: the model, and the version.
const SINCE: [(&str, &str); 1] = [("igb", "8.0")];

/// Asks the emulator for its models, if devices are asked for, and refuses those that are not among them.
pub fn check(lab: &Lab, qemu: &Path) -> Result<(), LabError> {
    if lab.devices.is_empty() {
        return Ok(());
    }
    let list = ask(qemu, &["-device", "help"])?;
    let unknown = lab.devices.iter().map(crate::Device::model).find(|model| !knows(&list, model));
    let Some(model) = unknown else { return Ok(()) };
    let version = version(&ask(qemu, &["--version"])?);
    Err(LabError::NoModel {
        model: model.to_owned(),
        qemu: qemu.to_owned(),
        version,
        hint: hint(&list, model, qemu),
    })
}

fn ask(qemu: &Path, arguments: &[&str]) -> Result<String, LabError> {
    let said =
        process::run(Command::new(qemu).args(arguments), LIMIT).map_err(LabError::path("start", qemu))?;
    if !said.success() {
        return Err(LabError::Qemu {
            status: said.status.map_or_else(|| "stopped".to_owned(), |status| status.to_string()),
            message: format!("{} {} ended with: {}", qemu.display(), arguments.join(" "), said.reason()),
            hint: "Name a QEMU that works with SKEP_LAB_QEMU.",
        });
    }
    Ok(said.stdout)
}

/// Whether the list of `-device help` has the model, by its name or by another name for it.
fn knows(list: &str, model: &str) -> bool {
    names(list).any(|name| name == model)
}

/// The names in lines such as `name "e1000e", bus PCI, desc "Intel 82574L"` and `name "virtio-blk-pci", bus PCI, alias
/// "virtio-blk"`.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter(|line| line.starts_with("name \"")).flat_map(|line| {
        ["name \"", ", alias \""]
            .into_iter()
            .filter_map(|before| Some(line.split_once(before)?.1.split_once('"')?.0))
    })
}

/// `7.2.22` out of `QEMU emulator version 7.2.22 (Debian …)`.
fn version(text: &str) -> String {
    let after = text.split_once("version ").map_or(text, |(_, after)| after);
    after.split([' ', '\n']).next().unwrap_or_default().to_owned()
}

fn hint(list: &str, model: &str, qemu: &Path) -> String {
    if let Some((_, since)) = SINCE.iter().find(|(name, _)| *name == model) {
        return format!(
            "QEMU has it from version {since} on. Install a newer one (on Debian 12, as root: apt-get install -y -t \
             bookworm-backports qemu-system-x86), or name it with SKEP_LAB_QEMU"
        );
    }
    let alike = names(list).find(|name| name.eq_ignore_ascii_case(model));
    match alike {
        Some(alike) => format!("Did you mean {alike}?"),
        None => format!("List its devices with: {} -device help", qemu.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    const LIST: &str = "Network devices:\nname \"e1000e\", bus PCI, desc \"Intel 82574L GbE Controller\"\n\
                        Storage devices:\nname \"virtio-blk-pci\", bus PCI, alias \"virtio-blk\"\n";

    /// A program that answers as QEMU 7.2 does.
    fn emulator(folder: &Path, script: &str) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("qemu");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn checked(models: &[&str]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "#!/bin/sh\nif [ $1 = --version ]; then echo 'QEMU emulator version 7.2.22 (Debian 1:7.2)'; exit; fi\n\
             cat <<'END'\n{LIST}END\n"
        );
        let qemu = emulator(folder.path(), &script);
        let devices = models.iter().map(|model| model.parse::<Device>().unwrap());
        let lab = devices.fold(Lab::builder(), crate::Builder::device).build();
        check(&lab, &qemu).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_that_the_emulator_lists_are_taken_by_either_of_their_names() {
        assert_eq!(checked(&["e1000e", "virtio-blk-pci", "virtio-blk"]), Ok(()));
    }

    #[test]
    fn a_device_of_a_later_emulator_is_refused_with_both_versions() {
        let why = checked(&["e1000e", "igb"]).unwrap_err();
        for word in ["igb", "7.2.22", "from version 8.0 on", "SKEP_LAB_QEMU"] {
            assert!(why.contains(word), "no {word} in: {why}");
        }
    }

    #[test]
    fn a_device_that_no_emulator_has_is_refused_with_the_way_to_the_list() {
        let why = checked(&["no-such-card"]).unwrap_err();
        assert!(
            why.contains("no-such-card") && why.contains("-device help") && !why.contains("from version"),
            "{why}"
        );
        assert!(checked(&["E1000E"]).unwrap_err().contains("Did you mean e1000e?"));
    }

    #[test]
    fn a_part_of_a_name_or_of_a_description_is_no_device() {
        for model in ["e1000", "PCI", "GbE"] {
            assert!(checked(&[model]).is_err(), "{model}");
        }
    }

    #[test]
    fn an_emulator_that_gives_no_list_is_an_error_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = emulator(folder.path(), "#!/bin/sh\necho 'no such library' >&2\nexit 127\n");
        let lab = Lab::builder().build();
        let why = check(&lab, &qemu).unwrap_err().to_string();
        assert!(why.contains("no such library") && why.contains("SKEP_LAB_QEMU"), "{why}");
    }
}
