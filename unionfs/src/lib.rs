//! The union filesystem: a stack of read-only layers under one writable layer, seen as one tree.
//!
//! `fuse -> overlay -> {node, listing, layer} -> {marks, index, sys}`; arrows never turn back.
//! [`overlay::Overlay`] is the engine and needs no mount; [`mount`] puts it behind FUSE.

pub mod attr;
pub mod config;
pub mod error;
pub mod fdcache;
mod fuse;
pub mod index;
pub mod ino;
pub mod layer;
pub mod listing;
pub mod lower_state;
pub mod marks;
pub mod mount;
pub mod node;
pub mod overlay;
mod shards;
pub mod sys;
