//! Dates as a clock shows them.

use jiff::civil::{Date, DateTime, Time, date};
use jiff::{SignedDuration, ToSpan};

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

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
    /// So many seconds after 1970 began. The calendar ends with the year 9999.
    pub fn from_seconds(seconds: i64) -> Civil {
        let time = EPOCH.saturating_add(SignedDuration::from_secs(seconds));
        Civil {
            year: time.year(),
            month: time.month().cast_unsigned(),
            day: time.day().cast_unsigned(),
            hour: time.hour().cast_unsigned(),
            minute: time.minute().cast_unsigned(),
            second: time.second().cast_unsigned(),
        }
    }

    /// Fields beyond their range count on: 31 February is 3 March.
    fn time(&self) -> DateTime {
        let year = self.year.clamp(Date::MIN.year(), Date::MAX.year());
        let beyond_the_first = |field: u8| i64::from(field) - 1;
        Date::new(year, 1, 1)
            .unwrap_or_default()
            .saturating_add(beyond_the_first(self.month).months())
            .saturating_add(beyond_the_first(self.day).days())
            .to_datetime(Time::midnight())
            .saturating_add(i64::from(self.hour).hours())
            .saturating_add(i64::from(self.minute).minutes())
            .saturating_add(i64::from(self.second).seconds())
    }

    /// Seconds since 1970 began.
    pub fn seconds(&self) -> i64 {
        self.time().duration_since(EPOCH).as_secs()
    }

    /// 0 is Sunday.
    pub fn weekday(&self) -> u8 {
        self.time().weekday().to_sunday_zero_offset().cast_unsigned()
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
        for end in [of(i16::MAX, 255, 255).seconds(), i64::MAX] {
            let end = Civil::from_seconds(end);
            assert_eq!((end.year, end.month, end.day), (9999, 12, 31));
        }
    }
}
