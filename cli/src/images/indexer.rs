//! Layer indexes for the image store, made by the union filesystem that reads them.

use std::path::Path;

use layerfs_image::layer::{IndexFailure, IndexedObject, LayerIndexBuilder, LayerIndexer};
use layerfs_unionfs::index::{self, IndexBuilder, IndexedStat, LayerIndex, ObjectMetadata};

/// Joins the two libraries, which do not know each other.
#[derive(Debug)]
pub(super) struct Indexer;

struct Builder(IndexBuilder);

fn metadata(object: IndexedObject<'_>) -> ObjectMetadata {
    let stat = object.stat;
    ObjectMetadata {
        stat: IndexedStat {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            rdev_major: stat.device.0,
            rdev_minor: stat.device.1,
            size: stat.size,
            blocks: stat.blocks,
            blksize: stat.blksize,
            nlink: stat.nlink,
            ino: stat.ino,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
        },
        birth: stat.birth,
        symlink: object.symlink.map(<[u8]>::to_vec),
        xattrs: object.xattrs.to_vec(),
    }
}

impl LayerIndexer for Indexer {
    fn begin(&self, root: IndexedObject<'_>) -> Result<Box<dyn LayerIndexBuilder>, IndexFailure> {
        Ok(Box::new(Builder(IndexBuilder::new(&metadata(root))?)))
    }

    fn build(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure> {
        index::build_index(tree, index)?;
        Ok(())
    }

    fn build_staged(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure> {
        index::build_index_unsynced(tree, index)?;
        Ok(())
    }

    fn check(&self, tree: &Path, index: &Path) -> Result<(), IndexFailure> {
        let directory = std::fs::File::open(tree)?;
        let index = LayerIndex::open(index, &directory)?;
        index.verify()?;
        let differences = index.compare(&directory)?;
        match differences.first() {
            None => Ok(()),
            Some(first) => Err(format!("{} entries differ, the first: {first}", differences.len()).into()),
        }
    }
}

impl LayerIndexBuilder for Builder {
    fn insert(&mut self, path: &[&[u8]], object: IndexedObject<'_>) -> Result<(), IndexFailure> {
        Ok(self.0.insert(path, &metadata(object))?)
    }

    fn finish(self: Box<Self>, out: &Path) -> Result<(), IndexFailure> {
        self.0.finish_unsynced(out)?;
        Ok(())
    }
}
