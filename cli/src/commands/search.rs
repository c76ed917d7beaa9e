//! `layerfs search`.

use std::process::ExitCode;

use clap::Args;
use layerfs_image::registry::{MAX_SEARCH_LIMIT, SearchFilter, SearchResult};
use serde_json::{Value, json};

use crate::exit::Usage;
use crate::images::listing;
use crate::registry::{RegistryArgs, hinted, server};

/// So much of a description fits a terminal.
const MAX_DESCRIPTION: usize = 45;

/// Search for images at Docker Hub, or at another registry
///
/// A term that begins with a host and a slash is sought there: in its index if it has one, else among the names in
/// its catalogue.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs search --filter is-official=true --limit 5 debian
  layerfs search localhost:5000/tool
  layerfs search --format json localhost:5000/

Exit codes
  0  searched, whatever was found   1  the registry was not reached, or does not search")]
pub(crate) struct SearchArgs {
    /// Show only results with stars=N or more, is-official=true or false, is-automated=true or false; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Show at most so many results, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = limit)]
    limit: usize,
    /// Show descriptions whole
    #[arg(long)]
    no_trunc: bool,
    /// Form of the output: table, json (one object per line), or a Go template over Name, Description, StarCount,
    /// IsOfficial, IsAutomated
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// What to look for, perhaps with the registry before it: HOST[:PORT]/WORD
    #[arg(value_name = "TERM")]
    term: String,
}

fn limit(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_SEARCH_LIMIT).contains(number));
    number.ok_or_else(|| format!("a limit is a number from 1 to {MAX_SEARCH_LIMIT}"))
}

pub(crate) fn search(args: SearchArgs) -> anyhow::Result<ExitCode> {
    let filter = filter(&args.filter)?;
    // Only a host has one of these; all else is sought at the default registry.
    let host = args.term.split_once('/').map(|(first, _)| first).filter(|first| first.contains(['.', ':']));
    let registry = server(host)?;
    let client = args.registry.client(&registry, |_| {})?;
    let results = client.search(&args.term, args.limit, &filter).map_err(hinted)?;
    let rows: Vec<Value> = results.iter().map(|result| row(result, args.no_trunc)).collect();
    let columns = [
        ("NAME", "Name"),
        ("DESCRIPTION", "Description"),
        ("STARS", "StarCount"),
        ("OFFICIAL", "IsOfficial"),
    ];
    let headers = [("AUTOMATED", "IsAutomated")];
    listing::print(&rows, &columns, &headers, args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// Fields as docker has them for its templates.
fn row(result: &SearchResult, whole: bool) -> Value {
    let mark = |is: bool| if is { "[OK]" } else { "" };
    let description = if whole { result.description.clone() } else { shortened(&result.description) };
    json!({
        "Name": result.name,
        "Description": description,
        "StarCount": result.star_count,
        "IsOfficial": mark(result.is_official),
        "IsAutomated": mark(result.is_automated),
    })
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= MAX_DESCRIPTION {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MAX_DESCRIPTION - 1).collect();
    short.push('…');
    short
}

fn filter(words: &[String]) -> anyhow::Result<SearchFilter> {
    let mut filter = SearchFilter::default();
    for word in words {
        let fail = |reason: &str| Usage(format!("invalid filter {word:?}: {reason}"));
        let (name, value) = word.split_once('=').ok_or_else(|| fail("it has the form NAME=VALUE"))?;
        let truth = || match value {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(fail("the value is true or false")),
        };
        match name {
            "stars" => filter.stars = value.parse().map_err(|_| fail("the value is a number"))?,
            "is-official" => filter.is_official = truth()?,
            "is-automated" => filter.is_automated = truth()?,
            _ => return Err(fail("known are stars, is-official and is-automated").into()),
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        let of = |words: &[&str]| filter(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let read = of(&["stars=3", "is-official=true", "is-automated=0"]).unwrap();
        assert_eq!(read, SearchFilter { stars: 3, is_official: Some(true), is_automated: Some(false) });
        for bad in ["stars", "stars=many", "is-official=perhaps", "size=1"] {
            assert!(of(&[bad]).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }

    #[test]
    fn long_descriptions_are_cut() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(50)).chars().count(), MAX_DESCRIPTION);
    }
}
