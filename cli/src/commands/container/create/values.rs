//! Texts of options as values.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use layerfs_image::store::Image;

use super::super::config::{DeviceSpec, Resources, Ulimit};
use super::super::options::CreateOptions;
use super::Pairs;
use crate::exit::Usage;

fn wrong(words: impl Into<String>) -> anyhow::Error {
    Usage(words.into()).into()
}

/// The image's variables, those of files, those of the command line: a later one replaces an earlier one.
pub(crate) fn environment(image: Vec<String>, options: &CreateOptions) -> anyhow::Result<Vec<String>> {
    let mut all = image;
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match all.iter_mut().find(|old| old.split('=').next() == Some(name.as_str())) {
            Some(old) => *old = entry,
            None => all.push(entry),
        }
    };
    for path in &options.env_file {
        let text = fs::read_to_string(path).with_context(|| format!("open {}", path.display()))?;
        for line in
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match line.split_once('=') {
                Some((name, _)) if name.is_empty() || name.contains(char::is_whitespace) => {
                    return Err(wrong(format!(
                        "{}: variable '{name}' has no name, or white space in it",
                        path.display()
                    )));
                }
                Some(_) => set(line.to_owned()),
                None => {
                    if let Some(value) = std::env::var_os(line.trim()) {
                        set(format!("{}={}", line.trim(), value.to_string_lossy()));
                    }
                }
            }
        }
    }
    for argument in &options.env {
        let text = argument.to_str().ok_or_else(|| wrong(format!("-e {argument:?} is no text")))?;
        match text.split_once('=') {
            Some(("", _)) => return Err(wrong(format!("invalid environment variable: {text}"))),
            Some(_) => set(text.to_owned()),
            None if text.is_empty() => return Err(wrong("invalid environment variable: \"\"")),
            None => {
                if let Some(value) = std::env::var_os(OsStr::from_bytes(text.as_bytes())) {
                    set(format!("{text}={}", value.to_string_lossy()));
                }
            }
        }
    }
    Ok(all)
}

pub(super) fn hostname(name: &str) -> anyhow::Result<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match !name.is_empty() && name.len() <= 64 && name.bytes().all(good) {
        true => Ok(name.to_owned()),
        false => Err(wrong(format!("invalid hostname: {name:?}"))),
    }
}

pub(super) fn labels(options: &CreateOptions) -> anyhow::Result<Pairs> {
    let mut lines = Vec::new();
    for path in &options.label_file {
        let text = fs::read_to_string(path).with_context(|| format!("open {}", path.display()))?;
        lines.extend(
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned),
        );
    }
    lines.extend(options.label.iter().cloned());
    let pair = |line: String| match line.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (line, String::new()),
    };
    Ok(lines.into_iter().map(pair).collect())
}

pub(super) fn pairs(option: &str, texts: &[String]) -> anyhow::Result<Pairs> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(wrong(format!("{option} {text:?}: write NAME=VALUE"))),
        })
        .collect()
}

pub(super) fn log_options(driver: &str, options: &[String]) -> anyhow::Result<Pairs> {
    let pairs = pairs("--log-opt", options)?;
    match driver {
        "json-file" => {}
        "none" | "passthrough" if pairs.is_empty() => {}
        "none" | "passthrough" => {
            return Err(wrong(format!("invalid logging opts for driver {driver}")));
        }
        other => {
            return Err(wrong(format!("--log-driver {other:?}: there are json-file, none and passthrough")));
        }
    }
    for (name, value) in &pairs {
        match name.as_str() {
            "max-size" if value == "-1" => {}
            "max-size" => drop(bytes(value)?),
            "max-file" if value.parse::<u32>().is_ok_and(|count| count > 0) => {}
            "max-file" => return Err(wrong(format!("max-file {value:?}: a number above 0"))),
            other => return Err(wrong(format!("unknown log opt '{other}' for json-file log driver"))),
        }
    }
    if pairs.contains_key("max-file") && !pairs.contains_key("max-size") {
        return Err(wrong("max-size must be specified if max-file is"));
    }
    Ok(pairs)
}

/// `80`, `80/udp`, `8000-8010`.
pub(super) fn exposed(image: Option<&Image>, options: &[String]) -> anyhow::Result<Vec<String>> {
    let ports = image.and_then(|image| image.config.config.get("ExposedPorts")?.as_object());
    let mut all: Vec<String> = ports.into_iter().flat_map(|ports| ports.keys().cloned()).collect();
    for text in options {
        let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>(), protocol) {
            (Ok(first), Ok(last), "tcp" | "udp" | "sctp") if 0 < first && first <= last => {
                all.extend((first..=last).map(|port| format!("{port}/{protocol}")));
            }
            _ => return Err(wrong(format!("invalid range format for --expose: {text}"))),
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Names without `CAP_`, in capitals; `ALL` is one.
pub(super) fn capabilities(names: &[String]) -> anyhow::Result<Vec<String>> {
    let parse = |name: &String| {
        let upper = name.to_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match short == "ALL" || super::super::spec::is_capability(short) {
            true => Ok(short.to_owned()),
            false => Err(wrong(format!("invalid capability: {name:?}"))),
        }
    };
    names
        .iter()
        .flat_map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>())
        .map(|n| parse(&n))
        .collect()
}

/// `64m`: units of 1024, with or without a final `b`.
pub(crate) fn bytes(text: &str) -> anyhow::Result<i64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = lower.get(digits.len()..).unwrap_or_default();
    let power = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return Err(wrong(format!("invalid size: '{text}'"))),
    };
    let number: f64 = digits.trim().parse().map_err(|_| wrong(format!("invalid size: '{text}'")))?;
    let value = number * 1024_f64.powi(power);
    if !(0.0..9e18).contains(&value) {
        return Err(wrong(format!("invalid size: '{text}'")));
    }
    #[allow(clippy::cast_possible_truncation)]
    Ok(value as i64)
}

/// The least memory that docker takes.
const MEMORY_MIN: i64 = 6 << 20;

pub(super) fn resources(options: &CreateOptions) -> anyhow::Result<Resources> {
    let size = |text: &Option<String>| text.as_deref().map(bytes).transpose().map(Option::unwrap_or_default);
    let resources = Resources {
        memory: size(&options.memory)?,
        memory_swap: match options.memory_swap.as_deref() {
            Some("-1") => -1,
            _ => size(&options.memory_swap)?,
        },
        memory_reservation: size(&options.memory_reservation)?,
        nano_cpus: options.cpus.as_deref().map(nano_cpus).transpose()?.unwrap_or(0),
        cpu_shares: options.cpu_shares.unwrap_or(0),
        cpu_period: options.cpu_period.unwrap_or(0),
        cpu_quota: options.cpu_quota.unwrap_or(0),
        cpuset_cpus: options.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: options.cpuset_mems.clone().unwrap_or_default(),
        pids_limit: options.pids_limit.unwrap_or(0),
        blkio_weight: options.blkio_weight.unwrap_or(0),
        oom_kill_disable: options.oom_kill_disable,
    };
    check(&resources)?;
    Ok(resources)
}

/// Docker's rules.
pub(crate) fn check(resources: &Resources) -> anyhow::Result<()> {
    if resources.memory != 0 && resources.memory < MEMORY_MIN {
        return Err(wrong("Minimum memory limit allowed is 6MB"));
    }
    if resources.memory_swap > 0 && resources.memory == 0 {
        return Err(wrong("You should always set the Memory limit when using Memoryswap limit, see usage"));
    }
    if resources.memory_swap > 0 && resources.memory_swap < resources.memory {
        return Err(wrong("Minimum memoryswap limit should be larger than memory limit, see usage"));
    }
    if resources.memory > 0 && resources.memory_reservation > resources.memory {
        return Err(wrong("Minimum memory limit can not be less than memory reservation limit, see usage"));
    }
    if resources.nano_cpus != 0 && (resources.cpu_quota != 0 || resources.cpu_period != 0) {
        return Err(wrong("Conflicting options: --cpus and --cpu-period or --cpu-quota cannot both be set"));
    }
    if resources.blkio_weight != 0 && !(10..=1000).contains(&resources.blkio_weight) {
        return Err(wrong("range of blkio weight is from 10 to 1000"));
    }
    Ok(())
}

/// `1.5`
pub(crate) fn nano_cpus(text: &str) -> anyhow::Result<i64> {
    let number: f64 =
        text.parse().map_err(|_| wrong(format!("failed to parse {text} as a rational number")))?;
    if !(0.001..=65_536.0).contains(&number) {
        return Err(wrong(format!("--cpus {text}: a number of CPUs from 0.001 on")));
    }
    #[allow(clippy::cast_possible_truncation)]
    Ok((number * 1e9).round() as i64)
}

pub(super) fn ulimit(text: &str) -> anyhow::Result<Ulimit> {
    let words = || wrong(format!("invalid ulimit argument: {text}"));
    let (name, values) = text.split_once('=').ok_or_else(words)?;
    let known = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
        "as",
    ];
    if !known.contains(&name) {
        return Err(wrong(format!("invalid ulimit type: {name}")));
    }
    let number = |text: &str| match text {
        "unlimited" => Ok(-1),
        text => text.parse::<i64>().map_err(|_| words()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard >= 0 && (soft > hard || soft < 0) {
        return Err(wrong(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    Ok(Ulimit { name: name.into(), soft, hard })
}

pub(super) fn device(text: &str) -> anyhow::Result<DeviceSpec> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |text: &str| !text.is_empty() && text.chars().all(|letter| "rwm".contains(letter));
    let (source, target, access) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, access] if is_access(access) => (source, source, access),
        [source, target] => (source, target, "rwm"),
        [source, target, access] if is_access(access) => (source, target, access),
        _ => return Err(wrong(format!("invalid device specification: {text}"))),
    };
    if !Path::new(source).is_absolute() || !Path::new(target).is_absolute() {
        return Err(wrong(format!("invalid device specification: {text}: both paths are absolute")));
    }
    Ok(DeviceSpec { source: PathBuf::from(source), target: target.into(), access: access.into() })
}

pub(super) fn device_rule(text: &str) -> anyhow::Result<String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let number = |text: &str| text == "*" || text.parse::<u32>().is_ok();
    match fields[..] {
        ["a" | "b" | "c", numbers, access]
            if numbers.split_once(':').is_some_and(|(major, minor)| number(major) && number(minor))
                && access.chars().all(|letter| "rwm".contains(letter)) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(wrong(format!("invalid device cgroup format: '{text}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        for (text, value) in [("1", 1), ("64k", 65_536), ("64M", 64 << 20), ("1.5g", 3 << 29), ("2kb", 2048)]
        {
            assert_eq!(bytes(text).unwrap(), value, "{text}");
        }
        for text in ["", "x", "-1", "1x", "1e30g"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
    }

    #[test]
    fn limits_of_processes() {
        assert_eq!(ulimit("nofile=10:20").unwrap(), Ulimit { name: "nofile".into(), soft: 10, hard: 20 });
        assert_eq!(ulimit("core=-1").unwrap().hard, -1);
        for text in ["nofile", "x=1", "nofile=2:1", "nofile=a"] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn later_variables_replace_earlier_ones() {
        let env = vec!["A=2".into(), "B=3".into(), "NOT_SET_ANYWHERE_HERE".into()];
        let mut options = CreateOptions { env, ..CreateOptions::default() };
        let all = environment(vec!["A=1".into(), "PATH=/bin".into()], &options).unwrap();
        assert_eq!(all, ["A=2", "PATH=/bin", "B=3"]);
        options.env = vec!["=x".into()];
        assert!(environment(Vec::new(), &options).is_err());
    }

    #[test]
    fn devices_and_ports() {
        assert_eq!(device("/dev/fuse:r").unwrap().access, "r");
        assert_eq!(device("/dev/fuse:/dev/x").unwrap().target, "/dev/x");
        assert!(device("fuse").is_err() && device("/dev/a:/b:x").is_err());
        assert_eq!(exposed(None, &["80".into(), "5-6/udp".into()]).unwrap(), ["5/udp", "6/udp", "80/tcp"]);
        assert!(exposed(None, &["0".into()]).is_err());
        assert!(device_rule("c 1:* rw").is_ok() && device_rule("c x rw").is_err());
    }
}
