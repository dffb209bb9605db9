//! Modules of a kernel and what they stand on, from depmod's `modules.dep` and `modules.alias`.

use std::collections::{BTreeMap, BTreeSet};

/// A module's name as the kernel writes it: `-` and `_` are the same to it.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in this file: `kernel/fs/9p/9p.ko.xz` is `9p`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

/// `modules.dep`: every module's file, and the modules that it needs.
#[derive(Debug, Default)]
pub struct Dependencies {
    modules: BTreeMap<String, Module>,
}

/// One line of `modules.dep`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    path: String,
    needs: Vec<String>,
}

impl Dependencies {
    /// Understands `modules.dep`: `path: path path`, where what stands last is needed first.
    pub fn parse(text: &str) -> Self {
        let modules = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().rev().map(name_of).collect();
                (name_of(path), Module { path: path.to_owned(), needs })
            })
            .collect();
        Dependencies { modules }
    }

    /// The module's file, relative to the folder of `modules.dep`.
    pub fn path(&self, name: &str) -> Option<&str> {
        self.modules.get(&canonical(name)).map(|module| module.path.as_str())
    }

    /// The modules of these names and all they need, each once, in an order in which they can be loaded.
    /// Names that this kernel does not have (or has built in) are left out.
    pub fn in_order<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&canonical(name), &mut seen, &mut order);
        }
        order
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
        let Some(module) = self.modules.get(name) else { return };
        if !seen.insert(name.to_owned()) {
            return;
        }
        for need in &module.needs {
            self.visit(need, seen, order);
        }
        order.push(name.to_owned());
    }

    /// `modules.dep` of these modules alone, all in one folder and unpacked: `a.ko: b.ko`.
    pub fn flat(&self, names: &[String]) -> String {
        let line = |name: &String| {
            let needs = self.modules.get(name).map(|module| module.needs.as_slice()).unwrap_or_default();
            let needs: String = needs.iter().rev().map(|need| format!(" {need}.ko")).collect();
            format!("{name}.ko:{needs}\n")
        };
        names.iter().map(line).collect()
    }
}

/// `modules.alias`: which module drives which device.
#[derive(Debug, Default)]
pub struct Aliases {
    patterns: Vec<(String, String)>,
}

impl Aliases {
    /// Understands `modules.alias`: `alias PATTERN MODULE`.
    pub fn parse(text: &str) -> Self {
        let patterns = text
            .lines()
            .filter_map(|line| {
                let mut words = line.strip_prefix("alias ")?.split_whitespace();
                Some((words.next()?.to_owned(), canonical(words.next()?)))
            })
            .collect();
        Aliases { patterns }
    }

    /// The modules that say they drive a device with this `modalias`.
    pub fn drivers<'a>(&'a self, modalias: &'a str) -> impl Iterator<Item = &'a str> {
        self.patterns
            .iter()
            .filter(move |(pattern, _)| matches(pattern.as_bytes(), modalias.as_bytes()))
            .map(|(_, module)| module.as_str())
    }

    /// The lines about these modules alone.
    pub fn only(&self, names: &[String]) -> String {
        let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        self.patterns
            .iter()
            .filter(|(_, module)| names.contains(module.as_str()))
            .map(|(pattern, module)| format!("alias {pattern} {module}\n"))
            .collect()
    }
}

/// Whether `text` matches a shell pattern with `*`, `?` and `[a-b]`, as in `modules.alias`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(_) if t == text.len() => None,
            Some(b'?') => Some(1),
            Some(b'[') => set(&pattern[p..], text[t]),
            Some(byte) if *byte == text[t] => Some(1),
            None if t == text.len() => return true,
            _ => None,
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            // Let the last star take one more, or give up.
            (None, Some((after, taken))) if taken < text.len() => {
                star = Some((after, taken + 1));
                (p, t) = (after, taken + 1);
            }
            (None, _) => return false,
        }
    }
}

/// If the set at the start of `pattern` holds `byte`, the set's width.
fn set(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|b| *b == b']')?;
    let mut inside = &pattern[1..end];
    while let [first, rest @ ..] = inside {
        let (last, next) = match rest {
            [b'-', last, rest @ ..] => (last, rest),
            _ => (first, rest),
        };
        if (first..=last).contains(&&byte) {
            return Some(end + 1);
        }
        inside = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/ata/ahci.ko.xz: kernel/drivers/ata/libahci.ko.xz kernel/drivers/ata/libata.ko.xz kernel/drivers/scsi/scsi_mod.ko.xz
kernel/drivers/ata/libahci.ko.xz: kernel/drivers/ata/libata.ko.xz kernel/drivers/scsi/scsi_mod.ko.xz
kernel/drivers/ata/libata.ko.xz: kernel/drivers/scsi/scsi_mod.ko.xz
kernel/drivers/scsi/scsi_mod.ko.xz:
kernel/drivers/scsi/sd_mod.ko.xz: kernel/drivers/scsi/scsi_mod.ko.xz
kernel/drivers/usb/storage/usb-storage.ko.xz: kernel/drivers/scsi/scsi_mod.ko.xz
";

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let order = Dependencies::parse(DEP).in_order(["ahci", "sd_mod", "usb-storage"]);
        assert_eq!(order, ["scsi_mod", "libata", "libahci", "ahci", "sd_mod", "usb_storage"]);
    }

    #[test]
    fn a_module_that_is_not_there_is_left_out() {
        assert_eq!(Dependencies::parse(DEP).in_order(["ext4", "scsi_mod"]), ["scsi_mod"]);
    }

    #[test]
    fn a_circle_ends() {
        let dependencies = Dependencies::parse("a.ko: b.ko\nb.ko: a.ko\n");
        assert_eq!(dependencies.in_order(["a"]), ["b", "a"]);
    }

    #[test]
    fn the_flat_list_means_the_same() {
        let whole = Dependencies::parse(DEP);
        let order = whole.in_order(["ahci"]);
        let flat = Dependencies::parse(&whole.flat(&order));
        assert_eq!(flat.in_order(["ahci"]), order);
        assert_eq!(flat.path("ahci"), Some("ahci.ko"));
        assert_eq!(whole.path("usb_storage"), Some("kernel/drivers/usb/storage/usb-storage.ko.xz"));
    }

    #[test]
    fn devices_find_their_drivers() {
        let aliases = Aliases::parse(
            "# comment\nalias pci:v*d*sv*sd*bc01sc06i01* ahci\nalias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n\
             alias usb:v0411p0105d01[0-4]* u\nalias virtio:d00000002v* virtio-blk\n",
        );
        let drivers = |modalias| aliases.drivers(modalias).collect::<Vec<_>>();
        assert_eq!(drivers("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"), ["ahci"]);
        assert_eq!(drivers("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00"), ["e1000e"]);
        assert_eq!(drivers("virtio:d00000002v00001AF4"), ["virtio_blk"]);
        assert_eq!(drivers("usb:v0411p0105d0133"), ["u"]);
        assert!(drivers("usb:v0411p0105d0153").is_empty());
        assert!(drivers("pci:").is_empty());
    }

    #[test]
    fn stars_may_take_nothing_or_much() {
        assert!(matches(b"a*b*c", b"abc") && matches(b"a*b*c", b"axxbxbxc") && matches(b"*", b""));
        assert!(!matches(b"a*b*c", b"acb") && !matches(b"", b"a") && !matches(b"a?", b"a"));
    }
}
