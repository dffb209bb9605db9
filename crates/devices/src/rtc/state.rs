//! The clock's state and what it does at which time, without a thread or a lock: MC146818A data sheet (Motorola, 1984).
//!
//! The host's time comes in with each call. Flags are made up for when somebody looks, so nothing has to run meanwhile.

use super::RamSizes;
use super::alarm::Alarm;
use super::civil::Civil;

/// Nanoseconds since 1970 began. A guest may set years that 64 bits of them do not reach.
pub type Nanos = i128;

const SECOND: Nanos = 1_000_000_000;
/// Beats of the crystal in a second.
const CRYSTAL: Nanos = 32_768;
/// How long before an update the clock says so.
const UPDATE_NOTICE: Nanos = 244_000;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Not the chip's own; the FADT names it (ACPI 6.5, 5.2.9, CENTURY).
const CENTURY: u8 = 0x32;

/// Register A: an update comes within [`UPDATE_NOTICE`].
const UPDATES: u8 = 1 << 7;
/// Register A: what the divider does; from 3 on (in these bits) it is held at reset.
const DIVIDER: u8 = 7 << 4;
const DIVIDER_RESETS: u8 = 3 << 4;
/// Register A: how often the periodic interrupt comes.
const RATE: u8 = 0xf;
/// Register A at power-on: 32,768 Hz; and 1024 periodic interrupts a second, as PCs have it.
const CRYSTAL_1024: u8 = 0x26;

/// Register B: no updates, so that the time can be set.
const SET: u8 = 1 << 7;
/// Registers B (may interrupt) and C (has come): periodic, alarm, update ended.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATED: u8 = 1 << 4;
/// Register B: binary instead of BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours count to 24.
const HOURS_24: u8 = 1 << 1;

/// Register C: the interrupt is asserted.
const ASSERTED: u8 = 1 << 7;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

/// In hours of 12: after noon.
const AFTERNOON: u8 = 1 << 7;
/// An alarm's byte from here on means any.
const ANY: u8 = 0xc0;

/// All that the clock knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Which register the next access to the data port is for.
    index: u8,
    /// What the guest wrote, where a register is no more than that.
    memory: [u8; 128],
    /// Periodic, alarm and updated, as in register C, until `seen`.
    flags: u8,
    seen: Nanos,
    /// The guest's time less the host's. What is below a second is the divider's.
    ahead: Nanos,
    /// The time while it stands still, field by field as the guest sets it.
    held: Option<Civil>,
}

impl State {
    /// As at power-on, with the host's time.
    pub fn new(ram: RamSizes, now: Nanos) -> State {
        let memory = stored_by_firmware(ram);
        State { index: 0, memory, flags: 0, seen: now, ahead: 0, held: None }
    }

    /// The machine is reset. Battery and date are not concerned; what firmware sets it sets again.
    pub fn reset(&mut self, now: Nanos) {
        let divider_ran = self.divider_runs();
        self.memory[usize::from(REGISTER_A)] = CRYSTAL_1024;
        self.memory[usize::from(REGISTER_B)] = HOURS_24;
        (self.index, self.flags) = (0, 0);
        self.hold_or_go_on(divider_ran, now);
    }

    /// The next access is to this register; the highest bit is for NMIs on a PC.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// Makes up for the time that has passed.
    pub fn advance(&mut self, now: Nanos) {
        let since = std::mem::replace(&mut self.seen, now);
        // The host's clock may be set back.
        if now <= since {
            return;
        }
        if self.period().is_some_and(|period| self.ticks(since, period) != self.ticks(now, period)) {
            self.flags |= PERIODIC;
        }
        let (before, second) = (self.second(since), self.second(now));
        if self.held.is_none() && before != second {
            self.flags |= UPDATED;
            if self.alarm().next(before + 1).is_some_and(|at| at <= second) {
                self.flags |= ALARM;
            }
        }
    }

    /// Whether the interrupt is asserted.
    pub fn interrupts(&self) -> bool {
        self.flags & self.register(REGISTER_B) & (PERIODIC | ALARM | UPDATED) != 0
    }

    /// When, by the host's time, the interrupt will be asserted next, if nobody does anything.
    pub fn next_interrupt(&self) -> Option<Nanos> {
        if self.interrupts() {
            return None;
        }
        let wanted = |bit| self.register(REGISTER_B) & bit != 0;
        let tick = self.period().filter(|_| wanted(PERIODIC)).map(|period| {
            let beats = (self.ticks(self.seen, period) + 1) * period;
            (beats * SECOND + CRYSTAL - 1).div_euclid(CRYSTAL)
        });
        let runs = self.held.is_none();
        let next = self.second(self.seen) + 1;
        let update = (runs && wanted(UPDATED)).then_some(next);
        let alarm = if runs && wanted(ALARM) { self.alarm().next(next) } else { None };
        let seconds = [update, alarm].into_iter().flatten().map(|second| Nanos::from(second) * SECOND);
        tick.into_iter().chain(seconds).min().map(|guest_time| guest_time - self.ahead)
    }

    /// Reads the selected register.
    pub fn read(&mut self, now: Nanos) -> u8 {
        match self.index {
            REGISTER_A => self.register(REGISTER_A) | if self.is_about_to_update(now) { UPDATES } else { 0 },
            REGISTER_C => {
                let asserted = if self.interrupts() { ASSERTED } else { 0 };
                std::mem::take(&mut self.flags) | asserted
            }
            REGISTER_D => VALID,
            4 => self.encode_hour(self.time(now).hour),
            index => match field(index, &self.time(now)) {
                Some(value) => self.encode(value),
                None => self.register(index),
            },
        }
    }

    /// Writes the selected register.
    pub fn write(&mut self, byte: u8, now: Nanos) {
        let divider_ran = self.divider_runs();
        let mut time = self.time(now);
        let value = self.decode(byte);
        match self.index {
            REGISTER_A => self.memory[usize::from(REGISTER_A)] = byte & !UPDATES,
            REGISTER_B => {
                // An update that is not made does not end.
                let left_out = if byte & SET != 0 { UPDATED } else { 0 };
                self.memory[usize::from(REGISTER_B)] = byte & !left_out;
            }
            // The day of the week follows from the date.
            6 | REGISTER_C | REGISTER_D => {}
            0 => time.second = value,
            2 => time.minute = value,
            4 => time.hour = self.decode_hour(byte),
            7 => time.day = value,
            8 => time.month = value,
            9 => time.year = time.year / 100 * 100 + i16::from(value),
            CENTURY => time.year = i16::from(value) * 100 + time.year % 100,
            index => self.memory[usize::from(index)] = byte,
        }
        match self.index {
            REGISTER_A | REGISTER_B => self.hold_or_go_on(divider_ran, now),
            0 | 2 | 4 | 7..=9 | CENTURY => match &mut self.held {
                Some(held) => *held = time,
                None => self.set(&time, now),
            },
            _ => {}
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.memory[usize::from(index)]
    }

    fn divider_runs(&self) -> bool {
        self.register(REGISTER_A) & DIVIDER < DIVIDER_RESETS
    }

    /// After registers A and B changed: the time stands still, or goes on from where it stood.
    fn hold_or_go_on(&mut self, divider_ran: bool, now: Nanos) {
        let holds = self.register(REGISTER_B) & SET != 0 || !self.divider_runs();
        let time = self.time(now);
        if self.divider_runs() && !divider_ran {
            // The first update comes half a second after the divider is let go.
            self.ahead = SECOND / 2 - now;
        }
        if holds {
            self.held = Some(time);
        } else if self.held.take().is_some() {
            self.set(&time, now);
        }
    }

    /// From now on it is this time. The divider goes on undisturbed.
    fn set(&mut self, time: &Civil, now: Nanos) {
        let below = (now + self.ahead).rem_euclid(SECOND);
        self.ahead = Nanos::from(time.seconds()) * SECOND + below - now;
    }

    fn time(&self, now: Nanos) -> Civil {
        self.held.unwrap_or_else(|| Civil::from_seconds(self.second(now)))
    }

    /// The guest's second at a time of the host.
    fn second(&self, now: Nanos) -> i64 {
        (now + self.ahead).div_euclid(SECOND) as i64
    }

    fn is_about_to_update(&self, now: Nanos) -> bool {
        self.held.is_none() && (now + self.ahead).rem_euclid(SECOND) >= SECOND - UPDATE_NOTICE
    }

    /// Beats of the crystal from one periodic interrupt to the next; table 5 of the data sheet.
    fn period(&self) -> Option<Nanos> {
        let shift = match self.register(REGISTER_A) & RATE {
            0 => return None,
            rate @ 1..=2 => rate + 6,
            rate => rate - 1,
        };
        self.divider_runs().then_some(1 << shift)
    }

    /// Periodic interrupts until a time of the host.
    fn ticks(&self, now: Nanos, period: Nanos) -> Nanos {
        ((now + self.ahead) * CRYSTAL).div_euclid(SECOND * period)
    }

    fn alarm(&self) -> Alarm {
        let unless_any = |index: u8| Some(self.register(index)).filter(|byte| *byte < ANY);
        Alarm {
            second: unless_any(1).map(|byte| self.decode(byte)),
            minute: unless_any(3).map(|byte| self.decode(byte)),
            hour: unless_any(5).map(|byte| self.decode_hour(byte)),
        }
    }

    fn encode(&self, value: u8) -> u8 {
        let binary = self.register(REGISTER_B) & BINARY != 0;
        if binary { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, byte: u8) -> u8 {
        let binary = self.register(REGISTER_B) & BINARY != 0;
        if binary { byte } else { (byte >> 4).min(9) * 10 + (byte & 0xf).min(9) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(REGISTER_B) & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let hour = hour % 24;
        let afternoon = if hour >= 12 { AFTERNOON } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.register(REGISTER_B) & HOURS_24 != 0 {
            return self.decode(byte);
        }
        let noon = if byte & AFTERNOON != 0 { 12 } else { 0 };
        self.decode(byte & !AFTERNOON) % 12 + noon
    }
}

/// The part of the time that a register shows, but for the hour.
fn field(index: u8, time: &Civil) -> Option<u8> {
    Some(match index {
        0 => time.second,
        2 => time.minute,
        6 => time.weekday() + 1,
        7 => time.day,
        8 => time.month,
        9 => (time.year.rem_euclid(100)) as u8,
        CENTURY => (time.year.div_euclid(100)) as u8,
        _ => return None,
    })
}

/// What a PC's firmware keeps there (IBM PC/AT Technical Reference, "Real-time clock/CMOS RAM"; from 0x34 on as SeaBIOS and
/// OVMF read it): a coprocessor, how much RAM there is, and the sum of that.
fn stored_by_firmware(ram: RamSizes) -> [u8; 128] {
    const COPROCESSOR: u8 = 1 << 1;
    const CONVENTIONAL_KIB: u16 = 640;
    let units = |bytes: u64, unit: u64| u16::try_from(bytes / unit).unwrap_or(u16::MAX).to_le_bytes();
    let mut memory = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x0a, &[CRYSTAL_1024, HOURS_24, 0, VALID]);
    put(0x14, &[COPROCESSOR]);
    put(0x15, &CONVENTIONAL_KIB.to_le_bytes());
    let extended = units(ram.low.saturating_sub(1 << 20), 1 << 10);
    put(0x17, &extended);
    put(0x30, &extended);
    put(0x34, &units(ram.low.saturating_sub(16 << 20), 64 << 10));
    put(0x5b, &(ram.high >> 16).min(0xff_ffff).to_le_bytes()[..3]);
    let sum: u16 = memory[0x10..=0x2d].iter().map(|byte| u16::from(*byte)).sum();
    memory[0x2e..0x30].copy_from_slice(&sum.to_be_bytes());
    memory
}

#[cfg(test)]
mod tests;
