//! Where SATA disks and CD drives are: ports of controllers.

use std::fmt;
use std::sync::Arc;

use config::ControllerName;
use devices::ahci::Ahci;
use pci::Function;

/// A SATA controller of the VM.
pub struct SataController {
    /// Its name in the description, if it has one.
    pub name: Option<ControllerName>,
    pub ahci: Arc<Ahci>,
}

impl SataController {
    /// All its ports.
    pub fn seats(&self) -> impl Iterator<Item = Seat> {
        (0..self.ahci.ports()).map(|port| Seat::new(&self.ahci, port))
    }
}

/// "s (ahci 00:03.0)", or without a name "ahci 00:03.0".
impl fmt::Display for SataController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.ahci.name()),
            None => f.write_str(self.ahci.name()),
        }
    }
}

/// A port of a controller.
#[derive(Clone)]
pub struct Seat {
    pub controller: Arc<Ahci>,
    pub port: u8,
}

impl Seat {
    pub fn new(controller: &Arc<Ahci>, port: u8) -> Seat {
        Seat { controller: controller.clone(), port }
    }
}

impl PartialEq for Seat {
    fn eq(&self, other: &Seat) -> bool {
        Arc::ptr_eq(&self.controller, &other.controller) && self.port == other.port
    }
}

/// "ahci 00:03.0, port 1".
impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, port {}", self.controller.name(), self.port)
    }
}
