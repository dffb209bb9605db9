//! Disks that share a controller.

mod reading;

use config::Key;
use reading::describe;

#[test]
fn disks_share_a_controller_by_its_name_and_say_what_they_are() {
    let text = "d,model=nvme,controller=fast,product=Some disk,firmware=1.0";
    let first = describe(None, &[(Key::Kernel, "k"), (Key::Disk, text)]).unwrap().disks[0].clone();
    assert_eq!(first.controller.unwrap().as_str(), "fast");
    assert_eq!((first.product.unwrap().as_str(), first.firmware.unwrap().as_str()), ("Some disk", "1.0"));
    let more = [
        (Key::Kernel, "k"),
        (Key::Disk, text),
        (Key::Disk, "e,model=nvme,controller=fast"),
        (Key::Disk, "f,model=nvme,controller=fast,firmware=1.0"),
        (Key::Disk, "g,model=ahci,controller=slow,firmware=a"),
        (Key::Disk, "h,model=ahci-cd,controller=slow,firmware=b"),
    ];
    assert_eq!(describe(None, &more).unwrap().disks.len(), 5);
}

#[test]
fn disks_that_do_not_go_together_on_a_controller_are_findings_that_name_both() {
    fn both(one: &str, other: &str) -> String {
        describe(None, &[(Key::Kernel, "k"), (Key::Disk, one), (Key::Disk, other)]).unwrap_err()
    }
    let error = both("a,model=nvme,controller=x", "b,model=ahci,controller=x");
    let expected = "--disk b,model=ahci,controller=x: controller x is of model nvme, as the first of its disks says, given \
                    by --disk a,model=nvme,controller=x; this disk is of model ahci.";
    assert!(error.starts_with(expected), "{error}");
    for (key, one, other) in
        [("serial", "1", "2"), ("product", "a", "b"), ("firmware", "a", "b"), ("queues", "1", "2")]
    {
        let error = both(
            &format!("a,model=nvme,controller=x,{key}={one}"),
            &format!("b,model=nvme,controller=x,{key}={other}"),
        );
        let said = [format!("one `{key}` for all"), format!("says \"{other}\""), format!("says \"{one}\"")];
        assert!(said.iter().all(|said| error.contains(said)) && error.contains("by --disk a,"), "{error}");
    }
    let mut file = "kernel = \"k\"\n".to_owned();
    for n in 0..33 {
        file += &format!("[[disk]]\npath = \"{n}\"\nmodel = \"ahci\"\ncontroller = \"x\"\n");
    }
    let found = describe(Some(&file), &[]).unwrap_err();
    let found: Vec<&str> = found.lines().collect();
    assert!(found.len() == 1 && found[0].contains("controller x has 32 disks already"), "{found:?}");
    assert!(found[0].starts_with("vm.toml:130:1: "), "{found:?}");
}
