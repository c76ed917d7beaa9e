//! What stays with a container of this project's own engine: its log.

pub mod log;
