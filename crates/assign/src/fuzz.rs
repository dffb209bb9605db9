//! For fuzzing: an emulated configuration space over hardware that is only bytes.

use std::convert::Infallible;
use std::sync::Arc;

use pci::{Address, BarSpec, Decoded, Msi, Msix, PciError, Pin, Services, Windows, register};

use crate::config::{self, Config, Effect, Features, Snapshot};

/// A function as the guest sees it: [`Config`], MSI and MSI-X, without a device.
pub struct Emulated {
    hardware: Vec<u8>,
    config: Config,
    msi: Option<Msi>,
    msix: Option<Msix>,
}

/// A write that reaches the hardware's configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardwareWrite {
    /// Its place.
    pub offset: u16,
    /// The 16 bits written.
    pub value: u16,
}

impl Emulated {
    /// Over hardware that has these bytes (4096 of them), of which it shows `size`.
    pub fn new(
        hardware: Vec<u8>,
        size: u64,
        bars: &[BarSpec],
        windows: &Windows,
        services: &Arc<dyn Services>,
        resettable: bool,
    ) -> Emulated {
        assert_eq!(hardware.len(), 4096);
        let at = Address::new(0, 2, 0).expect("a device of the root bus");
        let read = |offset: u16, data: &mut [u8]| {
            data.copy_from_slice(&hardware[usize::from(offset)..][..data.len()]);
            Ok::<_, Infallible>(())
        };
        let Ok(snapshot) = Snapshot::read(size, read);
        let msi = config::msi(&snapshot)
            .map(|layout| Msi::new(at, services.clone(), layout.count, layout.maskable));
        let layout = config::msix(&snapshot);
        let msix = layout.map(|layout| Msix::new(at, services.clone(), layout.count));
        let shown = msix.as_ref().zip(layout);
        let features = Features {
            msi: msi.as_ref(),
            msix: shown.map(|(msix, layout)| msix.capability(layout.table, layout.pending)),
            resettable,
            pin: Pin::from_register(snapshot.u8(register::INTERRUPT_PIN)),
        };
        let config = Config::new(&snapshot, bars, windows, &features);
        Emulated { hardware, config, msi, msix }
    }

    /// Reads as the guest does.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let Ok(()) = self.config.read(offset, data, |offset, data| {
            data.copy_from_slice(&self.hardware[usize::from(offset)..][..data.len()]);
            Ok::<_, Infallible>(())
        });
    }

    /// Writes as the guest does; returns what reaches the hardware.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Result<Vec<HardwareWrite>, PciError> {
        let mut reached = Vec::new();
        for effect in self.config.write(offset, data) {
            let (offset, value) = match effect {
                Effect::Command(command) => (register::COMMAND, command),
                Effect::ClearStatus(errors) => (register::STATUS, errors),
                Effect::Vpd(offset, address) => (offset, address),
                Effect::Reset => continue,
                Effect::Msi => {
                    let body = self.config.msi_body();
                    if let Some(msi) = &mut self.msi {
                        msi.update(&body)?;
                        assert!(msi.vectors(&body).len() <= 32);
                    }
                    continue;
                }
                Effect::Msix(control) => {
                    if let Some(msix) = &mut self.msix {
                        msix.set_control(control)?;
                    }
                    continue;
                }
            };
            reached.push(HardwareWrite { offset, value });
        }
        Ok(reached)
    }

    /// Where the BARs decode.
    pub fn decoded(&self) -> Decoded {
        self.config.decoded()
    }

    /// The MSI-X table, if there is one.
    pub fn msix(&mut self) -> Option<&mut Msix> {
        self.msix.as_mut()
    }
}
