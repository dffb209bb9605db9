//! Kernels that lie: whatever an image says, loading it writes to RAM or is refused.

use std::sync::OnceLock;

use boot::platform::{Cpus, Ecam, HostBridge, NativeControl, Platform};
use boot::{Initrd, KernelImage, LinuxBoot};
use memory::{Gpa, GpaRange, Ram};

const RAM: u64 = 64 << 20;

fn ram() -> &'static Ram {
    static SHARED: OnceLock<Ram> = OnceLock::new();
    SHARED.get_or_init(|| Ram::new(&memory::ram_ranges(RAM)).expect("64 MiB"))
}

fn platform() -> Platform {
    let range = |start, len| GpaRange::new(Gpa(start), len).expect("not empty");
    Platform {
        cpus: Cpus::new(1, 2, 1).expect("two"),
        pci: HostBridge {
            ecam: Ecam::new(range(0xe000_0000, 256 << 20), 0).expect("whole buses"),
            window32: range(0xc000_0000, 0x2000_0000),
            window64: Some(range(1 << 38, 1 << 37)),
            ports: Some(0xc000..=0xffff),
            native: NativeControl::default(),
        },
        i8042: false,
        firmware: true,
        vga: false,
        tpm: true,
        uuid: [0x5a; 16],
    }
}

/// Runs one input: the bytes of an image.
pub fn run(input: &[u8]) {
    let kernel = match KernelImage::from_bytes("kernel", input.to_vec()) {
        Ok(kernel) => kernel,
        Err(why) => return assert!(!why.to_string().is_empty()),
    };
    let initrd = Initrd::from_bytes("initrd", vec![0x55; 5000]).expect("not empty");
    for initrd in [None, Some(&initrd)] {
        let boot = LinuxBoot { kernel: &kernel, initrd, command_line: "console=ttyS0" };
        match boot::load(&boot, &platform(), ram(), boot::Contents::Used) {
            Ok(cpu) => {
                assert!((0x10_0000..RAM).contains(&cpu.rip), "starts at {:#x}", cpu.rip);
                // What the kernel is told must have survived the loading of the kernel itself.
                let mut line = [0; 14];
                ram().read(Gpa(0x2_0000), &mut line).expect("RAM");
                assert_eq!(&line, b"console=ttyS0\0");
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}
