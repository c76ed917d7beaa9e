//! Images from Dockerfiles: the language, its stages, what a step depends on, and what `COPY` takes from where.
//!
//! Knows neither mounts nor namespaces nor the terminal: text and trees go in, instructions, keys and entries of layers
//! come out. What runs a step and keeps its layer is the caller ([decision 0014](../../docs/decisions/0014-builds.md)).

pub mod check;
pub mod config;
pub mod context;
pub mod copy;
pub mod error;
pub mod expand;
pub mod instruction;
pub mod key;
pub mod parse;
pub mod pattern;
pub mod plan;

pub use error::LanguageError;
