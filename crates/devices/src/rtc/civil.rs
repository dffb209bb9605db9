//! Dates as a clock shows them.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;

const DAY: i64 = 86_400;

/// A date and time of the proleptic Gregorian calendar, field by field: what a guest writes need not be one.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Civil {
    pub year: i16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Civil {
    /// So many seconds after 1970 began. The calendar ends on 30 December 9999, where jiff's timestamps do.
    pub fn from_seconds(seconds: i64) -> Civil {
        let seconds = seconds.clamp(Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
        let time = Offset::UTC.to_datetime(Timestamp::from_second(seconds).unwrap_or_default());
        Civil {
            year: time.year(),
            month: time.month().cast_unsigned(),
            day: time.day().cast_unsigned(),
            hour: time.hour().cast_unsigned(),
            minute: time.minute().cast_unsigned(),
            second: time.second().cast_unsigned(),
        }
    }

    /// Days since 1970 began. Fields beyond their range count on: 31 February is 3 March.
    fn days(&self) -> i64 {
        let months = i16::from(self.month) - 1;
        // Timestamps lack the first day of their first year.
        let year =
            self.year.saturating_add(months.div_euclid(12)).clamp(Date::MIN.year() + 1, Date::MAX.year());
        let month = months.rem_euclid(12) as i8 + 1;
        let first = DateTime::from_parts(Date::new(year, month, 1).unwrap_or_default(), Time::midnight());
        let seconds = Offset::UTC.to_timestamp(first).map_or(0, Timestamp::as_second);
        seconds / DAY + i64::from(self.day) - 1
    }

    /// Seconds since 1970 began.
    pub fn seconds(&self) -> i64 {
        let clock = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        self.days() * DAY + clock
    }

    /// 0 is Sunday.
    pub fn weekday(&self) -> u8 {
        // 1970 began with a Thursday.
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
    fn fields_beyond_their_range_count_on_to_the_calendars_end() {
        let of = |year, month, day| Civil { year, month, day, hour: 0, minute: 0, second: 0 };
        assert_eq!(of(2023, 2, 31).seconds(), of(2023, 3, 3).seconds());
        assert_eq!(of(2023, 0, 0).seconds(), of(2022, 11, 30).seconds());
        assert_eq!(of(2023, 99, 99).seconds(), of(2031, 6, 7).seconds());
        for end in [of(i16::MAX, 12, 255).seconds(), i64::MAX] {
            let end = Civil::from_seconds(end);
            assert_eq!((end.year, end.month, end.day), (9999, 12, 30));
        }
    }
}
