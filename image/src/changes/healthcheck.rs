//! `HEALTHCHECK` of a Dockerfile as a config has it: a command, and times in nanoseconds.
//!
//! Source: Dockerfile reference, HEALTHCHECK; docker's image specification 1.2, `Healthcheck`.

use serde_json::{Map, Value, json};

/// What follows the word `HEALTHCHECK`: `NONE`, or options and `CMD` with a command.
///
/// # Errors
/// What is not understood, in words.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut check = Map::new();
    let mut rest = text.trim();
    while rest.starts_with("--") {
        let (option, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = after.trim_start();
        let (name, value) =
            option.split_once('=').ok_or_else(|| format!("{option}: write {option}=VALUE"))?;
        let key = match name {
            "--interval" => "Interval",
            "--timeout" => "Timeout",
            "--start-period" => "StartPeriod",
            "--start-interval" => "StartInterval",
            "--retries" => {
                let retries = value.parse::<u32>().ok().filter(|retries| *retries > 0);
                check.insert(
                    "Retries".into(),
                    retries.ok_or("--retries: a number from 1 is expected")?.into(),
                );
                continue;
            }
            _ => return Err(format!("unknown option {name}")),
        };
        let time = nanoseconds(value).filter(|time| *time == 0 || *time >= 1_000_000);
        let time = time.ok_or_else(|| {
            format!("{name}: {value:?} is no duration of at least 1ms; write 30s or 1m30s, for example")
        })?;
        check.insert(key.into(), time.into());
    }
    let (word, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    let test = match word.to_ascii_uppercase().as_str() {
        "NONE" if command.is_empty() && check.is_empty() => json!(["NONE"]),
        "NONE" => return Err("HEALTHCHECK NONE takes no options and no command".into()),
        "CMD" if command.is_empty() => return Err("HEALTHCHECK CMD needs a command".into()),
        "CMD" => match serde_json::from_str::<Vec<String>>(command) {
            Ok(list) if list.is_empty() => return Err("HEALTHCHECK CMD needs a command".into()),
            Ok(list) => Value::from_iter(std::iter::once("CMD".to_owned()).chain(list)),
            Err(_) => json!(["CMD-SHELL", command]),
        },
        _ => return Err("write HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE".into()),
    };
    check.insert("Test".into(), test);
    Ok(Value::Object(check))
}

/// A duration as Go writes it: `1h2m3.5s`, `500ms`. `None` for what is none, or too long.
fn nanoseconds(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = (0_f64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        rest = &rest[end..];
        total += number * unit;
    }
    // A century.
    (!text.is_empty() && total < 3.2e18).then_some(total.round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, nanoseconds) in [
            ("30s", Some(30_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("500ms", Some(500_000_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
            ("999999999h", None),
        ] {
            assert_eq!(super::nanoseconds(text), nanoseconds, "{text}");
        }
    }

    #[test]
    fn forms_of_the_instruction() {
        assert_eq!(parse("NONE"), Ok(json!({ "Test": ["NONE"] })));
        assert_eq!(parse("CMD test -e /x"), Ok(json!({ "Test": ["CMD-SHELL", "test -e /x"] })));
        assert_eq!(
            parse("--interval=5s --retries=2 cmd [\"a\", \"b c\"]"),
            Ok(json!({ "Interval": 5_000_000_000_i64, "Retries": 2, "Test": ["CMD", "a", "b c"] }))
        );
        for bad in [
            "",
            "CMD",
            "CMD []",
            "x",
            "NONE x",
            "--interval CMD x",
            "--interval=x CMD x",
            "--retries=0 CMD x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
