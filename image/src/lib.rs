//! Images: names, content store, layers, archives, registries. Knows nothing of mounts or namespaces.

pub mod compression;
pub mod digest;
pub mod layer;
pub mod media_type;
pub mod reference;
pub mod tar;
