//! Images: names, content store, layers, archives, registries. Knows nothing of mounts or namespaces.

pub mod digest;
pub mod media_type;
pub mod reference;
pub mod registry;
