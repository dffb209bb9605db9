//! `skep run`: a VM, from its description to its end.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use config::{Description, File, Key, Vm};

use crate::escape;
use crate::exit::Exit;
use crate::report;
use crate::start;

#[derive(Args)]
#[command(after_help = help())]
pub struct Arguments {
    /// A TOML file that describes the VM; its keys are the flags below, without dashes. Flags win over the file;
    /// --disk and --assign add to it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the VM that flags and file describe, as TOML, and exit
    #[arg(long)]
    check_config: bool,
    /// When the VM has ended, write to FILE, as JSON, how it ended and, for each disk, how much was read and written, how
    /// much of that was copied, and why
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

// One flag for each [`Key`]. Their values are checked by the description, so that flags and file get the same
// errors, all at once.
#[derive(Args)]
#[command(next_help_heading = "The VM")]
struct Flags {
    /// What the VM is called [default: vm]
    #[arg(long)]
    name: Option<String>,
    /// How many vCPUs it has [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Let the guest run VMs of its own: its vCPUs have SVM or VMX, if this host's KVM offers it [default: off]
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    nested: Option<String>,
    /// How much RAM it has: 512M, 6G, 1GiB; a bare number counts MiB [default: 256M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Take the RAM from this host's pool of huge pages [default: ordinary memory]
    #[arg(long, value_name = "2M|1G")]
    hugepages: Option<String>,
    /// Take the RAM from this NUMA node of the host [default: any]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    node: Option<String>,
    /// Make all RAM present and lock it before the guest runs [default: auto, which is on with assigned devices]
    #[arg(long, value_name = "auto|on|off")]
    wire: Option<String>,
    /// UEFI firmware, which boots what is installed on the disks: auto (what this host has installed), none, or a file with
    /// its code [,vars=FILE that new variables are made from] [default: auto without --kernel, none with it]
    #[arg(long, value_name = "auto|none|PATH")]
    firmware: Option<String>,
    /// The file of the firmware's variables, made at the first start [default: firmware-vars.fd in the VM's folder below
    /// /var/lib/skep]
    #[arg(long, value_name = "PATH")]
    firmware_vars: Option<String>,
    /// Start only what is signed by the keys that the firmware's variables have from the start (Microsoft's, which Debian's
    /// shim is signed by) [default: off]
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    secure_boot: Option<String>,
    /// What the firmware boots before everything else, until the guest is reset: the discs in CD drives
    #[arg(long, value_name = "once:cd")]
    boot: Option<String>,
    /// Have the firmware show its menu for five seconds before it boots [default: off]
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    boot_menu: Option<String>,
    /// A file for the guest, in its firmware's configuration (Linux: /sys/firmware/qemu_fw_cfg/by_name):
    /// opt/NAME,string=TEXT or opt/NAME,file=PATH. May be given several times
    #[arg(long, value_name = "SPEC")]
    fw_cfg: Vec<String>,
    /// The kernel to boot: a bzImage, or an ELF vmlinux with a PVH entry, also compressed
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    /// The initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<String>,
    /// The kernel's command line [default: console=ttyS0]
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// A disk for the guest: where its data is,
    ///   /dev/... or path=/dev/...        a block device or a file
    ///   nvme=0000:03:00.0[,namespace=1]  on a controller that skep drives itself
    ///   nbd=nbd://HOST/EXPORT            on a server
    ///   ram=SIZE                         in this host's memory
    /// and what there is to say of it, of any disk
    ///   [,model=virtio-blk|nvme|ahci|ahci-cd][,readonly=on][,queues=N][,serial=...][,on-error=report|pause|ignore]
    ///   [,bootindex=N] (what the firmware boots: lower ones first, then the rest in its order here)
    ///   with path or nvme: [,poll=off|adaptive|on]
    ///   with path: [,format=raw|qcow2|vmdk][,snapshot=on][,logical=512][,preallocate=on][,bounce=needed|always]
    ///     [,buffers=registered|plain][,force=on]
    ///   of an image: [,chain=follow|PATH], once for each other file that it may open (follow: any in its folder)
    ///   of virtio-blk: [,packed=on][,write-cache=off]
    ///   of nvme, ahci and ahci-cd: [,controller=NAME] (disks of one name share a controller)[,product=...][,firmware=...]
    /// Write a comma within a value twice. docs/vm.toml explains each. May be given several times
    #[arg(long, value_name = "SPEC", verbatim_doc_comment)]
    disk: Vec<String>,
    /// A PCI device of the host for the guest alone, as lspci -D prints it:
    /// 0000:01:00.0[,domain=NAME][,on-fault=report|pause|reset|stop][,on-request=report|stop][,bootindex=N]
    /// [,rom=on|off|FILE] (which option ROM firmware finds at it).
    /// Devices of the same domain [default: guest] share their view of memory. on-request is what happens when this host
    /// asks for the device back; it gets it only when the VM ends [default: report]. May be given several times
    #[arg(long, value_name = "ADDRESS")]
    assign: Vec<String>,
    /// How devices reach memory [default: auto, which is iommufd where this host has it]
    #[arg(long, value_name = "auto|iommufd|type1")]
    dma: Option<String>,
    /// How much guest RAM the devices that skep itself drives reach: always all of it (shared), or, for study, none of it
    /// once a device is assigned (exclusive, only with --i-know) [default: shared]
    #[arg(long, value_name = "shared|exclusive")]
    host_domain: Option<String>,
    /// Confirm a dangerous choice
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    i_know: Option<String>,
    /// What happens, besides an event, when a device's DMA fails, and again if it still fails a second after a reset or
    /// resume. Pausing the VM does not stop the DMA of assigned devices [default: report]
    #[arg(long, value_name = "report|pause|reset|stop")]
    on_fault: Option<String>,
    /// Whether assigned devices reach each other's BARs [default: off]
    #[arg(long, value_name = "off|on|required")]
    p2p: Option<String>,
    /// A TPM 2.0: on (emulated by swtpm), off, or passthrough=/dev/tpm0 (this host's); [,on-error=report|pause|stop] is what
    /// happens, besides an event, when it fails [default: off]
    #[arg(long, value_name = "on|off|SPEC", num_args = 0..=1, default_missing_value = "on")]
    tpm: Option<String>,
    /// Where the serial console goes [default: stdio]
    #[arg(long, value_name = "stdio|file:PATH|socket:PATH")]
    console: Option<String>,
}

fn help() -> String {
    format!(
        "With --console stdio, when standard input is a terminal:\n{}\n\
         SIGTERM, SIGINT and SIGHUP press the VM's power button; a second one stops the VM now.\n\n{}",
        escape::HELP,
        Exit::help()
    )
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Exit {
    let flags = arguments.flags.given();
    let (description, file) = match arguments.config.as_ref().map(|path| (path, std::fs::read(path))) {
        None => (Description::read(None, &flags), Ok(())),
        Some((path, Ok(bytes))) => {
            let name = path.display().to_string();
            (Description::read(Some(File { name: &name, bytes: &bytes }), &flags), Ok(()))
        }
        Some((path, Err(cause))) => {
            let path = path.display();
            let why = format!("cannot read the description {path}: {cause}. Check the path after --config.");
            (Description::read_without_file(&flags), Err(why))
        }
    };
    let draft = description.draft.clone();
    let summary = arguments.report.as_deref();
    match (file, description.vm()) {
        (Ok(()), Ok(vm)) if arguments.check_config => print(&vm),
        (Ok(()), Ok(vm)) => start::start(&vm, summary),
        (file, vm) => {
            file.err().into_iter().for_each(report::error);
            vm.err().into_iter().for_each(report::error);
            if !arguments.check_config {
                // What is right in it is compared with this host all the same: all is said at once.
                start::say_findings(&draft, summary);
            }
            Exit::Usage
        }
    }
}

fn print(vm: &Vm) -> Exit {
    match std::io::stdout().write_all(vm.to_toml().as_bytes()) {
        Ok(()) => Exit::PoweredOff,
        Err(cause) => {
            report::error(format_args!("cannot write the description to standard output: {cause}."));
            Exit::Failed
        }
    }
}

impl Flags {
    /// The flags with their values.
    fn given(&self) -> Vec<(Key, String)> {
        let once = [
            (Key::Name, &self.name),
            (Key::Cpus, &self.cpus),
            (Key::Nested, &self.nested),
            (Key::Memory, &self.memory),
            (Key::Hugepages, &self.hugepages),
            (Key::Node, &self.node),
            (Key::Wire, &self.wire),
            (Key::Firmware, &self.firmware),
            (Key::FirmwareVars, &self.firmware_vars),
            (Key::SecureBoot, &self.secure_boot),
            (Key::Boot, &self.boot),
            (Key::BootMenu, &self.boot_menu),
            (Key::Kernel, &self.kernel),
            (Key::Initrd, &self.initrd),
            (Key::Cmdline, &self.cmdline),
            (Key::Console, &self.console),
            (Key::Dma, &self.dma),
            (Key::HostDomain, &self.host_domain),
            (Key::IKnow, &self.i_know),
            (Key::OnFault, &self.on_fault),
            (Key::P2p, &self.p2p),
            (Key::Tpm, &self.tpm),
        ];
        let once = once.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let several = [(Key::Disk, &self.disk), (Key::Assign, &self.assign), (Key::FwCfg, &self.fw_cfg)];
        let several =
            several.into_iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        once.chain(several).map(|(key, value)| (key, value.clone())).collect()
    }
}
