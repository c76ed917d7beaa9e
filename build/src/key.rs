//! Keys of steps: digests of all that a step's result depends on.

use layerfs_image::digest::{Algorithm, Digest, Hasher};

/// Changes with the meaning of keys and with what steps make: what was kept before is not found any more.
const VERSION: &str = "layerfs-step-1";

/// A key in the making. Every part is hashed with its name and length, so that no two lists of parts look alike.
#[derive(Debug)]
pub struct KeyBuilder(Hasher);

impl KeyBuilder {
    /// For a step of this kind.
    pub fn new(kind: &str) -> Self {
        let mut key = Self(Hasher::new(Algorithm::Sha256));
        key.add("version", VERSION);
        key.add("kind", kind);
        key
    }

    /// Adds a part.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        for bytes in [name.as_bytes(), value] {
            self.0.update(&(bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
    }

    /// Adds all of a list, and its length.
    pub fn add_all<T: AsRef<[u8]>>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        let values: Vec<T> = values.into_iter().collect();
        self.add(name, values.len().to_string());
        for value in values {
            self.add(name, value);
        }
    }

    /// The key.
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted() {
        let key = |parts: &[(&str, &str)]| {
            let mut key = KeyBuilder::new("run");
            parts.iter().for_each(|(name, value)| key.add(name, value));
            key.finish()
        };
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "")]), key(&[]));
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
    }
}
