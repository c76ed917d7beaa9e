//! `COPY` and `ADD`: what is taken ([`select()`]), and where it goes ([`place()`]).

mod place;
mod select;

pub use place::{Placement, place, place_mountpoints};
pub use select::{Content, Group, GroupKind, Item, Selection, add_to_key, select};

/// Why something cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source is not there.
    #[error("{source_path:?}: not found in {place}")]
    NotFound {
        /// As it was written.
        source_path: String,
        /// In what.
        place: String,
        /// It is there, and an ignore file names it.
        ignored: bool,
    },
    /// Something could not be read.
    #[error("read {path:?}")]
    Read {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something is in the way of a directory.
    #[error("cannot copy to {path:?}: {in_the_way:?} is no directory")]
    NotADirectory {
        /// Where to.
        path: String,
        /// What is in the way.
        in_the_way: String,
    },
    /// A directory is in the way of a file.
    #[error("cannot copy a file over the directory {0:?}")]
    OverDirectory(String),
    /// A name that means a removal in layers.
    #[error("{0:?} cannot be kept in a layer: names that begin with `.wh.` mean removals there")]
    Whiteout(String),
    /// Links that lead in a circle.
    #[error("{0:?}: too many levels of symbolic links")]
    Loop(String),
    /// An archive that cannot be unpacked.
    #[error("unpack {path:?}")]
    Archive {
        /// Which one.
        path: String,
        /// Why.
        source: layerfs_image::tar::TarError,
    },
    /// The layer could not be written.
    #[error("write the layer")]
    Write(#[source] std::io::Error),
}

impl CopyError {
    pub(crate) fn read<E: Into<std::io::Error>>(path: &str) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Read { path, source: source.into() }
    }

    /// What would help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { ignored: true, .. } => Some("the ignore file (.dockerignore) leaves it out"),
            Self::NotFound { .. } => {
                Some("paths are taken from the root of the build context, whatever ../ they begin with")
            }
            Self::NotADirectory { .. } => {
                Some("remove what is in the way in an earlier step, or copy elsewhere")
            }
            Self::OverDirectory(_) => Some("end the destination with a slash to copy into the directory"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
