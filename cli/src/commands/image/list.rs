//! `layerfs images`.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::digest::DiffId;
use layerfs_image::reference::Reference;
use layerfs_image::store::{Image, Store};
use serde_json::{Value, json};

use crate::exit::Usage;
use crate::images::{self, human, listing};
use crate::{moment, ui};

/// List images
///
/// SIZE is that of the files in all layers of the image. What it has alone, and what others have too, is shown by the fields
/// UniqueSize and SharedSize of --format, and by `layerfs system df -v`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs images debian
  layerfs images 'deb*'
  layerfs images -f dangling=true -q
  layerfs images -f reference='quay.io/*/tool:*'
  layerfs images --format 'table {{.Repository}}\\t{{.Tag}}\\t{{.UniqueSize}}'")]
pub(crate) struct ImagesArgs {
    /// Show all images (there are no intermediate ones here: the same list)
    #[arg(short, long)]
    all: bool,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Show only some: dangling=BOOL, label=NAME[=VALUE], before=IMAGE, since=IMAGE, reference=PATTERN
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// `table`, `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show only images of this repository, with this tag if one is named; `*` and `?` match within a component
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

const NONE: &str = "<none>";

const HEADERS: [listing::Column; 9] = [
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("CREATED AT", "CreatedAt"),
    ("SHARED SIZE", "SharedSize"),
    ("UNIQUE SIZE", "UniqueSize"),
    ("SIZE", "Size"),
    ("SIZE", "VirtualSize"),
    ("CONTAINERS", "Containers"),
    ("DIGEST", "Digest"),
];

pub(crate) fn images(args: ImagesArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let filters = Filters::parse(&args.filter, &store)?;
    let (mut found, warnings) = store.images().context("list the images")?;
    for warning in warnings {
        ui::warn(warning);
    }
    found.sort_by_key(|image| std::cmp::Reverse(image.created()));
    let sizes = Sizes::of(&store, &found);
    let mut rows = Vec::new();
    for image in found.iter().filter(|image| filters.admit(image)) {
        rows.extend(rows_of(image, &sizes, &args, &filters)?);
    }
    if args.quiet && args.format.is_none() {
        let mut seen = std::collections::HashSet::new();
        let ids = rows.iter().filter_map(|row| row["ID"].as_str()).filter(|id| seen.insert(*id));
        ui::print(ids.map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut columns = vec![("REPOSITORY", "Repository"), ("TAG", "Tag")];
    if args.digests {
        columns.push(("DIGEST", "Digest"));
    }
    columns.extend([("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")]);
    listing::print(&rows, &columns, &HEADERS, args.format.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes of each layer, and how many images have it.
#[derive(Debug)]
pub(super) struct Sizes {
    layers: HashMap<DiffId, (u64, usize)>,
}

impl Sizes {
    pub(super) fn of(store: &Store, images: &[Image]) -> Self {
        let mut layers: HashMap<DiffId, (u64, usize)> = HashMap::new();
        for image in images {
            let mut seen = std::collections::HashSet::new();
            for diff_id in image.diff_ids().iter().filter(|diff_id| seen.insert(**diff_id)) {
                let size = || store.layer(diff_id).map_or(0, |layer| layer.size);
                layers.entry(*diff_id).or_insert_with(|| (size(), 0)).1 += 1;
            }
        }
        Self { layers }
    }

    /// Bytes in all layers of an image, and in those that no other image has.
    pub(super) fn image(&self, image: &Image) -> (u64, u64) {
        let mut seen = std::collections::HashSet::new();
        let layers = image.diff_ids().iter().filter(|diff_id| seen.insert(**diff_id));
        let layers: Vec<(u64, usize)> =
            layers.filter_map(|diff_id| self.layers.get(diff_id).copied()).collect();
        let unique = layers.iter().filter(|(_, users)| *users == 1).map(|(size, _)| size).sum();
        (layers.iter().map(|(size, _)| size).sum(), unique)
    }

    /// Bytes in all layers, each counted once.
    pub(super) fn total(&self) -> u64 {
        self.layers.values().map(|(size, _)| size).sum()
    }
}

fn rows_of(image: &Image, sizes: &Sizes, args: &ImagesArgs, filters: &Filters) -> anyhow::Result<Vec<Value>> {
    let (size, unique) = sizes.image(image);
    let wanted = args.repository.as_deref().map(Wanted::parse).transpose()?;
    let admits = |reference: &Reference| {
        wanted.as_ref().is_none_or(|wanted| wanted.admits(reference)) && filters.admit_name(reference)
    };
    let named = |texts: &[String]| -> Vec<Reference> {
        texts.iter().filter_map(|text| Reference::parse(text).ok()).collect()
    };
    let tags = named(&image.named.names);
    let row_of = |tag: &Reference| (tag.familiar_name(), tag.tag().unwrap_or(NONE).to_owned());
    let mut names: Vec<(String, String)> = tags.iter().filter(|tag| admits(tag)).map(row_of).collect();
    // What was pulled by digest has a repository and no tag.
    for digest in named(&image.named.repo_digests) {
        let row = (digest.familiar_name(), NONE.to_owned());
        if admits(&digest) && !tags.iter().any(|tag| tag.name() == digest.name()) && !names.contains(&row) {
            names.push(row);
        }
    }
    if names.is_empty() {
        let is_nameless = tags.is_empty() && image.named.repo_digests.is_empty();
        if !is_nameless || wanted.is_some() || !filters.references.is_empty() {
            return Ok(Vec::new());
        }
        names.push((NONE.into(), NONE.into()));
    }
    let created = image.created();
    let digests = image.familiar_digests();
    let row = |(repository, tag): (String, String)| {
        let digest = digests.iter().filter_map(|d| d.split_once('@')).find(|(name, _)| *name == repository);
        let digest = digest.map_or_else(|| NONE.to_owned(), |(_, digest)| digest.to_owned());
        json!({
            "Repository": repository,
            "Tag": tag,
            "Digest": digest,
            "ID": if args.no_trunc { image.id.to_string() } else { image.id.short() },
            "CreatedSince": if created > 0 { human::since(created) } else { "N/A".into() },
            "CreatedAt": human::date(created),
            "Size": human::size(size),
            "VirtualSize": human::size(size),
            "SharedSize": human::size(size - unique),
            "UniqueSize": human::size(unique),
            "Containers": "N/A",
        })
    };
    Ok(names.into_iter().map(row).collect())
}

/// A repository, perhaps with a tag, or a pattern of such, as the argument of the command.
#[derive(Debug)]
enum Wanted {
    Name { name: String, tag: Option<String> },
    Pattern(String),
}

impl Wanted {
    fn parse(text: &str) -> anyhow::Result<Self> {
        if text.contains(['*', '?']) {
            return Ok(Self::Pattern(text.to_owned()));
        }
        let reference = Reference::parse_without_tag(text)?;
        Ok(Self::Name { name: reference.name(), tag: reference.tag().map(str::to_owned) })
    }

    fn admits(&self, reference: &Reference) -> bool {
        match self {
            Self::Name { name, tag } => {
                reference.name() == *name && tag.as_deref().is_none_or(|tag| reference.tag() == Some(tag))
            }
            Self::Pattern(pattern) => {
                glob(pattern, &reference.familiar()) || glob(pattern, &reference.familiar_name())
            }
        }
    }
}

/// `--filter`.
#[derive(Debug, Default)]
pub(super) struct Filters {
    dangling: Option<bool>,
    labels: Vec<(String, Option<String>, bool)>,
    before: Option<i64>,
    since: Option<i64>,
    until: Option<i64>,
    references: Vec<String>,
}

impl Filters {
    pub(super) fn parse(texts: &[String], store: &Store) -> anyhow::Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                Usage(format!("filter {text:?}: write KEY=VALUE, for example dangling=true"))
            })?;
            match key {
                "dangling" => {
                    filters.dangling = Some(match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(Usage(format!("filter {text:?}: true or false")).into()),
                    });
                }
                "label" | "label!" => {
                    let (name, value) = value.split_once('=').map_or((value, None), |(n, v)| (n, Some(v)));
                    filters.labels.push((name.to_owned(), value.map(str::to_owned), key == "label"));
                }
                "before" => filters.before = Some(images::find(store, value)?.created()),
                "since" | "after" => filters.since = Some(images::find(store, value)?.created()),
                "until" => filters.until = Some(moment::seconds(value)?),
                "reference" => filters.references.push(value.to_owned()),
                _ => {
                    return Err(Usage(format!(
                        "invalid filter {key:?}; there are dangling, label, before, since, until and reference"
                    ))
                    .into());
                }
            }
        }
        Ok(filters)
    }

    /// Whether `--filter dangling` was given, and how.
    pub(super) fn dangling(&self) -> Option<bool> {
        self.dangling
    }

    pub(super) fn admit(&self, image: &Image) -> bool {
        let labels = image.config.labels();
        let has = |(name, value, wanted): &(String, Option<String>, bool)| {
            let found =
                labels.iter().any(|(n, v)| n == name && value.as_ref().is_none_or(|value| value == v));
            found == *wanted
        };
        let created = image.created();
        self.dangling.is_none_or(|dangling| image.named.names.is_empty() == dangling)
            && self.labels.iter().all(has)
            && self.before.is_none_or(|before| created < before)
            && self.since.is_none_or(|since| created > since)
            && self.until.is_none_or(|until| created < until)
    }

    fn admit_name(&self, reference: &Reference) -> bool {
        let matches = |pattern: &String| {
            let familiar = reference.familiar();
            let short = reference.familiar_name();
            let last = short.rsplit('/').next().unwrap_or_default().to_owned();
            glob(pattern, &familiar)
                || glob(pattern, &short)
                || !pattern.contains('/') && glob(pattern, &last)
        };
        self.references.is_empty() || self.references.iter().any(matches)
    }
}

/// `*` and `?` as in Go's path.Match: neither crosses a slash.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // `fits[j]`: the pattern so far matches the first j letters.
    let mut fits = vec![false; text.len() + 1];
    fits[0] = true;
    for letter in pattern {
        let mut next = vec![false; text.len() + 1];
        if letter == '*' {
            next[0] = fits[0];
        }
        for at in 0..text.len() {
            next[at + 1] = match letter {
                '*' => fits[at + 1] || next[at] && text[at] != '/',
                '?' => fits[at] && text[at] != '/',
                letter => fits[at] && text[at] == letter,
            };
        }
        fits = next;
    }
    fits[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_within_a_component() {
        for (pattern, text, fits) in [
            ("busy*", "busybox", true),
            ("*:latest", "busybox:latest", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("b?sybox", "busybox", true),
            ("busybox", "busybox:1", false),
            ("", "", true),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn times_are_points_or_durations() {}
}
