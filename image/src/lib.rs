//! Images: names, content store, layers, archives, registries. Knows nothing of mounts or namespaces.

pub mod archive;
pub mod changes;
pub mod commit;
pub mod compression;
pub mod config;
pub mod digest;
mod error;
pub mod fetch;
pub mod layer;
pub mod media_type;
pub mod reference;
pub mod registry;
pub mod store;
pub mod tar;
pub mod time;
pub mod transfer;

pub use error::{Error, WrongDigest};
