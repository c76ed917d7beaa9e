//! Times as images have them: RFC 3339, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// The present.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format(since.as_secs().try_into().unwrap_or(i64::MAX), since.subsec_nanos())
}

/// Seconds since 1970 and nanoseconds as text.
pub fn format(seconds: i64, nanoseconds: u32) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match nanoseconds {
        0 => String::new(),
        n => format!(".{n:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Seconds since 1970 and nanoseconds; `None` when `text` is no time of RFC 3339.
pub fn parse(text: &str) -> Option<(i64, u32)> {
    let text = text.trim();
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let at = |index: usize, any: &[u8]| text.as_bytes().get(index).is_some_and(|b| any.contains(b));
    if !(at(4, b"-") && at(7, b"-") && at(10, b"Tt ") && at(13, b":") && at(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = &text[19..];
    let mut nanoseconds = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
        for digit in fraction[..len].bytes().chain(std::iter::repeat(b'0')).take(9) {
            nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
        }
        rest = &fraction[len..];
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = match rest.bytes().next()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let &[_, h, hh, b':', m, mm] = rest.as_bytes() else { return None };
            let digits = |tens: u8, ones: u8| match (tens, ones) {
                (b'0'..=b'9', b'0'..=b'9') => Some(i64::from(tens - b'0') * 10 + i64::from(ones - b'0')),
                _ => None,
            };
            let (hours, minutes) = (digits(h, hh)?, digits(m, mm)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * (hours * 3600 + minutes * 60)
        }
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    // An offset leads out of the years that can be written.
    (days(0, 1, 1) * 86_400..days(10_000, 1, 1) * 86_400).contains(&seconds).then_some((seconds, nanoseconds))
}

/// The proleptic Gregorian calendar, counted in eras of 400 years from the first of March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways() {
        for (text, time) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("2000-02-29T12:34:56.5Z", (951_827_696, 500_000_000)),
            ("1969-12-31T23:59:59Z", (-1, 0)),
            ("2026-11-28T05:00:00.123456789Z", (1_795_842_000, 123_456_789)),
        ] {
            assert_eq!(parse(text), Some(time), "{text}");
            assert_eq!(format(time.0, time.1), text);
        }
        assert_eq!(parse("1970-01-01T02:00:00+02:00"), Some((0, 0)));
        for bad in
            ["", "now", "1970-01-01", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00", "1970-01-01T00:00:0éZ"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    /// Found by fuzzing: an offset of any size led to years that cannot be written, and beyond 64 bits.
    #[test]
    fn regression_offsets_are_those_of_clocks() {
        for bad in [
            "2024-01-02T03:04:05.1234-2345678567:04",
            "2024-01-02T03:04:05+9223372036854775807:00",
            "2024-01-02T03:04:05+24:00",
            "2024-01-02T03:04:05+01:60",
            "2024-01-02T03:04:05+1:00",
            "2024-01-02T03:04:05+-1:00",
            "0000-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse("1970-01-01T23:59:00+23:59"), Some((0, 0)));
    }
}
