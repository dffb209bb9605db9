//! What firmware does with a TPM first, for a guest without firmware: it starts it up and has it test itself. Linux would do both,
//! but warns about a TPM that is not started up, and gives a self-test two seconds. TCG PC Client Platform Firmware Profile, 5.

use std::io;

/// TPM2_Startup(TPM_SU_CLEAR), and TPM2_SelfTest of what was not tested yet.
const STARTUP: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];
const SELF_TEST: [u8; 11] = [0x80, 0x01, 0, 0, 0, 11, 0, 0, 0x01, 0x43, 0];
/// TPM_RC_INITIALIZE: it has been started up, as a TPM of the host has. TPM_RC_TESTING: it does it in the background.
const INITIALIZE: u32 = 0x100;
const TESTING: u32 = 0x90a;

/// Who starts a TPM up, each time that it is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartUp {
    /// The guest's firmware.
    ByFirmware,
    /// skep, for a guest without firmware.
    BySkep,
}

impl StartUp {
    /// Does skep's part with a TPM that was just switched on and executes commands so.
    pub fn carry_out(self, execute: impl Fn(&[u8]) -> io::Result<Vec<u8>>) -> io::Result<()> {
        match self {
            StartUp::ByFirmware => Ok(()),
            StartUp::BySkep => start(execute),
        }
    }
}

fn start(execute: impl Fn(&[u8]) -> io::Result<Vec<u8>>) -> io::Result<()> {
    for (command, name, also) in [(&STARTUP[..], "start-up", INITIALIZE), (&SELF_TEST, "self-test", TESTING)]
    {
        let response = execute(command)?;
        let code = response
            .get(6..10)
            .map_or(u32::MAX, |code| u32::from_be_bytes(code.try_into().expect("four bytes")));
        if code != 0 && code != also {
            return Err(io::Error::other(format!("its answer to the {name} is error {code:#x}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Of a TPM that answers with these codes, one after the other.
    fn started(codes: &[u32]) -> io::Result<()> {
        let codes = Mutex::new(codes.to_vec());
        let result = StartUp::BySkep.carry_out(|command| {
            assert_eq!(usize::from(command[5]), command.len());
            let code = codes.lock().remove(0);
            Ok([&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat())
        });
        assert!(codes.lock().is_empty(), "all were asked for");
        result
    }

    #[test]
    fn one_that_was_started_before_or_tests_itself_in_the_background_is_ready() {
        for codes in [[0, 0], [INITIALIZE, TESTING]] {
            started(&codes).unwrap();
        }
    }

    #[test]
    fn one_that_does_not_start_up_or_fails_its_test_is_none_and_says_which() {
        let error = |codes: &[u32]| started(codes).unwrap_err().to_string();
        assert!(error(&[0x101]).contains("its answer to the start-up is error 0x101"));
        assert!(error(&[0, 0x101]).contains("its answer to the self-test is error 0x101"));
    }

    #[test]
    fn firmware_finds_it_as_it_was_switched_on() {
        StartUp::ByFirmware.carry_out(|_| panic!("nothing is executed")).unwrap();
    }
}
