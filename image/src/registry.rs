//! Client of image registries: OCI distribution specification 1.1 and docker's registry API version 2.
//!
//! Everything streams, and nothing that a server says is believed: digests, lengths and sizes are checked here.
//! Blocking calls; a [`Client`] is shared by threads and each layer has a thread of its own. Nothing is printed.

mod answer;
mod auth;
mod blob;
mod client;
pub mod config;
pub mod credentials;
mod download;
mod environment;
mod error;
mod list;
mod login;
mod manifest;
pub mod platform;
mod proxy;
mod retry;
mod search;
mod service;
mod tls;
mod transport;
mod upload;
mod url;
mod web;

pub use blob::BlobReader;
pub use client::{Client, ClientOptions, Repository};
pub use credentials::{CredentialStore, Credentials, KeptIn};
pub use download::Download;
pub use environment::Environment;
pub use error::{ErrorKind, RegistryError};
pub use login::LoggedIn;
pub use manifest::{Document, Manifest, Which, parse_manifest};
pub use platform::Platform;
pub use retry::RetryPolicy;
pub use search::{MAX_SEARCH_LIMIT, SearchFilter, SearchResult};
pub use transport::Timeouts;
pub use upload::{BlobSource, Uploaded};
pub use web::{WebFile, get_file};
