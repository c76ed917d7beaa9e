//! The servers of the client's own tests: a real registry, and one that answers as a test wants.
#![allow(dead_code, reason = "made for two suites, of which neither uses all of it")]

#[path = "../../../image/tests/support/fault.rs"]
pub(crate) mod fault;
#[path = "../../../image/tests/support/registry.rs"]
pub(crate) mod registry;
