//! A hostile guest's registers of the clock, at whatever times: the clock never claims a time that cannot be, keeps what is
//! stored in it, and asserts its interrupt exactly when it said that it would.

use devices::{Nanos, RamSizes, RtcState};

use crate::steps::Steps;

const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Register B: the time stands still; numbers are binary; hours count to 24.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Register A: what the divider does; from 3 on it is held, and the time stands still.
const DIVIDER: u8 = 7 << 4;
const DIVIDER_RESETS: u8 = 3 << 4;

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let mut now: Nanos = 1_800_000_000_000_000_000;
    let mut clock = RtcState::new(RamSizes { low: 1 << 28, high: steps.u16().into() }, now);
    let mut stored: Vec<u8> = (0..128).map(|index| peek(&clock, index, now)).collect();
    while let Some(step) = steps.next_step() {
        match step {
            0..128 => {
                let byte = steps.u8();
                clock.select(step | byte & 0x80);
                clock.write(byte, now);
                stored[usize::from(step)] = byte;
            }
            128..160 => {
                let asserted = clock.interrupts();
                clock.select(REGISTER_C);
                assert_eq!(clock.read(now) & 0x80 != 0, asserted);
                assert!(!clock.interrupts(), "its flags were read");
            }
            160..168 => clock.reset(now),
            168..176 => {
                // The host's clock is set, back as well. No flag is promised for that.
                now += Nanos::from(steps.u64() as i64);
                clock.advance(now);
            }
            _ => {
                let unit = steps.pick(&[1_000, 1_000_000, 1_000_000_000, 1_000_000_000_000]);
                let later = now + 1 + Nanos::from(steps.u16()) * unit;
                let mut looked = clock.clone();
                looked.advance(now + (later - now) / 2);
                looked.advance(later);
                clock.advance(later);
                assert_eq!(looked, clock, "a look in between changed what came of it");
                now = later;
            }
        }
        promises(&clock, now, &stored);
    }
}

/// What a register reads as; register C keeps its flags.
fn peek(clock: &RtcState, index: u8, now: Nanos) -> u8 {
    let mut clock = clock.clone();
    clock.select(index);
    clock.read(now)
}

fn promises(clock: &RtcState, now: Nanos, stored: &[u8]) {
    let read = |index| peek(clock, index, now);
    assert_eq!(read(REGISTER_D), 0x80, "the battery is good");
    for index in (0x0e..0x80).filter(|index| *index != CENTURY) {
        assert_eq!(read(index), stored[usize::from(index)], "byte {index:#x} is the guest's");
    }
    // None where nothing is wanted, or is asserted already, or the time stands still.
    if let Some(at) = clock.next_interrupt() {
        assert!(at > now && !clock.interrupts());
        let then = |now| {
            let mut clock = clock.clone();
            clock.advance(now);
            clock.interrupts()
        };
        assert!(then(at), "it comes when it said");
        assert!(!then(at - 1), "and not before");
    }
    let (divider, mode) = (read(0x0a), read(REGISTER_B));
    if mode & SET == 0 && divider & DIVIDER < DIVIDER_RESETS {
        time_that_can_be(&read, mode);
    }
}

/// A time that runs is one of this calendar.
fn time_that_can_be(read: &dyn Fn(u8) -> u8, mode: u8) {
    let number = |byte: u8| {
        if mode & BINARY != 0 {
            return byte;
        }
        assert!(byte >> 4 < 10 && byte & 0xf < 10, "{byte:#x} is no BCD");
        (byte >> 4) * 10 + (byte & 0xf)
    };
    assert!(number(read(0)) < 60 && number(read(2)) < 60);
    let hour = read(4);
    match mode & HOURS_24 {
        0 => assert!((1..=12).contains(&number(hour & 0x7f)), "{hour:#x} is no hour of 12"),
        _ => assert!(number(hour) < 24, "{hour:#x} is no hour"),
    }
    assert!((1..=7).contains(&number(read(6))));
    assert!((1..=31).contains(&number(read(7))) && (1..=12).contains(&number(read(8))));
    assert!(number(read(9)) < 100);
}
