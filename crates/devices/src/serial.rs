//! The serial port, a 16550 (register model by vm-superio).

use std::io::{self, Write};

use parking_lot::{Mutex, MutexGuard};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::ports::PortDevice;

type Output = Box<dyn Write + Send>;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A serial port. What the guest sends goes to an output, at once and byte by byte; what the guest is to
/// receive is queued in 64 bytes.
pub struct SerialPort(Mutex<Serial<Interrupt, NoEvents, Output>>);

impl SerialPort {
    /// A port whose interrupt is raised through `interrupt`.
    pub fn new(interrupt: EventFd, output: Output) -> SerialPort {
        SerialPort(Mutex::new(Serial::new(Interrupt(interrupt), output)))
    }

    /// Gives the guest bytes to receive and returns how many there was room for.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.port().enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    fn port(&self) -> MutexGuard<'_, Serial<Interrupt, NoEvents, Output>> {
        self.0.lock()
    }
}

impl PortDevice for SerialPort {
    fn read(&self, offset: u16, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.port().read(offset as u8);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        if let [byte] = data {
            // An error here is an output that went away (a closed terminal): a serial line nobody listens to.
            drop(self.port().write(offset as u8, *byte));
        }
    }

    fn reset(&self) {
        // IER, FCR (clear both FIFOs), LCR, MCR as after power-on (16550D data sheet, table II).
        for (register, value) in [(3, 0), (1, 0), (2, 7), (4, 0)] {
            PortDevice::write(self, register, &[value]);
        }
        while self.port().read(5) & 1 != 0 {
            self.port().read(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_out_and_come_in_and_a_reset_forgets_what_was_not_read() {
        let sink = Sink::default();
        let port = SerialPort::new(EventFd::new(EFD_NONBLOCK).unwrap(), Box::new(sink.clone()));
        for byte in b"hi" {
            port.write(0, &[*byte]);
        }
        assert_eq!(*sink.0.lock(), b"hi");
        assert_eq!(port.receive(&[1, 2, 3]), 3);
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [1]);
        PortDevice::reset(&port);
        port.read(5, &mut byte);
        assert_eq!(byte[0] & 1, 0, "nothing to receive after a reset");
    }

    #[test]
    fn input_beyond_the_queue_is_refused_not_lost() {
        let port = SerialPort::new(EventFd::new(EFD_NONBLOCK).unwrap(), Box::new(io::sink()));
        let taken = port.receive(&[0; 100]);
        assert!(taken > 0 && taken < 100);
        assert_eq!(port.receive(&[0; 100]), 0);
    }
}
