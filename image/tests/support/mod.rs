//! What the suites of this crate share. Not each of them uses everything.
#![allow(dead_code)]

pub(crate) mod fault;
pub(crate) mod registry;

use std::time::Duration;

use layerfs_image::digest::Digest;
use layerfs_image::reference::Reference;
use layerfs_image::registry::{Client, ClientOptions, Environment, Repository, RetryPolicy, Timeouts};

/// A client that knows nothing of this machine's configuration and waits for milliseconds.
pub(crate) fn options() -> ClientOptions {
    ClientOptions {
        environment: Environment::default(),
        retry: RetryPolicy {
            attempts: 4,
            base: Duration::from_millis(1),
            max: Duration::from_millis(4),
            max_asked: Duration::from_secs(2),
        },
        timeouts: Timeouts { connect: Duration::from_secs(10), idle: Duration::from_secs(20) },
        ..ClientOptions::default()
    }
}

pub(crate) fn repository(options: ClientOptions, name: &str) -> Repository {
    Client::new(options).unwrap().repository(&Reference::parse(name).unwrap()).unwrap()
}

/// Bytes that look random and are always the same.
pub(crate) fn content(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// An image manifest with one layer, whose config is `config`.
pub(crate) fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": layerfs_image::media_type::OCI_MANIFEST,
        "config": {
            "mediaType": layerfs_image::media_type::OCI_CONFIG,
            "digest": Digest::of(config).to_string(),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": layerfs_image::media_type::OCI_LAYER,
            "digest": Digest::of(layer).to_string(),
            "size": layer.len(),
        }],
    }))
    .unwrap()
}
