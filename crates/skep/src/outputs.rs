//! The files that a run writes: none of them may be one that it reads, or another one that it writes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use config::{BootFirmware, Chain, Console, DiskSource, Draft, FirmwareImage, FwCfgContent, Rom};

/// What makes two paths the same file.
#[derive(PartialEq, Eq)]
enum Identity {
    /// Device and number.
    There(u64, u64),
    /// Nothing is there yet.
    Missing(PathBuf),
}

/// `None` for what several may write (a terminal, /dev/null), and for what cannot be looked at, of which others tell.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(facts) if facts.file_type().is_char_device() => None,
        Ok(facts) => Some(Identity::There(facts.dev(), facts.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.ancestors().skip(1).find_map(|above| {
            let there = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            Some(Identity::Missing(there.canonicalize().ok()?.join(path.strip_prefix(above).ok()?)))
        }),
        Err(_) => None,
    }
}

/// A path without links, be the file there or not.
fn place(path: &Path) -> Option<PathBuf> {
    match identity(path)? {
        Identity::There(..) => path.canonicalize().ok(),
        Identity::Missing(place) => Some(place),
    }
}

/// The files of a run that its description does not name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The description's own, which is read.
    pub config: Option<&'a Path>,
    /// The report, which is written.
    pub report: Option<&'a Path>,
}

/// The files that this process has open.
pub struct OpenFiles(HashMap<u32, Identity>);

impl OpenFiles {
    /// Those of now.
    pub fn now() -> OpenFiles {
        let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| {
            let facts = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file)?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, Identity::There(facts.dev(), facts.ino())))
        });
        OpenFiles(files.collect())
    }

    /// A sentence for each file that the run would write over one that was opened since `before`: a part of a disk, of whatever image
    /// names it.
    pub fn overwritten(&self, before: &OpenFiles, written: &[Written]) -> Vec<String> {
        let new = |identity: &Identity| {
            self.0.iter().any(|(number, open)| open == identity && !before.0.contains_key(number))
        };
        let found =
            written.iter().filter(|output| identity(&output.path).is_some_and(|identity| new(&identity)));
        let sentence = |Written { what, .. }: &Written| {
            format!(
                "{what} is a file that a disk or another part of this VM consists of, and would overwrite it. Give another path."
            )
        };
        found.map(sentence).collect()
    }
}

/// A file that a run writes besides its disks and variables.
pub struct Written {
    what: String,
    path: PathBuf,
}

/// What a run writes besides its disks and variables.
pub fn written(draft: &Draft, beside: Beside<'_>) -> Vec<Written> {
    let console = match &draft.console {
        Some(Console::File(path)) => Some((format!("the console's file {path}"), path.as_path())),
        Some(Console::Socket(path)) => Some((format!("the console's socket {path}"), path.as_path())),
        Some(Console::Stdio) | None => None,
    };
    let report = beside.report.map(|path| (format!("the report {}", path.display()), path));
    let written = |(what, path): (_, &Path)| Written { what, path: path.to_owned() };
    console.into_iter().chain(report).map(written).collect()
}

/// A sentence for each file that the run would write over another of its files, or over what VMs keep.
pub fn overwritten(draft: &Draft, beside: Beside<'_>, written: &[Written]) -> Vec<String> {
    let mut files: Vec<(String, &Path)> = Vec::new();
    files.extend(beside.config.map(|path| (format!("the description {}", path.display()), path)));
    files.extend(draft.kernel.iter().map(|path| (format!("the kernel {path}"), path.as_path())));
    files.extend(draft.initrd.iter().map(|path| (format!("the initrd {path}"), path.as_path())));
    files.extend(draft.disks.iter().filter_map(|disk| match &disk.source {
        DiskSource::File(file) => Some((format!("disk {}", file.path), file.path.as_path())),
        _ => None,
    }));
    for disk in &draft.disks {
        let DiskSource::File(file) = &disk.source else { continue };
        files.extend(file.chain.iter().filter_map(|link| match link {
            Chain::File(path) => {
                Some((format!("{path}, which disk {} is based on,", file.path), path.as_path()))
            }
            Chain::Follow => None,
        }));
    }
    files.extend(draft.firmware.iter().flat_map(of_firmware));
    files.extend(draft.assigned.iter().filter_map(|device| match &device.rom {
        Rom::File(path) => Some((format!("the option ROM {path}"), path.as_path())),
        Rom::Own | Rom::Off => None,
    }));
    let inputs = files.len();
    let own = draft.firmware.as_ref().zip(draft.name.as_ref());
    let own = own.map(|(firmware, name)| machine::variables_of(firmware, name));
    let own =
        own.as_deref().map(|path| (format!("the file of the firmware's variables {}", path.display()), path));
    files.extend(own);
    // That a VM's own variables are none of the templates is found where the firmware is.
    let looked_for = draft.firmware.is_some() && !written.is_empty();
    let templates = if looked_for { machine::templates() } else { Vec::new() };
    let templates: Vec<(String, &Path)> = templates
        .iter()
        .map(|path| (format!("the variable store {}", path.display()), path.as_path()))
        .collect();
    let people = files.len();
    files.extend(written.iter().map(|output| (output.what.clone(), &*output.path)));
    let mut found = Vec::new();
    for (index, (output, path)) in files.iter().enumerate().skip(inputs) {
        if index >= people && place(path).is_some_and(|place| machine::is_kept(&place)) {
            found.push(format!(
                "{output} is what a VM keeps for its next start, and would overwrite it. Give another path."
            ));
            continue;
        }
        let Some(own) = identity(path) else { continue };
        let templates = if index < people { &[][..] } else { &templates };
        let same =
            files[..index].iter().chain(templates).find(|(_, other)| identity(other).as_ref() == Some(&own));
        if let Some((other, _)) = same {
            found.push(format!(
                "{output} is the same file as {other}, and would overwrite it. Give another path."
            ));
        }
    }
    found
}

/// The files that firmware is copied from, and those that it passes on.
fn of_firmware(firmware: &BootFirmware) -> Vec<(String, &Path)> {
    let BootFirmware { image, files, .. } = firmware;
    let mut all = Vec::new();
    if let FirmwareImage::Files { code, variables } = image {
        all.push((format!("the firmware {code}"), code.as_path()));
        all.extend(variables.iter().map(|path| (format!("the variable store {path}"), path.as_path())));
    }
    all.extend(files.iter().filter_map(|file| match &file.content {
        FwCfgContent::File(path) => Some((format!("the fw-cfg file {path}"), path.as_path())),
        FwCfgContent::Text(_) => None,
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{Description, Key};

    fn all(draft: &Draft, beside: Beside<'_>) -> Vec<String> {
        overwritten(draft, beside, &written(draft, beside))
    }

    #[test]
    fn no_output_overwrites_what_firmware_devices_and_images_have() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        let flags = [
            (Key::Firmware, format!("{},vars={}", at("code"), at("template"))),
            (Key::FirmwareVars, at("own")),
            (Key::FwCfg, format!("opt/a,file={}", at("file"))),
            (Key::Assign, format!("0000:01:00.0,rom={}", at("rom"))),
            (Key::Disk, format!("{},format=qcow2,chain={}", at("image"), at("base"))),
        ];
        for name in ["code", "template", "own", "file", "rom", "image", "base"] {
            let report = at(name);
            let beside = Beside { report: Some(Path::new(&report)), ..Beside::default() };
            let found = all(&Description::read(None, &flags).draft, beside);
            assert!(found.len() == 1 && found[0].contains("would overwrite it"), "{name}: {found:?}");
        }
    }

    #[test]
    fn the_description_is_not_overwritten_and_the_firmwares_variables_are_an_output_too() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        let file = at("file");
        let beside = Beside { config: Some(Path::new(&file)), report: Some(Path::new(&file)) };
        let found = all(&Description::read(None, &[]).draft, beside);
        assert!(found.len() == 1 && found[0].contains("as the description"), "{found:?}");
        let flags = [(Key::FirmwareVars, at("file")), (Key::Disk, at("file"))];
        let found = all(&Description::read(None, &flags).draft, Beside::default());
        assert!(found.len() == 1 && found[0].contains("as disk"), "{found:?}");
    }

    #[test]
    fn no_output_overwrites_what_only_an_image_names() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().join("base");
        fs::write(&base, "data").unwrap();
        let beside = Beside { report: Some(&base), ..Beside::default() };
        let draft = Description::read(None, &[]).draft;
        let kept = fs::File::open(&base).unwrap();
        let before = OpenFiles::now();
        assert_eq!(
            OpenFiles::now().overwritten(&before, &written(&draft, beside)),
            [""; 0],
            "the report's own"
        );
        let layer = fs::File::open(&base).unwrap();
        let found = OpenFiles::now().overwritten(&before, &written(&draft, beside));
        assert!(found.len() == 1 && found[0].contains("consists of"), "{found:?}");
        drop((kept, layer));
    }

    #[test]
    fn the_variables_are_not_overwritten_where_no_file_of_theirs_is_named() {
        let flags = [(Key::Name, "nas".to_owned()), (Key::Firmware, "auto".to_owned())];
        let draft = Description::read(None, &flags).draft;
        let path = machine::variables_of(draft.firmware.as_ref().unwrap(), draft.name.as_ref().unwrap());
        let beside = Beside { report: Some(&path), ..Beside::default() };
        let found = all(&draft, beside);
        assert!(found.len() == 1 && found[0].contains("is what a VM keeps"), "{found:?}");
    }

    #[test]
    fn no_output_overwrites_a_disk_a_kernel_or_another_output() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("disk"), "data").unwrap();
        std::os::unix::fs::symlink("disk", at("link")).unwrap();
        let found = |console: String, report: &str| {
            let flags = [(Key::Kernel, at("kernel")), (Key::Disk, at("disk")), (Key::Console, console)];
            let beside = Beside { report: Some(Path::new(report)), ..Beside::default() };
            all(&Description::read(None, &flags).draft, beside)
        };
        let clash = found(format!("file:{}", at("link")), &at("kernel"));
        assert_eq!(clash.len(), 2, "{clash:?}");
        assert!(
            clash[0].contains("link is the same file as disk") && clash[1].contains("as the kernel"),
            "{clash:?}"
        );
        let clash = found(format!("file:{}", at("new")), &format!("{}/./new", place.path().display()));
        assert!(clash.len() == 1 && clash[0].contains("as the console's file"), "{clash:?}");
        let clash = found(format!("socket:{}", at("socket")), &at("socket"));
        assert!(clash.len() == 1 && clash[0].contains("as the console's socket"), "{clash:?}");
        assert_eq!(found("file:/dev/null".to_owned(), "/dev/null"), [""; 0]);
        assert_eq!(found(format!("file:{}", at("new")), &at("report")), [""; 0]);
    }
}
