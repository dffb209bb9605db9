//! What people's tools say of disks in a guest: nvme-cli, smartctl, hdparm and lsblk.

mod scenario;

use scenario::{Scenario, Seen};

/// The firmware revision that skep's disks have.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs a program and shows what it says, each line after a name.
const SHOWN: &str = r#"
    shown() {
        what=$1
        shift
        "$@" > /tmp/shown 2>&1 && status=0 || status=$?
        sed "s/^/$what: /" /tmp/shown
        echo "$what: status $status"
    }
"#;

/// What was shown under a name, with one space between words, however it was aligned.
fn said(seen: &Seen, name: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    seen.after(&format!("{name}: ")).into_iter().map(words).collect()
}

/// Each of these is a line under the name.
fn says(seen: &Seen, name: &str, lines: &[&str]) {
    let said = said(seen, name);
    let missing: Vec<&&str> = lines.iter().filter(|line| !said.iter().any(|said| said == **line)).collect();
    assert!(missing.is_empty(), "{name} does not say {missing:#?}, but {said:#?}\n{seen}");
}

#[test]
fn what_the_host_says_in_the_middle_of_a_guests_line_does_not_cut_it() {
    let seen = "guest: sechost: opened a\nhost: b 1\nond one\nhost: said skep: host: x\nguest: hahost: skep ended with 5\nguest: hihost: x\nguest: a";
    let whole = "host: opened a\nhost: b 1\nguest: second one\nhost: said skep: host: x\nguest: ha\nhost: skep ended with 5\nhost: x\nguest: hi\nguest: a\n";
    assert_eq!(scenario::in_one_piece(seen), whole);
}

#[test]
fn tools_know_disks_of_all_controllers_by_model_serial_size_and_abilities() {
    // Another kernel has other words for the same.
    let seen = Scenario::new().programs().memory(lab::Size::mib(1536)).run(&format!(
        "BLOCK=/dev/$(disk_of AHCI0)
        truncate -s 96M /tmp/virtio.img
        truncate -s 80M /tmp/ahci.img
        MEMORY=320M guest '{SHOWN}
            wait_for 60 eval \"[ -n \\\"\\$(disk_of SERIALN)\\\" ]\"
            NVME=/dev/$(disk_of SERIALN)
            CONTROLLER=${{NVME%n1}}
            ATA=/dev/$(disk_of SERIALA)
            VIRTIO=/dev/$(disk_of SERIALV)
            say names ${{NVME#/dev/}} ${{ATA#/dev/}} ${{VIRTIO#/dev/}}
            shown list nvme list
            shown id-ctrl nvme id-ctrl $CONTROLLER
            shown id-ns nvme id-ns $NVME -H
            dd if=$NVME of=/dev/null bs=1M count=8 2> /dev/null
            shown smart-log nvme smart-log $CONTROLLER
            shown error-log nvme error-log $CONTROLLER
            shown smartctl-nvme smartctl -a $NVME
            shown smartctl-ata smartctl -a $ATA
            shown hdparm hdparm -I $ATA
            shown lsblk-d lsblk -D -b -n -o NAME,DISC-ALN,DISC-GRAN,DISC-MAX,DISC-ZERO
            shown lsblk-t lsblk -t -b -n -o NAME,ALIGNMENT,MIN-IO,OPT-IO,PHY-SEC,LOG-SEC,ROTA
            shown lsblk lsblk -b -n -d -o NAME,SIZE,TYPE,RO,ROTA
        ' --disk path=$BLOCK,model=nvme,serial=SERIALN \
            --disk path=/tmp/ahci.img,model=ahci,serial=SERIALA \
            --disk path=/tmp/virtio.img,serial=SERIALV"
    ));
    seen.ended_with(&[0]);
    let names: Vec<&str> = seen.after("guest: names ")[0].split(' ').collect();
    let [nvme, ata, virtio] = names[..] else { panic!("three disks: {names:?}") };
    nvme_cli(&seen, nvme);
    smartctl(&seen);
    hdparm(&seen);
    // SATA and virtio disks are files of the host's tmpfs, which keeps pages of 4 KiB.
    says(
        &seen,
        "lsblk",
        &[
            &format!("{nvme} 67108864 disk 0 0"),
            &format!("{ata} 83886080 disk 0 0"),
            &format!("{virtio} 100663296 disk 0 1"),
        ],
    );
    says(
        &seen,
        "lsblk-t",
        &[
            &format!("{nvme} 0 512 512 512 512 0"),
            &format!("{ata} 0 4096 0 4096 512 0"),
            &format!("{virtio} 0 4096 0 4096 512 1"),
        ],
    );
    says(
        &seen,
        "lsblk-d",
        &[
            &format!("{nvme} 0 512 2199023255040 0"),
            &format!("{ata} 0 4096 2147450880 0"),
            &format!("{virtio} 0 4096 1073741824 0"),
        ],
    );
}

fn nvme_cli(seen: &Seen, disk: &str) {
    let generic = disk.replace("nvme", "ng");
    says(
        seen,
        "list",
        &[&format!(
            "/dev/{disk} /dev/{generic} SERIALN QEMU HARDDISK 1 67.11 MB / 67.11 MB 512 B + 0 B {VERSION}"
        )],
    );
    says(
        seen,
        "id-ctrl",
        &[
            "sn : SERIALN",
            "mn : QEMU HARDDISK",
            &format!("fr : {VERSION}"),
            "ver : 0x10400",
            // Compare, deallocate, write zeroes; and a write cache to be flushed.
            "oncs : 0xd",
            "vwc : 0x5",
            "status 0",
        ],
    );
    says(
        seen,
        "id-ns",
        &[
            "nsze : 0x20000",
            "nvmcap : 67108864",
            "LBA Format 0 : Metadata Size: 0 bytes - Data Size: 512 bytes - Relative Performance: 0 Best (in use)",
            "status 0",
        ],
    );
    says(
        seen,
        "smart-log",
        &[
            "critical_warning : 0",
            "temperature : 27\u{b0}C (300 Kelvin)",
            "available_spare : 100%",
            "media_errors : 0",
            "num_err_log_entries : 0",
            "status 0",
        ],
    );
    assert!(!said(seen, "smart-log").contains(&"host_read_commands : 0".to_owned()), "{seen}");
    says(seen, "error-log", &["Error Log Entries for device:nvme0 entries:32", "status 0"]);
    let errors = said(seen, "error-log").into_iter().filter(|line| line.starts_with("error_count"));
    assert_eq!(errors.filter(|line| line != "error_count : 0").count(), 0, "{seen}");
}

fn smartctl(seen: &Seen) {
    says(
        seen,
        "smartctl-nvme",
        &[
            "Model Number: QEMU HARDDISK",
            "Serial Number: SERIALN",
            &format!("Firmware Version: {VERSION}"),
            "Namespace 1 Size/Capacity: 67,108,864 [67.1 MB]",
            "SMART overall-health self-assessment test result: PASSED",
            "Temperature: 27 Celsius",
            "Media and Data Integrity Errors: 0",
            "No Errors Logged",
            "status 0",
        ],
    );
    says(
        seen,
        "smartctl-ata",
        &[
            "Device Model: skep disk",
            "Serial Number: SERIALA",
            &format!("Firmware Version: {VERSION}"),
            "User Capacity: 83,886,080 bytes [83.8 MB]",
            "Sector Sizes: 512 bytes logical, 4096 bytes physical",
            "Rotation Rate: Solid State Device",
            "TRIM Command: Available, deterministic, zeroed",
            "SMART support is: Enabled",
            "SMART overall-health self-assessment test result: PASSED",
            "187 Reported_Uncorrect 0x0033 100 100 000 Pre-fail Always - 0",
            "No Errors Logged",
            "status 0",
        ],
    );
}

fn hdparm(seen: &Seen) {
    says(
        seen,
        "hdparm",
        &[
            "Model Number: skep disk",
            "Serial Number: SERIALA",
            &format!("Firmware Revision: {VERSION}"),
            "LBA48 user addressable sectors: 163840",
            "Logical Sector size: 512 bytes",
            "Physical Sector size: 4096 bytes",
            "Nominal Media Rotation Rate: Solid State Device",
            "Queue depth: 32",
            "* SMART feature set",
            "* Write cache",
            "* Mandatory FLUSH_CACHE",
            "* Native Command Queueing (NCQ)",
            "* Data Set Management TRIM supported (limit 8 blocks)",
            "* Deterministic read ZEROs after TRIM",
            "Checksum: correct",
            "status 0",
        ],
    );
}
