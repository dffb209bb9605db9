//! When an alarm comes.

const DAY: i64 = 86_400;

/// Hour, minute and second of an alarm; none is any (MC146818A data sheet, "Alarm bytes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm {
    pub hour: Option<u8>,
    pub minute: Option<u8>,
    pub second: Option<u8>,
}

impl Alarm {
    /// The first second from this one on at which the alarm comes; none if it never does, as at 25 o'clock.
    pub fn next(&self, from: i64) -> Option<i64> {
        let (midnight, of_day) = (from - from.rem_euclid(DAY), from.rem_euclid(DAY));
        let today = self.in_day(of_day).map(|second| midnight + second);
        today.or_else(|| Some(midnight + DAY + self.in_day(0)?))
    }

    /// The first second of a day, from this one on.
    fn in_day(&self, from: i64) -> Option<i64> {
        // What remains of the fields before is the least there is once a larger field has moved on.
        let in_minute = |from| first(self.second, from, 60);
        let in_hour = |from: i64| {
            let this = first(self.minute, from / 60, 60).filter(|minute| *minute == from / 60);
            let this = this.and_then(|minute| Some(minute * 60 + in_minute(from % 60)?));
            this.or_else(|| Some(first(self.minute, from / 60 + 1, 60)? * 60 + in_minute(0)?))
        };
        let this = first(self.hour, from / 3600, 24).filter(|hour| *hour == from / 3600);
        let this = this.and_then(|hour| Some(hour * 3600 + in_hour(from % 3600)?));
        this.or_else(|| Some(first(self.hour, from / 3600 + 1, 24)? * 3600 + in_hour(0)?))
    }
}

/// The first value from this one on, below the end, that the field lets through.
fn first(field: Option<u8>, from: i64, end: i64) -> Option<i64> {
    let value = field.map_or(from, i64::from);
    (from..end).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_alarm_comes_at_the_first_second_that_fits(
            hour in proptest::option::of(0u8..26),
            minute in proptest::option::of(0u8..62),
            second in proptest::option::of(0u8..62),
            from in -200_000i64..200_000,
        ) {
            let fits = |at: i64| {
                let of_day = at.rem_euclid(DAY);
                let field = |field: Option<u8>, value| field.is_none_or(|field| i64::from(field) == value);
                field(hour, of_day / 3600) && field(minute, of_day / 60 % 60) && field(second, of_day % 60)
            };
            let expected = (from..from + DAY).find(|at| fits(*at));
            prop_assert_eq!(Alarm { hour, minute, second }.next(from), expected);
        }
    }
}
