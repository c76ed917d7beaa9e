//! `--health-...`, `--no-healthcheck` and the image's `Healthcheck`.

use layerfs_image::store::Image;
use serde_json::Value;

use super::super::config::HealthConfig;
use super::super::options::CreateOptions;
use crate::exit::Usage;

/// How its health is checked: the image's way, changed by what is asked for.
pub(super) fn of(options: &CreateOptions, image: Option<&Image>) -> Result<Option<HealthConfig>, Usage> {
    let given = [
        options.health_cmd.is_some(),
        options.health_interval.is_some(),
        options.health_timeout.is_some(),
        options.health_retries.is_some(),
        options.health_start_period.is_some(),
        options.health_start_interval.is_some(),
    ];
    if options.no_healthcheck {
        return match given.contains(&true) {
            true => Err(Usage("--no-healthcheck conflicts with --health-* options".into())),
            false => Ok(None),
        };
    }
    let images = image.and_then(|image| image.config.config.get("Healthcheck"));
    let mut health = images.map(from_document).unwrap_or_default();
    if let Some(command) = &options.health_cmd {
        health.test = match command.as_str() {
            "none" => vec!["NONE".into()],
            command => vec!["CMD-SHELL".into(), command.to_owned()],
        };
    }
    let mut set = |name: &str, text: &Option<String>, place: fn(&mut HealthConfig) -> &mut u64| {
        let Some(text) = text else { return Ok(()) };
        let nanoseconds = duration(text).ok_or_else(|| {
            Usage(format!("invalid argument {text:?} for \"--{name}\": a time is written as 30s or 1m30s"))
        })?;
        if nanoseconds != 0 && nanoseconds < 1_000_000 {
            return Err(Usage(format!("--{name} cannot be less than 1ms")));
        }
        *place(&mut health) = nanoseconds;
        Ok(())
    };
    set("health-interval", &options.health_interval, |health| &mut health.interval)?;
    set("health-timeout", &options.health_timeout, |health| &mut health.timeout)?;
    set("health-start-period", &options.health_start_period, |health| &mut health.start_period)?;
    set("health-start-interval", &options.health_start_interval, |health| &mut health.start_interval)?;
    if let Some(retries) = options.health_retries {
        health.retries = retries;
    }
    Ok(Some(health).filter(|health| !health.args().is_empty()))
}

/// The image's; what is not understood is the default.
fn from_document(document: &Value) -> HealthConfig {
    let number = |name: &str| document[name].as_u64().unwrap_or(0);
    let test = document["Test"].as_array().into_iter().flatten();
    HealthConfig {
        test: test.filter_map(|word| word.as_str().map(str::to_owned)).collect(),
        interval: number("Interval"),
        timeout: number("Timeout"),
        start_period: number("StartPeriod"),
        start_interval: number("StartInterval"),
        retries: number("Retries"),
    }
}

/// Nanoseconds of a time as Go writes it: `1m30s`, `1.5h`, `100ms`.
fn duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !(letter.is_ascii_digit() || letter == '.'))?;
        let (number, after) = rest.split_at(digits);
        let unit_end =
            after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    // A year of nanoseconds and more is no interval; below it the number is exact enough.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (!text.is_empty() && total < 9e18).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gos() {
        assert_eq!(duration("1m30s"), Some(90_000_000_000));
        assert_eq!(duration("1.5h"), Some(5_400_000_000_000));
        assert_eq!(duration("100ms"), Some(100_000_000));
        assert_eq!(duration("0"), Some(0));
        for wrong in ["", "5", "s", "1x", "-1s", "1m30", "1..5s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn options_change_what_the_image_says() {
        let options = |command: Option<&str>, interval: Option<&str>| CreateOptions {
            health_cmd: command.map(str::to_owned),
            health_interval: interval.map(str::to_owned),
            ..CreateOptions::default()
        };
        assert_eq!(of(&options(None, None), None).unwrap(), None);
        assert_eq!(of(&options(None, Some("1s")), None).unwrap(), None, "an interval of nothing");
        let health = of(&options(Some("true"), Some("2s")), None).unwrap().unwrap();
        assert_eq!(health.args(), ["/bin/sh", "-c", "true"]);
        assert_eq!((health.interval, health.schedule().retries), (2_000_000_000, 3));
        assert_eq!(of(&options(Some("none"), None), None).unwrap(), None);
        assert!(of(&options(Some("true"), Some("1us")), None).is_err());
        let both = CreateOptions { no_healthcheck: true, ..options(Some("true"), None) };
        assert!(of(&both, None).is_err());
    }
}
