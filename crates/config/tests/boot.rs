//! What a VM boots, and in which order.

mod reading;

use config::{Boot, BootFirmware, BootIndex, FirmwareImage, FwCfgContent, Key};
use reading::{describe, findings, flag_findings};

#[test]
fn without_a_kernel_a_vm_boots_what_is_installed_by_the_firmware_that_this_host_has() {
    for file in [None, Some("cpus = 2")] {
        let boot = describe(file, &[]).unwrap().boot;
        let firmware = BootFirmware::new(FirmwareImage::Installed);
        assert_eq!(boot, Boot::Firmware { firmware, kernel: None });
    }
    let boot = |flags: &[(Key, &str)]| describe(None, flags).unwrap().boot;
    assert!(matches!(boot(&[(Key::Kernel, "k")]), Boot::Kernel(_)));
    let both = boot(&[(Key::Kernel, "k"), (Key::Firmware, "/f/CODE.fd")]);
    assert!(matches!(&both, Boot::Firmware { .. }) && both.kernel().is_some(), "{both:?}");
}

#[test]
fn without_firmware_a_kernel_is_needed_and_what_is_for_nothing_is_said() {
    assert_eq!(
        findings("firmware = \"none\"\n"),
        [
            "vm.toml:1:12: the VM has no `kernel`. Say what it boots: kernel = \"PATH\", or leave firmware = \"none\" out."
        ]
    );
    assert_eq!(
        findings("initrd = \"i\"\n"),
        ["vm.toml:1:10: `initrd` is for nothing without `kernel`. Give that as well, or remove this."]
    );
    assert_eq!(
        findings("cmdline = \"quiet\"\n"),
        ["vm.toml:1:11: `cmdline` is for nothing without `kernel`. Give that as well, or remove this."]
    );
    let found = findings("kernel = \"k\"\nfirmware-vars = \"v\"\n");
    assert!(found[0].contains("`firmware-vars` is for nothing without `firmware`"), "{found:?}");
    assert!(findings("firmware = \"bios\"\n")[0].contains("\"bios\" is not a firmware. Write auto"));
}

#[test]
fn the_boot_order_is_said_by_disks_and_devices_each_place_once_and_only_with_firmware() {
    let file = "assign = [{ address = \"01:00.0\", bootindex = 2 }]\n[[disk]]\npath = \"d\"\nbootindex = 1\n";
    let vm = describe(Some(file), &[(Key::Disk, "path=e,model=ahci-cd"), (Key::Boot, "once:cd")]).unwrap();
    let index = |number: i64| Some(BootIndex::try_from(number).unwrap());
    assert_eq!((vm.assigned[0].boot_index, vm.disks[0].boot_index), (index(2), index(1)));
    assert_eq!(vm.disks[1].boot_index, None);
    let twice = format!("{file}[[disk]]\npath = \"e\"\nbootindex = 2\n");
    assert_eq!(
        findings(&twice),
        ["vm.toml:5:1: bootindex 2 was given before, in line 1 of vm.toml. Remove one of them."]
    );
    let found = findings("kernel = \"k\"\nboot-menu = true\ndisk = [{ path = \"d\", bootindex = 0 }]\n");
    assert!(found[0].contains("`boot-menu` is for nothing without `firmware`"), "{found:?}");
    assert!(found[1].contains("`bootindex` is for nothing without `firmware`"), "{found:?}");
    assert_eq!(
        findings("boot = \"once:cd\"\n"),
        ["vm.toml:1:8: there is no CD drive to boot from. Give the VM a disk with model = \"ahci-cd\"."]
    );
    assert!(flag_findings(Key::Disk, "d,bootindex=65536").contains("65536 is no place in the boot order"));
    assert!(flag_findings(Key::Boot, "cd").contains("once:cd"));
    assert!(
        flag_findings(Key::Assign, "01:00.0,rom=bios").contains("\"bios\" is no choice of an expansion ROM")
    );
}

#[test]
fn a_word_where_a_path_may_be_is_none_and_says_which_words_there_are_and_how_a_file_of_that_name_is_written()
{
    let drive = "d,format=qcow2,chain=";
    for (key, text, said) in [
        (
            Key::Firmware,
            "OVMF",
            "\"OVMF\" is not a firmware. Did you mean ovmf? Write auto, ovmf, none or a path; a file here is ./OVMF.",
        ),
        (
            Key::Firmware,
            "bios,vars=/v.fd",
            "\"bios\" is not a firmware. Write auto, ovmf, none or a path; a file here is ./bios.",
        ),
        (
            Key::Assign,
            "01:00.0,rom=vbios",
            "\"vbios\" is no choice of an expansion ROM. Write on, off or a path; a file here is ./vbios.",
        ),
        (
            Key::Assign,
            "01:00.0,rom=Off",
            "\"Off\" is no choice of an expansion ROM. Did you mean off? Write on, off or a path; a file here is ./Off.",
        ),
        (
            Key::Disk,
            &format!("{drive}folow"),
            "\"folow\" is no choice for chain. Did you mean follow? Write follow or a path; a file here is ./folow.",
        ),
        (
            Key::Console,
            "stdoi",
            "\"stdoi\" is not a console. Did you mean stdio? Write stdio, file:PATH or socket:PATH.",
        ),
    ] {
        assert_eq!(flag_findings(key, text), format!("--{} {text}: {said}", key.name()));
    }
    // A name with a dot is a file's: no word has one.
    for (key, text) in [
        (Key::Firmware, "./OVMF"),
        (Key::Firmware, "OVMF.fd"),
        (Key::Assign, "01:00.0,rom=./vbios"),
        (Key::Assign, "01:00.0,rom=vbios.rom"),
        (Key::Disk, &format!("{drive}./base")),
        (Key::Disk, &format!("{drive}base.img")),
    ] {
        config::describe(None, &[(Key::Kernel, "k".into()), (key, text.into())]).unwrap();
    }
}

#[test]
fn a_file_for_the_guest_has_a_name_of_its_own_and_one_content() {
    let found = |text: &str| flag_findings(Key::FwCfg, text);
    let vm =
        describe(None, &[(Key::FwCfg, "name=opt/a,file=/b"), (Key::FwCfg, "opt/c,string=d,,e")]).unwrap();
    let Boot::Firmware { firmware, .. } = vm.boot else { panic!("no firmware") };
    assert_eq!(firmware.files[0].content, FwCfgContent::File("/b".parse().unwrap()));
    assert_eq!(firmware.files[1].content, FwCfgContent::Text("d,e".into()));
    for (text, said) in [
        ("opt/a", "this fw-cfg file has no `string`"),
        ("opt/a,string=b,file=c", "exclude each other"),
        ("etc/e820,string=b", "\"etc/e820\" cannot be the name of a fw-cfg file. Write opt/"),
        ("opt/ovmf/X-PciMmio64Mb,string=1", "is skep's own"),
        ("string=b", "has no `name`"),
    ] {
        assert!(describe(None, &[(Key::FwCfg, text)]).unwrap_err().contains(said), "{text}");
        assert!(!found(text).is_empty());
    }
    let twice = describe(None, &[(Key::FwCfg, "opt/a,string=b"), (Key::FwCfg, "opt/a,string=c")]);
    assert!(twice.unwrap_err().contains("the fw-cfg file opt/a was given before"));
    assert!(found("opt/a,string=b").contains("`fw-cfg` is for nothing without `firmware`"));
}
