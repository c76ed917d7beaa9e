//! One file per command: an `Args` struct whose doc comment is its help, and one function.

pub(crate) mod build;
pub(crate) mod builder;
pub(crate) mod completion;
pub(crate) mod container;
pub(crate) mod events;
pub(crate) mod image;
pub(crate) mod index;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod oci;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod umount;
pub(crate) mod version;
pub(crate) mod volume;
