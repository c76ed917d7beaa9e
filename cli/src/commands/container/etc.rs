//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Context;

use super::config::{ContainerConfig, NetworkMode};
use super::store::Container;

/// Writes all three beside the container.
pub(super) fn write(container: &Container) -> anyhow::Result<()> {
    let config = &container.config;
    let machine = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hostname = format!("{}\n", config.hostname);
    let hosts = hosts(config, &machine("/etc/hosts"));
    let resolv = resolv_conf(config, &machine("/etc/resolv.conf"));
    for (name, text) in [("hostname", hostname), ("hosts", hosts), ("resolv.conf", resolv)] {
        let path = container.directory.join(name);
        let words = || format!("write {}", path.display());
        fs::write(&path, text).with_context(words)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).with_context(words)?;
    }
    Ok(())
}

fn hosts(config: &ContainerConfig, machine: &str) -> String {
    let mut text = match config.network {
        NetworkMode::Host => machine.to_owned(),
        // Written again when the container has joined its network.
        NetworkMode::None | NetworkMode::Named(_) | NetworkMode::Container(_) | NetworkMode::Userland => {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                              ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
                .to_owned()
        }
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for host in &config.hosts {
        if let Some((name, address)) = host.split_once(':') {
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    text
}

fn resolv_conf(config: &ContainerConfig, machine: &str) -> String {
    let asked =
        [("nameserver", &config.dns), ("search", &config.dns_search), ("options", &config.dns_options)];
    // Without a network nobody answers; what the machine has is kept all the same, as docker does.
    let mut text = String::new();
    for line in machine.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        if !asked.iter().any(|(name, values)| !values.is_empty() && *name == word) {
            text.push_str(line);
            text.push('\n');
        }
    }
    for address in &config.dns {
        text.push_str(&format!("nameserver {address}\n"));
    }
    for (name, values) in &asked[1..] {
        if !values.is_empty() && values.iter().all(|value| value != ".") {
            text.push_str(&format!("{name} {}\n", values.join(" ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_machines() {
        let config = ContainerConfig {
            dns: vec!["9.9.9.9".into()],
            dns_search: vec!["a.example".into(), "b.example".into()],
            hosts: vec!["db:10.0.0.2".into(), "six:::1".into()],
            ..ContainerConfig::default()
        };
        let machine = "# comment\nnameserver 10.0.0.1\nsearch old\noptions ndots:2\n";
        let text = resolv_conf(&config, machine);
        assert_eq!(text, "# comment\noptions ndots:2\nnameserver 9.9.9.9\nsearch a.example b.example\n");
        let hosts = hosts(&config, "");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.ends_with("10.0.0.2\tdb\n::1\tsix\n"), "{hosts}");
    }
}
