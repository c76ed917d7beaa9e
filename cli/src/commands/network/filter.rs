//! `--filter` of networks and volumes.

use std::collections::BTreeMap;

use crate::exit::Usage;

/// Filters by key: those of one key are alternatives, except labels, which must all fit.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Reads them; `known` are the keys that there are.
    pub(crate) fn parse(texts: &[String], known: &[&str]) -> Result<Self, Usage> {
        let mut found = Vec::new();
        for text in texts {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| Usage(format!("invalid filter '{text}': write KEY=VALUE")))?;
            let (key, value) = match key.strip_suffix('!') {
                Some("label") => ("label!", value),
                _ => (key.trim(), value),
            };
            if !known.contains(&key) {
                return Err(Usage(format!("invalid filter '{key}'; there are {}", known.join(", "))));
            }
            found.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self(found))
    }

    /// Whether one of the values of `key` fits, or there is none.
    pub(crate) fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        let mut values = self.values(key).peekable();
        values.peek().is_none() || values.any(fits)
    }

    /// The values of a key.
    pub(crate) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// Whether `labels` have all that is asked for, and nothing of what must not be.
    pub(crate) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &str| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|own| own == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").all(has) && !self.values("label!").any(has)
    }

    /// A filter that is yes or no.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Usage> {
        match self.values(key).last() {
            None => Ok(None),
            Some("true" | "1" | "t") => Ok(Some(true)),
            Some("false" | "0" | "f") => Ok(Some(false)),
            Some(value) => Err(Usage(format!("invalid filter '{key}={value}': true or false"))),
        }
    }

    /// Whether what was made at `created` (RFC 3339) is older than all times given.
    pub(crate) fn until(&self, created: &str) -> anyhow::Result<bool> {
        let created = layerfs_image::time::parse(created).map_or(0, |(seconds, _)| seconds);
        for value in self.values("until") {
            if created >= crate::moment::seconds(value)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_key_are_alternatives_and_labels_are_not() {
        let parse = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            Filters::parse(&texts, &["name", "label", "label!", "dangling"])
        };
        let names = parse(&["name=a", "name=b"]).unwrap();
        assert!(names.any("name", |n| n == "b") && !names.any("name", |n| n == "c"));
        assert!(names.any("driver", |_| false));
        let labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into();
        for (texts, fits) in [
            (&["label=a"][..], true),
            (&["label=a=1", "label=b"], true),
            (&["label=a=2"], false),
            (&["label=a", "label=c"], false),
            (&["label!=a"], false),
            (&["label!=c"], true),
            (&["label!=a=2"], true),
        ] {
            assert_eq!(parse(texts).unwrap().labels(&labels), fits, "{texts:?}");
        }
        assert!(parse(&["color=red"]).is_err() && parse(&["name"]).is_err());
        assert_eq!(parse(&["dangling=1"]).unwrap().flag("dangling").unwrap(), Some(true));
        assert!(parse(&["dangling=perhaps"]).unwrap().flag("dangling").is_err());
    }
}
