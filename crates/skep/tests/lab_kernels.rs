//! Kernels out of Debian's packages, and others that people have: each boots to a sign of life, or is refused with the
//! way out.

mod scenario;

use std::fs;
use std::process::Command;
use std::time::Duration;

use scenario::Scenario;
use scenario::packages;

/// What is to come of a kernel.
enum Fate {
    /// It writes this text to the serial port, with this command line.
    Lives(&'static str, &'static str),
    /// It writes this text to port 0xe9, the debug console of Xen, which skep has not: seen by a trace of KVM.
    Traced(&'static str),
    /// skep says this.
    Refused(&'static str),
}

use Fate::{Lives, Refused, Traced};

/// One kernel: what it is called here, the package and the file in it, and its fate.
type Case = (&'static str, &'static str, &'static str, Fate);

const LINUX: Fate = Lives("console=ttyS0 earlyprintk=ttyS0", "Linux version ");
const MEMTEST: Fate = Lives("console=ttyS0,115200", "Memtest86");
const NO_FIRMWARE: Fate = Refused("(it needs UEFI firmware: add --firmware auto), not a kernel");
const NO_PVH: Fate = Refused("has no PVH entry (no Xen note 18). Use ");
const UNKNOWN: Fate = Refused("is a file of an unknown kind (it begins with ");

const MEMTEST86: &str = "memtest86+";
const CLOUD: &str = "linux-image-cloud-amd64";

/// The kernels of packages, those that boot first. The newest of linux-image-amd64 is the emulated host's own, and there.
const CASES: [Case; 19] = [
    ("cloud", CLOUD, "./boot/vmlinuz-*", LINUX),
    (
        "installer-i386",
        "debian-installer-12-netboot-i386",
        "./usr/lib/debian-installer/images/12/i386/text/debian-installer/i386/linux",
        LINUX,
    ),
    ("memtest-x64", MEMTEST86, "./boot/memtest86+x64.bin", MEMTEST),
    ("memtest-ia32", MEMTEST86, "./boot/memtest86+ia32.bin", MEMTEST),
    (
        "grub-pvh",
        "grub-xen-host",
        "./usr/lib/grub-xen/grub-i386-xen_pvh.bin",
        Traced("Found no Xen signature!"),
    ),
    ("grub-pv-32", "grub-xen-host", "./usr/lib/grub-xen/grub-i386-xen.bin", NO_PVH),
    ("grub-pv-64", "grub-xen-host", "./usr/lib/grub-xen/grub-x86_64-xen.bin", NO_PVH),
    (
        "xen",
        "xen-hypervisor-4.17-amd64",
        "./boot/xen-*-amd64.gz",
        Refused("has no PVH entry (no Xen note 18). Build it with a PVH entry (Xen: CONFIG_PVH_GUEST=y)"),
    ),
    ("xen-efi", "xen-hypervisor-4.17-amd64", "./boot/xen-*-amd64.efi", NO_FIRMWARE),
    ("hvmloader", "xen-utils-4.17", "./usr/lib/xen-4.17/boot/hvmloader", NO_PVH),
    ("ipxe", "ipxe", "./boot/ipxe.lkrn", Refused("Give a kernel that can be entered in protected mode")),
    ("ipxe-efi", "ipxe", "./boot/ipxe.efi", NO_FIRMWARE),
    (
        "memdisk",
        "syslinux-common",
        "./usr/lib/syslinux/memdisk",
        Refused("Give a kernel that speaks version 2.07 or later"),
    ),
    (
        "memtest-iso",
        MEMTEST86,
        "./usr/lib/memtest86+/memtest86+x64.iso",
        Refused("is a CD image (give it as a CD drive's disc, and as the kernel the one that is in it)"),
    ),
    ("systemd-boot", "systemd-boot-efi", "./usr/lib/systemd/boot/efi/systemd-bootx64.efi", NO_FIRMWARE),
    ("ovmf", "ovmf", "./usr/share/OVMF/OVMF_CODE.fd", Refused("is UEFI firmware (give it with --firmware)")),
    ("seabios", "seabios", "./usr/share/seabios/bios.bin", UNKNOWN),
    ("u-boot-arm64", "u-boot-qemu", "./usr/lib/u-boot/qemu_arm64/u-boot.bin", UNKNOWN),
    ("module", CLOUD, "./lib/modules/*/drivers/block/loop.ko", Refused("Give the linked vmlinux")),
];

/// More of the same, which take long.
const SLOW: [Case; 4] = [
    ("rt", "linux-image-rt-amd64", "./boot/vmlinuz-*", LINUX),
    ("backports", "linux-image-amd64/bookworm-backports", "./boot/vmlinuz-*", LINUX),
    // Programs for UEFI that are bzImages, too.
    ("memtest-x64-efi", MEMTEST86, "./boot/memtest86+x64.efi", MEMTEST),
    ("memtest-ia32-efi", MEMTEST86, "./boot/memtest86+ia32.efi", MEMTEST),
];

/// How a story goes on with each kernel.
const TELL: &str = r#"
    # begin NAME FILE COMMAND_LINE
    begin() {
        : > /tmp/console
        skep run --name kernel --memory 256M --kernel $2 --cmdline "$3" --console file:/tmp/console \
            < /dev/null > /tmp/said 2>&1 &
        vm=$!
    }
    end() {
        skep stop --now kernel > /dev/null 2>&1 || true
        wait $vm || true
    }
    # lives NAME FILE COMMAND_LINE TEXT
    lives() {
        begin "$@"
        wait_for 400 grep -q -a "$4" /tmp/console && say "$1 lives" || { cat /tmp/said; tail -c 2000 /tmp/console; }
        end
    }
    written() { printf "$(sed -n 's/.*pio_write at 0xe9 .* val 0x\(..\) *$/\\x\1/p' $trace/trace | tr -d '\n')"; }
    wrote() { written | grep -q -a "$1"; }
    # traced NAME FILE TEXT
    traced() {
        trace=/sys/kernel/tracing/instances/kernels
        mkdir $trace
        echo 1 > $trace/events/kvm/kvm_pio/enable
        begin "$1" $2 ''
        wait_for 120 wrote "$3" && say "$1 lives" || { cat /tmp/said; tail $trace/trace; }
        end
        echo 0 > $trace/events/kvm/kvm_pio/enable
        rmdir $trace
    }
    # refused NAME FILE
    refused() {
        skep run --memory 256M --kernel $2 > /tmp/said 2>&1 < /dev/null && say "$1 was taken" || say "$1 $(tr '\n' ' ' < /tmp/said)"
    }
"#;

/// A story that tries kernels, one after the other.
struct Story {
    folder: tempfile::TempDir,
    script: String,
    lives: Vec<&'static str>,
    refusals: Vec<(&'static str, &'static str)>,
    /// Packages that this machine cannot have.
    missing: Vec<String>,
}

impl Story {
    fn new() -> Story {
        let folder = tempfile::tempdir().unwrap();
        let script = TELL.to_owned();
        Story { folder, script, lives: Vec::new(), refusals: Vec::new(), missing: Vec::new() }
    }

    fn goes_on(&mut self, name: &'static str, file: &str, fate: &Fate) {
        match fate {
            Lives(line, text) => self.script += &format!("lives {name} {file} '{line}' '{text}'\n"),
            Traced(text) => self.script += &format!("traced {name} {file} '{text}'\n"),
            Refused(text) => {
                self.script += &format!("refused {name} {file}\n");
                self.refusals.push((name, text));
                return;
            }
        }
        self.lives.push(name);
    }

    /// With kernels of packages.
    fn with(&mut self, cases: &[Case]) {
        for (name, package, pattern, fate) in cases {
            match packages::file(package, pattern) {
                Ok(file) => {
                    fs::copy(file, self.folder.path().join(name)).unwrap();
                    self.goes_on(name, &format!("/share/{name}"), fate);
                }
                Err(why) => {
                    self.missing.push(format!("{name} was not tried, for {package} is not to be had: {why}"));
                }
            }
        }
    }

    /// With a kernel that a command makes of others, if they are there.
    fn with_made(&mut self, name: &'static str, command: &str, fate: &Fate) {
        let path = self.folder.path();
        let said = Command::new("sh").args(["-e", "-c", command]).current_dir(path).output().unwrap();
        assert!(said.status.success(), "{command}: {}", String::from_utf8_lossy(&said.stderr));
        self.goes_on(name, &format!("/share/{name}"), fate);
    }

    fn has(&self, name: &str) -> bool {
        self.folder.path().join(name).is_file()
    }

    fn tell(self) {
        let seen =
            Scenario::new().patience(Duration::from_secs(900)).share(self.folder.path()).run(&self.script);
        for name in &self.lives {
            assert_eq!(seen.count(&format!("host: {name} lives")), 1, "{name}\n{seen}");
        }
        for (name, text) in &self.refusals {
            let said = seen.after(&format!("host: {name} "));
            assert!(said.len() == 1 && said[0].contains(text), "{name}: {said:?}");
        }
        println!("booted: {}", self.lives.join(", "));
        println!("refused: {}", self.refusals.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "));
        self.missing.iter().for_each(|line| println!("{line}"));
    }
}

#[test]
fn kernels_of_debians_packages_boot_to_a_sign_of_life_or_are_refused_with_the_way_out() {
    let mut story = Story::new();
    story.goes_on("linux", "/lab/guest/vmlinuz", &LINUX);
    story.goes_on("linux-elf", "/lab/guest/vmlinux", &LINUX);
    story.with(&CASES);
    if story.has("cloud") {
        // As if it were of Linux 3.7, which says nothing of a 64-bit entry: it is entered in 32-bit mode.
        let older = "cp cloud protocol-2.11
            printf '\\013\\002' | dd of=protocol-2.11 bs=1 seek=518 conv=notrunc";
        story.with_made("protocol-2.11", older, &LINUX);
    }
    assert!(story.missing.len() < CASES.len() / 2, "most kernels cannot be had here: {:#?}", story.missing);
    story.tell();
}

/// The compressed ELF file in Debian's bzImage. boot.rst: `setup_sects`, `payload_offset` and `payload_length`.
fn payload_of_debians_kernel() -> Vec<u8> {
    let version = lab::ensure_debian_kernel().unwrap();
    let folder = lab::cache().unwrap().join("kernels").join(&version).join("boot");
    let image = fs::read(folder.join(format!("vmlinuz-{version}"))).unwrap();
    let field = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let start = (usize::from(image[0x1f1]) + 1) * 512 + field(0x248);
    // Its last 4 bytes are the unpacked size.
    let payload = &image[start..start + field(0x24c) - 4];
    assert!(payload.starts_with(b"\xfd7zXZ\0"), "Debian's kernel is not compressed by xz any more");
    payload.to_vec()
}

#[test]
fn compressed_elf_kernels_boot() {
    let mut story = Story::new();
    fs::write(story.folder.path().join("xz"), payload_of_debians_kernel()).unwrap();
    story.goes_on("xz", "/share/xz", &LINUX);
    story.with_made("gz", "xz -dc xz | gzip -1 > gz", &LINUX);
    story.with_made("zst", "xz -dc xz | zstd -q -1 > zst", &LINUX);
    story.tell();
}

#[test]
fn slower_kernels_of_debians_packages_boot_to_a_sign_of_life() {
    let mut story = Story::new();
    story.with(&SLOW);
    assert!(
        story.missing.len() < SLOW.len() / 2 + 1,
        "most kernels cannot be had here: {:#?}",
        story.missing
    );
    story.tell();
}
