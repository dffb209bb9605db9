//! What firmware does with a TPM first, for a guest without firmware: it starts it up and has it test itself. Linux would do both,
//! but warns about a TPM that is not started up, and gives a self-test two seconds. TCG PC Client Platform Firmware Profile, 5.

use std::fmt;

use devices::tpm::{TpmBackEnd, TpmFailed};

use super::{Tell, TpmError};

/// TPM2_Startup(TPM_SU_CLEAR), and TPM2_SelfTest of what was not tested yet.
const STARTUP: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];
const SELF_TEST: [u8; 11] = [0x80, 0x01, 0, 0, 0, 11, 0, 0, 0x01, 0x43, 0];
/// TPM_RC_INITIALIZE: it has been started up, as a TPM of the host has. TPM_RC_TESTING: it does it in the background.
const INITIALIZE: u32 = 0x100;
const TESTING: u32 = 0x90a;

/// A TPM that is ready for an operating system each time that it is switched on.
pub struct Started<B> {
    back_end: B,
    tell: Tell,
}

/// What went wrong.
enum Wrong {
    /// The back end has told it.
    Failed,
    /// The TPM's answer.
    Answer(&'static str, u32),
}

impl<B: TpmBackEnd> Started<B> {
    /// Of one that was just switched on.
    pub fn new(back_end: B, tell: Tell) -> Result<Started<B>, TpmError> {
        match start(&back_end) {
            Ok(()) => Ok(Started { back_end, tell }),
            Err(wrong) => Err(TpmError::NotReady(wrong.to_string())),
        }
    }
}

impl<B: TpmBackEnd> TpmBackEnd for Started<B> {
    fn power_on(&self) -> Result<(), TpmFailed> {
        self.back_end.power_on()?;
        start(&self.back_end).map_err(|wrong| {
            if let Wrong::Answer(..) = wrong {
                (self.tell)(TpmError::NotReady(wrong.to_string()).to_string());
            }
            TpmFailed
        })
    }

    fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        self.back_end.execute(command)
    }

    fn abort(&self) {
        self.back_end.abort();
    }
}

fn start(back_end: &impl TpmBackEnd) -> Result<(), Wrong> {
    for (command, name, also) in [(&STARTUP[..], "start-up", INITIALIZE), (&SELF_TEST, "self-test", TESTING)]
    {
        let response = back_end.execute(command).map_err(|TpmFailed| Wrong::Failed)?;
        let code = response
            .get(6..10)
            .map_or(u32::MAX, |code| u32::from_be_bytes(code.try_into().expect("four bytes")));
        if code != 0 && code != also {
            return Err(Wrong::Answer(name, code));
        }
    }
    Ok(())
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Failed => f.write_str("it failed at once"),
            Wrong::Answer(command, code) => write!(f, "its answer to the {command} is error {code:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Answers with these codes, one after the other.
    struct Model(Mutex<Vec<u32>>);

    impl TpmBackEnd for Model {
        fn power_on(&self) -> Result<(), TpmFailed> {
            Ok(())
        }

        fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
            assert_eq!(usize::from(command[5]), command.len());
            let code = self.0.lock().unwrap().remove(0);
            Ok([&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat())
        }

        fn abort(&self) {}
    }

    fn started(codes: &[u32]) -> Result<Started<Model>, TpmError> {
        Started::new(Model(Mutex::new(codes.to_vec())), Arc::new(|_| {}))
    }

    #[test]
    fn one_that_was_started_before_or_tests_itself_in_the_background_is_ready() {
        for codes in [[0, 0], [INITIALIZE, TESTING]] {
            started(&codes).unwrap();
        }
        started(&[0, 0, 0, 0]).unwrap().power_on().unwrap();
    }

    #[test]
    fn one_that_does_not_start_up_or_fails_its_test_is_none_and_says_which() {
        let error = |codes: &[u32]| started(codes).err().unwrap().to_string();
        assert!(error(&[0x101]).contains("its answer to the start-up is error 0x101"));
        assert!(error(&[0, 0x101]).contains("its answer to the self-test is error 0x101"));
        assert_eq!(started(&[0, 0, 0x101]).unwrap().power_on(), Err(TpmFailed));
    }
}
