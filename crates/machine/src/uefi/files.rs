//! The files of a firmware: found, opened, and of one build. All that is wrong with them is found at once.

use std::path::{Path, PathBuf};

use boot::firmware::{self, Code, Damaged, FindError, FirmwareError, Keys, SecureBoot, VariableStore};
use config::{BootFirmware, FirmwareImage, VmName};

use super::UefiError;
use super::variables::{Origin, Variables, as_long_as};
use crate::kept;

/// The files of a VM's firmware, each what it should be.
#[derive(Debug)]
pub struct Files {
    /// What the CPU executes.
    pub code: Code,
    /// What it remembers.
    pub variables: Variables,
    /// Who may say what it starts, or why it would not find all of its variables.
    pub secure_boot: Result<SecureBoot, Damaged>,
}

impl Files {
    /// Finds those that the description names, or that this host has. What is wrong with one does not hide what is wrong with the
    /// others.
    pub fn check(described: &BootFirmware, name: &VmName) -> Result<Files, Vec<UefiError>> {
        let mut wrong = Wrong::default();
        let keys = if described.secure_boot { Keys::Enrolled } else { Keys::None };
        let paths = wrong.keep(Paths::of(&described.image, keys));
        let code = paths.as_ref().and_then(|paths| wrong.keep(paths.code(keys)));
        let path = variables_of(described, name);
        let templates = paths.as_ref().map_or_else(firmware::templates, Paths::templates);
        let there = wrong.keep(Variables::there(&path, &templates));
        let new = matches!(there, Some(None));
        let template =
            paths.as_ref().and_then(|paths| match paths.template.as_deref().map(VariableStore::template) {
                // Nothing is copied from it where the VM has its own; but what a person names is looked at.
                Some(Err(_)) if !(new || paths.names_template()) => None,
                Some(opened) => wrong.keep(opened),
                None if new && code.is_some() => wrong.keep(Err(paths.no_template(keys))),
                None => None,
            });
        let template = match (&code, template) {
            (Some(code), Some(template)) => {
                wrong.keep(firmware::together(code, &template)).map(|()| template)
            }
            (_, template) => template,
        };
        let variables = match (there, template) {
            (Some(Some(own)), Some(template)) => {
                wrong.keep(as_long_as(own.store(), template.len())).map(|()| own)
            }
            (Some(Some(own)), None) => match &code {
                Some(code) => wrong.keep(firmware::together(code, own.store())).map(|()| own),
                None => Some(own),
            },
            (Some(None), Some(template)) => wrong.keep(Variables::copied_from(template, &path)),
            _ => None,
        };
        let secure_boot = variables.as_ref().map(Variables::secure_boot);
        if let (Keys::Enrolled, Some(variables), Some(secure_boot)) = (keys, &variables, &secure_boot) {
            wrong.keep(with_keys(variables, secure_boot));
        }
        match (code, variables, secure_boot) {
            (Some(code), Some(variables), Some(secure_boot)) if wrong.0.is_empty() => {
                Ok(Files { code, variables, secure_boot })
            }
            _ => Err(wrong.0),
        }
    }
}

/// Whether variables turn Secure Boot on.
fn with_keys(variables: &Variables, secure_boot: &Result<SecureBoot, Damaged>) -> Result<(), UefiError> {
    let path = variables.store().path().to_path_buf();
    Err(match (secure_boot, variables.origin()) {
        (Ok(SecureBoot::On | SecureBoot::ByTestKey), _) => return Ok(()),
        (Ok(SecureBoot::Off), Origin::Own) => UefiError::NoKeys(path),
        (Ok(SecureBoot::Off), Origin::Template) => UefiError::TemplateWithoutKeys(path),
        (Err(damaged), _) => UefiError::DamagedKeys { path, damaged: damaged.clone() },
    })
}

/// Where a VM of this name has its variables: in the file that is described, or below what VMs keep.
pub fn variables_of(described: &BootFirmware, name: &VmName) -> PathBuf {
    let named = described.variables.as_ref().map(|path| path.as_path().to_path_buf());
    named.unwrap_or_else(|| kept::folder(name).join(kept::VARIABLES))
}

/// What was found to be wrong.
#[derive(Default)]
struct Wrong(Vec<UefiError>);

impl Wrong {
    fn keep<T>(&mut self, result: Result<T, impl Into<UefiError>>) -> Option<T> {
        result.map_err(|error| self.0.push(error.into())).ok()
    }
}

/// Where a firmware is.
struct Paths<'a> {
    image: &'a FirmwareImage,
    code: PathBuf,
    /// What new variables are copied from; `None` if nothing beside the code looks like it.
    template: Option<PathBuf>,
}

impl Paths<'_> {
    fn of(image: &FirmwareImage, keys: Keys) -> Result<Paths<'_>, FindError> {
        Ok(match image {
            FirmwareImage::Installed => {
                let found = firmware::find(keys)?;
                Paths { image, code: found.code, template: Some(found.vars) }
            }
            FirmwareImage::Files { code, variables } => {
                let code = code.as_path().to_path_buf();
                let given = variables.as_ref().map(|variables| variables.as_path().to_path_buf());
                Paths { image, template: given.or_else(|| beside(&code, keys)), code }
            }
        })
    }

    /// Whether a person named the template.
    fn names_template(&self) -> bool {
        matches!(self.image, FirmwareImage::Files { variables: Some(_), .. })
    }

    fn code(&self, keys: Keys) -> Result<Code, FirmwareError> {
        let code = Code::open(&self.code)?;
        match (self.image, keys) {
            // Its package says what it needs and what it can do.
            (FirmwareImage::Installed, _) => Ok(code),
            (FirmwareImage::Files { .. }, Keys::None) => code.without_smm(),
            (FirmwareImage::Files { .. }, Keys::Enrolled) => code.without_smm()?.with_secure_boot(),
        }
    }

    fn no_template(&self, keys: Keys) -> UefiError {
        match keys {
            Keys::None => UefiError::NoTemplate(self.code.clone()),
            Keys::Enrolled => UefiError::NoTemplateWithKeys(self.code.clone()),
        }
    }

    /// All files that variables of new VMs are copied from: this firmware's, and those that this host has. Where a person names one,
    /// what lies beside the code is none.
    fn templates(&self) -> Vec<PathBuf> {
        let beside = [Keys::None, Keys::Enrolled].into_iter().filter_map(|keys| beside(&self.code, keys));
        let beside = beside.filter(|_| !self.names_template());
        firmware::templates().into_iter().chain(beside).chain(self.template.clone()).collect()
    }
}

/// The variables beside a code: `…VARS…` for `…CODE…`, `vars` for `code`. Those with keys have ".ms" (Microsoft) in their names,
/// as their code may have.
fn beside(code: &Path, keys: Keys) -> Option<PathBuf> {
    let name = code.file_name()?.to_str()?;
    let with_keys = |name: String| match (keys, name.rsplit_once('.')) {
        // openSUSE's have "-ms-" before the rest.
        (Keys::Enrolled, Some((stem, extension))) if !stem.ends_with(".ms") && !stem.contains("-ms-") => {
            format!("{stem}.ms.{extension}")
        }
        _ => name,
    };
    // QEMU's own have the variables of both kinds of CPUs in one file.
    let qemus = name.replace("x86_64-code", "i386-vars").replace("x86_64-secure-code", "i386-vars");
    let names = [name.replace("CODE", "VARS"), name.replace("code", "vars"), qemus].map(with_keys);
    let mut paths = names.into_iter().filter(|other| other != name).map(|other| code.with_file_name(other));
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use config::{Distinct, HostPath};

    use super::super::variables::tests::store;
    use super::*;

    /// A volume of something else, with a jump where an x86 CPU starts.
    fn code(len: usize) -> Vec<u8> {
        let mut bytes = store(len);
        // Another file system, and the sum of the header's words as before.
        bytes[16..20].rotate_left(2);
        bytes[len - 14] = 0xe9;
        bytes
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(files: &[(&str, Vec<u8>)]) -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            files.iter().for_each(|(name, bytes)| fs::write(folder.0.path().join(name), bytes).unwrap());
            folder
        }

        fn path(&self, name: &str) -> HostPath {
            self.0.path().join(name).to_str().unwrap().parse().unwrap()
        }

        fn check(&self, code: &str, template: Option<&str>, own: &str) -> Result<Files, Vec<String>> {
            let image = FirmwareImage::Files {
                code: self.path(code),
                variables: template.map(|name| self.path(name)),
            };
            let described = BootFirmware {
                image,
                variables: Some(self.path(own)),
                secure_boot: false,
                menu: false,
                once: None,
                files: Distinct::default(),
            };
            let files = Files::check(&described, &VmName::default());
            files.map_err(|wrong| wrong.iter().map(ToString::to_string).collect())
        }

        fn wrong(&self, code: &str, template: Option<&str>, own: &str) -> Vec<String> {
            self.check(code, template, own).unwrap_err()
        }
    }

    #[test]
    fn what_is_wrong_with_each_file_is_found_at_once_and_nothing_that_follows_from_it() {
        let text = || vec![b'x'; 8192];
        let folder = Folder::with(&[("text", text()), ("code", code(8192)), ("vars", store(8192))]);
        let wrong = folder.wrong("none", Some("text"), "text");
        assert_eq!(wrong.len(), 3, "{wrong:#?}");
        assert!(wrong[0].contains("/none") && wrong[1].contains("variable store"), "{wrong:#?}");
        let wrong = folder.wrong("text", None, "code/own");
        assert_eq!(wrong.len(), 2, "that it has no template beside it follows from the first: {wrong:#?}");
        let wrong = folder.wrong("code", Some("none"), "code/own");
        assert!(wrong.len() == 2 && wrong[0].contains("Not a directory"), "{wrong:#?}");
    }

    #[test]
    fn a_template_is_needed_once_and_looked_at_whenever_a_person_names_it() {
        let folder = Folder::with(&[
            ("a.bin", code(8192)),
            ("template", store(8192)),
            ("own", store(8192)),
            ("short", store(4096)),
            ("text", vec![b'x'; 8192]),
        ]);
        let wrong = folder.wrong("a.bin", None, "new");
        assert!(wrong.len() == 1 && wrong[0].contains("vars=PATH"), "{wrong:#?}");
        assert_eq!(
            folder.check("a.bin", Some("template"), "new").unwrap().variables.origin(),
            Origin::Template
        );
        assert_eq!(folder.check("a.bin", None, "own").unwrap().variables.origin(), Origin::Own);
        let wrong = folder.wrong("a.bin", Some("text"), "own");
        assert!(wrong.len() == 1 && wrong[0].contains("/text is no variable store"), "{wrong:#?}");
        let wrong = folder.wrong("a.bin", Some("template"), "short");
        assert!(wrong.len() == 1 && wrong[0].contains("have 4096 bytes"), "{wrong:#?}");
        let wrong = folder.wrong("a.bin", None, "short");
        assert!(wrong.len() == 1 && wrong[0].contains("no power of two"), "{wrong:#?}");
    }

    #[test]
    fn variables_are_found_beside_their_code_by_the_names_that_distributions_use() {
        let folder = tempfile::tempdir().unwrap();
        let names = [
            "edk2-i386-vars.fd",
            "OVMF_VARS_4M.fd",
            "OVMF_VARS_4M.ms.fd",
            "edk2-vars.fd",
            "OVMF_VARS.4m.fd",
            "ovmf-x86_64-ms-4m-vars.bin",
        ];
        names.into_iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let beside = |code: &str, keys| {
            let path = beside(&folder.path().join(code), keys)?;
            Some(path.file_name()?.to_str()?.to_owned())
        };
        for (code, keys, variables) in [
            ("OVMF_CODE_4M.fd", Keys::None, Some("OVMF_VARS_4M.fd")),
            ("OVMF_CODE_4M.fd", Keys::Enrolled, Some("OVMF_VARS_4M.ms.fd")),
            ("OVMF_CODE_4M.ms.fd", Keys::Enrolled, Some("OVMF_VARS_4M.ms.fd")),
            ("OVMF_CODE_4M.ms.fd", Keys::None, Some("OVMF_VARS_4M.ms.fd")),
            ("edk2-code.fd", Keys::None, Some("edk2-vars.fd")),
            ("edk2-x86_64-code.fd", Keys::None, Some("edk2-i386-vars.fd")),
            ("OVMF_CODE.4m.fd", Keys::None, Some("OVMF_VARS.4m.fd")),
            ("ovmf-x86_64-ms-4m-code.bin", Keys::Enrolled, Some("ovmf-x86_64-ms-4m-vars.bin")),
            ("OVMF.fd", Keys::None, None),
        ] {
            assert_eq!(beside(code, keys).as_deref(), variables, "{code} {keys:?}");
        }
    }
}
