//! Volumes on disk.
//!
//! ```text
//! ROOT/volumes                mode 0700: set-id files in volumes are not within other users' reach
//! ROOT/volumes/.lock          held while volumes are made or removed
//! ROOT/volumes/NAME/opts.json what is known of it; a directory without it was not finished
//! ROOT/volumes/NAME/_data     its content, or where its device is mounted
//! ROOT/volumes/.NAME.gone     one that is being removed
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::copy::copy_up;
use crate::error::{Error, Result};

const LOCK: &str = ".lock";
const DOCUMENT: &str = "opts.json";
const DATA: &str = "_data";
const GONE: &str = ".gone";
/// Content on its way into a volume.
const FILL: &str = "_fill";

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, unique.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// It was given no name by the user: removed with its container (`rm -v`, `run --rm`) and by `prune`.
    #[serde(default)]
    pub anonymous: bool,
    /// `--label`
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `--opt`: `type`, `device`, `o`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Its content was copied from an image, or somebody decided that none is to be: never again.
    #[serde(default)]
    pub filled: bool,
    /// Where its content is.
    #[serde(skip)]
    pub mountpoint: PathBuf,
}

/// What a volume's content is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Its own directory.
    Directory(PathBuf),
    /// Another directory of the host (`type=none`, `o=bind`), with other mount options.
    Bind {
        /// The directory.
        device: PathBuf,
        /// Words of mount(8), without `bind`.
        options: Vec<String>,
    },
    /// A filesystem, mounted for each container that uses it.
    Filesystem {
        /// `type`, for mount(2).
        kind: String,
        /// `device`, for mount(2).
        device: String,
        /// Words of mount(8).
        options: Vec<String>,
    },
}

/// What is asked of a new volume.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// Its name; `None` makes one up.
    pub name: Option<String>,
    /// `--driver`; only `local` there is.
    pub driver: Option<String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--opt`
    pub options: BTreeMap<String, String>,
    /// RFC 3339.
    pub created: String,
    /// It is one without a name, though one was made up for it already.
    pub anonymous: bool,
}

/// The volumes of an engine.
#[derive(Debug)]
pub struct Volumes {
    directory: PathBuf,
}

impl Volume {
    /// What its content is on.
    #[must_use]
    pub fn backing(&self) -> Backing {
        let option = |name: &str| self.options.get(name).map_or("", String::as_str);
        let mut options: Vec<String> =
            option("o").split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let (kind, device) = (option("type"), option("device"));
        if kind.is_empty() && device.is_empty() {
            return Backing::Directory(self.mountpoint.clone());
        }
        let bind = options.iter().any(|word| word == "bind" || word == "rbind");
        if bind {
            options.retain(|word| word != "bind");
            return Backing::Bind { device: device.into(), options };
        }
        Backing::Filesystem { kind: kind.into(), device: device.into(), options }
    }

    /// docker's document of it.
    #[must_use]
    pub fn inspect(&self) -> Value {
        let map = |map: &BTreeMap<String, String>| if map.is_empty() { Value::Null } else { json!(map) };
        json!({
            "CreatedAt": self.created,
            "Driver": "local",
            "Labels": map(&self.labels),
            "Mountpoint": self.mountpoint,
            "Name": self.name,
            "Options": map(&self.options),
            "Scope": "local",
        })
    }
}

impl Volumes {
    /// Opens the volumes below `root`, the engine's directory; made if missing. Removals that were interrupted are
    /// finished.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let directory = root.join("volumes");
        let make = |path: &Path, mode: u32| {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(Error::io("make directory", path))
        };
        make(root, 0o711)?;
        make(&directory, 0o700)?;
        close(&directory)?;
        Ok(Self { directory })
    }

    fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(Error::io("open lock file", &path))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    fn load(&self, name: &str) -> Result<Option<Volume>> {
        let path = self.directory.join(name).join(DOCUMENT);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let mut volume: Volume =
            serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })?;
        volume.mountpoint = self.directory.join(name).join(DATA);
        Ok(Some(volume))
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// When documents cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(Error::io("list", &self.directory))? {
            let name = entry.map_err(Error::io("list", &self.directory))?.file_name();
            if let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) {
                found.extend(self.load(name)?);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The volume of this name, or with a beginning of it that only one has where it is one without a name of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, name: &str) -> Result<Volume> {
        if check_name(name).is_ok()
            && let Some(volume) = self.load(name)?
        {
            return Ok(volume);
        }
        Err(Error::NoSuchVolume(name.to_owned()))
    }

    /// Makes a volume, or gives the one that is there: docker's `volume create` of an existing one succeeds.
    ///
    /// # Errors
    /// When the name or options make no sense, or the existing one has other options.
    pub fn create(&self, new: &NewVolume) -> Result<Volume> {
        if let Some(driver) = new.driver.as_deref().filter(|driver| !driver.is_empty() && *driver != "local")
        {
            return Err(Error::Invalid(format!(
                "error looking up volume plugin {driver}: plugin {driver:?} not found: only driver local is supported"
            )));
        }
        check_options(&new.options)?;
        let name = match &new.name {
            Some(name) => {
                check_name(name)?;
                name.clone()
            }
            None => random_name()?,
        };
        let _lock = self.lock()?;
        if let Some(volume) = self.load(&name)? {
            if !new.options.is_empty() && volume.options != new.options {
                return Err(Error::Invalid(format!(
                    "create {name}: conflict: a volume of this name exists with other options"
                )));
            }
            return Ok(volume);
        }
        let volume = Volume {
            created: new.created.clone(),
            anonymous: new.anonymous || new.name.is_none(),
            labels: new.labels.clone(),
            options: new.options.clone(),
            filled: false,
            mountpoint: self.directory.join(&name).join(DATA),
            name,
        };
        let home = self.directory.join(&volume.name);
        // One that was not finished has no document, and nobody used it.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&home)
            .map_err(Error::io("make directory", &home))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&volume.mountpoint)
            .map_err(Error::io("make directory", &volume.mountpoint))?;
        self.write(&volume)?;
        Ok(volume)
    }

    /// Copies the content of directory `from` into a volume that has never been filled and is empty (see
    /// [`copy_up`]); once. Several may ask at once; a copy that was interrupted begins anew. A volume that
    /// is a filesystem to be mounted is left as it is.
    ///
    /// # Errors
    /// When the volume is not there, or something cannot be copied.
    pub fn fill(&self, name: &str, from: impl AsFd) -> Result<()> {
        let home = self.directory.join(name);
        let guard = File::open(&home).map_err(Error::io("open", &home))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&guard, FlockOperation::LockExclusive))
            .map_err(Error::io("lock", &home))?;
        let volume = self.find(name)?;
        if volume.filled {
            return Ok(());
        }
        match volume.backing() {
            Backing::Filesystem { .. } => return Ok(()),
            Backing::Bind { device, .. } => {
                let to = File::open(&device).map_err(Error::io("open", &device))?;
                copy_up(from, to).map_err(Error::io("copy into", &device))?;
            }
            Backing::Directory(data) => {
                if is_empty(&data)? {
                    // Beside it, then in one step: a half-made copy is never taken for the volume's content.
                    let beside = home.join(FILL);
                    if beside.exists() {
                        fs::remove_dir_all(&beside).map_err(Error::io("remove", &beside))?;
                    }
                    fs::create_dir(&beside).map_err(Error::io("make directory", &beside))?;
                    let to = File::open(&beside).map_err(Error::io("open", &beside))?;
                    copy_up(from, &to).map_err(Error::io("copy into", &beside))?;
                    match fs::rename(&beside, &data) {
                        Ok(()) => {}
                        // Somebody has written into it meanwhile: that is its content.
                        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                            fs::remove_dir_all(&beside).map_err(Error::io("remove", &beside))?;
                        }
                        Err(error) => return Err(Error::io("rename", &beside)(error)),
                    }
                }
            }
        }
        self.mark_filled(name)
    }

    /// Notes that the content of a volume is settled: from now on nothing is copied into it.
    ///
    /// # Errors
    /// When the document cannot be written.
    pub fn mark_filled(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        let mut volume = self.find(name)?;
        if volume.filled {
            return Ok(());
        }
        volume.filled = true;
        self.write(&volume)
    }

    /// Removes a volume and its content. `users` gives the ids of the containers that have it, running or not; it is
    /// asked with the lock held.
    ///
    /// # Errors
    /// When it is not there or in use.
    pub fn remove(&self, name: &str, users: &dyn Fn(&str) -> Vec<String>) -> Result<Volume> {
        let lock = self.lock()?;
        let volume = self.find(name)?;
        let users = users(&volume.name);
        if !users.is_empty() {
            return Err(Error::InUse { name: volume.name, users });
        }
        let home = self.directory.join(&volume.name);
        // Gone for everybody at once, whatever becomes of the removal.
        let gone = self.directory.join(format!(".{}{GONE}", volume.name));
        fs::rename(&home, &gone).map_err(Error::io("rename", &home))?;
        drop(lock);
        fs::remove_dir_all(&gone).map_err(Error::io("remove", &gone))?;
        Ok(volume)
    }

    /// Finishes removals that were interrupted, and removes what was not finished when it was made. Gives their names.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect(&self) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        let found = self.unfinished()?;
        for (_, path) in &found {
            fs::remove_dir_all(path).map_err(Error::io("remove", path))?;
        }
        Ok(found.into_iter().map(|(name, _)| name).collect())
    }

    /// The names of what [`collect`](Self::collect) would remove.
    ///
    /// # Errors
    /// When the volumes cannot be listed.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        Ok(self.unfinished()?.into_iter().map(|(name, _)| name).collect())
    }

    fn unfinished(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(Error::io("list", &self.directory))? {
            let path = entry.map_err(Error::io("list", &self.directory))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let interrupted = name.starts_with('.') && name.ends_with(GONE);
            // Another's file is another's.
            let unfinished = check_name(name).is_ok()
                && path.is_dir()
                && !path.join(DOCUMENT).exists()
                && is_empty(&path.join(DATA))?;
            if interrupted || unfinished {
                let name = name.trim_start_matches('.').trim_end_matches(GONE).to_owned();
                found.push((name, path));
            }
        }
        Ok(found)
    }

    /// Bytes that the content takes on disk. A file with several names counts once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn size(&self, volume: &Volume) -> Result<u64> {
        let mut seen = std::collections::HashSet::new();
        let mut waiting = vec![volume.mountpoint.clone()];
        let mut bytes = 0;
        while let Some(directory) = waiting.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                // Removed since it was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("list", &directory)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(Error::io("list", &directory))?;
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    waiting.push(entry.path());
                } else if metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino())) {
                    bytes += metadata.len();
                }
            }
        }
        Ok(bytes)
    }

    fn write(&self, volume: &Volume) -> Result<()> {
        let path = self.directory.join(&volume.name).join(DOCUMENT);
        let text = serde_json::to_vec(volume).map_err(|source| Error::Json { path: path.clone(), source })?;
        let beside = path.with_extension("new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let write = || -> std::io::Result<()> {
            let mut file = options.open(&beside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            if let Some(home) = path.parent() {
                File::open(home)?.sync_all()?;
            }
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }
}

/// Lets nobody but the owner in: programs in containers write set-id files into volumes, and any user of this machine
/// could run those (as CVE-2021-41091). Containers have volumes bound, and do not come through here. Earlier versions
/// left the directory open.
fn close(directory: &Path) -> Result<()> {
    let mode = fs::metadata(directory).map_err(Error::io("look at", directory))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    match fs::set_permissions(directory, fs::Permissions::from_mode(0o700)) {
        // Another user's store, or one that is mounted read-only, can be read all the same: who opened it there has to.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok(())
        }
        closed => closed.map_err(Error::io("close to other users", directory)),
    }
}

/// Whether a directory has no entries, or is none.
pub(crate) fn is_empty(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("list", directory)(error)),
    }
}

/// docker's grammar of names.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let first = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    let rest = bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first && rest && bytes.len() >= 2 && bytes.len() <= 240 {
        return Ok(());
    }
    if bytes.len() == 1 {
        return Err(Error::Invalid(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )));
    }
    Err(Error::Invalid(format!(
        "create {name}: {name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// The options of docker's local driver.
fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    if let Some(name) = options.keys().find(|name| !matches!(name.as_str(), "type" | "device" | "o")) {
        return Err(Error::Invalid(format!(
            "invalid option: {name:?}: there are type, device and o{}",
            if name == "size" { " (for a limit, use type=tmpfs and o=size=...)" } else { "" }
        )));
    }
    let has = |name: &str| options.get(name).is_some_and(|value| !value.is_empty());
    if options.is_empty() {
        return Ok(());
    }
    if !has("device") {
        return Err(Error::Invalid("missing required option: \"device\"".into()));
    }
    let bind = options.get("o").is_some_and(|o| o.split(',').any(|word| word == "bind" || word == "rbind"));
    if !has("type") && !bind {
        return Err(Error::Invalid("missing required option: \"type\"".into()));
    }
    if bind && !options.get("device").is_some_and(|device| device.starts_with('/')) {
        return Err(Error::Invalid("option \"device\" of a bind must be an absolute path".into()));
    }
    Ok(())
}

/// 64 hexadecimal digits by chance.
fn random_name() -> Result<String> {
    let mut bytes = [0_u8; 32];
    let source = Path::new("/dev/urandom");
    let mut file = File::open(source).map_err(Error::io("open", source))?;
    std::io::Read::read_exact(&mut file, &mut bytes).map_err(Error::io("read", source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let root = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let volumes = Volumes::open(root.path()).unwrap_or_else(|e| panic!("{e}"));
        (root, volumes)
    }

    fn new(name: &str, options: &[(&str, &str)]) -> NewVolume {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NewVolume {
            name: Some(name.into()),
            options,
            created: "2026-11-28T00:00:00Z".into(),
            ..NewVolume::default()
        }
    }

    #[test]
    fn made_found_used_removed() {
        let (_root, volumes) = volumes();
        let made = volumes.create(&new("data", &[])).unwrap_or_else(|e| panic!("{e}"));
        assert!(made.mountpoint.ends_with("volumes/data/_data") && made.mountpoint.is_dir());
        assert_eq!(made.backing(), Backing::Directory(made.mountpoint.clone()));
        assert_eq!(volumes.create(&new("data", &[])).ok().as_ref(), Some(&made));
        fs::write(made.mountpoint.join("file"), [0; 100]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(volumes.size(&made).ok(), Some(100));
        let anonymous = volumes.create(&NewVolume::default()).unwrap_or_else(|e| panic!("{e}"));
        assert!(anonymous.anonymous && anonymous.name.len() == 64);
        let refused = volumes.remove("data", &|_| vec!["c1".into()]).err().map(|e| e.to_string());
        assert_eq!(refused.as_deref(), Some("remove data: volume is in use - [c1]"));
        assert!(volumes.remove("data", &|_| Vec::new()).is_ok());
        assert_eq!(
            volumes.find("data").err().map(|e| e.to_string()).as_deref(),
            Some("get data: no such volume")
        );
        assert_eq!(volumes.list().map(|all| all.len()).ok(), Some(1));
    }

    #[test]
    fn regression_volumes_are_out_of_reach_of_other_users() {
        let root = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let mode = |path: &Path| fs::metadata(path).map(|found| found.mode() & 0o777).ok();
        // As an earlier version has left it.
        let directory = root.path().join("volumes");
        fs::create_dir(&directory).unwrap_or_else(|e| panic!("{e}"));
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).unwrap_or_else(|e| panic!("{e}"));
        let volumes = Volumes::open(root.path()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(mode(&directory), Some(0o700));
        let made = volumes.create(&new("data", &[])).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(made.mountpoint.parent().and_then(mode), Some(0o700));
        // A new store: its own directory stays as the others make it.
        let store = root.path().join("store");
        Volumes::open(&store).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((mode(&store), mode(&store.join("volumes"))), (Some(0o711), Some(0o700)));
    }

    #[test]
    fn filled_once_and_only_when_empty() {
        let (root, volumes) = volumes();
        let image = root.path().join("image");
        fs::create_dir(&image).unwrap_or_else(|e| panic!("{e}"));
        fs::write(image.join("a"), "1").unwrap_or_else(|e| panic!("{e}"));
        let from = || File::open(&image).unwrap_or_else(|e| panic!("{e}"));
        let data = volumes.create(&new("data", &[])).unwrap_or_else(|e| panic!("{e}")).mountpoint;
        // What a killed copy has left.
        fs::create_dir_all(root.path().join("volumes/data/_fill/half")).unwrap_or_else(|e| panic!("{e}"));
        volumes.fill("data", from()).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            data.join("a").exists() && !data.join("half").exists() && !data.with_file_name("_fill").exists()
        );
        fs::remove_file(data.join("a")).unwrap_or_else(|e| panic!("{e}"));
        volumes.fill("data", from()).unwrap_or_else(|e| panic!("{e}"));
        assert!(!data.join("a").exists(), "filled a second time");
        let used = volumes.create(&new("used", &[])).unwrap_or_else(|e| panic!("{e}")).mountpoint;
        fs::write(used.join("own"), "").unwrap_or_else(|e| panic!("{e}"));
        volumes.fill("used", from()).unwrap_or_else(|e| panic!("{e}"));
        assert!(!used.join("a").exists());
    }

    #[test]
    fn what_was_not_finished_is_collected() {
        let (root, volumes) = volumes();
        let directory = root.path().join("volumes");
        let dir = |name: &str| fs::create_dir_all(directory.join(name)).unwrap_or_else(|e| panic!("{e}"));
        dir(".old.gone/_data/x");
        dir("half/_data");
        dir("foreign/_data/content");
        assert_eq!(volumes.list().ok(), Some(Vec::new()));
        let mut collected = volumes.collect().unwrap_or_else(|e| panic!("{e}"));
        collected.sort();
        assert_eq!(collected, ["half", "old"]);
        assert!(directory.join("foreign/_data/content").is_dir());
    }

    #[test]
    fn options_of_the_local_driver() {
        let (_root, volumes) = volumes();
        let backing = |options: &[(&str, &str)]| {
            let name = format!("v{}", options.len() + options.iter().map(|(_, v)| v.len()).sum::<usize>());
            volumes.create(&new(&name, options)).map(|volume| volume.backing()).map_err(|e| e.to_string())
        };
        assert_eq!(
            backing(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=100m,uid=1000")]),
            Ok(Backing::Filesystem {
                kind: "tmpfs".into(),
                device: "tmpfs".into(),
                options: vec!["size=100m".into(), "uid=1000".into()]
            })
        );
        assert_eq!(
            backing(&[("type", "none"), ("device", "/srv"), ("o", "bind,ro")]),
            Ok(Backing::Bind { device: "/srv".into(), options: vec!["ro".into()] })
        );
        for (options, words) in [
            (&[("size", "1g")][..], "invalid option: \"size\""),
            (&[("type", "nfs")], "missing required option: \"device\""),
            (&[("device", "/dev/sdx1")], "missing required option: \"type\""),
            (&[("type", "none"), ("o", "bind"), ("device", "srv")], "absolute"),
        ] {
            assert!(backing(options).is_err_and(|e| e.contains(words)), "{options:?}");
        }
        for bad in ["", "a", "-ab", "a b", "../x", "a/b", ".hidden"] {
            assert!(volumes.create(&new(bad, &[])).is_err(), "{bad:?}");
        }
    }
}
