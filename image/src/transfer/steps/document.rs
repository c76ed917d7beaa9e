//! The documents by which steps are kept in a registry.
//!
//! A cache of its own has the form that BuildKit gives its caches (moby/buildkit, cache/remotecache/v1): a config of the
//! media type [`CACHE_CONFIG`] that lists layers, each with its place in a chain, and records by their keys. Keys are this
//! program's and mean nothing to BuildKit, which finds nothing there and goes on; what it has no field for is in
//! `org.layerfs.step`. An image that carries its own steps has them in its config under [`INLINE`].

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Config;
use crate::digest::{ChainId, DiffId, Digest};
use crate::error::Error;
use crate::media_type;
use crate::store::StepRecord;

/// Media type of a cache's config.
pub(super) const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// The field of an image's config with the steps that made its layers.
pub const INLINE: &str = "org.layerfs.steps";

/// A blob as a manifest names it.
#[derive(Debug, Clone)]
pub(super) struct SentLayer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    records: Vec<Record>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Layer {
    blob: Digest,
    /// Index of the layer below, where that is in the cache too; else -1.
    #[serde(default)]
    parent: i64,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    #[serde(default)]
    media_type: String,
    #[serde(rename = "diffID")]
    diff_id: Option<DiffId>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    created_at: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    digest: Digest,
    #[serde(default)]
    layers: Vec<Outcome>,
    #[serde(rename = "org.layerfs.step", default, skip_serializing_if = "Option::is_none")]
    step: Option<Step>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    layer: usize,
    #[serde(default)]
    created_at: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Step {
    parent: Option<ChainId>,
    description: String,
    kind: String,
}

fn chain_of(record: &StepRecord) -> ChainId {
    record.parent.map_or_else(|| ChainId::base(record.layer), |below| below.with(record.layer))
}

/// The config of a cache with these steps, whose layers the registry has as `sent` says (by the store's blobs).
pub(super) fn write(records: &[StepRecord], sent: &HashMap<Digest, SentLayer>) -> Result<Vec<u8>, Error> {
    let places: HashMap<ChainId, usize> =
        records.iter().enumerate().map(|(at, record)| (chain_of(record), at)).collect();
    let mut document = Document { layers: Vec::new(), records: Vec::new() };
    for record in records {
        let layer = sent.get(&record.blob.0).ok_or(Error::MissingBlob(record.blob.0))?;
        let below = record.parent.and_then(|below| places.get(&below).copied());
        document.layers.push(Layer {
            blob: layer.digest,
            parent: below.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1),
            annotations: Annotations {
                media_type: layer.media_type.clone(),
                diff_id: Some(record.layer),
                size: layer.size,
                created_at: record.created.clone(),
            },
        });
        document.records.push(Record {
            digest: record.key,
            layers: vec![Outcome { layer: document.layers.len() - 1, created_at: record.created.clone() }],
            step: Some(Step {
                parent: record.parent,
                description: record.description.clone(),
                kind: record.kind.clone(),
            }),
        });
    }
    serde_json::to_vec(&document).map_err(Error::json("the cache's config"))
}

/// The steps of a cache's config. Records of other programs are left out.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<StepRecord>, Error> {
    let document: Document = serde_json::from_slice(bytes).map_err(Error::json("the cache's config"))?;
    let mut records = Vec::new();
    for record in document.records {
        let Some(step) = record.step else { continue };
        let layer = record.layers.first().and_then(|outcome| document.layers.get(outcome.layer));
        let Some((layer, diff_id)) = layer.and_then(|layer| Some((layer, layer.annotations.diff_id?))) else {
            return Err(Error::document(
                "the cache's config",
                format!("step {} has no layer", record.digest),
            ));
        };
        records.push(StepRecord {
            key: record.digest,
            layer: diff_id,
            blob: (layer.blob, layer.annotations.size),
            media_type: media_type::of_oci(&layer.annotations.media_type).to_owned(),
            parent: step.parent,
            created: layer.annotations.created_at.clone(),
            description: step.description,
            kind: step.kind,
        });
    }
    Ok(records)
}

/// A step in the config of the image that it made.
#[derive(Debug, Serialize, Deserialize)]
struct InlineStep {
    /// Index among the image's layers.
    layer: usize,
    key: Digest,
    created: String,
    description: String,
    kind: String,
}

/// What [`INLINE`] says in the config of an image with these layers (the lowest first): those of `records` that made them.
pub fn inline_steps(diff_ids: &[DiffId], records: &[StepRecord]) -> Value {
    let chain = ChainId::chain(diff_ids);
    let mut steps = Vec::new();
    for (at, diff_id) in diff_ids.iter().enumerate() {
        let below = at.checked_sub(1).and_then(|below| chain.get(below)).copied();
        let made = records.iter().find(|record| record.layer == *diff_id && record.parent == below);
        if let Some(record) = made {
            steps.push(InlineStep {
                layer: at,
                key: record.key,
                created: record.created.clone(),
                description: record.description.clone(),
                kind: record.kind.clone(),
            });
        }
    }
    json!(steps)
}

/// The steps that an image carries, whose layers its manifest has as `layers`. Empty where it carries none.
pub(super) fn read_inline(config: &Config, layers: &[SentLayer]) -> Result<Vec<StepRecord>, Error> {
    let Some(value) = config.other.get(INLINE) else { return Ok(Vec::new()) };
    let steps: Vec<InlineStep> =
        serde_json::from_value(value.clone()).map_err(Error::json("the steps in the image's config"))?;
    let diff_ids = &config.rootfs.diff_ids;
    let chain = ChainId::chain(diff_ids);
    steps
        .into_iter()
        .map(|step| {
            let (Some(diff_id), Some(layer)) = (diff_ids.get(step.layer), layers.get(step.layer)) else {
                let why = format!("step {} has no layer", step.key);
                return Err(Error::document("the image's config", why));
            };
            Ok(StepRecord {
                key: step.key,
                layer: *diff_id,
                blob: (layer.digest, layer.size),
                media_type: media_type::of_oci(&layer.media_type).to_owned(),
                parent: step.layer.checked_sub(1).and_then(|below| chain.get(below)).copied(),
                created: step.created,
                description: step.description,
                kind: step.kind,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, parent: Option<ChainId>) -> StepRecord {
        StepRecord {
            key: Digest::of(format!("key of {name}")),
            layer: DiffId(Digest::of(name)),
            blob: (Digest::of(name), 7),
            media_type: media_type::OCI_LAYER.into(),
            parent,
            created: "2026-01-01T00:00:00Z".into(),
            description: format!("RUN {name}"),
            kind: "run".into(),
        }
    }

    #[test]
    fn steps_come_back_with_the_blobs_that_were_sent() {
        let base = ChainId::base(DiffId(Digest::of("base")));
        let first = record("first", Some(base));
        let second = record("second", Some(chain_of(&first)));
        let sent = ["first", "second"].map(|name| {
            let digest = Digest::of(format!("{name}.gz"));
            let media_type = media_type::DOCKER_LAYER_GZIP.to_owned();
            (Digest::of(name), SentLayer { digest, size: 5, media_type })
        });
        let text = write(&[second.clone(), first.clone()], &HashMap::from(sent)).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["layers"][0]["parent"], 1, "{document}");
        assert_eq!(document["layers"][1]["parent"], -1, "{document}");
        assert_eq!(document["records"][0]["layers"][0]["layer"], 0);
        let compressed = |record: &StepRecord, name: &str| StepRecord {
            blob: (Digest::of(format!("{name}.gz")), 5),
            media_type: media_type::OCI_LAYER_GZIP.into(),
            ..record.clone()
        };
        assert_eq!(read(&text).unwrap(), [compressed(&second, "second"), compressed(&first, "first")]);
    }

    #[test]
    fn records_of_others_are_left_out_and_broken_ones_refused() {
        let digest = Digest::of("x");
        let theirs = json!({"layers": [{"blob": digest, "parent": -1, "annotations": {"mediaType": "x", "diffID": digest}}, {"blob": digest}],
            "records": [{"digest": digest, "layers": [{"layer": 0, "createdAt": "2026-01-01T00:00:00Z"}]},
                {"digest": digest, "inputs": [[{"link": 0, "selector": "sha256:x"}]]}]});
        assert_eq!(read(theirs.to_string().as_bytes()).unwrap(), []);
        let mut broken = theirs;
        broken["records"][0]["layers"][0]["layer"] = 7.into();
        broken["records"][0]["org.layerfs.step"] = json!({"parent": null, "description": "", "kind": "run"});
        assert!(read(broken.to_string().as_bytes()).is_err());
        assert!(read(b"\"text\"").is_err() && read(b"{}").unwrap().is_empty());
    }

    #[test]
    fn an_image_carries_the_steps_of_its_own_layers() {
        let base = DiffId(Digest::of("base"));
        let first = record("first", Some(ChainId::base(base)));
        let elsewhere = record("first", None);
        let diff_ids = [base, first.layer];
        let value = inline_steps(&diff_ids, &[elsewhere, first.clone()]);
        let mut config = Config::default();
        config.rootfs.diff_ids = diff_ids.to_vec();
        config.other.insert(INLINE.into(), value);
        let layer =
            SentLayer { digest: Digest::of("z"), size: 3, media_type: media_type::OCI_LAYER_ZSTD.into() };
        let read = read_inline(&config, &[layer.clone(), layer.clone()]).unwrap();
        let media_type = media_type::OCI_LAYER_ZSTD.to_owned();
        assert_eq!(read, [StepRecord { blob: (layer.digest, 3), media_type, ..first }]);
        assert!(read_inline(&config, &[layer]).is_err());
        assert!(read_inline(&Config::default(), &[]).unwrap().is_empty());
    }
}
