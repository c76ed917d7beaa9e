//! Rules for devices in a legacy hierarchy: lines written to `devices.allow` and `devices.deny`.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Writes `rules` in order; a later one overrides earlier ones.
pub(super) fn write_rules(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    for rule in rules {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        fs::write(cgroup.join(file), line(rule))?;
    }
    Ok(())
}

/// `TYPE MAJOR:MINOR ACCESS`, with `*` for any number; a rule for everything is the single letter `a`.
fn line(rule: &LinuxDeviceCgroup) -> String {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => return "a".to_owned(),
        Some(LinuxDeviceType::B) => "b",
        Some(LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::P) => "c",
    };
    let number = |value: Option<i64>| match value {
        Some(value) if value >= 0 => value.to_string(),
        _ => "*".to_owned(),
    };
    let access = rule.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_form() {
        let rule = |json: &str| line(&serde_json::from_str(json).unwrap());
        assert_eq!(rule(r#"{"allow":false}"#), "a");
        assert_eq!(rule(r#"{"allow":false,"type":"a","access":"rwm"}"#), "a");
        assert_eq!(rule(r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}"#), "c 1:3 rw");
        assert_eq!(rule(r#"{"allow":true,"type":"b","access":"m"}"#), "b *:* m");
        assert_eq!(rule(r#"{"allow":true,"type":"c","major":136,"minor":-1}"#), "c 136:* rwm");
    }
}
