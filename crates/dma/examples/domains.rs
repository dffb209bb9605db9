//! A guest domain and a host domain over the same RAM, with real devices in them: for the lab.
//!
//! `domains auto|iommufd|type1 EDU NVME`: QEMU's edu device is in the guest domain, the NVMe controller in the host
//! domain. Both do DMA there and back; edu also where nothing is mapped; then the guest domain goes, and the
//! controller works on.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::vfio::{Cdev, Dependent, Group, Holder, MappedArea, VfioDevice, bar};
use dma::{Chosen, Circumstances, DmaChoice, Domain, Kind, P2pWish};
use host::{Host, PciAddress, PciDevice};
use memory::{Change, DeviceMemory, Gpa, GpaRange, MemoryMap, Mirror, Ram, ram_ranges};

type Failure = Box<dyn std::error::Error>;
type Done = Result<(), Failure>;

const RAM: u64 = 64 << 20;
/// How often domains come and go.
const CYCLES: u32 = 20;

fn main() {
    if let Err(error) = run() {
        eprintln!("domains: {error}");
        std::process::exit(1);
    }
}

fn run() -> Done {
    let [choice, edu, nvme] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("domains auto|iommufd|type1 EDU NVME".into());
    };
    let choice = match choice.as_str() {
        "iommufd" => DmaChoice::Iommufd,
        "type1" => DmaChoice::Type1,
        _ => DmaChoice::Auto,
    };
    let host = Host::here();
    let (edu, nvme) = (PciDevice::open(&host, edu.parse()?)?, PciDevice::open(&host, nvme.parse()?)?);
    let bound = [host.bind_to_vfio(&edu)?, host.bind_to_vfio(&nvme)?];
    let chosen = choice.resolve(Circumstances { cdevs: host.has_vfio_cdevs(), p2p: P2pWish::Off })?;
    println!("{chosen}");
    let pins = pinned_pages()?;
    come_and_go(&host, &chosen, &edu, &nvme)?;
    demonstrate(&host, &chosen, &edu, &nvme)?;
    drop(chosen);
    println!("pages pinned in the end: {}", pinned_pages()? - pins);
    for bound in bound {
        bound.give_back()?;
    }
    println!("given back: {}", PciDevice::open(&host, nvme.address)?);
    Ok(())
}

/// Domains that are made, used and dropped leave nothing behind.
fn come_and_go(host: &Host, chosen: &Chosen, edu: &PciDevice, nvme: &PciDevice) -> Done {
    let state =
        || -> Result<_, Failure> { Ok((pinned_pages()?, std::fs::read_dir("/proc/self/fd")?.count())) };
    let map = MemoryMap::new(Arc::new(Ram::new(&ram_ranges(RAM))?));
    let before = state()?;
    for _ in 0..CYCLES {
        for (name, device) in [("one", edu), ("two", nvme)] {
            let domain = domain(host, chosen, name, Kind::Host, device)?;
            let mirror: Arc<dyn Mirror> = domain.clone();
            map.attach(mirror.clone())?;
            drop(domain.open_device(device.require_group(host)?, &device.address.to_string())?);
            map.detach(&mirror)?;
        }
    }
    println!("{CYCLES} cycles: {:?} pinned pages and open files, {before:?} before", state()?);
    assert_eq!(state()?.1, before.1);
    Ok(())
}

fn demonstrate(host: &Host, chosen: &Chosen, edu: &PciDevice, nvme: &PciDevice) -> Done {
    let guest = domain(host, chosen, "guest", Kind::Guest(P2pWish::On), edu)?;
    let own = domain(host, chosen, "host", Kind::Host, nvme)?;
    let map = MemoryMap::new(Arc::new(Ram::new(&ram_ranges(RAM))?));
    let before = pinned_pages()?;
    for domain in [&guest, &own] {
        map.attach(domain.clone())?;
        println!("{domain:?} in {:?}, by {}", domain.calls(), domain.back_end());
        println!("  can map {:x?}", domain.limits()?.ranges);
    }
    for file in guest.kvm_files() {
        println!("for KVM: {file:?}");
    }
    let device = guest.open_device(edu.require_group(host)?, &edu.address.to_string())?;
    if let Chosen::Iommufd(_) = chosen {
        let again = guest.open_device(edu.require_group(host)?, &edu.address.to_string());
        println!("edu once more: {}", again.expect_err("one that is open stays alone"));
    }
    println!("edu open: {} pages pinned", pinned_pages()? - before);
    let controller = own.open_device(nvme.require_group(host)?, &nvme.address.to_string())?;
    println!("NVMe open: {} pages pinned", pinned_pages()? - before);
    if let Chosen::Iommufd(iommufd) = chosen {
        let pages = i64::try_from(iommufd.mapped() / 4096)?;
        assert_eq!((pages, pinned_pages()? - before), (i64::try_from(RAM / 4096)?, pages), "pinned once");
    }

    let mut log = kernel_log()?;
    drive_edu(&device, &map.ram())?;
    assert_eq!(faults(&mut log, edu.address)?, Vec::<String>::new());
    edu_dma(&device, 0x40000, RAM + 0x1000, 3)?;
    let faults = wait_faults(&mut log, edu.address)?;
    println!("edu, outside RAM: {faults:?}");
    assert!(faults[0].contains("Write") && faults[0].contains(&format!("{:#x}", RAM + 0x1000)));

    reach_other_device(&map, &guest, &controller)?;
    identify(&own, &controller, &map.ram())?;
    drop(device);
    let mirror: Arc<dyn Mirror> = guest.clone();
    map.detach(&mirror)?;
    drop((mirror, guest));
    println!("guest domain gone: {} pages pinned", pinned_pages()? - before);
    identify(&own, &controller, &map.ram())?;
    hot_reset(&own, &controller)?;
    identify(&own, &controller, &map.ram())?;
    println!("audit: {:?}", map.audit());
    assert!(map.audit().iter().all(|(_, result)| result.is_ok()));
    Ok(())
}

/// Puts the controller's BAR into the map for a moment, for edu to reach.
fn reach_other_device(map: &MemoryMap, guest: &Domain, controller: &Arc<VfioDevice>) -> Done {
    enable(controller)?;
    let bar0 = controller.region(bar(0))?.ok_or("no BAR 0")?;
    let area = MappedArea::new(controller, &bar0, bar0.mappable[0].clone())?;
    let range = GpaRange::new(Gpa(0xc000_0000), area.len() as u64).ok_or("range")?;
    // SAFETY: the area stays mapped until the memory is out of the map again.
    let memory = unsafe { DeviceMemory::new("controller", range, area.start()) };
    map.apply(&Change::AddDevice(memory.clone()))?;
    println!("P2P: {:?}", guest.p2p());
    println!("audit: {:?}", map.audit());
    map.apply(&Change::RemoveDevice(memory))?;
    Ok(())
}

fn domain(
    host: &Host,
    chosen: &Chosen,
    name: &str,
    kind: Kind,
    device: &PciDevice,
) -> Result<Arc<Domain>, Failure> {
    Ok(match chosen {
        Chosen::Iommufd(iommufd) => {
            let cdev = Cdev::open(&device.address.to_string(), &host.vfio_cdev(device.address)?)?;
            Domain::iommufd(name, kind, iommufd, vec![cdev])?
        }
        Chosen::Type1(_) => Domain::type1(name, kind, vec![Group::open(device.require_group(host)?)?])?,
    })
}

/// Memory space and bus mastering on.
fn enable(device: &VfioDevice) -> Done {
    Ok(device.write(device.config(), 4, &6u16.to_le_bytes())?)
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool, Failure>) -> Done {
    let end = Instant::now() + Duration::from_secs(10);
    while !done()? {
        if Instant::now() > end {
            return Err(format!("{what}: timed out").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Has edu copy between its buffer (0x40000) and an IOVA: way 1 is into the buffer, 3 out of it.
fn edu_dma(device: &VfioDevice, from: u64, to: u64, way: u64) -> Done {
    let bar0 = device.region(bar(0))?.ok_or("no BAR 0")?;
    for (register, value) in [(0x80, from), (0x88, to), (0x90, 64), (0x98, way)] {
        device.write(&bar0, register, &(value as u32).to_le_bytes())?;
        device.write(&bar0, register + 4, &((value >> 32) as u32).to_le_bytes())?;
    }
    wait("edu's DMA", || {
        let mut state = [0; 4];
        device.read(&bar0, 0x98, &mut state)?;
        Ok(state[0] & 1 == 0)
    })
}

fn drive_edu(device: &VfioDevice, ram: &Ram) -> Done {
    enable(device)?;
    ram.write(Gpa(0x5000), b"from RAM to RAM")?;
    edu_dma(device, 0x5000, 0x40000, 1)?;
    edu_dma(device, 0x40000, 0x6000, 3)?;
    let mut bytes = [0; 15];
    ram.read(Gpa(0x6000), &mut bytes)?;
    println!("edu: {:?}", String::from_utf8_lossy(&bytes));
    assert_eq!(&bytes, b"from RAM to RAM");
    Ok(())
}

/// Starts the controller with queues of ours and has it identify itself into guest RAM.
fn identify(domain: &Arc<Domain>, device: &VfioDevice, ram: &Ram) -> Done {
    let queues = domain.map_own("admin queues", 0x2000)?;
    enable(device)?;
    let bar0 = device.region(bar(0))?.ok_or("no BAR 0")?;
    let status = || -> Result<u32, Failure> {
        let mut bytes = [0; 4];
        device.read(&bar0, 0x1c, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let set = |register, value: u32| device.write(&bar0, register, &value.to_le_bytes());
    set(0x14, 0)?;
    wait("controller off", || Ok(status()? & 1 == 0))?;
    let at = queues.iova().0;
    for (register, address) in [(0x28, at), (0x30, at + 0x1000)] {
        set(register, address as u32)?;
        set(register + 4, (address >> 32) as u32)?;
    }
    set(0x24, 0x000f_000f)?;
    set(0x14, 0x0046_0001)?;
    wait("controller ready", || Ok(status()? & 1 == 1))?;
    // Identify controller (opcode 6, CNS 1) into guest RAM at 0x10000.
    let mut command = [0u32; 16];
    (command[0], command[6], command[10]) = (0x0001_0006, 0x10000, 1);
    queues.ram().write_obj(Gpa(at), &command)?;
    ram.zero(Gpa(0x10000), 4096)?;
    set(0x1000, 1)?;
    wait("identify", || Ok(queues.ram().read_obj::<u32>(Gpa(at + 0x100c))? >> 16 & 1 == 1))?;
    let mut serial = [0; 20];
    ram.read(Gpa(0x10004), &mut serial)?;
    println!("NVMe: queues at {at:#x}, serial {:?}", String::from_utf8_lossy(&serial).trim());
    assert_ne!(serial, [0; 20], "nothing came by DMA");
    set(0x14, 0)?;
    wait("controller off", || Ok(status()? & 1 == 0))
}

fn hot_reset(domain: &Domain, device: &VfioDevice) -> Done {
    let dependents = device.hot_reset_dependents()?;
    println!("a bus reset would reset {dependents:x?}");
    let ours = |it: &Dependent| match it.holder {
        Holder::Group(number) => domain.groups().iter().any(|group| group.number() == number),
        Holder::Ours => true,
        Holder::Others => false,
    };
    assert!(dependents.iter().all(ours));
    match device.hot_reset(domain.groups()) {
        // Ports of QEMU 7.2 do not say when their link is up again; the reset itself was done.
        Err(error) if error.cause.raw_os_error() == Some(libc::ENOTTY) => println!("bus reset, but: {error}"),
        done => done?,
    }
    Ok(())
}

/// Pages that the whole host has pinned for DMA and the like.
fn pinned_pages() -> Result<i64, Failure> {
    let text = std::fs::read_to_string("/proc/vmstat")?;
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        line.and_then(|number| number.parse::<i64>().ok()).ok_or(format!("no {name} in /proc/vmstat"))
    };
    Ok(count("nr_foll_pin_acquired")? - count("nr_foll_pin_released")?)
}

fn kernel_log() -> Result<std::fs::File, Failure> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    while log.read(&mut [0; 8192]).is_ok() {}
    Ok(log)
}

/// New lines of the IOMMU's about a device.
fn faults(log: &mut std::fs::File, address: PciAddress) -> Result<Vec<String>, Failure> {
    let address = address.to_string();
    let device = format!("[{}]", address.trim_start_matches("0000:"));
    let (mut lines, mut record) = (Vec::new(), [0; 8192]);
    while let Ok(len) = log.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..len]).into_owned();
        lines.extend(text.lines().find(|line| line.contains(&device)).map(str::to_owned));
    }
    Ok(lines)
}

fn wait_faults(log: &mut std::fs::File, address: PciAddress) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    wait("the IOMMU's line in the kernel's log", || {
        found.extend(faults(log, address)?);
        Ok(!found.is_empty())
    })?;
    Ok(found)
}
