//! System calls that rustix lacks, one call per function, no policy. The only place with `unsafe`.

pub mod copy;
pub mod creds;
pub mod fuse_device;
pub mod limits;
pub mod mapping;
pub mod schedule;
pub mod write_back;
pub mod xattr;
