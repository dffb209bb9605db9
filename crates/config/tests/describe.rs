//! What a file and flags mean together, and what is said about their errors.

use config::{
    Bounce, Buffers, Cmdline, Console, Disk, DiskModel, DiskSource, DmaBackEnd, File, FileDisk, Format,
    HostDomain, HugePages, Key, OnError, OnFault, OnRequest, P2p, Poll, Wire, Writes,
};

mod reading;

use reading::{describe, findings, flag_findings};

fn path(text: &str) -> DiskSource {
    DiskSource::File(FileDisk::new(text.parse().unwrap()))
}

fn nvme(address: &str, namespace: i64, poll: Poll) -> DiskSource {
    DiskSource::Nvme { address: address.parse().unwrap(), namespace: namespace.try_into().unwrap(), poll }
}

#[test]
fn the_documented_example_reads_as_it_says() {
    let vm = describe(Some(include_str!("../../../docs/vm.toml")), &[]).unwrap();
    assert_eq!(vm.name.as_str(), "storage");
    assert_eq!(vm.cpus.get().get(), 2);
    assert_eq!(vm.memory.bytes(), 6 << 30);
    let linux = vm.boot.kernel().unwrap();
    assert_eq!(linux.kernel.as_str(), "/lab/guest/vmlinux");
    assert_eq!(linux.initrd.as_ref().unwrap().as_str(), "/lab/guest/initrd");
    assert_eq!(linux.cmdline.as_str(), "console=ttyS0 quiet");
    assert_eq!(vm.console, Console::Stdio);
    assert_eq!(vm.assigned[0].address.to_string(), "0000:01:00.0");
    let first = Disk {
        model: DiskModel::VirtioBlk { queues: Some(2.try_into().unwrap()), packed: false, write_cache: true },
        writes: Writes::Refused,
        serial: Some("WD-1234".parse().unwrap()),
        on_error: Some(OnError::Report),
        ..Disk::new(path("/dev/disk/by-id/ata-WD-1234"))
    };
    assert_eq!(vm.disks[0], first);
    let logical = Some(512.try_into().unwrap());
    let buffers = Some(Buffers::Plain);
    let second = FileDisk { logical, buffers, ..FileDisk::new("/dev/sda".parse().unwrap()) };
    assert_eq!(vm.disks[1].source, DiskSource::File(second));
    assert_eq!(vm.disks[1].writes, Writes::Kept);
    assert_eq!(vm.disks[5].source, nvme("0000:03:00.0", 1, Poll::Adaptive));
    assert_eq!((vm.backing.hugepages, vm.backing.wire), (Some(HugePages::Of2M), Wire::Auto));
    assert_eq!(vm.backing.node.unwrap().get(), 0);
    assert_eq!((vm.dma.back_end, vm.dma.host_domain), (DmaBackEnd::Auto, HostDomain::Shared));
    assert_eq!((vm.dma.on_fault, vm.dma.p2p), (OnFault::Report, P2p::Off));
    assert_eq!((vm.assigned[0].domain.as_str(), vm.assigned[0].on_fault), ("guest", None));
    assert_eq!((vm.assigned[1].domain.as_str(), vm.assigned[1].on_fault), ("nic", Some(OnFault::Reset)));
    assert_eq!(vm.assigned[0].on_request, OnRequest::Report);
    assert_eq!(vm.assigned[1].on_request, OnRequest::Stop);
    assert!(!vm.nested);
}

#[test]
fn the_documented_example_shows_every_key() {
    let text = include_str!("../../../docs/vm.toml");
    for key in Key::ALL {
        let forms = [
            format!("\n{} = ", key.name()),
            format!("\n[[{}]]", key.name()),
            format!("\n# {} = ", key.name()),
        ];
        assert!(forms.iter().any(|form| text.contains(form)), "{key:?}");
    }
}

#[test]
fn a_kernel_is_enough() {
    let vm = describe(None, &[(Key::Kernel, "vmlinux")]).unwrap();
    assert_eq!(vm.name.as_str(), "vm");
    assert_eq!(vm.cpus.get().get(), 1);
    assert_eq!(vm.memory.bytes(), 256 << 20);
    assert_eq!(vm.boot.kernel().unwrap().cmdline, Cmdline::default());
    assert_eq!(vm.console, Console::Stdio);
    assert!(vm.disks.is_empty() && vm.assigned.is_empty());
}

#[test]
fn a_file_and_flags_that_say_the_same_give_the_same_vm() {
    let file = "name = \"a\"\ncpus = 2\nnested = true\nmemory = 512\nhugepages = \"2M\"\nnode = 1\nwire = true\np2p = \"required\"\n\
                dma = \"type1\"\nhost-domain = \"exclusive\"\ni-know = true\non-fault = \"stop\"\ntpm = { on-error = \"stop\" }\nfirmware = \"auto\"\nfirmware-vars = \"v\"\nsecure-boot = true\nboot = \"once:cd\"\nboot-menu = true\nfw-cfg = [{ name = \"opt/a\", string = \"x\" }]\nkernel = \"k\"\ninitrd = \"i\"\ncmdline = \"c\"\n\
                console = \"file:o\"\nassign = [\"01:00.0\", { address = \"02:00.0\", domain = \"b\", on-fault = \"pause\", on-request = \"stop\", bootindex = 7, rom = false }]\n\
                [[disk]]\npath = \"d\"\nmodel = \"virtio-blk\"\nreadonly = true\nqueues = 3\nserial = \"s\"\n\
                [[disk]]\nnvme = \"03:00.0\"\nnamespace = 2\npoll = false\non-error = \"pause\"\n\
                [[disk]]\npath = \"c\"\nmodel = \"ahci-cd\"\nbootindex = 3\n";
    let flags = [
        (Key::Name, "a"),
        (Key::Cpus, "2"),
        (Key::Nested, "on"),
        (Key::Memory, "512"),
        (Key::Firmware, "ovmf"),
        (Key::FirmwareVars, "v"),
        (Key::SecureBoot, "on"),
        (Key::Boot, "once:cd"),
        (Key::BootMenu, "on"),
        (Key::FwCfg, "opt/a,string=x"),
        (Key::Kernel, "k"),
        (Key::Initrd, "i"),
        (Key::Cmdline, "c"),
        (Key::Console, "file:o"),
        (Key::Assign, "0000:01:00.0"),
        (Key::Assign, "address=02:00.0,domain=b,on-fault=pause,on-request=stop,bootindex=7,rom=off"),
        (Key::Disk, "d,model=virtio-blk,readonly=on,queues=3,serial=s"),
        (Key::Disk, "nvme=03:00.0,namespace=2,poll=off,on-error=pause"),
        (Key::Disk, "c,model=ahci-cd,bootindex=3"),
        (Key::Hugepages, "2M"),
        (Key::Node, "1"),
        (Key::Wire, "on"),
        (Key::P2p, "required"),
        (Key::Dma, "type1"),
        (Key::HostDomain, "exclusive"),
        (Key::IKnow, "on"),
        (Key::OnFault, "stop"),
        (Key::Tpm, "on-error=stop"),
    ];
    assert_eq!(describe(Some(file), &[]).unwrap(), describe(None, &flags).unwrap());
}

#[test]
fn flags_win_over_the_file_and_add_to_its_lists() {
    let file = "memory = \"1G\"\ncpus = 2\nkernel = \"k\"\ndisk = [\"/dev/sda\"]\nassign = [\"01:00.0\"]\n";
    let flags = [(Key::Memory, "2G"), (Key::Disk, "/dev/sdb"), (Key::Assign, "02:00.0")];
    let vm = describe(Some(file), &flags).unwrap();
    assert_eq!((vm.memory.bytes(), vm.cpus.get().get()), (2 << 30, 2));
    let disks: Vec<&DiskSource> = vm.disks.iter().map(|disk| &disk.source).collect();
    assert_eq!(disks, [&path("/dev/sda"), &path("/dev/sdb")]);
    assert_eq!(vm.assigned[1].address.to_string(), "0000:02:00.0");
}

#[test]
fn a_wrong_value_in_the_file_is_said_even_if_a_flag_wins_over_it() {
    let error = describe(Some("memory = \"x\"\nkernel = \"k\""), &[(Key::Memory, "1G")]).unwrap_err();
    assert!(error.starts_with("vm.toml:1:10: \"x\" is not a size."), "{error}");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
    assert_eq!(
        findings("kernel = \"k\"\n\n  memroy = \"1G\"\n"),
        ["vm.toml:3:3: unknown key `memroy`. Did you mean `memory`?"]
    );
    assert_eq!(
        findings("kernel = \"k\"\n[[disk]]\npath = \"d\"\nread-only = true\n"),
        ["vm.toml:4:1: unknown key `read-only`. Did you mean `readonly`?"]
    );
    assert_eq!(
        findings("kernel = \"k\"\n[network]\n"),
        [
            "vm.toml:2:2: unknown key `network`. The keys here are: name, cpus, nested, memory, hugepages, node, wire, \
             firmware, firmware-vars, secure-boot, boot, boot-menu, fw-cfg, kernel, initrd, cmdline, console, dma, host-domain, i-know, on-fault, p2p, tpm, assign, disk."
        ]
    );
}

#[test]
fn all_errors_of_a_file_are_found_at_once_and_in_its_order() {
    let file = "naem = \"a\"\ncpus = \"two\"\nmemory = \"17M\"\nkernel = 5\nassign = [\"1\", 2]\nconsole = true\n\
                [[disk]]\nmodel = \"ide\"\nreadonly = \"on\"\nqueues = 0\nserial = 1.5\n\
                [[disk]]\npath = \"a\"\n[[disk]]\npath = \"./a\"\n[[disk]]\npath = \"a/\"\n";
    let found = findings(file);
    let expected = [
        "vm.toml:1:1: unknown key `naem`. Did you mean `name`?",
        "vm.toml:2:8: `cpus` is the text \"two\"; it must be a whole number.",
        "vm.toml:3:10: 17M of memory is not a multiple of 2 MiB, the size of a large page. Give the VM 16M or 18M.",
        "vm.toml:4:10: `kernel` is the number 5; it must be a path in quotes.",
        "vm.toml:5:11: \"1\" is not a PCI address.",
        "vm.toml:5:16: `assign` is the number 2; it must be a list of PCI addresses, [\"0000:01:00.0\"].",
        "vm.toml:6:11: `console` is true; it must be text in quotes: stdio, file:PATH or socket:PATH.",
        "vm.toml:7:1: this disk has no `path`. Say what holds its data, as in path = \"/dev/sda\"",
        "vm.toml:8:9: \"ide\" is not a disk model. Write virtio-blk or ahci or nvme or ahci-cd.",
        "vm.toml:9:12: `readonly` is the text \"on\"; it must be true or false (in a flag also on or off).",
        "vm.toml:10:10: a disk cannot have 0 queues.",
        "vm.toml:11:10: `serial` is a number with a fraction; it must be text in quotes.",
        "vm.toml:14:1: disk a was given before, in line 12 of vm.toml. Remove one of them.",
        "vm.toml:16:1: disk a was given before, in line 12 of vm.toml. Remove one of them.",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "\n{found}\n{expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn all_lines_that_are_not_toml_are_found_and_nothing_that_follows_from_them() {
    let found = findings("name = \ncpus = 2\nkernel = k\nmemroy = 1\ninitrd \"x\"\n");
    let lines: Vec<&str> = found.iter().filter_map(|finding| finding.split(':').nth(1)).collect();
    assert_eq!(lines, ["1", "3", "4", "5"], "{found:#?}");
    assert!(found[2].contains("Did you mean `memory`?"), "{found:#?}");
    assert!(!found.iter().any(|finding| finding.contains("has no `kernel`")), "{found:#?}");
}

#[test]
fn a_key_given_twice_is_found() {
    let found = findings("cpus = 1\ncpus = 2\nkernel = \"k\"\n");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("vm.toml:2:") && found[0].contains("duplicate key"), "{found:#?}");
}

#[test]
fn a_file_that_is_not_utf_8_is_refused_with_the_line() {
    let error = config::describe(Some(File { name: "vm.toml", bytes: b"cpus = 2\nname = \"\xff\"" }), &[]);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "vm.toml:2:9: the file is not UTF-8 text from here on. Save it as UTF-8.");
}

#[test]
fn numbers_are_read_as_toml_writes_them() {
    let vm = describe(Some("kernel = \"k\"\ncpus = 0x1_0\nmemory = 1_024\n"), &[]).unwrap();
    assert_eq!((vm.cpus.get().get(), vm.memory.bytes()), (16, 1 << 30));
    assert!(findings("kernel = \"k\"\ncpus = -1")[0].contains("cannot have -1 vCPUs"));
    assert!(findings("kernel = \"k\"\nmemory = -1")[0].contains("\"-1\" is not a size"));
    assert!(findings("kernel = \"k\"\nmemory = 9223372036854775807")[0].contains("more than 64 bits"));
    assert!(findings("kernel = \"k\"\ncpus = 9223372036854775808")[0].contains("a number beyond 64 bits"));
}

#[test]
fn an_error_in_a_flag_names_the_flag_as_written() {
    assert_eq!(
        flag_findings(Key::Disk, "path=/dev/sda,modle=virtio-blk"),
        "--disk path=/dev/sda,modle=virtio-blk: unknown key `modle`. Did you mean `model`?"
    );
    assert_eq!(
        flag_findings(Key::Disk, "model=virtio-blk"),
        "--disk model=virtio-blk: this disk has no `path`. Say what holds its data, as in path=/dev/sda (or \
         nvme=0000:03:00.0, a controller that skep drives itself; nbd=nbd://HOST/EXPORT, a disk on a server; ram=1G, \
         memory of this host)."
    );
    assert!(
        flag_findings(Key::Cpus, "two").starts_with("--cpus two: `cpus` is the text \"two\"; it must be")
    );
    assert!(flag_findings(Key::Cpus, "0").starts_with("--cpus 0: a VM cannot have 0 vCPUs."));
    assert!(flag_findings(Key::Assign, "1").starts_with("--assign 1: \"1\" is not a PCI address."));
    assert!(flag_findings(Key::Assign, "01:00.0,vendor=off").contains(
        "unknown key `vendor`. The keys here are: address, domain, on-fault, on-request, bootindex, rom."
    ));
    assert!(flag_findings(Key::Console, "pty").starts_with("--console pty: \"pty\" is not a console."));
    assert!(flag_findings(Key::Name, "-x").starts_with("--name -x: \"-x\" is not a VM name."));
}

#[test]
fn an_error_in_a_file_is_said_as_toml_is_written_and_one_in_a_flag_as_flags_are() {
    let disks = [
        ("path = \"d\"\nformat = \"vmdk\"", "Say readonly = true, or snapshot = true"),
        ("path = \"d\"\nformat = \"raw\"\nchain = \"/b\"", "with `format = \"raw\"`"),
        ("path = \"d\"\nchain = \"/b\"", "only with `format`"),
        ("path = \"d\"\nsnapshot = true\nlogical = 512", "with `snapshot = true`"),
        (
            "path = \"d\"\nreadonly = true\non-error = \"ignore\"",
            "`on-error = \"ignore\"` means nothing with",
        ),
        ("path = \"d\"\nmodel = \"ahci\"\nqueues = 2", "with `model = \"ahci\"`"),
        ("path = \"d\"\nmodel = \"ahci-cd\"\nreadonly = false", "`readonly = false` means nothing with"),
        ("path = \"d\"\nproduct = \"p\"", "with `model = \"virtio-blk\"`"),
        ("path = \"d\"\nbounce = \"always\"\nbuffers = \"registered\"", "with `bounce = \"always\"`"),
        ("path = \"d\"\nnamespace = 1", "only with `nvme`"),
        ("serial = \"s\"", "as in path = \"/dev/sda\""),
    ];
    let disks = disks.map(|(text, said)| (format!("kernel = \"k\"\n[[disk]]\n{text}\n"), said));
    let others = [
        ("kernel = \"k\"\nhost-domain = \"exclusive\"\n".to_owned(), "that you want this: i-know = true."),
        ("kernel = \"k\"\n[[assign]]\ndomain = \"a\"\n".to_owned(), "Write address = \"0000:01:00.0\"."),
    ];
    for (text, said) in disks.into_iter().chain(others) {
        let found = findings(&text).join("\n");
        assert!(found.contains(said), "{text}: {found}");
        let words = found.split_whitespace();
        let mut flags = words.filter(|word| !word.contains("://") && word.contains('=') && *word != "=");
        assert_eq!(flags.next(), None, "{found}");
        assert!(!found.contains("--"), "{found}");
    }
}

#[test]
fn a_list_that_says_nothing_lacks_what_must_be_there() {
    let disk = flag_findings(Key::Disk, "");
    assert!(disk.starts_with("--disk \"\": this disk has no `path`. Say what holds"), "{disk}");
    let assign = flag_findings(Key::Assign, "");
    assert!(assign.starts_with("--assign \"\": this assigned device has no `address`."), "{assign}");
    assert!(!format!("{disk}{assign}").contains("comma"), "{disk}{assign}");
}

#[test]
fn an_item_without_a_value_is_answered_with_what_it_can_be() {
    for (item, said) in [
        ("snapshot", "Write snapshot=on or snapshot=off."),
        ("read-only", "Write readonly=on or readonly=off."),
        ("serial", "Write serial=VALUE."),
        (
            "zzzzzzzzzz",
            "Write KEY=VALUE, and a comma within a value twice (,,); the keys here are: path, nvme,",
        ),
    ] {
        let text = flag_findings(Key::Disk, &format!("/dev/sda,{item}"));
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn all_errors_of_a_list_are_found_at_once() {
    let error = flag_findings(Key::Disk, "/dev/sda,readonly,,x,queues=many,,model=ide,,,readonly=maybe,");
    for part in
        ["`readonly,x` has no value", "`queues` is the text \"many,model=ide,\"", "between two commas"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(error.contains("`readonly` is the text \"maybe\""), "{error}");
    let error = flag_findings(Key::Disk, "path=a,path=b");
    assert!(error.contains("`path` was given before, by --disk path=a,path=b."), "{error}");
}

#[test]
fn a_long_value_is_not_repeated_whole() {
    let error = flag_findings(Key::Cmdline, &"x".repeat(5000));
    assert!(error.contains("xxx…: the kernel command line has 5000 bytes") && error.len() < 500, "{error}");
}

#[test]
fn a_key_without_a_value_is_no_path() {
    let error = flag_findings(Key::Disk, "readonly");
    assert!(error.contains("`readonly` has no value. Write readonly=on or readonly=off."), "{error}");
}

#[test]
fn what_file_and_flags_have_in_common_is_a_repetition() {
    let file = "kernel = \"k\"\nassign = [\"01:00.0\"]\ndisk = [\"/dev/sda\"]\n";
    let error =
        describe(Some(file), &[(Key::Assign, "0000:01:00.0"), (Key::Disk, "path=/dev/sda")]).unwrap_err();
    let expected = "--assign 0000:01:00.0: PCI device 0000:01:00.0 was given before, in line 2 of vm.toml. Remove one \
                    of them.\n--disk path=/dev/sda: disk /dev/sda was given before, in line 3 of vm.toml. Remove one \
                    of them.";
    assert_eq!(error, expected);
}

#[test]
fn a_flag_for_one_value_given_twice_is_found() {
    let error = flag_findings(Key::Kernel, "other");
    assert_eq!(error, "--kernel other: `kernel` was given before, by --kernel k. Remove one of them.");
}

#[test]
fn a_single_table_where_a_list_belongs_is_explained() {
    let found = findings("kernel = \"k\"\n[disk]\npath = \"a\"\n");
    assert_eq!(found, ["vm.toml:2:1: `disk` is a table; it must be tables that begin with [[disk]]."]);
}

#[test]
fn endless_keys_and_nesting_are_refused() {
    for text in
        ["a.".repeat(100_000) + "a = 1", "[".repeat(100_000), "a = ".to_string() + &"{a = ".repeat(10_000)]
    {
        assert!(describe(Some(&text), &[]).is_err());
    }
}

#[test]
fn an_exclusive_host_domain_must_be_meant_and_the_finding_says_what_it_does() {
    let error = flag_findings(Key::HostDomain, "exclusive");
    for part in
        ["--host-domain exclusive: ", "for study", "leaves the host domain", "bhyve until 2022", "--i-know"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = findings("kernel = \"k\"\nhost-domain = \"exclusive\"\ni-know = false\n");
    assert!(error[0].starts_with("vm.toml:2:15: "), "{error:?}");
    let file = "kernel = \"k\"\nhost-domain = \"exclusive\"\n";
    let vm = describe(Some(file), &[(Key::IKnow, "on")]).unwrap();
    assert_eq!(vm.dma.host_domain, HostDomain::Exclusive);
}

#[test]
fn an_nvme_disk_has_its_own_keys_and_a_path_does_not_have_them() {
    let vm = describe(None, &[(Key::Kernel, "k"), (Key::Disk, "nvme=03:00.0")]).unwrap();
    assert_eq!(vm.disks[0].source, nvme("0000:03:00.0", 1, Poll::Adaptive));
    let error = flag_findings(Key::Disk, "/dev/sda,namespace=1");
    assert!(error.contains("`namespace` means something only with `nvme`."), "{error}");
    let error = flag_findings(Key::Disk, "/dev/sda,nvme=03:00.0");
    assert!(error.contains("`path` and `nvme` exclude each other."), "{error}");
    assert!(flag_findings(Key::Disk, "nvme=03:00.0,namespace=0").contains("no namespace 0"));
    assert!(flag_findings(Key::Disk, "nvme=03:00.0,poll=maybe").contains("Write off or adaptive or on."));
}

#[test]
fn a_controller_is_either_assigned_or_holds_disks_and_may_hold_several() {
    let file = "kernel = \"k\"\nassign = [\"03:00.0\"]\n";
    let error = describe(Some(file), &[(Key::Disk, "nvme=0000:03:00.0")]).unwrap_err();
    let expected = "--disk nvme=0000:03:00.0: NVMe controller 0000:03:00.0 cannot hold a disk and be assigned to the \
                    guest, as it is in line 2 of vm.toml.";
    assert!(error.starts_with(expected), "{error}");
    let disk = |text| (Key::Disk, text);
    let two = [(Key::Kernel, "k"), disk("nvme=03:00.0"), disk("nvme=03:00.0,namespace=2")];
    assert_eq!(describe(None, &two).unwrap().disks.len(), 2);
    let twice = [(Key::Kernel, "k"), disk("nvme=03:00.0"), disk("nvme=0000:03:00.0,poll=on")];
    let error = describe(None, &twice).unwrap_err();
    assert!(error.contains("namespace 1 of NVMe controller 0000:03:00.0 was given before"), "{error}");
}

#[test]
fn an_assigned_device_can_be_in_a_domain_of_its_own_but_not_in_the_host_domain() {
    let error = flag_findings(Key::Assign, "01:00.0,domain=host");
    assert!(error.contains("that of the devices that skep itself drives"), "{error}");
    assert!(flag_findings(Key::Assign, "01:00.0,domain=a b").contains("is not the name of a domain"));
    let error = flag_findings(Key::Assign, "01:00.0,on-fault=panic");
    assert!(error.contains("Write report or pause or reset or stop."), "{error}");
}

#[test]
fn a_device_that_the_host_wants_back_can_be_reported_or_end_the_vm_but_not_be_unplugged_yet() {
    let error = flag_findings(Key::Assign, "01:00.0,on-request=unplug");
    assert!(error.contains("cannot take an assigned device out of a guest that runs yet"), "{error}");
    assert!(error.contains("Write stop,"), "{error}");
    let error = flag_findings(Key::Assign, "01:00.0,on-request=reset");
    assert!(error.contains("Write report or stop."), "{error}");
    let file = "kernel = \"k\"\nassign = [{ address = \"01:00.0\", on-request = \"unplug\" }]\n";
    assert!(findings(file)[0].starts_with("vm.toml:2:47: skep cannot take"), "{:?}", findings(file));
}

#[test]
fn memory_must_be_whole_huge_pages() {
    let file = "memory = \"1536M\"\nhugepages = \"1G\"\nkernel = \"k\"\n";
    let found = findings(file);
    let expected =
        "vm.toml:2:13: 1536M of memory is not a multiple of huge pages of 1G. Give the VM 2G of memory";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    assert!(describe(Some(file), &[(Key::Memory, "3G")]).is_ok());
    assert!(flag_findings(Key::Node, "4096").contains("no NUMA node 4096"));
}

/// The one disk of a flag.
fn disk(text: &str) -> Disk {
    describe(None, &[(Key::Kernel, "k"), (Key::Disk, text)]).unwrap().disks[0].clone()
}

#[test]
fn a_disk_is_shown_as_each_of_the_models() {
    let queues = Some(3.try_into().unwrap());
    for (text, model) in [
        ("d", DiskModel::VirtioBlk { queues: None, packed: false, write_cache: true }),
        (
            "d,model=virtio-blk,queues=3,packed=on",
            DiskModel::VirtioBlk { queues, packed: true, write_cache: true },
        ),
        ("d,write-cache=off", DiskModel::VirtioBlk { queues: None, packed: false, write_cache: false }),
        ("d,model=nvme,queues=3", DiskModel::Nvme { queues }),
        ("d,model=ahci", DiskModel::Ahci),
        ("d,model=ahci-cd,readonly=on", DiskModel::AhciCd),
    ] {
        assert_eq!(disk(text).model, model, "{text}");
    }
    assert_eq!(disk("nvme=03:00.0,model=nvme").source, nvme("0000:03:00.0", 1, Poll::Adaptive));
}

#[test]
fn what_becomes_of_writes_is_said_by_readonly_snapshot_or_the_drive() {
    for (text, writes) in [
        ("d", Writes::Kept),
        ("d,readonly=off,snapshot=off", Writes::Kept),
        ("d,readonly=on", Writes::Refused),
        ("d,model=ahci-cd", Writes::Refused),
        ("d,snapshot=on", Writes::ThrownAway),
    ] {
        assert_eq!(disk(text).writes, writes, "{text}");
    }
}

#[test]
fn a_disk_is_a_file_with_its_choices_or_a_server_or_memory() {
    let DiskSource::File(file) =
        disk("d,format=raw,logical=512,preallocate=on,bounce=always,buffers=plain,force=on").source
    else {
        panic!("a path is a file");
    };
    let block = file.logical.map(config::LogicalBlock::bytes);
    assert_eq!((file.format, block, file.bounce), (Some(Format::Raw), Some(512), Bounce::Always));
    assert_eq!(file.buffers, Some(Buffers::Plain));
    assert!(file.preallocate && file.force);
    let server = "nbd://host:1/a";
    assert_eq!(disk(&format!("nbd={server}")).source, DiskSource::Nbd(server.parse().unwrap()));
    assert_eq!(disk("ram=1G").source, DiskSource::Ram("1024M".parse().unwrap()));
    let file =
        "kernel = \"k\"\n[[disk]]\nram = 64\n[[disk]]\nram = 64\n[[disk]]\npath = \"a\"\nsnapshot = true\n";
    let vm = describe(Some(file), &[]).unwrap();
    assert_eq!((vm.disks.len(), vm.disks[2].writes), (3, Writes::ThrownAway));
}

#[test]
fn what_makes_no_sense_together_is_a_finding() {
    for (text, said) in [
        ("d,model=ahci,queues=2", "`queues` means nothing with `model=ahci`. Remove one of them."),
        ("d,model=ahci-cd,queues=2", "`queues` means nothing with `model=ahci-cd`."),
        ("d,model=nvme,packed=on", "`packed` means nothing with `model=nvme`."),
        ("d,model=ahci,write-cache=off", "`write-cache` means nothing with `model=ahci`."),
        ("d,packed=maybe", "`packed`"),
        ("d,model=ahci-cd,readonly=off", "`readonly=off` means nothing with `model=ahci-cd`."),
        ("d,model=ahci-cd,snapshot=on", "`snapshot=on` means nothing with `model=ahci-cd`."),
        ("d,snapshot=on,readonly=on", "`readonly` and `snapshot` exclude each other."),
        ("d,format=vmdk", "vmdk images can only be read. Say readonly=on, or snapshot=on"),
        ("d,chain=follow", "`chain` means something only with `format`."),
        ("d,format=raw,chain=/b", "`chain` means nothing with `format=raw`."),
        ("d,format=qcow2,logical=512", "`logical` means nothing with `format=qcow2`."),
        ("d,snapshot=on,logical=512", "`logical` means nothing with `snapshot=on`."),
        ("d,format=qcow2,preallocate=on", "`preallocate` means nothing with `format=qcow2`."),
        ("d,readonly=on,preallocate=on", "`preallocate` means nothing with `readonly=on`."),
        ("nvme=03:00.0,format=raw", "`format` means something only with `path`."),
        ("nbd=nbd://h,force=on", "`force` means something only with `path`."),
        ("ram=1G,buffers=plain", "`buffers` means something only with `path`."),
        ("ram=1G,bounce=always", "`bounce` means something only with `path`."),
        ("ram=1G,snapshot=on", "`snapshot` means something only with `path`."),
        ("ram=1G,poll=on", "`poll` means something only with `path`."),
        ("d,format=qcow2,poll=on", "`poll=on` means nothing with `format=qcow2`."),
        ("d,snapshot=on,poll=adaptive", "`poll=adaptive` means nothing with `snapshot=on`."),
        ("d,logical=512,poll=on", "`poll=on` means nothing with `logical`."),
        ("nbd=nbd://h,ram=1G", "`nbd` and `ram` exclude each other."),
        ("d,logical=1024", "a disk cannot be shown with blocks of 1024 bytes. Write 512"),
        ("ram=0", "a disk in memory cannot have 0B."),
        ("nbd=host", "\"host\" is no address of an NBD server. Write nbd://"),
        (
            "d,format=qcow",
            "\"qcow\" is not a format of disk images. Did you mean qcow2? Write raw or qcow2 or vmdk.",
        ),
        ("d,model=virtio", "Did you mean virtio-blk?"),
        ("d,bounce=always,buffers=registered", "`buffers=registered` means nothing with `bounce=always`."),
        ("d,on-error=stop", "Write report or pause or ignore."),
        ("d,on-error=ignore,readonly=on", "`on-error=ignore`"),
        ("d,on-error=ignore,model=ahci-cd", "`on-error=ignore`"),
        ("d,controller=a", "`controller` means nothing with `model=virtio-blk`."),
        ("d,product=a", "`product` means nothing with `model=virtio-blk`."),
        ("d,firmware=a", "`firmware` means nothing with `model=virtio-blk`."),
        (
            "d,model=nvme,firmware=123456789",
            "\"123456789\" cannot be a disk's `firmware`. Write 1 to 8 printable",
        ),
        ("d,model=ahci,product=", "cannot be a disk's `product`. Write 1 to 40 printable"),
        ("d,model=nvme,controller=a b", "\"a b\" is not the name of a disk controller."),
        ("d,snapshots=on", "unknown key `snapshots`. Did you mean `snapshot`?"),
    ] {
        let error = flag_findings(Key::Disk, text);
        assert!(error.contains(said) && error.lines().count() == 1, "{text}: {error}");
    }
}

#[test]
fn an_image_may_lead_to_several_files() {
    let chain = |disk: Disk| match disk.source {
        DiskSource::File(file) => file.chain.iter().map(ToString::to_string).collect::<Vec<String>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(chain(disk("d,format=qcow2")), [""; 0]);
    let both = disk("d,format=qcow2,chain=follow,chain=/a,,b");
    assert_eq!(chain(both.clone()), ["follow", "/a,b"]);
    assert_eq!(chain(disk(&both.to_flag())), ["follow", "/a,b"]);
    for (text, expected) in
        [("\"/a\"", &["/a"][..]), ("[\"follow\", \"/a\"]", &["follow", "/a"]), ("[]", &[])]
    {
        let file = format!("kernel = \"k\"\n[[disk]]\npath = \"d\"\nformat = \"qcow2\"\nchain = {text}\n");
        let vm = describe(Some(&file), &[]).unwrap();
        assert_eq!(chain(vm.disks[0].clone()), expected);
    }
    let found = findings("kernel = \"k\"\n[[disk]]\npath = \"d\"\nformat = \"qcow2\"\nchain = [\"/a\", 7]");
    assert!(found[0].contains("`chain` is the number 7; it must be text"), "{found:?}");
}

#[test]
fn the_documented_example_shows_every_key_of_a_disk() {
    let text = include_str!("../../../docs/vm.toml");
    for key in [
        "path",
        "nvme",
        "nbd",
        "ram",
        "format",
        "logical",
        "preallocate",
        "bounce",
        "buffers",
        "force",
        "namespace",
        "poll",
        "model",
        "controller",
        "product",
        "firmware",
        "queues",
        "packed",
        "write-cache",
        "readonly",
        "snapshot",
        "serial",
        "on-error",
    ] {
        assert!(text.contains(&format!("\n{key} = ")), "{key}");
    }
}

#[test]
fn a_disk_by_itself_has_the_model_that_is_asked_for_unless_it_says_another() {
    let disk = |text| config::describe_disk("plug", text, config::ModelName::Ahci);
    let named = |text| disk(text).unwrap().model.name();
    assert_eq!(named("/dev/sdb,serial=A"), config::ModelName::Ahci);
    assert_eq!(named("/dev/sdb,model=nvme"), config::ModelName::Nvme);
    let findings = disk("/dev/sdb,packed=on,sreial=A").unwrap_err().to_string();
    for said in ["plug /dev/sdb,packed=on,sreial=A: ", "Did you mean `serial`?", "`packed`", "model=ahci"] {
        assert!(findings.contains(said), "{said}: {findings}");
    }
    assert!(disk("").is_err() && disk("serial=A").is_err());
}

#[test]
fn what_is_right_beside_what_is_wrong_is_in_the_draft_and_nothing_is_made_up_for_what_is_wrong() {
    let given = |flags: &[(Key, &str)]| {
        let flags: Vec<(Key, String)> =
            flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        config::Description::read(None, &flags)
    };
    let read = given(&[
        (Key::Name, "a/b"),
        (Key::Kernel, ""),
        (Key::Memory, "1Q"),
        (Key::Cpus, "0"),
        (Key::Initrd, "/i"),
        (Key::Console, "serial"),
        (Key::Disk, "/dev/a"),
        (Key::Disk, "/dev/a"),
        (Key::Disk, "a,b"),
        (Key::Disk, "/dev/b"),
        (Key::Assign, "x"),
        (Key::Assign, "01:00.0"),
    ]);
    assert_eq!(read.wrong().len(), 8, "{:?}", read.wrong());
    let draft = &read.draft;
    assert_eq!((&draft.name, draft.memory, &draft.console, &draft.kernel), (&None, None, &None, &None));
    assert_eq!(draft.initrd.as_ref().unwrap().as_str(), "/i");
    assert_eq!((draft.disks.len(), draft.assigned.len()), (2, 1));
    assert!(read.vm().is_err());

    let read = given(&[(Key::Kernel, "k")]);
    assert!(read.wrong().is_empty() && read.draft.memory.is_some() && read.draft.console.is_some());
    let draft = read.draft.clone();
    assert_eq!(config::Draft::from(&read.vm().unwrap()), draft);

    // A file that could not be read may have named the kernel.
    let flags = [(Key::Memory, "1Q".to_owned())];
    assert_eq!(config::Description::read_without_file(&flags).wrong().len(), 1);
    assert_eq!(config::Description::read(None, &flags).wrong().len(), 1);
}
