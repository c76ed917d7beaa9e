//! Blobs: content by its digest.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use super::{Barrier, Session, Store};
use crate::config::MAX_DOCUMENT;
use crate::digest::{Digest, VerifyingReader};
use crate::error::Error;

impl Store {
    /// Where a blob is, if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Size of a blob in bytes; `None` when it is not there.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob_path(digest)).ok().filter(fs::Metadata::is_file).map(|blob| blob.len())
    }

    /// Opens a blob. Its content is not verified by this.
    ///
    /// # Errors
    /// `MissingBlob`, `Io`.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::MissingBlob(*digest)),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    /// A whole small blob, verified.
    ///
    /// # Errors
    /// As above; `Read` when it is longer than a document may be, or damaged.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let file = self.open_blob(digest)?;
        let what = || format!("blob {digest}");
        if file.metadata().map_err(Error::read(what()))?.len() > MAX_DOCUMENT {
            return Err(Error::document(what(), "longer than any manifest or config"));
        }
        let mut bytes = Vec::new();
        VerifyingReader::new(file, *digest, None).read_to_end(&mut bytes).map_err(Error::read(what()))?;
        Ok(bytes)
    }

    /// Adds a small blob. It is on disk when something that refers to it is published.
    ///
    /// # Errors
    /// Those of writing.
    pub fn add_blob(&self, session: &Session, content: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(content);
        // What is there was verified, unless the disk is at fault: then this mends it.
        if self.read_blob(&digest).is_err() {
            self.write_file(&self.blob_path(&digest), content, Barrier::None)?;
            session.note_unsynced();
        }
        Ok(digest)
    }

    /// Puts a finished file in its place. Its content was verified and synced; its name is not yet.
    pub(super) fn place_blob(&self, file: &std::path::Path, digest: &Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        let directory = path.parent().map(std::path::Path::to_owned).unwrap_or_default();
        if !directory.exists() {
            fs::create_dir_all(&directory).map_err(Error::io("make", &directory))?;
        }
        fs::rename(file, &path).map_err(Error::io("put in place", &path))
    }
}
