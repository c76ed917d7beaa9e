//! `--change`: instructions of a Dockerfile applied to an image's config.

mod healthcheck;

use serde_json::{Map, Value, json};

use crate::error::Error;

/// Applies `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `LABEL`, `ONBUILD`, `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`, in the
/// form of a Dockerfile (`CMD ["a","b"]`) or with `=` (`CMD=/bin/sh`), as docker and podman take them.
///
/// # Errors
/// When the instruction is none of these, or its value is not understood.
pub fn apply(config: &mut Value, change: &str) -> Result<(), Error> {
    let bad = |why: &str| Error::document(format!("change {change:?}"), why);
    let change = change.trim();
    let end = change.find(|c: char| c.is_whitespace() || c == '=').ok_or_else(|| bad("it has no value"))?;
    let (word, rest) = change.split_at(end);
    let rest = rest.trim_start_matches('=').trim();
    if !config.is_object() {
        *config = Value::Object(Map::new());
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config["Cmd"] = command(rest),
        "ENTRYPOINT" => config["Entrypoint"] = command(rest),
        "ENV" => {
            for (name, value) in pairs(rest).ok_or_else(|| bad("write ENV NAME=VALUE"))? {
                let new = format!("{name}={value}");
                let list = array(config, "Env");
                list.retain(|item| {
                    item.as_str().and_then(|text| text.split_once('=')).is_none_or(|(n, _)| n != name)
                });
                list.push(Value::String(new));
            }
        }
        "LABEL" => {
            for (name, value) in pairs(rest).ok_or_else(|| bad("write LABEL NAME=VALUE"))? {
                set(config, "Labels", name, Value::String(value));
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                let number = port.split('/').next().unwrap_or_default();
                if number.split('-').any(|number| number.parse::<u16>().is_err()) {
                    return Err(bad("a port is a number up to 65535"));
                }
                set(config, "ExposedPorts", port, json!({}));
            }
        }
        "VOLUME" => {
            let volumes = match serde_json::from_str::<Vec<String>>(rest) {
                Ok(volumes) => volumes,
                Err(_) => rest.split_whitespace().map(str::to_owned).collect(),
            };
            for volume in volumes {
                set(config, "Volumes", volume, json!({}));
            }
        }
        "HEALTHCHECK" => config["Healthcheck"] = healthcheck::parse(rest).map_err(|why| bad(&why))?,
        "ONBUILD" => array(config, "OnBuild").push(Value::String(rest.to_owned())),
        "USER" => config["User"] = rest.into(),
        "WORKDIR" if rest.starts_with('/') => config["WorkingDir"] = rest.into(),
        "WORKDIR" => return Err(bad("the directory must be absolute")),
        "STOPSIGNAL" => config["StopSignal"] = rest.into(),
        _ => {
            return Err(bad(
                "instructions are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, \
                 VOLUME and WORKDIR",
            ));
        }
    }
    Ok(())
}

/// A JSON list, or a text for the shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => json!(list),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

fn array<'a>(config: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    if !config[key].is_array() {
        config[key] = Value::Array(Vec::new());
    }
    match &mut config[key] {
        Value::Array(list) => list,
        // Made one above.
        _ => unreachable!("an array"),
    }
}

fn set(config: &mut Value, key: &str, name: String, value: Value) {
    if !config[key].is_object() {
        config[key] = json!({});
    }
    config[key][name] = value;
}

/// `A=b C="d e"`, or the old form `A b c`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = words(text)?;
    if words.first().is_some_and(|word| !word.contains('=')) {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words
        .into_iter()
        .map(|word| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .map(|pair| pair.filter(|(name, _)| !name.is_empty()))
        .collect::<Option<Vec<_>>>()
        .filter(|pairs| !pairs.is_empty())
}

/// Words with quotes and backslashes taken off.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote, mut in_word) = (Vec::new(), String::new(), None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => {
                word.push(letters.next()?);
                in_word = true;
            }
            ('"' | '\'', None) => {
                quote = Some(letter);
                in_word = true;
            }
            (letter, Some(open)) if letter == open => quote = None,
            (letter, None) if letter.is_whitespace() => {
                if in_word {
                    words.push(std::mem::take(&mut word));
                }
                in_word = false;
            }
            (letter, _) => {
                word.push(letter);
                in_word = true;
            }
        }
    }
    if in_word {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Value {
        let mut config = json!({ "Env": ["PATH=/bin", "A=1"] });
        for change in changes {
            apply(&mut config, change).unwrap();
        }
        config
    }

    #[test]
    fn instructions_change_the_config() {
        let config = applied(&[
            r#"CMD ["a", "b c"]"#,
            "ENTRYPOINT run it",
            r#"ENV A=2 B="x y""#,
            "ENV OLD some words",
            "LABEL a.b=c",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "USER=nobody",
            "WORKDIR /srv",
            "stopsignal SIGINT",
        ]);
        assert_eq!(config["Cmd"], json!(["a", "b c"]));
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "run it"]));
        assert_eq!(config["Env"], json!(["PATH=/bin", "A=2", "B=x y", "OLD=some words"]));
        assert_eq!(config["Labels"], json!({ "a.b": "c" }));
        assert_eq!(config["ExposedPorts"], json!({ "80/tcp": {}, "53/udp": {} }));
        assert_eq!(config["Volumes"], json!({ "/data": {} }));
        assert_eq!(
            (&config["User"], &config["WorkingDir"], &config["StopSignal"]),
            (&json!("nobody"), &json!("/srv"), &json!("SIGINT"))
        );
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for change in ["", "CMD", "RUN x", "ENV =x", "EXPOSE x", "WORKDIR srv", "LABEL \"a"] {
            assert!(apply(&mut json!({}), change).is_err(), "{change}");
        }
    }
}
