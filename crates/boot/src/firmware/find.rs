//! Which firmware this host has: by the descriptors that its packages leave (QEMU, docs/interop/firmware.json), or in the
//! places that distributions use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Folders of descriptors; a file of the same name in an earlier one counts alone.
const DESCRIPTORS: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];
/// The machine whose firmware fits skep's, as descriptors name machines.
const MACHINE: &str = "pc-i440fx-7.2";
/// A descriptor is no longer.
const DESCRIPTOR_MAX: u64 = 64 << 10;

/// Code and variables where distributions put them: Debian and its kin, Fedora, Arch, QEMU's own.
const PLACES: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// The same where new variables have keys for Secure Boot. The code is that without SMM, which can do it as well.
const PLACES_WITH_KEYS: [(&str, &str); 1] =
    [("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd")];

/// Whether new variables have keys for Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// None: anything is started.
    None,
    /// Those that the distribution put there: only what is signed is started.
    Enrolled,
}

/// A firmware: its code and the template of its variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The code.
    pub code: PathBuf,
    /// What the variables of a new VM are copied from.
    pub vars: PathBuf,
}

/// There is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// At all.
    #[error(
        "this host has no UEFI firmware for guests: nothing in {} or in the usual places fits. Install it (Debian: apt-get \
         install ovmf; Fedora: dnf install edk2-ovmf; Arch: pacman -S edk2-ovmf), name its file (--firmware PATH), or boot a \
         kernel without it (--kernel PATH).",
        DESCRIPTORS.join(", ")
    )]
    None,
    /// That can do Secure Boot here.
    #[error(
        "this host has no UEFI firmware for Secure Boot without SMM, which skep does not have: nothing in {} or in the usual \
         places fits. Install Debian's package ovmf, name the files of such a firmware (--firmware PATH,vars=PATH, with variables \
         that have keys), or leave --secure-boot out.",
        DESCRIPTORS.join(", ")
    )]
    NoneWithKeys,
}

/// Finds a firmware on this host.
pub fn find(keys: Keys) -> Result<Found, FindError> {
    find_below(Path::new("/"), keys)
}

fn find_below(root: &Path, keys: Keys) -> Result<Found, FindError> {
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    let there = |found: &Found| found.code.is_file() && found.vars.is_file();
    let described = descriptors(&within).into_iter().filter_map(|path| described(&path, keys));
    let described = described.map(|(code, vars)| Found { code: within(&code), vars: within(&vars) });
    let (places, none) = match keys {
        Keys::None => (&PLACES[..], FindError::None),
        Keys::Enrolled => (&PLACES_WITH_KEYS[..], FindError::NoneWithKeys),
    };
    let usual = places.iter().map(|(code, vars)| Found { code: within(code), vars: within(vars) });
    described.chain(usual).find(there).ok_or(none)
}

/// All files on this host that variables of new VMs are copied from, be it for skep's VMs or for others.
pub fn templates() -> Vec<PathBuf> {
    templates_below(Path::new("/"))
}

fn templates_below(root: &Path) -> Vec<PathBuf> {
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    let described = descriptors(&within).into_iter().filter_map(|path| match descriptor(&path)?.mapping {
        Mapping::Flash { nvram_template, .. } => Some(within(&nvram_template.filename)),
        Mapping::Other => None,
    });
    let usual = PLACES.iter().chain(&PLACES_WITH_KEYS).map(|(_, vars)| within(vars));
    let named: Vec<PathBuf> = described.chain(usual).filter(|path| path.is_file()).collect();
    // Packages have more of them than descriptors name.
    let packages = root.join("usr");
    let folders: BTreeSet<&Path> = named
        .iter()
        .filter_map(|path| path.parent())
        .filter(|folder| folder.starts_with(&packages))
        .collect();
    let entries = folders.into_iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let beside = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.contains("vars") && path.is_file()
    });
    beside.chain(named.iter().cloned()).collect()
}

/// All descriptors, in the order of their names, which is that of preference.
fn descriptors(within: &impl Fn(&str) -> PathBuf) -> Vec<PathBuf> {
    let mut by_name = BTreeMap::new();
    for folder in DESCRIPTORS {
        let entries = fs::read_dir(within(folder)).into_iter().flatten().flatten();
        for entry in
            entries.filter(|entry| Path::new(&entry.file_name()).extension().is_some_and(|ext| ext == "json"))
        {
            by_name.entry(entry.file_name()).or_insert(entry.path());
        }
    }
    by_name.into_values().collect()
}

/// One that cannot be read, or is empty (which hides another), describes nothing.
fn descriptor(path: &Path) -> Option<Descriptor> {
    let mut text = String::new();
    if !path.is_file() {
        return None;
    }
    fs::File::open(path).ok()?.take(DESCRIPTOR_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// The files of a descriptor that fits.
fn described(path: &Path, keys: Keys) -> Option<(String, String)> {
    let descriptor = descriptor(path)?;
    let Mapping::Flash { executable, nvram_template } = &descriptor.mapping else { return None };
    let raw = |file: &File| file.format.as_deref().unwrap_or("raw") == "raw";
    let fits = descriptor.interface_types.iter().any(|kind| kind == "uefi")
        && descriptor.targets.iter().any(Target::fits)
        && !descriptor.has("requires-smm")
        && descriptor.has("enrolled-keys") == (keys == Keys::Enrolled)
        && [executable, nvram_template].into_iter().all(raw);
    fits.then(|| (executable.filename.clone(), nvram_template.filename.clone()))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

impl Descriptor {
    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|other| other == feature)
    }
}

#[derive(Deserialize)]
#[serde(tag = "device", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum Mapping {
    Flash {
        executable: File,
        nvram_template: File,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct File {
    filename: String,
    format: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Target {
    fn fits(&self) -> bool {
        // Patterns of fnmatch(3); a star at the end is all that is in use.
        let machine = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => MACHINE.starts_with(start),
            None => MACHINE == pattern,
        };
        self.architecture == "x86_64" && self.machines.iter().any(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn with(files: &[(&str, &str)]) -> Root {
            let root = Root(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = root.0.path().join(path.trim_start_matches('/'));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            root
        }

        fn find(&self) -> Option<(String, String)> {
            self.find_with(Keys::None)
        }

        fn find_with(&self, keys: Keys) -> Option<(String, String)> {
            let found = find_below(self.0.path(), keys).ok()?;
            let path = |path: PathBuf| format!("/{}", path.strip_prefix(self.0.path()).unwrap().display());
            Some((path(found.code), path(found.vars)))
        }
    }

    fn descriptor(code: &str, machine: &str, features: &str) -> String {
        format!(
            r#"{{"description": "a", "interface-types": ["uefi"],
            "mapping": {{"device": "flash", "executable": {{"filename": "{code}", "format": "raw"}},
                         "nvram-template": {{"filename": "{code}.vars", "format": "raw"}}}},
            "targets": [{{"architecture": "x86_64", "machines": ["{machine}"]}}], "features": [{features}], "tags": []}}"#
        )
    }

    fn pair(code: &str) -> Option<(String, String)> {
        Some((code.to_owned(), format!("{code}.vars")))
    }

    #[test]
    fn the_first_descriptor_that_fits_counts_and_one_in_etc_hides_that_of_the_package() {
        let package = |name: &str| format!("/usr/share/qemu/firmware/{name}");
        let smm = descriptor("/fw/smm", "pc-i440fx-*", r#""requires-smm", "secure-boot""#);
        let q35 = descriptor("/fw/q35", "pc-q35-*", "");
        let [good, late, own] =
            ["/fw/good", "/fw/late", "/fw/own"].map(|code| descriptor(code, "pc-i440fx-*", ""));
        let files = [
            (package("10-smm.json"), smm),
            (package("15-keys.json"), descriptor("/fw/keys", "pc-i440fx-*", r#""enrolled-keys""#)),
            (package("20-q35.json"), q35),
            (package("30-gone.json"), descriptor("/fw/gone", "pc-i440fx-*", "")),
            (package("40-broken.json"), "{".to_owned()),
            (package("50-good.json"), good),
            (package("60-late.json"), late),
        ];
        let mut files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&**path, &**text)).collect();
        for code in ["/fw/smm", "/fw/keys", "/fw/q35", "/fw/good", "/fw/late", "/fw/own"] {
            files.push((code, ""));
        }
        let vars = ["/fw/smm", "/fw/keys", "/fw/q35", "/fw/good", "/fw/late", "/fw/own"]
            .map(|code| format!("{code}.vars"));
        files.extend(vars.iter().map(|path| (&**path, "")));
        assert_eq!(Root::with(&files).find(), pair("/fw/good"));
        assert_eq!(Root::with(&files).find_with(Keys::Enrolled), pair("/fw/keys"));
        let root = Root::with(&files);
        let templates = templates_below(root.0.path());
        for code in ["/fw/smm", "/fw/keys", "/fw/q35", "/fw/good", "/fw/late"] {
            assert!(templates.contains(&root.0.path().join(format!("{}.vars", &code[1..]))), "{templates:?}");
        }
        assert_eq!(templates.len(), 5, "/fw/own has no descriptor, and /fw/gone is not there");
        files.push(("/etc/qemu/firmware/50-good.json", &own));
        assert_eq!(Root::with(&files).find(), pair("/fw/own"));
        files.pop();
        files.push(("/etc/qemu/firmware/50-good.json", ""));
        assert_eq!(Root::with(&files).find(), pair("/fw/late"), "an empty file hides one");
    }

    #[test]
    fn without_descriptors_the_usual_places_are_looked_at() {
        let debian = [("/usr/share/OVMF/OVMF_CODE_4M.fd", ""), ("/usr/share/OVMF/OVMF_VARS_4M.fd", "")];
        let mut more = debian.to_vec();
        more.push(("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd", ""));
        let root = Root::with(&more);
        let templates = templates_below(root.0.path());
        for (path, is_one) in [(more[0].0, false), (more[1].0, true), (more[2].0, true)] {
            assert_eq!(templates.contains(&root.0.path().join(&path[1..])), is_one, "{path}");
        }
        let found = Root::with(&debian).find().unwrap();
        assert_eq!((&*found.0, &*found.1), (debian[0].0, debian[1].0));
        let error = |keys| find_below(Root::with(&[]).0.path(), keys).unwrap_err().to_string();
        let none = error(Keys::None);
        assert!(none.contains("apt-get install ovmf") && none.contains("--firmware PATH"), "{none}");
        assert!(error(Keys::Enrolled).contains("leave --secure-boot out"));
        let with_keys = ("/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "");
        let found = Root::with(&[debian[0], with_keys]).find_with(Keys::Enrolled).unwrap();
        assert_eq!((&*found.0, &*found.1), (debian[0].0, with_keys.0));
    }
}
