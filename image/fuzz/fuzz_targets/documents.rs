//! Any bytes are read as manifest, config, reference, digest and time, or refused; never more than that.
#![no_main]

use layerfs_image::config::{Config, parse_manifest};
use layerfs_image::digest::Digest;
use layerfs_image::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_manifest(bytes);
    let _ = Config::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(&reference));
    }
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Some((seconds, nanoseconds)) = layerfs_image::time::parse(text) {
        let again = layerfs_image::time::format(seconds, nanoseconds);
        assert_eq!(layerfs_image::time::parse(&again), Some((seconds, nanoseconds)), "{text} {again}");
    }
});
