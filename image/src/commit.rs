//! Committing: what a container changed becomes a layer, and with its image's layers an image.
//!
//! The layer's tree is a copy of the upper as it is, marks included: a metadata-only copy stays one, and its data is not
//! stored twice. The layer's digest is that of its whole tar, for which such data is read from the layers below.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::archive::publish;
use crate::config::{self, Config, History, RootFs};
use crate::digest::{ChainId, DiffId, Digest, DigestWriter};
use crate::error::Error;
use crate::layer::{Layer, Stack, copy_data, pack_changes};
use crate::media_type;
use crate::reference::Reference;
use crate::store::{Image, LayerRecord, Session, Store};

/// What is said about the new image.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Its name.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// Words about it.
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change the config.
    pub changes: Vec<String>,
    /// What the container ran, for the history.
    pub command: Option<String>,
}

/// What the container is on.
#[derive(Debug, Clone)]
pub enum Base<'a> {
    /// An image of the store.
    Image(&'a Image),
    /// A root filesystem, which becomes the image's first layer.
    Directory(&'a Path),
}

/// Makes an image of what is in `upper` over `base`. The container should be at rest. Answers with the image's id.
///
/// # Errors
/// When the upper has a name that no layer can have, or changes while it is read; those of the disk.
pub fn commit(
    store: &Store,
    session: &Session,
    upper: &Path,
    base: &Base<'_>,
    options: &CommitOptions,
) -> Result<Digest, Error> {
    let now = crate::time::now();
    let (mut config, mut layers) = match base {
        Base::Image(image) => from_image(store, session, image)?,
        Base::Directory(_) => (
            Config {
                architecture: oci_spec::image::Arch::default().to_string(),
                os: "linux".into(),
                config: serde_json::json!({}),
                rootfs: RootFs { kind: "layers".into(), diff_ids: Vec::new() },
                ..Config::default()
            },
            Vec::new(),
        ),
    };
    for change in &options.changes {
        crate::changes::apply(&mut config.config, change)?;
    }
    let (diff_id, size) = match base {
        Base::Image(_) => changed_layer(store, session, upper, &config.rootfs.diff_ids)?,
        Base::Directory(lower) => whole_layer(store, session, upper, lower)?,
    };
    config.rootfs.diff_ids.push(diff_id);
    layers.push((diff_id.0, size, media_type::OCI_LAYER.to_owned()));
    config.created = Some(now.clone());
    if let Some(author) = &options.author {
        config.author = Some(author.clone());
    }
    config.history.push(History {
        created: Some(now),
        created_by: options.command.clone(),
        author: options.author.clone(),
        comment: options.message.clone(),
        empty_layer: false,
    });
    let layers: Vec<(Digest, u64, &str)> =
        layers.iter().map(|(digest, size, media_type)| (*digest, *size, media_type.as_str())).collect();
    publish(store, session, &config, &layers, options.name.as_ref())
}

type Layers = Vec<(Digest, u64, String)>;

fn from_image(store: &Store, session: &Session, image: &Image) -> Result<(Config, Layers), Error> {
    store.ensure_layers(session, image)?;
    let layers = image.manifest.layers().iter().map(|layer| {
        // A manifest of ours names layers in OCI's words.
        let media_type = match layer.media_type().as_ref() {
            media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
            media_type::DOCKER_LAYER => media_type::OCI_LAYER,
            other => other,
        };
        Ok((config::digest_of(layer)?, layer.size(), media_type.to_owned()))
    });
    let layers = layers.collect::<Result<Layers, Error>>()?;
    Ok((image.config.clone(), layers))
}

/// The upper as a layer over `below`.
fn changed_layer(
    store: &Store,
    session: &Session,
    upper: &Path,
    below: &[DiffId],
) -> Result<(DiffId, u64), Error> {
    let directory = session_directory(session)?;
    let tree = directory.join("tree");
    let mut copier = Copier::default();
    copier.copy_tree(upper, &tree)?;
    let mut layers = vec![Layer::open(&tree).map_err(Error::io("open", &tree))?];
    for diff_id in below.iter().rev() {
        let path = store.layer_tree(diff_id);
        layers.push(Layer::open(&path).map_err(Error::io("open", &path))?);
    }
    let stack = Stack::new(layers);
    let blob = directory.join("blob");
    let (digest, size) = if copier.refers_below {
        // Its data is on this machine already: the tar is made where it is needed.
        let (_, digest, size) = pack_changes(&stack, DigestWriter::new(io::sink()))?.finish();
        (digest, size)
    } else {
        let file = File::create(&blob).map_err(Error::io("create", &blob))?;
        let (file, digest, size) = pack_changes(&stack, DigestWriter::new(file))?.finish();
        file.sync_all().map_err(Error::io("sync", &blob))?;
        store.place_finished_blob(&blob, &digest)?;
        (digest, size)
    };
    let record = LayerRecord {
        diff_id: DiffId(digest),
        size: copier.bytes,
        entries: copier.entries,
        overrides: false,
        only_on: ChainId::chain(below).last().copied().filter(|_| copier.refers_below),
        packed_size: Some(size).filter(|_| copier.refers_below),
    };
    store.place_committed(session, &directory, &record)?;
    Ok((DiffId(digest), size))
}

/// All that upper and lower show together.
fn whole_layer(store: &Store, session: &Session, upper: &Path, lower: &Path) -> Result<(DiffId, u64), Error> {
    let stack = Stack::open(&[upper, lower]).map_err(Error::io("open", lower))?;
    let (mut reader, writer) = io::pipe().map_err(Error::io("make a pipe for", lower))?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || crate::layer::pack_merged(&stack, writer, true).map(|_| ()));
        let input =
            crate::store::LayerInput { reader: &mut reader, blob: None, diff_id: None, keep_blob: true };
        let ingested = store.ingest_layer(session, input);
        if ingested.is_err() {
            // Nobody reads any more: the packer's next write fails.
            drop(reader);
        }
        match packing.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(ingested.err().unwrap_or(error.into())),
            Err(_) => return Err(Error::document("commit", "packing the tree ended early")),
        }
        let mut layer = ingested?;
        store.finish_layer(session, &mut layer, &[])?;
        Ok((layer.diff_id, layer.size))
    })
}

fn session_directory(session: &Session) -> Result<PathBuf, Error> {
    tempfile::Builder::new()
        .prefix("commit-")
        .tempdir_in(session.path())
        .map(tempfile::TempDir::keep)
        .map_err(Error::io("make a directory in", session.path()))
}

/// A copy of a tree with everything that it carries.
#[derive(Debug, Default)]
struct Copier {
    links: HashMap<u64, PathBuf>,
    bytes: u64,
    entries: u64,
    /// Some object's content is in a layer below.
    refers_below: bool,
}

impl Copier {
    fn copy_tree(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::create_dir(to).map_err(Error::io("make", to))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = rustix::fs::open(from, flags, Mode::empty()).map_err(Error::io("open", from))?;
        let target = rustix::fs::open(to, flags, Mode::empty()).map_err(Error::io("open", to))?;
        self.copy_directory(&source, &target, to)
    }

    fn copy_directory(&mut self, source: &OwnedFd, target: &OwnedFd, path: &Path) -> Result<(), Error> {
        for (name, _) in crate::layer::list_directory(source.as_fd()).map_err(Error::io("list", path))? {
            let path = path.join(<OsStr as OsStrExt>::from_bytes(name.to_bytes()));
            self.copy_object(source, target, &name, &path)?;
        }
        attributes(source.as_fd(), target.as_fd()).map_err(Error::io("give attributes to", path))?;
        self.note_marks(source.as_fd());
        Ok(())
    }

    fn copy_object(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CString,
        path: &Path,
    ) -> Result<(), Error> {
        let failed = |operation| Error::io::<Errno>(operation, path);
        self.entries += 1;
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                return fs::hard_link(first, path).map_err(Error::io("link", path));
            }
            self.links.insert(stat.st_ino, path.to_owned());
        }
        let open = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(target, name, Mode::RWXU).map_err(failed("make"))?;
                let flags = open | OFlags::RDONLY | OFlags::DIRECTORY;
                let from = rustix::fs::openat(source, name, flags, Mode::empty()).map_err(failed("open"))?;
                let to = rustix::fs::openat(target, name, flags, Mode::empty()).map_err(failed("open"))?;
                self.copy_directory(&from, &to, path)
            }
            FileType::RegularFile => {
                let from = rustix::fs::openat(source, name, open | OFlags::RDONLY, Mode::empty());
                let from = File::from(from.map_err(failed("open"))?);
                let flags = open | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR);
                let to = File::from(to.map_err(failed("create"))?);
                if self.note_marks(from.as_fd()) {
                    to.set_len(stat.st_size.cast_unsigned()).map_err(Error::io("write", path))?;
                } else {
                    self.bytes += copy_data(&from, &to).map_err(Error::io("copy", path))?;
                }
                attributes(from.as_fd(), to.as_fd()).map_err(failed("give attributes to"))
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new()).map_err(failed("read"))?;
                rustix::fs::symlinkat(&link, target, name).map_err(failed("make"))?;
                name_attributes(source, target, name, &stat, true).map_err(failed("give attributes to"))
            }
            FileType::Socket => Ok(()),
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev).map_err(failed("make"))?;
                name_attributes(source, target, name, &stat, false).map_err(failed("give attributes to"))
            }
        }
    }

    /// Notes what leads to the layers below; true for a file whose data is there.
    fn note_marks(&mut self, object: BorrowedFd<'_>) -> bool {
        let has = |name: &str| {
            ["trusted.overlay.", "user.overlay."].iter().any(|prefix| {
                rustix::fs::fgetxattr(object, format!("{prefix}{name}"), &mut [0_u8; 4096][..]).is_ok()
            })
        };
        let is_copy = has("metacopy");
        self.refers_below |= is_copy || has("redirect");
        is_copy
    }
}

/// Owner, xattrs with all marks, mode and times of an open object.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for (name, value) in crate::layer::all_xattrs(from)? {
        rustix::fs::fsetxattr(to, name, &value, rustix::fs::XattrFlags::empty())?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

fn name_attributes(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &CString,
    stat: &rustix::fs::Stat,
    is_link: bool,
) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    crate::layer::copy_name_xattrs(from.as_fd(), to.as_fd(), name)?;
    if !is_link {
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &rustix::fs::Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
