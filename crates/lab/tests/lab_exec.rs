//! The lab itself: what goes in, what comes out, and what is left behind. Needs QEMU, Debian's kernel and the
//! static programs (`cargo xtask build`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Builder, Iommu, Kernel, Lab, LabError, Line, Outcome, Stream};

fn run(lab: Builder, script: &str) -> Outcome {
    match lab.build().run(&["sh", "-c", script], |line| println!("{}", line.text)) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{error}"),
    }
}

/// The usual host with the lab kernel, which boots faster, where the kernel makes no difference. Without one it is Debian's.
fn quick() -> Builder {
    let kernel = if lab::lab_kernel().is_some() { Kernel::Lab } else { Kernel::Debian };
    Lab::builder().kernel(kernel)
}

/// The static program that users have.
fn skep() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().map(|folder| folder.join("dist/skep")).find(|path| path.is_file());
    found.expect("target/dist/skep is not there: run cargo xtask build")
}

#[test]
fn the_exit_status_of_the_command_is_the_labs() {
    let outcome = run(Lab::builder(), "exit 7");
    assert_eq!(outcome.status, 7);
    assert!(outcome.kernel.contains("amd64"), "{}", outcome.kernel);
    let status = Command::new(skep())
        .args(["lab", "exec", "--", "sh", "-c", "kill -9 $$"])
        .status()
        .expect("skep starts");
    assert_eq!(status.code(), Some(128 + 9));
}

#[test]
fn a_command_that_is_not_there_gives_127_as_in_a_shell() {
    let outcome = quick().build().run(&["no-such-program"], |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(outcome.status, 127);
    assert!(outcome.errors.contains("no-such-program"), "{}", outcome.errors);
}

#[test]
fn output_arrives_whole_in_its_order_and_by_its_stream() {
    let mut lines: Vec<Line> = Vec::new();
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo to stderr >&2; \
                  echo by name > /dev/stderr; printf unfinished";
    let outcome = quick()
        .build()
        .run(&["sh", "-c", script], |line| lines.push(line.clone()))
        .unwrap_or_else(|e| panic!("{e}"));
    let of = |stream| lines.iter().filter(move |line| line.stream == stream).map(|line| line.text.as_str());
    let mut expected: Vec<String> = (0..2000).map(|i| format!("line {i}")).collect();
    expected.push("unfinished".into());
    assert!(of(Stream::Stdout).eq(expected.iter()));
    assert!(of(Stream::Stderr).eq(["to stderr", "by name"]));
    assert_eq!(outcome.output.lines().count(), 2001);
}

#[test]
fn a_time_out_gives_124_and_says_what_went_on() {
    let start = Instant::now();
    let lab = quick().timeout(Duration::from_secs(10)).build();
    let error = lab.run(&["sh", "-c", "echo begun; sleep 600"], |_| {}).expect_err("it takes too long");
    assert!(matches!(error, LabError::TimedOut { .. }), "{error}");
    assert_eq!(error.exit_status(), 124);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn a_device_has_the_same_name_with_every_iommu() {
    for iommu in [Iommu::intel(), Iommu::amd()] {
        let lab = ["nvme:8M", "ahci:8M", "nvme:8M"].map(|disk| disk.parse().unwrap()).into_iter();
        let lab = lab.fold(quick().iommu(iommu), Builder::disk).device("e1000e".parse().unwrap());
        let script = "cd /sys/bus/pci/devices; for d in @nvme0 @nvme1 @ahci0 @e1000e0; do echo $(cat $d/class) $(cat $d/nvme/*/serial); done; echo @other0";
        let outcome = run(lab, script);
        assert_eq!(
            outcome.output, "0x010802 NVME0\n0x010802 NVME1\n0x010601\n0x020000\n@other0\n",
            "{}",
            outcome.errors
        );
    }
}

#[test]
fn a_busy_command_that_says_nothing_is_not_stopped() {
    let silence = Duration::from_secs(20);
    let script = "end=$(($(cut -d. -f1 /proc/uptime) + 45)); \
                  while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do :; done; echo done";
    let outcome = run(quick().silence(silence), script);
    assert_eq!((outcome.status, outcome.output.as_str()), (0, "done\n"), "{}", outcome.errors);
    assert!(outcome.total - outcome.boot > 2 * silence, "{:?}", outcome.total);
}

#[test]
fn a_host_that_gives_no_sign_of_life_is_stopped() {
    let mark = format!("silent-{}", std::process::id());
    let lab = quick().silence(Duration::from_secs(8)).append(&mark).build();
    let mut stopped = Instant::now();
    let stop_the_emulator = |_: &Line| {
        for id in processes_with(&mark) {
            let stop = Command::new("kill").args(["-STOP", &id.to_string()]).status().expect("kill starts");
            assert!(stop.success());
        }
        stopped = Instant::now();
    };
    let error = lab.run(&["sh", "-c", "echo up; sleep 600"], stop_the_emulator).expect_err("it is stopped");
    assert!(matches!(error, LabError::Silent { .. }), "{error}");
    assert_eq!(error.exit_status(), 124);
    assert!(stopped.elapsed() < Duration::from_secs(60), "{:?}", stopped.elapsed());
    assert!(processes_with(&mark).is_empty(), "QEMU outlives the lab");
}

#[test]
fn the_shared_folder_can_be_written_from_both_sides() {
    let share = tempfile::tempdir().unwrap();
    fs::write(share.path().join("in"), "from outside").unwrap();
    let script = "cat /share/in; mkdir /share/folder && echo from inside > /share/folder/out && rm /share/in";
    let outcome = run(quick().share(share.path()), script);
    assert_eq!((outcome.status, outcome.output.as_str()), (0, "from outside"));
    assert_eq!(fs::read_to_string(share.path().join("folder/out")).unwrap(), "from inside\n");
    assert!(!share.path().join("in").exists());
}

/// Prints `serial sha256` of every disk that the host sees on its PCI bus.
const SUMS: &str = r#"
for disk in /sys/block/*; do
    case $(readlink -f $disk) in /sys/devices/pci*) ;; *) continue ;; esac
    name=${disk##*/}
    for file in serial device/serial device/vpd_pg80 device/../../../../serial; do
        test -r $disk/$file && serial=$(tr -cd 'A-Z0-9' < $disk/$file) && break
    done
    echo $serial $(sha256sum < /dev/$name)
done
"#;

fn assert_sums(outcome: &Outcome) {
    let disks = outcome.disks.as_array().expect("a table of disks");
    assert_eq!(outcome.output.lines().count(), disks.len(), "{}", outcome.output);
    for disk in disks {
        let line = format!("{} {} -", disk["serial"].as_str().unwrap(), disk["sha256"].as_str().unwrap());
        assert!(outcome.output.contains(&line), "no line {line:?} in:\n{}", outcome.output);
    }
}

#[test]
fn the_usual_disks_hold_what_their_checksums_say() {
    assert_sums(&run(Lab::builder(), SUMS));
}

#[test]
fn disks_of_every_kind_hold_what_their_checksums_say() {
    let disks = ["ahci:8M", "ahci:8M", "nvme:8M,logical=4096", "virtio:8M", "usb:8M,logical=4096", "scsi:8M"];
    let lab = disks.iter().map(|disk| disk.parse().unwrap()).fold(Lab::builder(), Builder::disk);
    assert_sums(&run(lab, SUMS));
}

#[test]
fn an_image_given_by_path_is_written_back() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let lab = quick().disk(format!("nvme:{}", image.display()).parse().unwrap());
    let outcome = run(lab, "printf written | dd of=/dev/nvme0n1 conv=notrunc 2>/dev/null");
    assert_eq!(outcome.status, 0);
    assert!(fs::read(&image).unwrap().starts_with(b"written"));
}

#[test]
fn the_host_has_kvm_vfio_and_a_guest_with_both_iommus() {
    let script = "test -c /dev/kvm && test -c /dev/vfio/vfio && ls /sys/kernel/iommu_groups | wc -l && \
                  test -s /lab/guest/vmlinux && test -s /lab/guest/vmlinuz && test -s /lab/guest/initrd && skep --version";
    for iommu in [Iommu::intel(), Iommu::amd()] {
        let outcome = run(Lab::builder().iommu(iommu.clone()), script);
        assert_eq!(outcome.status, 0, "{}: {}", iommu.name(), outcome.errors);
        let groups: u32 = outcome.output.lines().next().unwrap().trim().parse().unwrap();
        assert!(groups > 4, "{}: {groups} groups", iommu.name());
    }
}

#[test]
fn the_lab_kernel_has_iommufd() {
    if lab::lab_kernel().is_none() {
        println!("the_lab_kernel_has_iommufd: skipped, no lab kernel; make it with: cargo xtask lab-kernel");
        return;
    }
    let outcome = run(Lab::builder().kernel(Kernel::Lab), "test -c /dev/iommu && test -c /dev/kvm");
    assert_eq!(outcome.status, 0, "{}", outcome.errors);
}

#[test]
fn huge_pages_are_set_aside() {
    let outcome = run(quick().hugepages(32), "grep HugePages_Total /proc/meminfo");
    assert!(outcome.output.trim().ends_with(" 32"), "{}", outcome.output);
}

#[test]
fn the_machines_own_programs_run_under_host() {
    let script = "chroot /host sh -c 'test -c /dev/kvm && test -s /lab/guest/initrd && echo kept > /srv/x && cat /srv/x'";
    let outcome = run(Lab::builder().host_root(true), script);
    assert_eq!((outcome.status, outcome.output.as_str()), (0, "kept\n"), "{}", outcome.errors);
    assert!(!Path::new("/srv/x").exists());
}

#[test]
fn two_labs_run_at_once() {
    let one = || run(quick(), "cat /proc/sys/kernel/random/boot_id").output;
    let (first, second) = thread::scope(|scope| {
        let (a, b) = (scope.spawn(one), scope.spawn(one));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert_ne!(first, second);
}

#[test]
fn a_device_that_qemu_does_not_have_is_an_error_that_names_it() {
    let lab = Lab::builder().device("no-such-card".parse().unwrap()).build();
    let error = lab.run(&["true"], |_| {}).expect_err("there is no such device");
    assert_eq!(error.exit_status(), 125);
    assert!(error.to_string().contains("no-such-card"), "{error}");
}

/// The processes whose command line holds `mark`.
fn processes_with(mark: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_mark = |id: &u32| {
        fs::read(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
    };
    numbers.filter(has_mark).collect()
}

#[test]
fn a_killed_lab_leaves_no_process_and_no_file() {
    let mark = format!("killed-{}", std::process::id());
    let temporary = tempfile::tempdir().unwrap();
    let mut lab = Command::new(skep())
        .args(["lab", "exec", "--append", &mark, "--", "sh", "-c", "echo up; sleep 600"])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("skep starts");
    let mut first = [0];
    std::io::Read::read_exact(lab.stdout.as_mut().unwrap(), &mut first).expect("the command starts");
    assert_eq!(processes_with(&mark).len(), 2, "skep and QEMU");
    lab.kill().unwrap();
    lab.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !processes_with(&mark).is_empty() {
        assert!(Instant::now() < deadline, "QEMU outlives the lab");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}
