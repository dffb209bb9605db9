//! Dates as a clock shows them.

/// A date and time of the proleptic Gregorian calendar.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Civil {
    pub year: i64,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Civil {
    /// So many seconds after 1970 began.
    pub fn from_seconds(seconds: i64) -> Civil {
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

    /// Seconds since 1970 began. Fields beyond their range count on: 31 February is 3 March.
    pub fn seconds(&self) -> i64 {
        let clock = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        self.days() * 86_400 + clock
    }

    /// 0 is Sunday.
    pub fn weekday(&self) -> u8 {
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
}
