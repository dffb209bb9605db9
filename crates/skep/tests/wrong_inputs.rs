//! Everything that is wrong with one command is in one report, and a start that is refused leaves all as it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder with files that a VM may be given.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        for (name, text) in [("text", "no image\n".repeat(1000)), ("empty", String::new())] {
            fs::write(place.at(name), text).unwrap();
        }
        fs::write(place.at("image"), [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 8184]].concat()).unwrap();
        for name in ["console", "report", "initrd"] {
            fs::write(place.at(name), format!("an earlier {name}")).unwrap();
        }
        fs::create_dir(place.at("run")).unwrap();
        place
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs the command; its exit status and what it says, by lines.
    fn run(&self, arguments: &[String]) -> (Option<i32>, Vec<String>) {
        let output = Command::new(env!("CARGO_BIN_EXE_skep"))
            .arg("run")
            .args(arguments)
            .env("SKEP_RUNTIME_DIR", self.at("run"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.stdout.is_empty(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said.lines().map(str::to_owned).collect())
    }

    /// Every file with its length and how it begins, but for the empty lock of skep's own folder: whoever looks at the
    /// folder takes it, and it stays for the next.
    fn contents(&self) -> BTreeMap<String, (u64, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    _ if path == self.0.path().join("run/lock") => assert_eq!(begin(&path).0, 0),
                    true => folders.push(path),
                    false => drop(all.insert(path.to_str().unwrap().to_owned(), begin(&path))),
                }
            }
        }
        all
    }
}

fn begin(path: &Path) -> (u64, Vec<u8>) {
    let file = fs::File::open(path).unwrap();
    let mut bytes = Vec::new();
    (&file).take(16 << 10).read_to_end(&mut bytes).unwrap();
    (file.metadata().unwrap().len(), bytes)
}

/// Asserts that there is a line with all parts for each of these.
#[track_caller]
fn says_all(said: &[String], wanted: &[&[&str]]) {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|parts| !said.iter().any(|line| parts.iter().all(|part| line.contains(part))))
        .collect();
    assert!(missing.is_empty(), "{missing:?} are not in\n{}", said.join("\n"));
}

#[test]
fn thirty_wrong_inputs_are_in_one_report_and_nothing_is_touched() {
    let place = Place::new();
    let before = place.contents();
    let disk = |text: &str| ["--disk".to_owned(), text.to_owned()];
    let flags: Vec<String> = [
        ["--name", "a/b"],
        ["--cpus", "0"],
        ["--memory", "1Q"],
        ["--hugepages", "3M"],
        ["--node", "x"],
        ["--wire", "maybe"],
        ["--dma", "vfio"],
        ["--host-domain", "exclusive"],
        ["--on-fault", "explode"],
        ["--p2p", "perhaps"],
        ["--assign", "nonsense"],
        ["--assign", "0000:77:00.0,on-fault=maybe"],
        ["--assign", "0000:77:01.0"],
        ["--kernel", "/no/vmlinux"],
        ["--initrd", "/no/initrd"],
    ]
    .into_iter()
    .flatten()
    .map(str::to_owned)
    .chain(["--cmdline".to_owned(), "x".repeat(3000)])
    .chain(["--console".to_owned(), format!("file:{}", place.at("no/console"))])
    .chain(["--report".to_owned(), place.at("no/report")])
    .chain(disk("a,b"))
    .chain(disk("path=/dev/a,fromat=raw"))
    .chain(disk("ram=1Q"))
    .chain(disk("ram=1M,queues=0"))
    .chain(disk("ram=1M,model=ide"))
    .chain(disk("ram=1M,model=nvme,queues=65,controller=one"))
    .chain(disk("/dev/nosuch"))
    .chain(disk("/dev/null"))
    .chain(disk(&place.at("run")))
    .chain(disk(&place.at("empty")))
    .chain(disk(&place.at("image")))
    .chain(disk(&format!("path={},format=qcow2", place.at("text"))))
    .chain(disk(&format!("nbd=nbd+unix:///export?socket={}", place.at("no/socket"))))
    .chain(disk("nvme=0000:77:02.0,namespace=9"))
    .collect();
    let (status, said) = place.run(&flags);
    let wanted: [&[&str]; 30] = [
        &["--name a/b"],
        &["--cpus 0", "0 vCPUs"],
        &["--memory 1Q"],
        &["--hugepages 3M"],
        &["--node x"],
        &["--wire maybe"],
        &["--dma vfio"],
        &["--host-domain exclusive", "--i-know"],
        &["--on-fault explode"],
        &["--p2p perhaps"],
        &["--assign nonsense"],
        &["--assign 0000:77:00.0,on-fault=maybe", "maybe"],
        &["no PCI device 0000:77:01.0"],
        &["kernel /no/vmlinux", "No such file"],
        &["initrd /no/initrd", "No such file"],
        &["--cmdline", "3000"],
        &["no/console", "No such file", "--console"],
        &["no/report", "No such file", "--report"],
        &["--disk a,b", "`b`"],
        &["`fromat`", "`format`"],
        &["--disk ram=1Q"],
        &["queues=0"],
        &["model=ide"],
        &["queues=65", "Give it 1 to 64"],
        &["/dev/nosuch"],
        &["/dev/null", "not a disk"],
        &["/run", "disk"],
        &["/empty"],
        &["/image", "qcow2"],
        &["/text", "qcow2"],
    ];
    says_all(&said, &wanted);
    says_all(&said, &[&["no/socket"], &["no PCI device 0000:77:02.0"]]);
    assert!(said.iter().all(|line| line.starts_with("skep: ")), "{said:?}");
    assert_eq!(status, Some(2), "{said:?}");
    assert_eq!(place.contents(), before);
}

#[test]
fn what_is_wrong_with_this_host_is_all_said_though_the_description_is_right() {
    let place = Place::new();
    fs::File::options().write(true).open(place.at("initrd")).unwrap().set_len(400 << 20).unwrap();
    let (console, report) = (format!("file:{}", place.at("console")), place.at("report"));
    let (initrd, missing) = (place.at("initrd"), place.at("no/disk"));
    let before = place.contents();
    let arguments = [
        ["--kernel", "/no/vmlinux"],
        ["--initrd", &initrd],
        ["--memory", "256M"],
        ["--cpus", "1000"],
        ["--node", "999"],
        ["--disk", &missing],
        ["--assign", "0000:77:00.0"],
        ["--console", &console],
        ["--report", &report],
    ];
    let arguments: Vec<String> = arguments.into_iter().flatten().map(str::to_owned).collect();
    let (status, said) = place.run(&arguments);
    says_all(
        &said,
        &[
            &["kernel /no/vmlinux"],
            &["/initrd has 419430400 bytes", "Give the VM at least"],
            &["no NUMA node 999"],
            &["no/disk"],
            &["no PCI device 0000:77:00.0"],
        ],
    );
    assert_eq!((status, place.contents() == before), (Some(1), true), "{said:?}");
    // Nor are files made that were not there.
    let arguments: Vec<String> = arguments
        .iter()
        .map(|text| text.replace("/console", "/new").replace("/report", "/also-new"))
        .collect();
    assert_eq!(place.run(&arguments).0, Some(1));
    assert!(place.contents() == before);
}

#[test]
fn more_ram_than_all_of_the_hosts_and_a_full_bus_are_found_with_the_rest() {
    let place = Place::new();
    let mut arguments = vec!["--kernel".to_owned(), "/no/vmlinux".to_owned()];
    arguments.extend(["--memory".to_owned(), "64T".to_owned()]);
    arguments.extend((0..241).flat_map(|_| ["--disk".to_owned(), "ram=1M".to_owned()]));
    let (status, said) = place.run(&arguments);
    says_all(
        &said,
        &[
            &["kernel /no/vmlinux"],
            &["more than all memory and swap of this host"],
            &["bus is full", "30 device numbers", "0 assigned devices and 241 controllers"],
        ],
    );
    assert_eq!(status, Some(1));
}

#[test]
fn a_console_file_of_another_vm_is_refused_with_who_has_it_and_stays() {
    let place = Place::new();
    // As a VM that writes its console there has it.
    let held = fs::File::options().write(true).open(place.at("console")).unwrap();
    held.try_lock().unwrap();
    let before = place.contents();
    let console = format!("file:{}", place.at("console"));
    let arguments = ["--kernel", "/no/vmlinux", "--console", &console].map(str::to_owned);
    let (status, said) = place.run(&arguments);
    let this = format!("in use: process {}", std::process::id());
    says_all(&said, &[&["/console", &this, "--console"], &["kernel /no/vmlinux"]]);
    assert_eq!(status, Some(1));
    assert!(place.contents() == before);
}

#[test]
fn a_file_of_the_description_that_cannot_be_read_hides_nothing_of_the_flags() {
    let place = Place::new();
    let arguments = ["--config", "/no/vm.toml", "--memory", "1Q", "--disk", "/dev/nosuch"].map(str::to_owned);
    let (status, said) = place.run(&arguments);
    says_all(&said, &[&["description /no/vm.toml", "No such file"], &["--memory 1Q"], &["/dev/nosuch"]]);
    assert!(!said.iter().any(|line| line.contains("no `kernel`")), "the file may have named it: {said:?}");
    assert_eq!(status, Some(2));
}

#[test]
fn a_hint_shows_a_disks_settings_as_the_description_is_written() {
    let place = Place::new();
    let image = place.at("image");
    let file = place.at("vm.toml");
    fs::write(&file, format!("kernel = \"/no/kernel\"\n[[disk]]\npath = \"{image}\"\n")).unwrap();
    let flags = ["--kernel", "/no/kernel", "--disk", &image].map(str::to_owned);
    let (_, said) = place.run(&flags);
    says_all(&said, &[&[&image, "looks like a qcow2 image", " format=qcow2 to", " format=raw to"]]);
    let (_, said) = place.run(&["--config", &file].map(str::to_owned));
    says_all(
        &said,
        &[&[&image, "looks like a qcow2 image", " format = \"qcow2\" to", " format = \"raw\" to"]],
    );
    assert!(!said.iter().any(|line| line.contains("format=")), "{said:?}");
}

#[test]
fn a_disk_of_a_file_and_one_of_a_flag_get_hints_each_in_its_own_way() {
    let place = Place::new();
    let (image, other) = (place.at("image"), place.at("other"));
    fs::copy(&image, &other).unwrap();
    let file = place.at("vm.toml");
    fs::write(&file, format!("kernel = \"/no/kernel\"\n[[disk]]\npath = \"{image}\"\n")).unwrap();
    let (_, said) = place.run(&["--config", &file, "--disk", &other].map(str::to_owned));
    says_all(&said, &[&[&image, "format = \"qcow2\""], &[&other, "format=qcow2"]]);
}
