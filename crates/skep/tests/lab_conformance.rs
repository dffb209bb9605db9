//! The suite that every back end of disks must pass, over controllers that skep drives itself.

mod scenario;

use std::path::PathBuf;
use std::time::SystemTime;

use scenario::Scenario;

/// The suite's program, which lies where this one does. The newest is the present one.
fn suite() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_suite = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("conformance-") && path.extension().is_none()
    };
    let made =
        |path: &PathBuf| path.metadata().and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let files = std::fs::read_dir(&folder).unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let suite = files.filter(is_suite).max_by_key(made);
    suite.expect("`cargo test -p disk --test conformance --no-run` makes the suite")
}

#[test]
fn controllers_that_skep_drives_do_what_every_back_end_must() {
    let suite = suite();
    let seen = Scenario::quick()
        .outer_root()
        .disk("nvme:16M,serial=SMALL")
        .disk("nvme:16M,serial=LARGE,logical=4096,physical=4096")
        .run(&format!(
            r#"
            for serial in SMALL LARGE; do
                disk=$(disk_of $serial)
                say "blocks of $(cat /sys/block/$disk/queue/logical_block_size)"
                at=$(function_of $disk)
                device=/sys/bus/pci/devices/$at
                group=$(basename $(readlink $device/iommu_group))
                echo vfio-pci > $device/driver_override
                echo $at > $device/driver/unbind
                echo $at > /sys/bus/pci/drivers_probe
                outer env SKEP_TEST_NVME=$group:$at {suite} --nocapture --test-threads 1 > /tmp/suite 2>&1 ||
                    cat /tmp/suite
                say "$serial runs $(grep -c 'NVMe controller of this host' /tmp/suite)"
                say "$serial $(grep '^test result' /tmp/suite)"
            done
            "#,
            suite = suite.display()
        ));
    assert_eq!(seen.after("host: blocks of "), ["512", "4096"], "{seen}");
    for serial in ["SMALL", "LARGE"] {
        let result = seen.after(&format!("host: {serial} test result: "));
        assert!(result.len() == 1 && result[0].starts_with("ok. "), "{seen}");
        // Each test said which disk it ran over.
        let runs = seen.after(&format!("host: {serial} runs "));
        assert!(runs[0].parse::<u32>().unwrap() >= 10, "{seen}");
        assert!(result[0].starts_with(&format!("ok. {} passed", runs[0])), "{seen}");
    }
}
