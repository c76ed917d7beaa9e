//! The container's root filesystem: from a directory to a root with its own `/proc`, `/sys` and `/dev`.
//!
//! All of it happens in the container's own mount namespace. Paths in the container are resolved beneath its
//! root by descriptor (see [`resolve`]): an image may hold any symlink, and none leads out.

mod cgroups;
mod copy;
mod devices;
mod masks;
pub(crate) mod mounts;
mod pivot;
pub(crate) mod prepare;
pub(crate) mod resolve;

pub(crate) use self::devices::{bind_console, make_devices};
pub(crate) use self::masks::{PROC_MAGIC, cover_paths, make_paths_read_only};
pub(crate) use self::mounts::{Surroundings, mount_all};
pub(crate) use self::pivot::{enter_root, take_root};
pub(crate) use self::prepare::Prepared;
