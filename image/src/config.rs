//! Image configs and manifests as this crate reads them (OCI image specification, config.md and manifest.md; docker's
//! image specification 1.2, of which OCI's is a part).
//!
//! The config's bytes are the image's identity: they are kept and passed on as they are, and parsed for reading only.

use oci_spec::image::{Descriptor, ImageManifest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{DiffId, Digest};
use crate::error::Error;
use crate::media_type;

/// Bytes that a manifest or config may have: far beyond what anybody writes, and what registries accept.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// Layers that an image may have.
pub const MAX_LAYERS: usize = 500;

/// An image's config.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Config {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// As `GOARCH`.
    #[serde(default)]
    pub architecture: String,
    /// As `GOARM` and others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// As `GOOS`.
    #[serde(default)]
    pub os: String,
    /// How containers of it run: `Env`, `Cmd` and so on.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub config: Value,
    /// The layers.
    #[serde(default)]
    pub rootfs: RootFs,
    /// How it came to be, the oldest step first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub history: Vec<History>,
    /// All that this program has no use for, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, Value>,
}

/// The layers of an image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<DiffId>,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Words about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// It changed no file, and has no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let config: Self = serde_json::from_slice(bytes).map_err(Error::json("the image's config"))?;
        if config.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(Error::document("the image's config", format!("more than {MAX_LAYERS} layers")));
        }
        Ok(config)
    }

    /// The text under `key` of `config`.
    pub fn run_text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(Value::as_str)
    }

    /// The texts under `key` of `config`.
    pub fn run_list(&self, key: &str) -> Vec<String> {
        let list = self.config.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    /// Its labels.
    pub fn labels(&self) -> Vec<(String, String)> {
        let labels = self.config.get("Labels").and_then(Value::as_object);
        labels
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect()
    }
}

/// Reads a manifest of one image, OCI's or docker's schema 2.
///
/// # Errors
/// When it is none, or one that cannot be used.
pub fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest, Error> {
    let what = "the image's manifest";
    let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(Error::json(what))?;
    if manifest.layers().len() > MAX_LAYERS {
        return Err(Error::document(what, format!("more than {MAX_LAYERS} layers")));
    }
    // A document that is a list for one reader and a manifest for another is nothing anybody needs.
    let value: Value = serde_json::from_slice(bytes).map_err(Error::json(what))?;
    if value.get("manifests").is_some() {
        return Err(Error::document(what, "it is a list of manifests too"));
    }
    Ok(manifest)
}

/// The digest that a descriptor names.
///
/// # Errors
/// When its algorithm is not known.
pub fn digest_of(descriptor: &Descriptor) -> Result<Digest, Error> {
    Ok(Digest::try_from(descriptor.digest())?)
}

/// A descriptor.
pub fn descriptor(media_type: &str, size: u64, digest: &Digest) -> Result<Descriptor, Error> {
    let digest: oci_spec::image::Digest = digest
        .to_string()
        .parse()
        .map_err(|_| Error::document("a descriptor", format!("digest {digest} is not accepted")))?;
    Ok(Descriptor::new(media_type.into(), size, digest))
}

/// A manifest in OCI's form for `config` and `layers`, the lowest layer first.
///
/// # Errors
/// None that occur in practice.
pub fn new_manifest(config: (Digest, u64), layers: &[(Digest, u64, &str)]) -> Result<Vec<u8>, Error> {
    let layer = |&(digest, size, media_type): &(Digest, u64, &str)| serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": { "mediaType": media_type::OCI_CONFIG, "digest": config.0, "size": config.1 },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&manifest).map_err(Error::json("a new manifest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_of_docker_are_read_and_kept_whole() {
        let text = br#"{"architecture":"amd64","config":{"Env":["A=b"],"Cmd":null,"Labels":{"x":"y"}},
            "created":"2024-01-01T00:00:00Z","docker_version":"20","history":null,"os":"linux",
            "rootfs":{"type":"layers","diff_ids":null},"container_config":{"Hostname":"h"}}"#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.run_list("Env"), ["A=b"]);
        assert!(config.run_list("Cmd").is_empty());
        assert_eq!(config.labels(), [("x".to_owned(), "y".to_owned())]);
        let again = serde_json::to_value(&config).unwrap();
        assert_eq!(again["docker_version"], "20");
        assert_eq!(again["container_config"]["Hostname"], "h");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in ["", "{}", "[]", "null", r#"{"schemaVersion":1,"name":"x"}"#] {
            assert!(parse_manifest(text.as_bytes()).is_err(), "{text}");
        }
        let digest = Digest::of("x");
        let good = new_manifest((digest, 1), &[(digest, 2, media_type::OCI_LAYER)]).unwrap();
        assert!(parse_manifest(&good).is_ok());
        let both = String::from_utf8(good).unwrap().replacen('{', r#"{"manifests":[],"#, 1);
        assert!(parse_manifest(both.as_bytes()).is_err());
    }
}
