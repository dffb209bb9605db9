//! The command response buffer as its driver sees it: registers and buffer of locality 0, without a thread or a lock. TCG PC
//! Client Platform TPM Profile (PTP) 1.05, 6.5.3.
//!
//! Localities 1 to 4 are not there, as CapLocality says: nothing in a guest starts a dynamic launch, so `tpmEstablished` never
//! changes. A command cannot be cancelled; the profile lets a TPM finish it.

/// What a driver writes a command to and reads its response from, in bytes.
pub const BUFFER: usize = 3968;
/// Tag, size and code, which every command and response begins with (TPM 2.0 Library, part 1, 18).
pub const HEADER: usize = 10;

/// The registers by their offsets.
mod reg {
    pub const LOC_STATE: u64 = 0x00;
    pub const LOC_CTRL: u64 = 0x08;
    pub const LOC_STS: u64 = 0x0c;
    pub const INTF_ID: u64 = 0x30;
    pub const CTRL_REQ: u64 = 0x40;
    pub const CTRL_STS: u64 = 0x44;
    pub const CTRL_CANCEL: u64 = 0x48;
    pub const CTRL_START: u64 = 0x4c;
    pub const CTRL_CMD_SIZE: u64 = 0x58;
    pub const CTRL_CMD_LADDR: u64 = 0x5c;
    pub const CTRL_RSP_SIZE: u64 = 0x64;
    pub const CTRL_RSP_ADDR: u64 = 0x68;
    pub const DATA_BUFFER: u64 = 0x80;
}

/// LOC_STATE: no dynamic launch took place; the locality is assigned; the rest of the register is valid.
const NOT_ESTABLISHED: u32 = 1 << 0;
const ASSIGNED: u32 = 1 << 1;
const VALID: u32 = 1 << 7;
/// LOC_CTRL, and in LOC_STS that it was granted.
const REQUEST_ACCESS: u32 = 1 << 0;
const RELINQUISH: u32 = 1 << 1;
const GRANTED: u32 = 1 << 0;
/// INTF_ID: a CRB of its version 1 and nothing else, moving 64 bytes at a time, chosen for good; revision 0. The upper half has
/// who made it: IBM, as QEMU's says, which drivers know.
const INTERFACE: u64 = 1 | 1 << 4 | 3 << 11 | 1 << 14 | 1 << 17 | 0x1014 << 32;
/// CTRL_REQ.
const COMMAND_READY: u32 = 1;
const GO_IDLE: u32 = 2;
/// CTRL_STS.
const FATAL: u32 = 1 << 0;
const IDLE: u32 = 1 << 1;

/// TPM_RC_COMMAND_SIZE, as a whole response without sessions.
const COMMAND_SIZE: [u8; HEADER] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x42];

/// What the interface does (PTP, figure 5 and table 35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Ready,
    Reception,
    Execution,
    Completion,
}

/// All that the interface knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crb {
    /// Where the guest finds it.
    address: u64,
    granted: bool,
    stage: Stage,
    /// What CTRL_REQ holds until a command under way has ended.
    request: u32,
    cancel: u32,
    fatal: bool,
    buffer: Vec<u8>,
}

impl Crb {
    /// As at power-on, at this guest address.
    pub fn new(address: u64) -> Crb {
        Crb {
            address,
            granted: false,
            stage: Stage::Idle,
            request: 0,
            cancel: 0,
            fatal: false,
            buffer: vec![0; BUFFER],
        }
    }

    /// The same for a TPM that does not work.
    pub fn broken(address: u64) -> Crb {
        Crb { fatal: true, ..Crb::new(address) }
    }

    /// Reads registers or buffer; what is not there stays as it is.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        for (at, byte) in (offset as usize..).zip(data) {
            let there = registers.get(at).or_else(|| self.buffer.get(at.checked_sub(registers.len())?));
            *byte = there.copied().unwrap_or(*byte);
        }
    }

    /// Writes registers or buffer. Returns a command that is to be executed from now on.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Vec<u8>> {
        let mut started = None;
        for (at, piece) in (offset..).step_by(4).zip(data.chunks(4)) {
            if at >= reg::DATA_BUFFER {
                self.receive((at - reg::DATA_BUFFER) as usize, piece);
                continue;
            }
            let mut value = [0; 4];
            value[..piece.len()].copy_from_slice(piece);
            started = self.write_register(at, u32::from_le_bytes(value)).or(started);
        }
        started
    }

    /// The command has ended with this response, or the TPM has failed.
    pub fn complete(&mut self, response: Option<&[u8]>) {
        if self.stage != Stage::Execution {
            return;
        }
        self.buffer.fill(0);
        match response {
            Some(response) if (HEADER..=BUFFER).contains(&response.len()) => {
                self.buffer[..response.len()].copy_from_slice(response);
            }
            _ => self.fatal = true,
        }
        self.stage = Stage::Completion;
        let request = std::mem::take(&mut self.request);
        self.obey(request);
    }

    fn registers(&self) -> [u8; reg::DATA_BUFFER as usize] {
        let bit = |set, bit| if set { bit } else { 0 };
        let mut all = [0; reg::DATA_BUFFER as usize];
        let mut put =
            |offset: u64, value: &[u8]| all[offset as usize..][..value.len()].copy_from_slice(value);
        let state = VALID | NOT_ESTABLISHED | bit(self.granted, ASSIGNED);
        let status = bit(self.fatal, FATAL) | bit(self.stage == Stage::Idle, IDLE);
        for (offset, value) in [
            (reg::LOC_STATE, state),
            (reg::LOC_STS, bit(self.granted, GRANTED)),
            (reg::CTRL_REQ, self.request),
            (reg::CTRL_STS, status),
            (reg::CTRL_CANCEL, self.cancel),
            (reg::CTRL_START, bit(self.stage == Stage::Execution, 1)),
            (reg::CTRL_CMD_SIZE, BUFFER as u32),
            (reg::CTRL_RSP_SIZE, BUFFER as u32),
        ] {
            put(offset, &value.to_le_bytes());
        }
        for (offset, value) in [
            (reg::INTF_ID, INTERFACE),
            (reg::CTRL_CMD_LADDR, self.address + reg::DATA_BUFFER),
            (reg::CTRL_RSP_ADDR, self.address + reg::DATA_BUFFER),
        ] {
            put(offset, &value.to_le_bytes());
        }
        all
    }

    fn write_register(&mut self, offset: u64, value: u32) -> Option<Vec<u8>> {
        match offset {
            reg::LOC_CTRL if value & RELINQUISH != 0 => self.granted = false,
            reg::LOC_CTRL if value & REQUEST_ACCESS != 0 => self.granted = true,
            _ if !self.granted => {}
            reg::CTRL_REQ if self.stage == Stage::Execution => {
                self.request |= value & (COMMAND_READY | GO_IDLE);
            }
            reg::CTRL_REQ => self.obey(value),
            reg::CTRL_CANCEL => self.cancel = value & 1,
            reg::CTRL_START if value & 1 != 0 => return self.start(),
            _ => {}
        }
        None
    }

    fn obey(&mut self, request: u32) {
        self.stage = match request {
            _ if request & GO_IDLE != 0 => Stage::Idle,
            _ if request & COMMAND_READY != 0 => Stage::Ready,
            _ => return,
        };
        self.buffer.fill(0);
    }

    /// A piece of a command. Linux repeats a command without a word that it has read the response to the first.
    fn receive(&mut self, at: usize, piece: &[u8]) {
        if !self.granted || matches!(self.stage, Stage::Idle | Stage::Execution) {
            return;
        }
        self.stage = Stage::Reception;
        for (to, byte) in self.buffer.iter_mut().skip(at).zip(piece) {
            *to = *byte;
        }
    }

    /// Starts what is in the buffer, as long as its header says.
    fn start(&mut self) -> Option<Vec<u8>> {
        if self.stage != Stage::Reception || self.fatal {
            return None;
        }
        let len = self.buffer[2..6].iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        self.stage = Stage::Execution;
        if !(HEADER..=BUFFER).contains(&len) {
            self.complete(Some(&COMMAND_SIZE));
            return None;
        }
        Some(self.buffer[..len].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// TPM2_GetRandom of eight bytes.
    const COMMAND: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8];
    const AT: u64 = 0xfed4_0000;

    fn read(crb: &Crb, offset: u64) -> u32 {
        let mut bytes = [0xff; 4];
        crb.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(crb: &mut Crb, offset: u64, value: u32) -> Option<Vec<u8>> {
        crb.write(offset, &value.to_le_bytes())
    }

    fn ready() -> Crb {
        let mut crb = Crb::new(AT);
        write(&mut crb, reg::LOC_CTRL, REQUEST_ACCESS);
        write(&mut crb, reg::CTRL_REQ, COMMAND_READY);
        crb
    }

    fn executing() -> Crb {
        let mut crb = ready();
        assert_eq!(crb.write(reg::DATA_BUFFER, &COMMAND), None);
        assert_eq!(write(&mut crb, reg::CTRL_START, 1), Some(COMMAND.to_vec()));
        crb
    }

    #[test]
    fn a_driver_finds_a_crb_with_one_locality_and_its_buffer() {
        let crb = Crb::new(AT);
        let id = read(&crb, reg::INTF_ID);
        assert_eq!(
            (id & 0xf, id >> 4 & 0xf, id >> 8 & 1, id >> 13 & 3),
            (1, 1, 0, 2),
            "CRB, version 1, no FIFO"
        );
        assert_eq!(read(&crb, reg::LOC_STATE), VALID | NOT_ESTABLISHED);
        assert_eq!(
            [0x58, 0x5c, 0x60, 0x64, 0x68, 0x6c].map(|offset| read(&crb, offset)),
            [3968, 0xfed4_0080, 0, 3968, 0xfed4_0080, 0]
        );
        assert_eq!(read(&crb, reg::CTRL_STS), IDLE);
        assert_eq!(read(&crb, 0xffe), 0xffff_0000, "nothing behind the buffer");
    }

    #[test]
    fn a_command_goes_from_idle_to_its_response_and_back() {
        let mut crb = ready();
        assert_eq!((read(&crb, reg::LOC_STS), read(&crb, reg::LOC_STATE) & ASSIGNED), (GRANTED, ASSIGNED));
        assert_eq!((read(&crb, reg::CTRL_REQ), read(&crb, reg::CTRL_STS)), (0, 0));
        crb.write(reg::DATA_BUFFER, &COMMAND[..8]);
        crb.write(reg::DATA_BUFFER + 8, &COMMAND[8..]);
        assert_eq!(write(&mut crb, reg::CTRL_START, 1), Some(COMMAND.to_vec()));
        assert_eq!(read(&crb, reg::CTRL_START), 1);
        assert_eq!(write(&mut crb, reg::CTRL_START, 1), None, "once");
        crb.complete(Some(&[7; 20]));
        assert_eq!((read(&crb, reg::CTRL_START), read(&crb, 0x90)), (0, 0x0707_0707));
        // Again, as Linux does it.
        crb.write(reg::DATA_BUFFER, &COMMAND);
        assert_eq!(write(&mut crb, reg::CTRL_START, 1), Some(COMMAND.to_vec()));
        crb.complete(Some(&[7; 20]));
        write(&mut crb, reg::CTRL_REQ, GO_IDLE);
        assert_eq!(
            (read(&crb, reg::CTRL_STS), read(&crb, reg::DATA_BUFFER)),
            (IDLE, 0),
            "and nothing is left"
        );
    }

    #[test]
    fn without_its_locality_a_driver_changes_nothing_and_an_idle_tpm_takes_no_command() {
        let mut crb = Crb::new(AT);
        write(&mut crb, reg::CTRL_REQ, COMMAND_READY);
        crb.write(reg::DATA_BUFFER, &COMMAND);
        assert_eq!(write(&mut crb, reg::CTRL_START, 1), None);
        assert_eq!(crb, Crb::new(AT));
        write(&mut crb, reg::LOC_CTRL, REQUEST_ACCESS);
        crb.write(reg::DATA_BUFFER, &COMMAND);
        assert_eq!((write(&mut crb, reg::CTRL_START, 1), read(&crb, reg::DATA_BUFFER)), (None, 0));
        write(&mut crb, reg::LOC_CTRL, RELINQUISH);
        assert_eq!(crb, Crb::new(AT));
    }

    #[test]
    fn a_request_during_a_command_waits_for_its_end() {
        let mut crb = executing();
        write(&mut crb, reg::CTRL_REQ, GO_IDLE);
        assert_eq!((read(&crb, reg::CTRL_REQ), read(&crb, reg::CTRL_START)), (GO_IDLE, 1));
        crb.complete(Some(&[7; 20]));
        assert_eq!((read(&crb, reg::CTRL_REQ), read(&crb, reg::CTRL_STS)), (0, IDLE));
        assert_eq!(read(&crb, reg::DATA_BUFFER), 0);
    }

    #[test]
    fn a_command_whose_header_lies_about_its_size_gets_an_error() {
        for len in [0u32, 9, BUFFER as u32 + 1, u32::MAX] {
            let mut crb = ready();
            let mut command = COMMAND;
            command[2..6].copy_from_slice(&len.to_be_bytes());
            crb.write(reg::DATA_BUFFER, &command);
            assert_eq!(write(&mut crb, reg::CTRL_START, 1), None);
            assert_eq!((read(&crb, reg::CTRL_START), read(&crb, 0x86)), (0, 0x4201_0000), "{len}");
        }
    }

    #[test]
    fn a_tpm_that_failed_says_so_and_takes_no_command_any_more() {
        for response in [None, Some(&[0; BUFFER + 1][..]), Some(&[0; 9])] {
            let mut crb = executing();
            crb.complete(response);
            assert_eq!((read(&crb, reg::CTRL_STS), read(&crb, reg::CTRL_START)), (FATAL, 0));
            write(&mut crb, reg::CTRL_REQ, COMMAND_READY);
            crb.write(reg::DATA_BUFFER, &COMMAND);
            assert_eq!(write(&mut crb, reg::CTRL_START, 1), None);
        }
        assert_eq!(read(&Crb::broken(AT), reg::CTRL_STS), FATAL | IDLE);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_writes_at_most_one_command_is_under_way_and_it_is_whole(
            accesses in prop::collection::vec((0u64..0x1000, prop::collection::vec(any::<u8>(), 1..9), any::<u8>()), 0..200)
        ) {
            let mut crb = ready();
            let mut under_way = false;
            for (offset, data, what) in accesses {
                // Mostly what drivers do.
                let started = match what % 8 {
                    0 => write(&mut crb, reg::LOC_CTRL, u32::from(what >> 3)),
                    1 => write(&mut crb, reg::CTRL_REQ, u32::from(what >> 3 & 3)),
                    2 => crb.write(reg::DATA_BUFFER, &[0x80, 1, 0, 0, 0, what >> 2, 0, 0]),
                    3 => write(&mut crb, reg::CTRL_START, 1),
                    4 => {
                        crb.complete(Some(&vec![what; usize::from(what)]));
                        under_way = false;
                        None
                    }
                    _ => crb.write(offset, &data),
                };
                if let Some(command) = started {
                    prop_assert!(!under_way);
                    prop_assert!((HEADER..=BUFFER).contains(&command.len()));
                    under_way = true;
                }
                prop_assert_eq!(read(&crb, reg::CTRL_START), u32::from(under_way));
            }
            let mut all = [0; 0x1000];
            crb.read(0, &mut all);
        }
    }
}
