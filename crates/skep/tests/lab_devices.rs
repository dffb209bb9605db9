//! Devices of other kinds, assigned and found by their drivers in the guest.

mod scenario;

use std::process::Command;

use scenario::Scenario;

/// Waits for the link, which the card announces by an interrupt, and gets an address from the network's DHCP
/// server, which takes packets in both directions.
const NETWORK: &str = "
    network() {
        ip link set $1 up
        wait_for 20 grep -q 1 /sys/class/net/$1/carrier
        driver=$(readlink /sys/class/net/$1/device/driver)
        say network ${driver##*/} $(udhcpc -i $1 -n -q -t 20 -T 1 -s /bin/true 2>&1 | grep -o \"lease of [0-9.]*\")
    }
";

#[test]
fn a_network_card_and_a_whole_ahci_controller_are_found_by_their_drivers() {
    let seen = Scenario::new()
        .disk("ahci:64M,serial=HOSTS")
        .disk("ahci:64M,serial=GUESTS,controller=1")
        .device("e1000e")
        .run(&format!(
            "own=$(disk_of HOSTS)
             given=$(disk_of GUESTS)
             ahci=$(function_of $given)
             card=$(of_class 0x020000)
             guest '{NETWORK}
                 sums vda sda
                 patterns fill /dev/sda 1
                 patterns check /dev/sda 1
                 network eth0
             ' --disk /dev/$own --assign $ahci --assign $card
             given_back $ahci ahci
             given_back $card e1000e
             wait_for 20 eval 'given=$(disk_of GUESTS); [ -n \"$given\" ]'
             patterns check /dev/$given 1"
        ));
    seen.ended_with(&[0]);
    seen.expect(&format!("guest: sum vda {}", seen.sum("HOSTS")));
    seen.expect(&format!("guest: sum sda {}", seen.sum("GUESTS")));
    seen.expect("guest: check /dev/sda 1 ok");
    assert_eq!(seen.after("host: check /dev/").len(), 1, "{seen}");
    seen.expect("guest: network e1000e lease of 10.0.2.15");
}

#[test]
fn an_igb_network_card_is_found_by_its_driver() {
    let qemu = std::env::var("SKEP_LAB_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    let models = Command::new(&qemu).args(["-device", "help"]).output();
    if !models.is_ok_and(|models| String::from_utf8_lossy(&models.stdout).contains("\"igb\"")) {
        println!("Skipped: {qemu} has no igb. QEMU has it from version 8.0 on; name one with SKEP_LAB_QEMU.");
        return;
    }
    let seen = Scenario::new().disk("ahci:16M").device("igb").run(&format!(
        "card=$(of_class 0x020000)
         guest '{NETWORK} network eth0' --assign $card
         given_back $card igb"
    ));
    seen.ended_with(&[0]);
    seen.expect("guest: network igb lease of 10.0.2.15");
}

#[test]
fn an_assigned_device_shows_no_option_rom_or_that_of_a_file_where_it_is_told_to() {
    let seen = Scenario::new().disk("nvme:16M").run(
        r#"
        # 512 bytes: signature, where the PCI data structure is, and that it is the only image and 512 bytes long.
        truncate -s 512 /tmp/rom
        put() { printf "$2" | dd of=/tmp/rom bs=1 seek=$1 conv=notrunc 2> /dev/null; }
        put 0 '\125\252\001'
        put 24 '\034\000'
        put 28 PCIR
        put 44 '\001\000'
        put 49 '\200'
        put 60 'a file of the host'
        device='rom=$(dirname $(grep -l 0x010802 /sys/bus/pci/devices/*/class))/rom'
        guest "$device; [ -e \$rom ] && say a ROM || say no ROM" --assign $(of_class 0x010802),rom=off
        guest "$device; echo 1 > \$rom; say ROM \$(dd if=\$rom bs=1 skip=60 count=18 2> /dev/null)" \
            --assign $(of_class 0x010802),rom=/tmp/rom
        try skep run --kernel /lab/guest/vmlinux --assign $(of_class 0x010802),rom=/lab/guest/vmlinux
        "#,
    );
    seen.ended_with(&[0, 0, 1]);
    seen.expect("guest: no ROM");
    seen.expect("guest: ROM a file of the host");
    assert!(seen.lines().any(|line| line.contains("/lab/guest/vmlinux is no expansion ROM")), "{seen}");
}
