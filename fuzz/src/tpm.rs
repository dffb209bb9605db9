//! A hostile guest's accesses to a TPM, and hostile responses to its commands: one command at a time is under way, it is whole,
//! and what the guest reads is the response that it got, or a register that says what the interface does.

use devices::tpm::{BUFFER, Crb, HEADER};

use crate::steps::Steps;

const AT: u64 = 0xfed4_0000;
const LEN: u64 = 0x5000;
const START: u64 = 0x4c;
const DATA: u64 = 0x80;
/// INTF_ID, both halves; size and address of the buffer for commands and for responses.
const FIXED: [(u64, u32); 7] = [
    (0x30, 0x2_5811),
    (0x34, 0x1014),
    (0x58, 3968),
    (0x5c, 0xfed4_0080),
    (0x60, 0),
    (0x64, 3968),
    (0x68, 0xfed4_0080),
];

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let mut crb = Crb::new(AT);
    let mut under_way = false;
    while let Some(step) = steps.next_step() {
        let started = match step {
            0..32 => {
                let (at, len) = (u64::from(steps.u16()) % LEN, steps.pick(&[1, 2, 4, 8]));
                let mut data = vec![0xff; len];
                crb.read(at, &mut data);
                let behind = (at..).zip(&data).filter(|(at, _)| *at >= DATA + BUFFER as u64);
                behind.for_each(|(at, byte)| assert_eq!(*byte, 0xff, "nothing is at {at:#x}"));
                None
            }
            32..64 => {
                let at = u64::from(steps.u16()) % LEN;
                crb.write(at, steps.access())
            }
            64..80 => crb.write(0x08, &u32::from(step & 3).to_le_bytes()),
            80..112 => crb.write(0x40, &u32::from(step & 3).to_le_bytes()),
            112..160 => {
                let len = steps.pick(&[0, 9, 10, 12, 100, BUFFER as u32, BUFFER as u32 + 1, u32::MAX]);
                let [a, b, c, d] = len.to_be_bytes();
                crb.write(DATA, &[0x80, 1, a, b, c, d, 0, 0])
            }
            160..200 => crb.write(START, &1u32.to_le_bytes()),
            200..248 => {
                let len = usize::from(steps.u16()) % (BUFFER + 100);
                let response = vec![steps.u8(); len];
                let whole = (HEADER..=BUFFER).contains(&len);
                let waits = register(&crb, 0x40) != 0;
                crb.complete(if step & 1 == 0 { Some(&response) } else { None });
                if under_way && whole && step & 1 == 0 && !waits {
                    assert_eq!(buffer(&crb)[..len], response);
                    assert!(
                        buffer(&crb)[len..].iter().all(|byte| *byte == 0),
                        "something is behind the response"
                    );
                }
                under_way = false;
                None
            }
            _ => {
                crb = if step & 1 == 0 { Crb::new(AT) } else { Crb::broken(AT) };
                under_way = false;
                None
            }
        };
        if let Some(command) = started {
            assert!(!under_way, "two commands at once");
            let said = u32::from_be_bytes(command[2..6].try_into().expect("four bytes"));
            assert_eq!((said as usize, &command[..]), (command.len(), &buffer(&crb)[..command.len()]));
            under_way = true;
        }
        assert_eq!(register(&crb, START), u32::from(under_way));
        assert!(under_way || register(&crb, 0x40) == 0, "a request waits for nothing");
        FIXED.iter().for_each(|(at, value)| assert_eq!(register(&crb, *at), *value, "{at:#x}"));
    }
}

fn register(crb: &Crb, at: u64) -> u32 {
    let mut bytes = [0xff; 4];
    crb.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn buffer(crb: &Crb) -> Vec<u8> {
    let mut bytes = vec![0xff; BUFFER];
    crb.read(DATA, &mut bytes);
    bytes
}
