//! The CMOS clock (Motorola MC146818) at ports 0x70 and 0x71: the time of day in UTC, and 114 bytes that the
//! guest may keep things in. Alarms and periodic interrupts are not there.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ports::PortDevice;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Register B: binary instead of BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours count to 24.
const HOURS_24: u8 = 1 << 1;

/// The clock.
pub struct Rtc(Mutex<State>);

struct State {
    index: u8,
    memory: [u8; 128],
    /// What the guest set the clock to, as a distance from the host's.
    ahead: i64,
}

impl Rtc {
    /// A clock that shows the host's time in UTC.
    pub fn new() -> Rtc {
        let mut memory = [0; 128];
        memory[usize::from(REGISTER_A)] = 0x26;
        memory[usize::from(REGISTER_B)] = HOURS_24;
        memory[usize::from(REGISTER_D)] = 0x80;
        Rtc(Mutex::new(State { index: 0, memory, ahead: 0 }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

impl Default for Rtc {
    fn default() -> Rtc {
        Rtc::new()
    }
}

impl PortDevice for Rtc {
    fn read(&self, offset: u16, data: &mut [u8]) {
        if let [byte] = data
            && offset == 1
        {
            *byte = self.lock().read(SystemTime::now());
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let [byte] = data else { return };
        let mut state = self.lock();
        match offset {
            0 => state.index = byte & 0x7f,
            _ => state.write(*byte, SystemTime::now()),
        }
    }

    fn reset(&self) {
        self.lock().index = 0;
    }
}

impl State {
    fn read(&self, now: SystemTime) -> u8 {
        if self.index == REGISTER_C {
            return 0;
        }
        match self.field(&self.time(now)) {
            Some(value) => self.encode(value),
            None => self.memory[usize::from(self.index)],
        }
    }

    fn write(&mut self, byte: u8, now: SystemTime) {
        let mut time = self.time(now);
        let value = self.decode(byte);
        match self.index {
            0 => time.second = value,
            2 => time.minute = value,
            4 => time.hour = value,
            7 => time.day = value,
            8 => time.month = value,
            9 => time.year = time.year / 100 * 100 + i64::from(value),
            CENTURY => time.year = i64::from(value) * 100 + time.year % 100,
            6 | REGISTER_C | REGISTER_D => return,
            index => {
                self.memory[usize::from(index)] = byte;
                return;
            }
        }
        self.ahead = time.seconds() - host_seconds(now);
    }

    fn time(&self, now: SystemTime) -> Civil {
        Civil::from_seconds(host_seconds(now) + self.ahead)
    }

    /// The part of the time that the index names.
    fn field(&self, time: &Civil) -> Option<u8> {
        Some(match self.index {
            0 => time.second,
            2 => time.minute,
            4 => time.hour,
            6 => time.weekday() + 1,
            7 => time.day,
            8 => time.month,
            9 => (time.year % 100) as u8,
            CENTURY => (time.year / 100) as u8,
            _ => return None,
        })
    }

    fn encode(&self, value: u8) -> u8 {
        let binary = self.memory[usize::from(REGISTER_B)] & BINARY != 0;
        if binary { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, byte: u8) -> u8 {
        let binary = self.memory[usize::from(REGISTER_B)] & BINARY != 0;
        if binary { byte } else { (byte >> 4).min(9) * 10 + (byte & 0xf).min(9) }
    }
}

fn host_seconds(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() as i64
}

/// A date and time of the proleptic Gregorian calendar.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Civil {
    fn from_seconds(seconds: i64) -> Civil {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years begin in March here, so that the leap day is the last of its year.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * of_year + 2) / 153;
        Civil {
            year: era * 400 + year_of_era + i64::from(month >= 10),
            month: (if month < 10 { month + 3 } else { month - 9 }) as u8,
            day: (of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    fn days(&self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month = (i64::from(self.month) + 9) % 12;
        let of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
    }

    fn seconds(&self) -> i64 {
        let clock = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        self.days() * 86_400 + clock
    }

    /// 0 is Sunday.
    fn weekday(&self) -> u8 {
        (self.days() + 4).rem_euclid(7) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_convert_both_ways_across_leap_years() {
        for days in (-800_000..800_000).step_by(17) {
            let civil = Civil::from_seconds(days * 86_400 + 3_723);
            assert_eq!(civil.seconds(), days * 86_400 + 3_723);
        }
        let leap = Civil::from_seconds(1_709_164_800);
        assert_eq!((leap.year, leap.month, leap.day, leap.weekday()), (2024, 2, 29, 4));
    }

    #[test]
    fn the_guest_reads_the_time_in_bcd_and_can_set_it() {
        let at = UNIX_EPOCH + Duration::from_secs(1_709_251_199);
        let rtc = Rtc::new();
        let mut state = rtc.lock();
        let read = |state: &mut State, index| {
            state.index = index;
            state.read(at)
        };
        assert_eq!(
            [7, 8, 9, CENTURY, 4, 2, 0].map(|i| read(&mut state, i)),
            [0x29, 2, 0x24, 0x20, 0x23, 0x59, 0x59]
        );
        state.index = 9;
        state.write(0x30, at);
        assert_eq!([9, 8].map(|i| read(&mut state, i)), [0x30, 3], "29 February 2030 is 1 March");
    }

    #[test]
    fn nothing_a_guest_writes_stops_the_clock() {
        let rtc = Rtc::new();
        for index in 0..=255u8 {
            for value in [0, 0x7f, 0xff] {
                PortDevice::write(&rtc, 0, &[index]);
                PortDevice::write(&rtc, 1, &[value]);
                PortDevice::read(&rtc, 1, &mut [0]);
            }
        }
    }
}
