//! Images that ask for what they must not have, or that are not what they seem.

mod subjects;

use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use disk::{Allowed, Claim, Disk, DiskOptions, Format, Operation, SectorRange, Sectors, Source, Unmap};
use subjects::bench::{Bench, read, write};
use subjects::nbd_server::{EVERYTHING, Server};
use subjects::qemu_img;

const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 1 << 20;
/// Where the marks are that hold until somebody writes.
const MARKS: usize = 88;

/// A qcow2 image of 1 MiB, made by hand: header, table of counts, a block of counts, the first and second level of the
/// table of clusters, and as many clusters of data, all counted.
struct Image {
    version: u32,
    data_file: Option<&'static str>,
    backing: Option<(&'static str, &'static str)>,
    marks: u64,
    data: u64,
}

const PLAIN: Image = Image { version: 3, data_file: None, backing: None, marks: 0, data: 0 };

impl Image {
    fn write(&self, path: &Path) {
        let clusters = 5 + if self.data_file.is_some() { 0 } else { self.data };
        let mut image = vec![0; (clusters * CLUSTER) as usize];
        let mut put = |at: u64, bytes: &[u8]| image[at as usize..][..bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &self.version.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &SIZE.to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(3 * CLUSTER).to_be_bytes());
        put(48, &CLUSTER.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        let mut at = 72;
        if self.version == 3 {
            put(72, &if self.data_file.is_some() { 4u64 } else { 0 }.to_be_bytes());
            put(MARKS as u64, &self.marks.to_be_bytes());
            put(96, &4u32.to_be_bytes());
            put(100, &104u32.to_be_bytes());
            at = 104;
        }
        let backing_format = self.backing.map(|(_, format)| (0xe279_2aca_u32, format));
        for (kind, text) in
            [self.data_file.map(|name| (0x4441_5441, name)), backing_format].into_iter().flatten()
        {
            put(at, &kind.to_be_bytes());
            put(at + 4, &(text.len() as u32).to_be_bytes());
            put(at + 8, text.as_bytes());
            at += 8 + text.len().next_multiple_of(8) as u64;
        }
        if let Some((name, _)) = self.backing {
            put(8, &1024u64.to_be_bytes());
            put(16, &(name.len() as u32).to_be_bytes());
            put(1024, name.as_bytes());
        }
        put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
        (0..clusters).for_each(|n| put(2 * CLUSTER + 2 * n, &1u16.to_be_bytes()));
        put(3 * CLUSTER, &((4 * CLUSTER) | (1 << 63)).to_be_bytes());
        for n in 0..self.data {
            let place = if self.data_file.is_some() { n } else { 5 + n } * CLUSTER;
            put(4 * CLUSTER + 8 * n, &(place | (1 << 63)).to_be_bytes());
        }
        std::fs::write(path, image).unwrap();
    }
}

fn qcow2(path: &Path) -> DiskOptions {
    DiskOptions::new(path).format(Format::Qcow2)
}

fn refusal(options: &DiskOptions) -> String {
    Disk::open(options).unwrap_err().to_string()
}

fn follow(options: DiskOptions) -> DiskOptions {
    options.chain([Allowed::SameFolder])
}

fn remarks(options: &DiskOptions) -> String {
    Disk::open(options).unwrap().remarks().join("\n")
}

/// What reads as bytes of one kind, through the queue.
fn first_byte(options: &DiskOptions) -> u8 {
    let mut bench = Bench::open(options);
    bench.run(read(0), &[(0, 4096)]).unwrap();
    bench.bytes(0, 4096)[0]
}

/// A vmdk descriptor with one extent.
fn vmdk(path: &Path, extent: &str, sectors: u64) {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
         RW {sectors} FLAT \"{extent}\" 0\n"
    );
    std::fs::write(path, text).unwrap();
}

/// All ways in which an image can name another file, each naming `name`.
fn images_that_name(name: &'static str, folder: &Path) -> [DiskOptions; 3] {
    let at = |file: &str| folder.join(file);
    Image { data_file: Some(name), data: SIZE / CLUSTER, ..PLAIN }.write(&at("data.qcow2"));
    Image { backing: Some((name, "raw")), ..PLAIN }.write(&at("top.qcow2"));
    vmdk(&at("disk.vmdk"), name, SIZE / 512);
    let vmdk = DiskOptions::new(at("disk.vmdk")).format(Format::Vmdk).read_only();
    [qcow2(&at("data.qcow2")), qcow2(&at("top.qcow2")), vmdk]
}

#[test]
fn an_image_leads_to_no_file_that_the_user_did_not_allow() {
    let elsewhere = subjects::folder();
    let secret = elsewhere.path().join("shadow");
    std::fs::write(&secret, vec![b'r'; SIZE as usize]).unwrap();
    let name: &'static str = secret.to_str().unwrap().to_owned().leak();
    let folder = subjects::folder();
    let stated = Allowed::File(secret.clone());
    for image in images_that_name(name, folder.path()) {
        for options in
            [image.clone(), follow(image.clone()), image.clone().read_only(), image.clone().throw_away()]
        {
            let error = refusal(&options);
            assert!(
                error.contains(name) && error.contains(&image.source.to_string()),
                "it names both: {error}"
            );
            assert!(error.contains(&format!("chain={name}")), "and the key that would allow it: {error}");
        }
        assert_eq!(first_byte(&image.chain([stated.clone()])), b'r', "the user's word goes");
    }
    std::fs::write(folder.path().join("base"), vec![b'b'; SIZE as usize]).unwrap();
    for image in images_that_name("base", folder.path()) {
        assert!(refusal(&image).contains("chain=follow"), "not even one beside it without a word");
        assert_eq!(first_byte(&follow(image)), b'b');
    }
}

#[test]
fn the_same_folder_allows_plain_files_only_and_keeps_nobody_waiting() {
    let (folder, elsewhere) = (subjects::folder(), subjects::folder());
    let base = folder.path().join("base");
    let secret = elsewhere.path().join("secret");
    std::fs::write(&secret, vec![b'r'; SIZE as usize]).unwrap();
    let make: [(&str, &dyn Fn()); 4] = [
        ("symbolic link", &|| symlink(&secret, &base).unwrap()),
        ("pipe", &|| assert!(Command::new("mkfifo").arg(&base).status().unwrap().success())),
        ("socket", &|| drop(UnixListener::bind(&base).unwrap())),
        ("directory", &|| std::fs::create_dir(&base).unwrap()),
    ];
    for (what, make) in make {
        make();
        for image in images_that_name("base", folder.path()) {
            let error = refusal(&follow(image.clone()));
            assert!(error.contains(what) && error.contains(&image.source.to_string()), "{error}");
            // A link that the user states is the user's.
            let stated = image.chain([Allowed::File(base.clone())]);
            match what {
                "symbolic link" => assert_eq!(first_byte(&stated), b'r'),
                _ => assert!(refusal(&stated).contains(what)),
            }
        }
        std::fs::remove_file(&base).or_else(|_| std::fs::remove_dir(&base)).unwrap();
    }
    if let Some(device) = subjects::Loop::over(&secret, 512) {
        let name: &'static str = device.0.to_str().unwrap().to_owned().leak();
        let image = &images_that_name(name, folder.path())[1];
        assert!(refusal(&follow(image.clone())).contains(&format!("chain={name}")));
        assert_eq!(first_byte(&image.clone().chain([Allowed::File(device.0.clone())])), b'r');
    }
}

#[test]
fn a_chain_is_followed_by_the_rule_at_every_depth() {
    let (folder, elsewhere) = (subjects::folder(), subjects::folder());
    let at = |name: &str| folder.path().join(name);
    std::fs::write(elsewhere.path().join("base"), vec![b'e'; SIZE as usize]).unwrap();
    std::fs::write(at("base"), vec![b'b'; SIZE as usize]).unwrap();
    Image { backing: Some(("middle", "qcow2")), ..PLAIN }.write(&at("top"));
    Image { backing: Some(("base", "raw")), ..PLAIN }.write(&at("middle"));
    assert_eq!(first_byte(&follow(qcow2(&at("top")))), b'b');
    let both = ["middle", "base"].map(|name| Allowed::File(at(name)));
    assert_eq!(first_byte(&qcow2(&at("top")).chain(both.clone())), b'b');
    let [middle, _] = both;
    assert!(refusal(&qcow2(&at("top")).chain([middle])).contains("base"));
    let outside: &'static str = elsewhere.path().join("base").to_str().unwrap().to_owned().leak();
    Image { backing: Some((outside, "raw")), ..PLAIN }.write(&at("middle"));
    let error = refusal(&follow(qcow2(&at("top"))));
    assert!(error.contains(outside) && error.contains("middle"), "{error}");
}

#[test]
fn what_is_lost_is_named_with_the_image_that_wants_it() {
    let folder = subjects::folder();
    for image in images_that_name("gone", folder.path()) {
        let error = refusal(&follow(image.clone()));
        assert!(error.contains(&image.source.to_string()) && error.contains("no such file"), "{error}");
    }
}

#[test]
fn an_image_that_stands_on_itself_is_called_that() {
    let folder = subjects::folder();
    let at = |name: &str| folder.path().join(name);
    Image { backing: Some(("self", "qcow2")), ..PLAIN }.write(&at("self"));
    Image { backing: Some(("b", "qcow2")), ..PLAIN }.write(&at("a"));
    Image { backing: Some(("a", "qcow2")), ..PLAIN }.write(&at("b"));
    Image { data_file: Some("data"), ..PLAIN }.write(&at("data"));
    for name in ["self", "a", "data"] {
        let error = refusal(&follow(qcow2(&at(name))));
        assert!(error.contains("stands on itself") && !error.contains("lock"), "{error}");
    }
}

#[test]
fn an_overlay_of_version_2_says_its_format_as_one_of_version_3() {
    let folder = subjects::folder();
    std::fs::write(folder.path().join("base"), vec![b'b'; SIZE as usize]).unwrap();
    for version in [2, 3] {
        let path = folder.path().join("top");
        Image { version, backing: Some(("base", "raw")), ..PLAIN }.write(&path);
        assert_eq!(first_byte(&follow(qcow2(&path))), b'b');
        let mut bench = Bench::open(&follow(qcow2(&path)));
        bench.run(write(0), &[(0, 512)]).unwrap();
        bench.run(Operation::Flush, &[]).unwrap();
        drop(bench);
        assert_eq!(first_byte(&follow(qcow2(&path))), 0, "it still says so once it was written to");
    }
}

#[test]
fn an_image_that_is_refused_or_not_changed_stays_as_it_is() {
    let folder = subjects::folder();
    let path = folder.path().join("disk");
    let marked = Image { marks: 1 | (1 << 63), data: 1, ..PLAIN };
    let change = |at: u64, bytes: &[u8]| {
        marked.write(&path);
        File::options().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    };
    // Encryption, an unknown feature, tables that are nowhere, a backing file that is not allowed.
    let wrong: [(u64, &[u8]); 5] = [
        (32, &[0, 0, 0, 1]),
        (73, &[1]),
        (40, &[1; 8]),
        (48, &[1; 8]),
        (8, &[0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 1]),
    ];
    for (at, bytes) in wrong {
        change(at, bytes);
        if at == 8 {
            File::options().write(true).open(&path).unwrap().write_all_at(b"x", 1024).unwrap();
        }
        let before = std::fs::read(&path).unwrap();
        refusal(&qcow2(&path));
        assert!(std::fs::read(&path).unwrap() == before, "refused for the bytes at {at}");
    }
    change(32, &[0]);
    let before = std::fs::read(&path).unwrap();
    // Whoever is killed between two writes leaves what the first one wrote, so there must be none.
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let mut bench = Bench::open(&qcow2(&path));
    bench.run(read(0), &[(0, 4096)]).unwrap();
    bench.run(Operation::Flush, &[]).unwrap();
    drop(bench);
    assert!(std::fs::read(&path).unwrap() == before, "only read from");
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), long_ago, "nothing was written to it");
}

#[test]
fn marks_that_a_change_makes_untrue_are_gone_before_it() {
    let folder = subjects::folder();
    let path = folder.path().join("disk");
    let range = SectorRange { start: Sectors(0), count: Sectors(128) };
    let changes = [write(0), Operation::Discard(range), Operation::WriteZeroes(range, Unmap::Allowed)];
    for change in changes {
        Image { marks: 1 | (1 << 63), data: 1, ..PLAIN }.write(&path);
        let mut bench = Bench::open(&qcow2(&path));
        assert!(bench.disk.remarks()[0].contains("bitmaps"), "{:?}", bench.disk.remarks());
        // Learn first where it lies: a write there must not go past the marks.
        bench.run(read(0), &[(0, 4096)]).unwrap();
        let pieces: &[_] = if change == write(0) { &[(0, 4096)] } else { &[] };
        bench.run(change, pieces).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[MARKS..MARKS + 8], [0; 8]);
    }
}

#[test]
fn a_data_file_that_is_a_raw_image_stays_one() {
    let folder = subjects::folder();
    let (path, data) = (folder.path().join("disk"), folder.path().join("data"));
    std::fs::write(&data, vec![7; SIZE as usize]).unwrap();
    Image { data_file: Some("data"), marks: 2 | 1, data: SIZE / CLUSTER, ..PLAIN }.write(&path);
    let mut bench = Bench::open(&follow(qcow2(&path)));
    let mut expected = vec![7; SIZE as usize];
    let range = |start, count| SectorRange { start: Sectors(start), count: Sectors(count) };
    let written = bench.fill(0, 4096, 1);
    bench.run(write(8), &[(0, 4096)]).unwrap();
    expected[4096..8192].copy_from_slice(&written);
    bench.run(Operation::WriteZeroes(range(128, 200), Unmap::Allowed), &[]).unwrap();
    expected[128 * 512..328 * 512].fill(0);
    bench.run(Operation::Discard(range(1024, 128)), &[]).unwrap();
    expected[1024 * 512..1152 * 512].fill(0);
    let written = bench.fill(0, 512, 2);
    bench.run(write(130), &[(0, 512)]).unwrap();
    expected[130 * 512..131 * 512].copy_from_slice(&written);
    bench.run(Operation::Flush, &[]).unwrap();
    bench.run(read(0), &[(0, SIZE)]).unwrap();
    assert!(bench.bytes(0, SIZE as usize) == expected, "the guest's view");
    drop(bench);
    assert!(std::fs::read(&data).unwrap() == expected, "and the file's");
    assert_eq!(
        std::fs::read(&path).unwrap()[MARKS..MARKS + 8],
        2u64.to_be_bytes(),
        "which the image still says"
    );
}

#[test]
fn an_image_of_which_a_part_is_missing_is_written_to_only_by_force() {
    let folder = subjects::folder();
    let path = folder.path().join("disk");
    let cut = |clusters: u64| {
        Image { data: 8, ..PLAIN }.write(&path);
        File::options().write(true).open(&path).unwrap().set_len(clusters * CLUSTER).unwrap();
    };
    for clusters in [6, 12] {
        cut(clusters);
        let error = refusal(&qcow2(&path));
        assert!(error.contains("a part of it is missing") && error.contains("force=on"), "{error}");
        for options in [
            qcow2(&path).read_only(),
            qcow2(&path).throw_away(),
            DiskOptions { claim: Claim::Forced, ..qcow2(&path) },
        ] {
            assert!(remarks(&options).contains("a part of it is missing"));
        }
    }
    // Clusters that are counted and used by nothing are no part of the disk: a host that lost its power leaves them.
    cut(12);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 8], 4 * CLUSTER + 7 * 8).unwrap();
    assert_eq!(remarks(&qcow2(&path)), "");
    // Below another image it is as wrong.
    cut(6);
    Image { backing: Some(("disk", "qcow2")), ..PLAIN }.write(&folder.path().join("top"));
    let error = refusal(&follow(qcow2(&folder.path().join("top"))));
    assert!(error.contains("top") && error.contains("a part of it is missing"), "{error}");
}

#[test]
fn a_data_file_or_extent_of_which_a_part_is_missing_is_told_as_well() {
    let folder = subjects::folder();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("data"), vec![7; SIZE as usize / 2]).unwrap();
    Image { data_file: Some("data"), data: SIZE / CLUSTER, ..PLAIN }.write(&at("disk"));
    assert!(refusal(&follow(qcow2(&at("disk")))).contains("a part of it is missing"));
    assert!(remarks(&follow(qcow2(&at("disk")).read_only())).contains("a part of it is missing"));
    // What was never written need not be there.
    Image { data_file: Some("data"), data: 8, ..PLAIN }.write(&at("disk"));
    assert_eq!(remarks(&follow(qcow2(&at("disk")))), "");
    vmdk(&at("disk.vmdk"), "data", SIZE / 512);
    let options = follow(DiskOptions::new(at("disk.vmdk")).format(Format::Vmdk).read_only());
    assert!(remarks(&options).contains("a part of it is missing"));
    vmdk(&at("disk.vmdk"), "data", SIZE / 1024);
    assert_eq!(remarks(&options), "");
}

#[test]
fn the_bytes_behind_the_last_whole_block_are_told() {
    let folder = subjects::folder();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![0; (1 << 20) + 21]).unwrap();
    for options in
        [DiskOptions::new(&path), DiskOptions::new(&path).read_only(), DiskOptions::new(&path).throw_away()]
    {
        let said = remarks(&options);
        assert!(said.contains("the last ") && said.contains(&path.display().to_string()), "{said}");
    }
    File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(remarks(&DiskOptions::new(&path)), "");
    for (size, said) in [((1 << 20) + 21, "the last 21 bytes"), (1 << 20, "")] {
        let server = Server::new(folder.path(), size, EVERYTHING);
        let options = DiskOptions::over(Source::Nbd(server.url().parse().unwrap()));
        let found = remarks(&options);
        assert!(found.contains(said) && found.is_empty() == said.is_empty(), "{found}");
    }
}

#[test]
fn an_address_for_a_driver_of_qemu_is_not_taken_for_a_path() {
    for path in ["json:{\"driver\":\"raw\"}", "nbd://localhost/x"] {
        let error = refusal(&DiskOptions::new(path));
        assert!(error.contains("QEMU") && error.contains("nbd=nbd://"), "{error}");
    }
    let folder = subjects::folder();
    for image in images_that_name("json:{\"driver\":\"raw\"}", folder.path()).iter().take(2) {
        let error = refusal(&follow(image.clone()));
        assert!(error.contains("json:") && error.contains(&image.source.to_string()), "{error}");
    }
}

#[test]
fn what_qemu_makes_is_opened_or_refused_by_its_name() {
    let folder = subjects::folder();
    let path = folder.path().join("disk");
    let make = |options: &[&str]| {
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        let mut make = Command::new("qemu-img");
        let made = qemu_img::output(make.arg("create").arg("-q").args(options).arg(&path).arg("4M"));
        made.is_ok_and(|made| made.status.success())
    };
    if !make(&["-f", "qcow2"]) {
        return eprintln!("skipped: there is no qemu-img");
    }
    assert_eq!(remarks(&qcow2(&path)), "");
    File::options().write(true).open(&path).unwrap().write_all_at(&[0; 8], 24).unwrap();
    assert!(refusal(&qcow2(&path)).contains("`qemu-img resize"), "its file is to keep its size");
    for options in [
        "compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "cluster_size=512",
        "cluster_size=2M",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
    ] {
        assert!(make(&["-f", "qcow2", "-o", options]), "{options}");
        assert_eq!(remarks(&qcow2(&path)), "", "{options}");
    }
    let secret = ["--object", "secret,id=s,data=abc", "-o"];
    for (options, what) in [
        (&["-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"][..], "extended L2"),
        (&["-f", "qcow2", "-o", "compression_type=zstd"], "zstd"),
        (
            &[
                &["-f", "qcow2"],
                &secret[..],
                &["encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"],
            ]
            .concat(),
            "LUKS",
        ),
        (&[&["-f", "qcow2"], &secret[..], &["encrypt.format=aes,encrypt.key-secret=s"]].concat(), "AES"),
        (&["-f", "qcow"], "version 1"),
    ] {
        assert!(make(options), "{options:?}");
        let before = std::fs::read(&path).unwrap();
        let error = refusal(&qcow2(&path));
        assert!(error.contains(what), "{error}");
        assert!(refusal(&DiskOptions::new(&path)).contains("looks like a qcow"));
        assert!(std::fs::read(&path).unwrap() == before);
    }
    for (options, what) in [
        (&["-f", "vdi"][..], "vdi"),
        (&["-f", "vhdx"], "vhdx"),
        (&["-f", "vpc"], "vhd"),
        (&["-f", "vpc", "-o", "subformat=fixed"], "vhd"),
        (&["-f", "qed"], "qed"),
        (&["-f", "parallels"], "Parallels"),
        (&["-f", "vmdk"], "vmdk"),
        (&["-f", "vmdk", "-o", "subformat=monolithicFlat"], "vmdk"),
        (&[&["-f", "luks"], &secret[..], &["key-secret=s,iter-time=10"]].concat(), "LUKS"),
    ] {
        assert!(make(options), "{options:?}");
        let error = refusal(&DiskOptions::new(&path));
        assert!(error.contains(what), "{error}");
        if std::fs::metadata(&path).unwrap().len() > 512 {
            Disk::open(&DiskOptions::new(&path).format(Format::Raw)).unwrap();
        }
    }
    for kind in ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse"] {
        assert!(make(&["-f", "vmdk", "-o", &format!("subformat={kind}")]));
        let error = refusal(&follow(DiskOptions::new(&path).format(Format::Vmdk).read_only()));
        assert!(error.contains("sparse") && error.contains("qemu-img convert -f vmdk"), "{error}");
    }
}

#[test]
fn a_device_or_pipe_is_no_disk_and_keeps_nobody_waiting() {
    let folder = subjects::folder();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refusal(&DiskOptions::new(&pipe)).contains("a pipe"));
    assert!(refusal(&DiskOptions::new("/dev/null")).contains("a character device"));
    assert!(matches!(
        Disk::open(&DiskOptions::new(folder.path().join("x"))),
        Err(disk::OpenError::NotFound { .. })
    ));
}
