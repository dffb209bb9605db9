//! Times for people and programs.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::Offset;

/// A time as RFC 3339 writes it, in UTC, with milliseconds: `2026-11-22T20:30:55.123Z`. Times before 1970, and after 9999, are
/// written as the beginning of 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or_default().max(Timestamp::UNIX_EPOCH);
    let time = Offset::UTC.to_datetime(time);
    // By hand: jiff's own printer knows every form, and each VM would have all of that in memory.
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_time_is_written_as_the_calendar_has_it() {
        let at = |seconds, nanos| rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 999_999_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_795_379_455, 7_000_000), "2026-11-22T20:30:55.007Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
        assert_eq!(at(u64::MAX >> 1, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }
}
