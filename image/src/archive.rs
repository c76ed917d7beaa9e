//! Images in archives: what docker, podman, buildah and skopeo save and load.

mod import;
mod load;
mod save;
mod source;

pub(crate) use import::publish;
pub use import::{ImportOptions, import};
#[cfg(test)]
pub(crate) use load::load_by;
pub use load::{Loaded, load};
pub use save::{SaveFormat, copy_layer, save};
pub use source::{Member, Section, Source};
