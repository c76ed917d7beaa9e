//! Points in time as users write them, with docker's forms: a time of RFC 3339, or a part of one; seconds since 1970; or how
//! long ago, a duration as Go writes it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::exit::Usage;
use crate::sys;

/// Seconds since 1970 and nanoseconds.
pub(crate) type Moment = (i64, u32);

const NANOSECONDS: i128 = 1_000_000_000;

/// What `text` means; `None` when it is no time.
pub(crate) fn parse(text: &str) -> Option<Moment> {
    let text = text.trim();
    date(text).or_else(|| since_1970(text)).or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let then = i128::try_from(now.as_nanos()).ok()? - duration(text)?;
        Some((then.div_euclid(NANOSECONDS).try_into().ok()?, then.rem_euclid(NANOSECONDS).try_into().ok()?))
    })
}

/// As [`parse`], in whole seconds.
///
/// # Errors
/// Words for the user when it is no time.
pub(crate) fn seconds(text: &str) -> Result<i64, Usage> {
    let hint = "write 2024-01-31T00:00:00Z, 2024-01-31, or how long ago: 24h";
    parse(text).map(|(seconds, _)| seconds).ok_or_else(|| Usage(format!("{text:?} is no time: {hint}")))
}

/// `1700000000.5`.
fn since_1970(text: &str) -> Option<Moment> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    Some((seconds.parse().ok()?, format!("{fraction:0<9}").parse().ok()?))
}

/// `2024-01-31T10:00:00.5Z`; from the right, parts may be missing, and without a zone it is the machine's.
fn date(text: &str) -> Option<Moment> {
    let (date, rest) = text.split_at_checked(10)?;
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let clock = match clock.len() {
        0 => "T00:00:00".to_owned(),
        3 => format!("{clock}:00:00"),
        6 => format!("{clock}:00"),
        _ => clock.to_owned(),
    };
    let local = zone.is_empty();
    let (seconds, nanoseconds) =
        layerfs_image::time::parse(&format!("{date}{clock}{}", if local { "Z" } else { zone }))?;
    Some((if local { sys::from_local_time(seconds)? } else { seconds }, nanoseconds))
}

/// Nanoseconds of `1h30m`, `1.5h`, `100ms`; `d` for days too.
fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    if rest.is_empty() {
        return None;
    }
    let mut total = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) =
            after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOSECONDS,
            "m" => 60 * NANOSECONDS,
            "h" => 3600 * NANOSECONDS,
            "d" => 86_400 * NANOSECONDS,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()?.into() };
        let part: i128 = format!("{fraction:0<18}").parse().ok()?;
        total += whole * unit + part * unit / 1_000_000_000_000_000_000;
        rest = after;
    }
    Some(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_times_have_dockers_forms() {
        let second = NANOSECONDS;
        for (text, nanoseconds) in [
            ("1.5h", 5400 * second),
            ("1h30m", 5400 * second),
            ("100ms", second / 10),
            (".5s", second / 2),
            ("1m1.25s", 61 * second + second / 4),
            ("2d", 172_800 * second),
            ("-1h", -3600 * second),
            ("3us", 3000),
        ] {
            assert_eq!(duration(text), Some(nanoseconds), "{text}");
        }
        for text in
            ["", "-", "soon", "1h5", "1h5x", "h", ".h", "1..5h", "1.5", "2024-13-01", "2024-01-31T", "1e3"]
        {
            assert_eq!(parse(text).filter(|_| text != "1.5"), None, "{text}");
        }
        for (text, moment) in [
            ("1970-01-01T00:01:00Z", (60, 0)),
            ("1970-01-01T01:00Z", (3600, 0)),
            ("1970-01-02Z", (86_400, 0)),
            ("1970-01-01T02:00:00.25+01:00", (3600, 250_000_000)),
            ("77", (77, 0)),
            ("77.5", (77, 500_000_000)),
        ] {
            assert_eq!(parse(text), Some(moment), "{text}");
        }
        let offset = sys::from_local_time(1_700_000_000).unwrap() - 1_700_000_000;
        assert_eq!(parse("2023-11-14"), Some((1_699_920_000 + offset, 0)));
        assert_eq!(parse("2023-11-14T22:13:20"), Some((1_700_000_000 + offset, 0)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(seconds("1.5h").unwrap().abs_diff(i64::try_from(now).unwrap() - 5400) < 5);
        assert!(seconds("soon").unwrap_err().to_string().contains("24h"));
    }
}
