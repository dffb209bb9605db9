//! From a VM to TOML and back, and what arbitrary input does.

use std::fmt::Debug;
use std::hint::black_box;
use std::str::FromStr;

use config::{Assign, Boot, Console, Cpus, Disk, DiskModel, Distinct, File, Key, MemorySize, PciAddress, Vm};
use proptest::option;
use proptest::prelude::*;

fn parsed<T: FromStr + Debug>(text: impl Strategy<Value = String>) -> impl Strategy<Value = T> {
    text.prop_filter_map("not of this kind", |text| text.parse().ok())
}

fn path<T: FromStr + Debug>() -> impl Strategy<Value = T> {
    parsed(prop_oneof!["/[a-z,='\"\\\\/ ]{1,20}", "(?s).{1,20}"])
}

fn disk() -> impl Strategy<Value = Disk> {
    let queues = option::of((1i64..=1024).prop_map(|count| count.try_into().unwrap()));
    (path(), any::<bool>(), queues, option::of(parsed("[ -~]{1,20}"))).prop_map(
        |(path, readonly, queues, serial)| Disk {
            path,
            model: DiskModel::VirtioBlk,
            readonly,
            queues,
            serial,
        },
    )
}

fn assign() -> impl Strategy<Value = Assign> {
    (any::<u16>(), any::<u8>(), 0u8..32, 0u8..8).prop_map(|(segment, bus, device, function)| Assign {
        address: PciAddress::new(segment, bus, device, function).unwrap(),
    })
}

fn vm() -> impl Strategy<Value = Vm> {
    let console = prop_oneof![
        Just(Console::Stdio),
        path().prop_map(Console::File),
        parsed("[a-z:/]{1,90}").prop_map(Console::Socket),
    ];
    let boot = (path(), option::of(path()), parsed("(?s).{0,60}"))
        .prop_map(|(kernel, initrd, cmdline)| Boot { kernel, initrd, cmdline });
    let disks = prop::collection::vec(disk(), 0..4);
    let assigned = prop::collection::vec(assign(), 0..4);
    let lists = (disks, assigned).prop_filter_map("repeated", |(disks, assigned)| {
        Some((Distinct::try_from(disks).ok()?, Distinct::try_from(assigned).ok()?))
    });
    let size = (8u64..32 << 20).prop_map(|n| config::ByteSize::from_bytes(n << 21));
    let size = size.prop_map(|size| MemorySize::try_from(size).unwrap());
    let cpus = (1i64..=1024).prop_map(|count| Cpus::try_from(count).unwrap());
    (parsed("[A-Za-z0-9._-]{1,64}"), cpus, size, boot, lists, console).prop_map(
        |(name, cpus, memory, boot, (disks, assigned), console)| Vm {
            name,
            cpus,
            memory,
            boot,
            disks,
            assigned,
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
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
        black_box(config::describe(Some(File { name: "vm.toml", bytes: &bytes }), &[]).is_ok());
    }

    /// Text that looks like TOML gets further than arbitrary bytes do.
    #[test]
    fn no_text_like_toml_makes_the_reader_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "name", "memory", "disk", "assign", "path", "readonly", " = ", "=", "[[", "]]", "[", "]", "{", "}",
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
    fn no_list_of_a_flag_makes_the_reader_panic(value in "((path|model|queues|readonly|x)?=?[,a-z0-9=]{0,5}){0,6}") {
        black_box(config::describe(None, &[(Key::Disk, value)]).is_ok());
    }

    /// A path survives the way through a flag if its commas are doubled.
    #[test]
    fn a_value_with_doubled_commas_arrives_as_it_is(path in "[a-z,=/ ]{1,20}") {
        let disk = format!("readonly=on,path={}", path.replace(',', ",,"));
        let flags = [(Key::Kernel, "k".to_string()), (Key::Disk, disk)];
        let vm = config::describe(None, &flags).unwrap();
        prop_assert_eq!(vm.disks[0].path.as_str(), path);
    }
}
