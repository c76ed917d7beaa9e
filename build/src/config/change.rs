//! Instructions that change nothing but the config.

use serde_json::{Map, Value, json};

use super::{Action, Evaluated, StageState};
use crate::error::LanguageError;
use crate::instruction::{Command, Instruction};
use crate::plan::Step;

impl StageState {
    pub(super) fn change(
        &mut self,
        instruction: &Instruction,
        step: &Step,
    ) -> Result<Evaluated, LanguageError> {
        let error = |message: String, mark: &str| LanguageError::new(step.node.lines, message).mark(mark);
        let history = match instruction {
            Instruction::Env(pairs) => {
                // All see what was in force before.
                let pairs = self.pairs(pairs, step)?;
                for (name, value) in &pairs {
                    self.set_variable(name, value);
                }
                format!("ENV {}", joined(&pairs))
            }
            Instruction::Label(pairs) => {
                let pairs = self.pairs(pairs, step)?;
                for (name, value) in &pairs {
                    self.object("Labels").insert(name.clone(), json!(value));
                }
                format!("LABEL {}", joined(&pairs))
            }
            Instruction::User(user) => {
                let user = self.word(user, step)?;
                self.set("User", json!(user));
                format!("USER {user}")
            }
            Instruction::Expose(text) => {
                let mut ports = Vec::new();
                for word in self.words(text, step)? {
                    ports.extend(expand_ports(&word).ok_or_else(|| {
                        error(format!("invalid port: {word:?}"), &word).hint("write 80, 53/udp or 8000-8010")
                    })?);
                }
                for port in &ports {
                    self.object("ExposedPorts").insert(port.clone(), json!({}));
                }
                format!("EXPOSE [{}]", ports.join(" "))
            }
            Instruction::Volume(volumes) => {
                let volumes = self.all(volumes, step)?;
                for volume in &volumes {
                    if volume.is_empty() {
                        return Err(error("VOLUME specified can not be an empty string".into(), "VOLUME"));
                    }
                    self.object("Volumes").insert(volume.clone(), json!({}));
                }
                format!("VOLUME [{}]", volumes.join(" "))
            }
            Instruction::Cmd(command) => {
                let words = self.command_words(command);
                self.set("Cmd", json!(words));
                self.has_command = true;
                format!("CMD {}", quoted(&words))
            }
            Instruction::Entrypoint(command) => {
                let words = self.command_words(command);
                self.set("Entrypoint", json!(words));
                if !self.has_command {
                    // The command of the image below was for its entrypoint.
                    self.remove("Cmd");
                }
                format!("ENTRYPOINT {}", quoted(&words))
            }
            Instruction::Shell(words) => {
                self.set("Shell", json!(words));
                format!("SHELL [{}]", words.join(" "))
            }
            Instruction::StopSignal(signal) => {
                let signal = self.word(signal, step)?;
                if !is_signal(&signal) {
                    return Err(error(format!("invalid signal: {signal:?}"), &signal)
                        .hint("write SIGTERM, or a number from 1 to 64"));
                }
                self.set("StopSignal", json!(signal));
                format!("STOPSIGNAL {signal}")
            }
            Instruction::HealthCheck(health) => {
                let mut check = Map::new();
                let test = match &health.command {
                    None => vec!["NONE".to_owned()],
                    Some(Command::Shell(text)) => vec!["CMD-SHELL".into(), text.clone()],
                    Some(Command::Exec(words)) => {
                        ["CMD".to_owned()].into_iter().chain(words.iter().cloned()).collect()
                    }
                };
                check.insert("Test".into(), json!(test));
                let numbers = [
                    ("Interval", health.interval),
                    ("Timeout", health.timeout),
                    ("StartPeriod", health.start_period),
                    ("StartInterval", health.start_interval),
                    ("Retries", health.retries),
                ];
                for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
                    check.insert(name.into(), json!(value));
                }
                self.set("Healthcheck", Value::Object(check));
                step.node.text()
            }
            Instruction::OnBuild(text) => {
                let mut triggers = self.config.run_list("OnBuild");
                triggers.push(text.clone());
                self.set("OnBuild", json!(triggers));
                return Ok(Evaluated { action: Action::Config, history: None });
            }
            Instruction::Maintainer(name) => {
                let name = self.word(name, step)?;
                self.config.author = Some(name.clone());
                format!("MAINTAINER {name}")
            }
            // They are more than changes.
            Instruction::From { .. }
            | Instruction::Run(_)
            | Instruction::Copy(_)
            | Instruction::Add(_)
            | Instruction::Workdir(_)
            | Instruction::Arg(_) => return Ok(Evaluated { action: Action::None, history: None }),
        };
        Ok(Evaluated { action: Action::Config, history: Some(history) })
    }

    fn pairs(&self, pairs: &[(String, String)], step: &Step) -> Result<Vec<(String, String)>, LanguageError> {
        let pair = |(name, value): &(String, String)| Ok((self.word(name, step)?, self.word(value, step)?));
        pairs.iter().map(pair).collect()
    }

    fn set_variable(&mut self, name: &str, value: &str) {
        let new = format!("{name}={value}");
        let mut env = self.config.run_list("Env");
        match env.iter_mut().find(|entry| entry.split('=').next() == Some(name)) {
            Some(entry) => *entry = new,
            None => env.push(new),
        }
        self.set("Env", json!(env));
    }

    fn command_words(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Shell(text) if text.is_empty() => Vec::new(),
            command => self.with_shell(command),
        }
    }

    fn object(&mut self, key: &str) -> &mut Map<String, Value> {
        if !self.config.config.is_object() {
            self.config.config = json!({});
        }
        if !self.config.config[key].is_object() {
            self.config.config[key] = json!({});
        }
        match &mut self.config.config[key] {
            Value::Object(map) => map,
            // Made one above.
            _ => unreachable!("an object"),
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(config) = self.config.config.as_object_mut() {
            config.remove(key);
        }
    }
}

fn joined(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn quoted(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" "))
}

/// Most ports of a range.
const MAX_PORTS: u32 = 65_536;

/// `80`, `80/udp`, `8000-8010/tcp`, and a published port in front, which means nothing here.
fn expand_ports(word: &str) -> Option<Vec<String>> {
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_lowercase();
    let range = range.rsplit(':').next()?;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp")
        || first > last
        || u32::from(last - first) > MAX_PORTS
    {
        return None;
    }
    Some((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 33] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let is_real_time =
        name.strip_prefix("RTMIN").or_else(|| name.strip_prefix("RTMAX")).is_some_and(|rest| {
            rest.is_empty()
                || rest
                    .strip_prefix(['+', '-'])
                    .is_some_and(|number| number.parse::<u8>().is_ok_and(|n| n <= 15))
        });
    NAMES.contains(&name) || is_real_time
}
