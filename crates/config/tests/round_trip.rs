//! From a VM to TOML and back, and what arbitrary input does.

use std::fmt::Debug;
use std::hint::black_box;
use std::str::FromStr;

use config::{
    Assign, Backing, Boot, BootFirmware, Bounce, Buffers, Chain, Console, Cpus, Disk, DiskModel, DiskSize,
    DiskSource, Distinct, Dma, DmaBackEnd, DomainName, File, FileDisk, FirmwareImage, Format, FwCfgContent,
    FwCfgFile, HostDomain, HostPath, HugePages, Key, Linux, MemorySize, OnError, OnFault, OnRequest,
    OnTpmError, Once, P2p, PciAddress, Poll, Rom, Tpm, TpmSource, Vm, Wire, Writes,
};
use proptest::option;
use proptest::prelude::*;

fn parsed<T: FromStr + Debug>(text: impl Strategy<Value = String>) -> impl Strategy<Value = T> {
    text.prop_filter_map("not of this kind", |text| text.parse().ok())
}

fn path<T: FromStr + Debug>() -> impl Strategy<Value = T> {
    parsed(prop_oneof!["/[a-z,='\"\\\\/ ]{1,20}", "(?s).{1,20}"])
}

/// Any of the words that an enum has.
fn word<T: FromStr + Debug>(names: &'static [&'static str]) -> impl Strategy<Value = T>
where
    T::Err: Debug,
{
    prop::sample::select(names).prop_map(|name| name.parse().unwrap())
}

fn address() -> impl Strategy<Value = PciAddress> {
    (any::<u16>(), any::<u8>(), 0u8..32, 0u8..8)
        .prop_map(|(segment, bus, device, function)| PciAddress::new(segment, bus, device, function).unwrap())
}

fn file() -> impl Strategy<Value = FileDisk> {
    let format = option::of(word(Format::NAMES));
    let buffers = option::of(word(Buffers::NAMES));
    let poll = option::of(word(Poll::NAMES));
    let chain = prop::collection::vec(
        prop_oneof![Just(Chain::Follow), parsed("\\./(?s).{1,20}").prop_map(Chain::File)],
        0..3,
    );
    let of_image = (format, chain);
    (path(), of_image, any::<bool>(), any::<bool>(), word(Bounce::NAMES), buffers, poll, any::<bool>())
        .prop_map(|(path, (format, chain), small, preallocate, bounce, buffers, poll, force)| {
            let logical = small.then(|| 512.try_into().unwrap());
            FileDisk { path, format, chain, logical, preallocate, bounce, buffers, poll, force }
        })
}

fn source() -> impl Strategy<Value = DiskSource> {
    let nvme = (address(), 1i64..=0xffff_fffe, word(Poll::NAMES)).prop_map(|(address, namespace, poll)| {
        DiskSource::Nvme { address, namespace: namespace.try_into().unwrap(), poll }
    });
    let ram =
        (1u64..1 << 34).prop_map(|n| DiskSize::try_from(config::ByteSize::from_bytes(n << 12)).unwrap());
    prop_oneof![
        file().prop_map(DiskSource::File),
        nvme,
        parsed("nbd://[a-z:/?]{0,20}").prop_map(DiskSource::Nbd),
        ram.prop_map(DiskSource::Ram),
    ]
}

fn model() -> impl Strategy<Value = DiskModel> {
    let queues = option::of((1i64..=64).prop_map(|count| count.try_into().unwrap()));
    (queues, any::<bool>(), any::<bool>()).prop_flat_map(|(queues, packed, write_cache)| {
        prop::sample::select(vec![
            DiskModel::VirtioBlk { queues, packed, write_cache },
            DiskModel::Nvme { queues },
            DiskModel::Ahci,
            DiskModel::AhciCd,
        ])
    })
}

/// Any disk, less what makes no sense together.
fn disk() -> impl Strategy<Value = Disk> {
    let writes = prop::sample::select(vec![Writes::Kept, Writes::Refused, Writes::ThrownAway]);
    (source(), model(), writes, option::of(parsed("[ -~]{1,20}")), option::of(word(OnError::NAMES))).prop_map(
        |(mut source, model, mut writes, serial, on_error)| {
            if model == DiskModel::AhciCd {
                writes = Writes::Refused;
            }
            match &mut source {
                DiskSource::File(file) => {
                    if file.format == Some(Format::Vmdk) && writes == Writes::Kept {
                        writes = Writes::ThrownAway;
                    }
                    let raw = matches!(file.format, None | Some(Format::Raw)) && writes != Writes::ThrownAway;
                    if matches!(file.format, None | Some(Format::Raw)) {
                        file.chain.clear();
                    }
                    file.logical = file.logical.filter(|_| raw);
                    let looks = raw && file.logical.is_none();
                    file.poll = file.poll.filter(|it| looks || *it == Poll::Off);
                    let copied = file.bounce == Bounce::Always;
                    file.buffers = file.buffers.filter(|it| !copied || *it != Buffers::Registered);
                    file.preallocate &= raw && writes == Writes::Kept;
                }
                _ if writes == Writes::ThrownAway => writes = Writes::Kept,
                _ => {}
            }
            let on_error = on_error.filter(|it| (*it, writes) != (OnError::Ignore, Writes::Refused));
            Disk { model, writes, serial, on_error, ..Disk::new(source) }
        },
    )
}

/// The disk on a controller, where it can be on one: of those of its model, with the texts of that model.
fn shown() -> impl Strategy<Value = Disk> {
    let texts = (option::of(parsed("[ -~]{1,40}")), option::of(parsed("[ -~]{1,8}")));
    (disk(), any::<bool>(), texts).prop_map(|(disk, shares, (product, firmware))| match disk.model {
        DiskModel::VirtioBlk { .. } => disk,
        DiskModel::Ahci | DiskModel::AhciCd => {
            let controller = shares.then(|| "sata".parse().unwrap());
            Disk { controller, product, firmware, ..disk }
        }
        // What is of an NVMe controller would have to be the same for all its disks.
        DiskModel::Nvme { .. } if shares => {
            let model = DiskModel::Nvme { queues: None };
            Disk { controller: Some("nvme".parse().unwrap()), model, serial: None, ..disk }
        }
        DiskModel::Nvme { .. } => Disk { product, firmware, ..disk },
    })
}

fn assign() -> impl Strategy<Value = Assign> {
    let domain = prop_oneof![Just(DomainName::default()), parsed("[A-Za-z0-9._-]{1,32}")];
    let rom = prop_oneof![Just(Rom::Own), Just(Rom::Off), parsed("/[a-z,=]{1,9}").prop_map(Rom::File)];
    (address(), domain, option::of(word(OnFault::NAMES)), word(OnRequest::NAMES), rom).prop_map(
        |(address, domain, on_fault, on_request, rom)| Assign {
            domain,
            on_fault,
            on_request,
            rom,
            ..Assign::new(address)
        },
    )
}

fn dma() -> impl Strategy<Value = Dma> {
    let words = (word(DmaBackEnd::NAMES), word(HostDomain::NAMES), word(OnFault::NAMES), word(P2p::NAMES));
    words.prop_map(|(back_end, host_domain, on_fault, p2p)| Dma { back_end, host_domain, on_fault, p2p })
}

/// Memory, and pages that divide it.
fn memory() -> impl Strategy<Value = (MemorySize, Backing)> {
    let size =
        (8u64..32 << 20).prop_map(|n| MemorySize::try_from(config::ByteSize::from_bytes(n << 21)).unwrap());
    let node = option::of((0i64..=1023).prop_map(|number| number.try_into().unwrap()));
    (size, option::of(word::<HugePages>(HugePages::NAMES)), node, word(Wire::NAMES)).prop_map(
        |(size, pages, node, wire)| {
            let hugepages = pages.filter(|pages| size.bytes().is_multiple_of(pages.bytes()));
            (size, Backing { hugepages, node, wire })
        },
    )
}

fn vm() -> impl Strategy<Value = Vm> {
    let console = prop_oneof![
        Just(Console::Stdio),
        path().prop_map(Console::File),
        parsed("[a-z:/]{1,90}").prop_map(Console::Socket),
    ];
    let linux = || {
        (path(), option::of(path()), parsed("(?s).{0,60}")).prop_map(|(kernel, initrd, cmdline)| Linux {
            kernel,
            initrd,
            cmdline,
        })
    };
    let file = || parsed::<HostPath>("/[a-z ]{1,9}");
    let image = prop_oneof![
        Just(FirmwareImage::Installed),
        (file(), option::of(file())).prop_map(|(code, variables)| FirmwareImage::Files { code, variables }),
    ];
    let once = option::of(Just(Once::Cd));
    let content =
        prop_oneof!["(?s).{0,20}".prop_map(FwCfgContent::Text), path().prop_map(FwCfgContent::File)];
    let files = (parsed("opt/[!-~]{1,51}"), content).prop_map(|(name, content)| FwCfgFile { name, content });
    let files = prop::collection::vec(files, 0..3)
        .prop_filter_map("repeated", |files| Distinct::try_from(files).ok());
    let firmware = (image, option::of(path()), any::<[bool; 2]>(), (once, files), option::of(linux()))
        .prop_map(|(image, variables, [secure_boot, menu], (once, files), kernel)| {
            let firmware = BootFirmware { image, variables, secure_boot, menu, once, files };
            Boot::Firmware { firmware, kernel }
        });
    let boot = prop_oneof![linux().prop_map(Boot::Kernel), firmware];
    let disks = prop::collection::vec(shown(), 0..4);
    let assigned = prop::collection::vec(assign(), 0..4);
    let places = any::<[bool; 8]>();
    let booted = (boot, disks, assigned, places).prop_map(|(mut boot, mut disks, mut assigned, places)| {
        if let Boot::Firmware { firmware, .. } = &mut boot {
            let places =
                (0i64..).zip(places).map(|(n, wanted)| wanted.then(|| (n * 999).try_into().unwrap()));
            let mut of_both = disks
                .iter_mut()
                .map(|disk| &mut disk.boot_index)
                .chain(assigned.iter_mut().map(|a| &mut a.boot_index));
            places.for_each(|place| of_both.next().into_iter().for_each(|at| *at = place));
            firmware.once =
                firmware.once.filter(|_| disks.iter().any(|disk| disk.model == DiskModel::AhciCd));
        }
        (boot, disks, assigned)
    });
    let lists = booted.prop_filter_map("repeated", |(boot, disks, assigned)| {
        let both = |disk: &Disk| match &disk.source {
            DiskSource::Nvme { address, .. } => assigned.iter().any(|assign| assign.address == *address),
            _ => false,
        };
        if disks.iter().any(both) {
            return None;
        }
        Some((boot, Distinct::try_from(disks).ok()?, Distinct::try_from(assigned).ok()?))
    });
    let source = prop_oneof![Just(TpmSource::Emulated), file().prop_map(TpmSource::Passthrough)];
    let tpm =
        option::of((source, word(OnTpmError::NAMES)).prop_map(|(source, on_error)| Tpm { source, on_error }));
    let cpus = (1i64..=1024).prop_map(|count| Cpus::try_from(count).unwrap());
    (parsed("[A-Za-z0-9._-]{1,64}"), (cpus, any::<bool>()), memory(), lists, (tpm, dma()), console).prop_map(
        |(name, (cpus, nested), (memory, backing), (boot, disks, assigned), (tpm, dma), console)| Vm {
            name,
            cpus,
            nested,
            memory,
            backing,
            boot,
            disks,
            assigned,
            tpm,
            dma,
            console,
        },
    )
}

fn read(text: &str) -> Result<Vm, config::Findings> {
    config::describe(Some(File { name: "vm.toml", bytes: text.as_bytes() }), &[])
}

proptest! {
    #[test]
    fn a_vm_printed_as_toml_reads_as_the_same_vm(vm in vm()) {
        let text = vm.to_toml();
        prop_assert_eq!(read(&text), Ok(vm), "{}", text);
    }

    #[test]
    fn a_disk_printed_as_a_flag_reads_as_the_same_disk(vm in vm()) {
        for disk in &vm.disks {
            let text = disk.to_flag();
            let read = config::describe_disk("--disk", &text, config::ModelName::default());
            prop_assert_eq!(read.as_ref(), Ok(disk), "{}", text);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
        black_box(config::describe(Some(File { name: "vm.toml", bytes: &bytes }), &[]).is_ok());
    }

    /// Text that looks like TOML gets further than arbitrary bytes do.
    #[test]
    fn no_text_like_toml_makes_the_reader_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "name", "memory", "disk", "assign", "path", "readonly", "nvme", "poll", "ram", "snapshot", "model", "\"ahci-cd\"", "format", "\"vmdk\"", "hugepages", "node", "host-domain", " = ", "=", "[[", "]]", "[", "]", "{", "}",
            "\"", "'", "\"\"\"", "\"a\"", ".", ",", "\n", "#", "\\", "1", "-1", "0x", "true", "1979-05-27", "ä", "\r",
            "99999999999999999999",
        ]), 0..40)
    ) {
        black_box(read(&words.concat()).is_ok());
    }

    /// Cut or changed at one place, a good file stays good or is refused with findings: nothing else.
    #[test]
    fn a_damaged_file_is_read_or_refused(vm in vm(), at: prop::sample::Index, byte: Option<u8>) {
        let mut bytes = vm.to_toml().into_bytes();
        let at = at.index(bytes.len());
        match byte {
            Some(byte) => bytes[at] = byte,
            None => bytes.truncate(at),
        }
        if let Err(findings) = config::describe(Some(File { name: "vm.toml", bytes: &bytes }), &[]) {
            prop_assert!(findings.iter().count() > 0);
        }
    }

    #[test]
    fn no_flag_makes_the_reader_panic(key in prop::sample::select(Key::ALL.to_vec()), value in "(?s).*") {
        black_box(config::describe(None, &[(key, value)]).is_ok());
    }

    #[test]
    fn no_list_of_a_flag_makes_the_reader_panic(value in "((path|nvme|nbd|ram|format|namespace|poll|model|queues|readonly|snapshot|logical|preallocate|x)?=?[,a-z0-9=]{0,5}){0,6}") {
        black_box(config::describe(None, &[(Key::Disk, value)]).is_ok());
    }

    /// A path survives the way through a flag if its commas are doubled.
    #[test]
    fn a_value_with_doubled_commas_arrives_as_it_is(path in "[a-z,=/ ]{1,20}") {
        let disk = format!("readonly=on,path={}", path.replace(',', ",,"));
        let flags = [(Key::Kernel, "k".to_string()), (Key::Disk, disk)];
        let vm = config::describe(None, &flags).unwrap();
        prop_assert_eq!(&vm.disks[0].source, &DiskSource::File(FileDisk::new(path.parse().unwrap())));
    }
}
