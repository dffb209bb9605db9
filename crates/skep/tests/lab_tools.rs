//! What people's tools say of disks in a guest: nvme-cli, smartctl, hdparm and lsblk.

mod scenario;

use scenario::{Scenario, Seen};

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

/// Nothing under the name holds any of these words.
fn says_nothing_of(seen: &Seen, name: &str, words: &[&str]) {
    for line in said(seen, name) {
        assert!(!words.iter().any(|word| line.contains(word)), "{name} says {line:?}\n{seen}");
    }
}

#[test]
fn tools_know_disks_of_all_controllers_by_model_serial_size_and_abilities() {
    let seen = Scenario::new().programs().memory(lab::Size::mib(1536)).run(&format!(
        "BLOCK=/dev/$(disk_of AHCI0)
        truncate -s 96M /tmp/virtio.img
        truncate -s 80M /tmp/ahci.img
        MEMORY=512M guest '{SHOWN}
            wait_for 60 eval \"[ -n \\\"\\$(disk_of SERIALN)\\\" ]\"
            NVME=/dev/$(disk_of SERIALN)
            CONTROLLER=${{NVME%n1}}
            ATA=/dev/$(disk_of SERIALA)
            SECOND=/dev/$(disk_of SERIALB)
            VIRTIO=/dev/$(disk_of SERIALV)
            say names $NVME $ATA $SECOND $VIRTIO
            shown list nvme list
            shown id-ctrl nvme id-ctrl $CONTROLLER
            shown id-ns nvme id-ns $NVME -H
            dd if=$NVME of=/dev/null bs=1M count=8 2> /dev/null
            shown smart-log nvme smart-log $CONTROLLER
            shown error-log nvme error-log $CONTROLLER
            shown fw-log nvme fw-log $CONTROLLER
            shown effects nvme effects-log $CONTROLLER
            shown smartctl-nvme smartctl -a $NVME
            shown smartctl-ata smartctl -a $ATA
            shown smartctl-x smartctl -x $ATA
            shown hdparm hdparm -I $ATA
            shown hdparm-b hdparm -I $SECOND
            shown lsblk-d lsblk -D -b -n -o NAME,DISC-ALN,DISC-GRAN,DISC-MAX,DISC-ZERO
            shown lsblk-t lsblk -t -b -n -o NAME,ALIGNMENT,MIN-IO,OPT-IO,PHY-SEC,LOG-SEC,ROTA
            shown lsblk lsblk -b -n -d -o NAME,SIZE,TYPE,RO,ROTA
            shown log dmesg
        ' --disk path=$BLOCK,model=nvme,serial=SERIALN \
            --disk path=/tmp/ahci.img,model=ahci,serial=SERIALA \
            --disk path=/dev/$(disk_of NVME0),model=ahci,serial=SERIALB \
            --disk path=/tmp/virtio.img,serial=SERIALV"
    ));
    seen.ended_with(&[0]);
    for name in ["list", "id-ctrl", "id-ns", "smart-log", "error-log", "fw-log", "effects"] {
        says(&seen, name, &["status 0"]);
    }
}
