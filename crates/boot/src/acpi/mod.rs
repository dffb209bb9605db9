//! ACPI tables: what the guest learns about the machine. ACPI 6.5.
//!
//! RSDP, XSDT, FADT, FACS, MADT, MCFG, SRAT and DSDT, and TPM2 where there is a TPM. Hardware is not "reduced": power button, sleep and timer are
//! the fixed registers of [`crate::platform::port`].

mod dsdt;
mod fadt;
mod madt;
mod srat;
mod tpm2;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use memory::{Gpa, GpaRange, Ram};

use crate::platform::Platform;
use crate::{LoadError, PlacedTable};

const OEM: [u8; 6] = *b"SKEP  ";
const OEM_TABLE: [u8; 8] = *b"SKEPVM  ";
const OEM_REVISION: u32 = 1;

/// Tables begin at a multiple of this.
const ALIGNMENT: u64 = 64;

/// All ACPI tables, each with its address.
#[derive(Debug, Clone)]
pub struct AcpiTables {
    /// Where the RSDP lies, which leads to everything else.
    pub rsdp: Gpa,
    /// The tables.
    pub tables: Vec<PlacedTable>,
}

/// Builds all tables for `place`, the RSDP at its start. The FACS goes to `facs`: the guest may take the
/// memory of the tables for itself once it has read them, but never that of the FACS.
pub fn tables(platform: &Platform, ram: &Ram, place: GpaRange, facs: Gpa) -> Result<AcpiTables, LoadError> {
    let rsdp = place.start();
    let mut area = Area { next: rsdp.0 + Rsdp::len() as u64, tables: Vec::new() };
    area.tables.push(PlacedTable { at: facs, bytes: bytes(&firmware_control()) });
    let dsdt = area.add(dsdt::dsdt(platform).as_slice().to_vec());
    let fadt = area.add(bytes(&fadt::fadt(platform, dsdt, facs)));
    let madt = area.add(madt::madt(platform.cpus).as_slice().to_vec());
    let mcfg = area.add(bytes(&mcfg(platform)));
    let srat = area.add(srat::srat(platform.cpus, ram).as_slice().to_vec());
    let tpm2 = platform.tpm.then(|| area.add(tpm2::tpm2().as_slice().to_vec()));

    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg, srat].into_iter().chain(tpm2) {
        xsdt.add_entry(table.0);
    }
    let xsdt = area.add(bytes(&xsdt));
    area.tables.push(PlacedTable { at: rsdp, bytes: bytes(&Rsdp::new(OEM, xsdt.0)) });

    let len = area.next - rsdp.0;
    if len > place.len() {
        return Err(LoadError::TablesTooLarge { what: "ACPI", len, place });
    }
    Ok(AcpiTables { rsdp, tables: area.tables })
}

/// Tables laid one behind the other.
struct Area {
    next: u64,
    tables: Vec<PlacedTable>,
}

impl Area {
    fn add(&mut self, bytes: Vec<u8>) -> Gpa {
        let at = Gpa(self.next.next_multiple_of(ALIGNMENT));
        self.next = at.0 + bytes.len() as u64;
        self.tables.push(PlacedTable { at, bytes });
        at
    }
}

/// An empty table with its header.
fn table(signature: &[u8; 4], revision: u8) -> Sdt {
    Sdt::new(*signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION)
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// Nothing to wake up to and no lock; version 2 is that of ACPI from 4.0 on (ACPI 6.5, 5.2.10).
fn firmware_control() -> FACS {
    let mut facs = FACS::new();
    facs.version = 2;
    facs
}

/// Where PCI configuration space is. PCI Firmware 3.3, 4.1.2.
fn mcfg(platform: &Platform) -> MCFG {
    let ecam = platform.pci.ecam;
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ecam.base().0, 0, ecam.first_bus(), ecam.last_bus());
    mcfg
}

#[cfg(test)]
mod tests;
