//! The store, without any archive format around it.
