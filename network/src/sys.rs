//! System calls without a safe wrapper.

pub(crate) mod unshare;
