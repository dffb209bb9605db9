//! Takes a device from this host, maps RAM for it, resets it, reads its BAR 0, and gives it back. For the lab.
use std::sync::Arc;

use dma::{Domain, vfio};
use host::{Host, IommuGroup, PciDevice};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: host::PciAddress = std::env::args().nth(1).ok_or("which device?")?.parse()?;
    let host = Host::here();
    println!("leftovers: {:?}", host.leftovers().iter().map(|left| left.address).collect::<Vec<_>>());
    println!("iommus: {:?}", host.iommus());
    let device = PciDevice::open(&host, address)?;
    println!("{device}; group {:?}, reset {:?}", device.group, device.reset_methods);
    let number = device.require_group(&host)?;
    let group = IommuGroup::open(&host, number)?;
    group.viable_with(&[address])?;
    let bound = host.bind_to_vfio(&device)?;
    if std::env::args().nth(2).as_deref() == Some("crash") {
        std::process::abort();
    }
    println!("bound; reserved: {:?}", host.reserved_regions(number)?);
    let ram = Arc::new(memory::Ram::new(&memory::ram_ranges(256 << 20))?);
    ram.wire()?;
    {
        let domain = Domain::type1("guest", vec![vfio::Group::open(number)?])?;
        println!("limits: {:x?}", domain.limits()?);
        domain.map_ram(&ram)?;
        domain.audit(&ram)?;
        println!("ledger: {}", domain.mappings()[0]);
        let device = domain.open_device(number, &address.to_string())?;
        for interrupt in [
            vfio::Interrupt::Intx,
            vfio::Interrupt::Msi,
            vfio::Interrupt::Msix,
            vfio::Interrupt::Error,
            vfio::Interrupt::Request,
        ] {
            println!("{interrupt:?}: {:?}", device.irq(interrupt)?);
        }
        println!("can reset: {}; dependents: {:?}", device.can_reset(), device.hot_reset_dependents());
        if device.can_reset() {
            device.reset()?;
        }
        device.write(device.config(), 4, &[2, 0])?;
        for index in 0..7 {
            println!("region {index}: {:x?}", device.region(index)?);
        }
        let bar0 = device.region(0)?.ok_or("no BAR 0")?;
        let mut word = [0; 4];
        device.read(&bar0, 0, &mut word)?;
        println!("BAR 0 begins with {:08x}", u32::from_le_bytes(word));
        println!("devices: {:?}", domain.devices());
    }
    bound.give_back()?;
    println!("given back: {}", PciDevice::open(&host, address)?);
    Ok(())
}
