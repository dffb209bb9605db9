//! How often the IOMMUs of this host called for help.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `/proc/interrupts`, opened once and read again and again.
#[derive(Debug)]
pub struct Interrupts {
    file: File,
}

/// Fault interrupts since boot. Each stands for one fault or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// Of VT-d units (`dmar0`).
    pub intel: u64,
    /// Of the event logs of AMD's IOMMUs (`AMD-Vi0-Evt`). Where one interrupt serves all logs (`AMD-Vi`) it counts
    /// in vain: it fires in normal operation, too.
    pub amd: u64,
}

impl Interrupts {
    /// Opens the kernel's file.
    pub fn open() -> io::Result<Interrupts> {
        Ok(Interrupts::over(File::open("/proc/interrupts")?))
    }

    pub(super) fn over(file: File) -> Interrupts {
        Interrupts { file }
    }

    /// The counts of now.
    pub fn read(&self) -> io::Result<Calls> {
        let mut text = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            match self.file.read_at(&mut chunk, text.len() as u64) {
                Ok(0) => return Ok(parse(&String::from_utf8_lossy(&text))),
                Ok(read) => text.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Lines are `24:  12  0  DMAR-MSI  0-edge  dmar0`, with a count for each CPU.
fn parse(text: &str) -> Calls {
    let mut calls = Calls::default();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once(':') else { continue };
        let Some(action) = rest.split_whitespace().next_back() else { continue };
        let numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        let to = if action.strip_prefix("dmar").is_some_and(numbered) {
            &mut calls.intel
        } else if action
            .strip_prefix("AMD-Vi")
            .and_then(|rest| rest.strip_suffix("-Evt"))
            .is_some_and(numbered)
        {
            &mut calls.amd
        } else {
            continue;
        };
        let counts = rest.split_whitespace().map_while(|count| count.parse::<u64>().ok());
        *to = counts.fold(*to, u64::saturating_add);
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_counts_of_all_cpus_and_units_are_added_and_page_requests_are_not_faults() {
        let calls = parse(
            "           CPU0       CPU1
  0:        122          0   IO-APIC   2-edge      timer
 24:         12          3  DMAR-MSI   0-edge      dmar0
 25:          1          0  DMAR-MSI   1-edge      dmar1
 26:        900          0  DMAR-MSI   0-edge      dmar0-prq
 27:          7          0  PCI-MSI 524288-edge      xhci_hcd
 28:        500          2  AMD-Vi    0-edge      AMD-Vi0-Evt
 29:        600          2  AMD-Vi    0-edge      AMD-Vi0-PPR
 30:        700          2  PCI-MSI   0-edge      AMD-Vi
NMI:          4          4   Non-maskable interrupts
",
        );
        assert_eq!(calls, Calls { intel: 16, amd: 502 });
    }

    #[test]
    fn this_machines_own_file_is_read() {
        Interrupts::open().unwrap().read().unwrap();
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _calls = parse(&text);
            let _line = parse(&format!("1: {text} dmar0"));
        }
    }
}
