//! An installed Debian boots to a login, from a disk behind each controller, and the power button switches it off.

mod scenario;

use std::process::Command;

use scenario::Scenario;
use scenario::installed::Installed;

/// One boot after the other in one emulated host, each of the system that the one before left on the disk.
fn boots(all: &[(&str, u32)]) {
    let system = Installed::prepare();
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    system.copy(&disk);
    let boots: Vec<String> = all.iter().map(|(model, cpus)| format!("boot {model} {cpus}")).collect();
    let seen = Scenario::new()
        .patience(scenario::EACH_INSTALLED_BOOT * all.len() as u32)
        .memory(lab::Size::mib(1024))
        .share(system.folder())
        // Not on AHCI: QEMU's own loses a command now and then, and Linux waits for it for half a minute.
        .disk(&format!("virtio:{}", disk.display()))
        .run(&format!(
            "# On a machine that does other things too, systemd's 90 seconds for a device can be too few.
             PATIENT='systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900'
             boot() {{
                 : > /tmp/console
                 skep run --name debian --memory 512M --cpus $2 --kernel /share/vmlinuz --initrd /share/initrd \
                     --cmdline \"console=ttyS0 no_timer_check root=LABEL=root quiet $PATIENT\" \
                     --disk path=/dev/vda,model=$1 --console file:/tmp/console < /dev/null &
                 login=no
                 wait_for 800 grep -q 'installed login:' /tmp/console && login=yes
                 skep stop --wait debian
                 wait $! && ended=0 || ended=$?
                 say $1 with $2 CPUs login $login
                 say skep ended with $ended
                 [ $login$ended = yes0 ] || tail -n 40 /tmp/console
             }}
             {}",
            boots.join("\n")
        ));
    seen.ended_with(&vec![0; all.len()]);
    for (model, cpus) in all {
        let line = format!("host: {model} with {cpus} CPUs login yes");
        assert_eq!(
            seen.count(&line),
            all.iter().filter(|one| *one == &(*model, *cpus)).count(),
            "{line}\n{seen}"
        );
    }
    let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&disk).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "the file system is not clean after the last power-off: {said}");
}

#[test]
fn an_installed_debian_boots_to_a_login_and_is_switched_off() {
    boots(&[("nvme", 2)]);
}

#[test]
#[ignore = "half an hour"]
fn thirty_boots_of_an_installed_debian_reach_a_login_and_end() {
    let round = [("virtio-blk", 2), ("nvme", 1), ("ahci", 2), ("virtio-blk", 1), ("nvme", 2), ("ahci", 1)];
    // In two emulated hosts at a time.
    std::thread::scope(|scope| {
        for rounds in [3, 2] {
            scope.spawn(move || (0..rounds).for_each(|_| boots(&round)));
        }
    });
}
