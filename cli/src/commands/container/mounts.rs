//! `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's volumes as the mounts of one container.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use layerfs_volume::NewVolume;
use layerfs_volume::request::{
    Bind, Mount, Recursive, Source, VolumeSource, parse_mount, parse_tmpfs, parse_volume,
};

use super::config::MountSpec;
use super::create::new_id;
use super::options::CreateOptions;
use super::store::Containers;
use crate::exit::Usage;
use crate::images;

/// Among the options of a bind: its source is made where it is missing.
pub(super) const MAKE_SOURCE: &str = "x-make-source";

/// What a container has mounted.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Those of nested places after what they are in.
    pub(super) all: Vec<MountSpec>,
    /// Volumes that must be there; they are made where they are not.
    pub(super) volumes: Vec<NewVolume>,
}

/// All that the command line and the image ask for. `image` has the targets of the image's own volumes.
pub(super) fn resolve(
    options: &CreateOptions,
    image: &[String],
    containers: &Containers,
) -> anyhow::Result<Mounts> {
    let mut mounts = Mounts::default();
    for mount in parse(options)? {
        mounts.add(mount)?;
    }
    for text in &options.volumes_from {
        for mount in mounts_from(text, containers)? {
            if !mounts.has(mount.target()) {
                mounts.all.push(mount);
            }
        }
    }
    for target in image {
        if !mounts.has(target) {
            mounts.volume(target.clone(), false, VolumeSource::default())?;
        }
    }
    mounts.all.sort_by_key(|mount| Path::new(mount.target()).components().count());
    Ok(mounts)
}

/// The texts as values; no two for one place.
fn parse(options: &CreateOptions) -> Result<Vec<Mount>, Usage> {
    let parsed = options
        .volume
        .iter()
        .map(|text| parse_volume(text))
        .chain(options.mount.iter().map(|text| parse_mount(text)))
        .chain(options.tmpfs.iter().map(|text| parse_tmpfs(text)));
    let mounts: Vec<Mount> = parsed.collect::<Result<_, _>>().map_err(|error| Usage(error.to_string()))?;
    for (at, mount) in mounts.iter().enumerate() {
        if mounts.iter().take(at).any(|other| other.target == mount.target) {
            return Err(Usage(format!("Duplicate mount point: {}", mount.target)));
        }
    }
    Ok(mounts)
}

impl Mounts {
    fn has(&self, target: &str) -> bool {
        self.all.iter().any(|mount| Path::new(mount.target()) == Path::new(target))
    }

    fn add(&mut self, mount: Mount) -> anyhow::Result<()> {
        let Mount { target, read_only, source } = mount;
        match source {
            Source::Bind(bind) => self.all.push(bound(bind, target, read_only)?),
            Source::Tmpfs(tmpfs) => self.all.push(MountSpec::Tmpfs { target, options: tmpfs.options }),
            Source::Volume(volume) => self.volume(target, read_only, volume)?,
            Source::Image { image, subpath } => {
                let found = images::find(&images::open_store()?, &image)?;
                let (image, subpath, name) = (found.id.to_string(), subpath.unwrap_or_default(), image);
                self.all.push(MountSpec::Image { name, image, target, subpath });
            }
        }
        Ok(())
    }

    fn volume(&mut self, target: String, read_only: bool, source: VolumeSource) -> anyhow::Result<()> {
        if let Some(message) = refusal_of(&target, &source) {
            bail!(message);
        }
        let VolumeSource { name, no_copy, subpath, driver, labels, options } = source;
        let anonymous = name.is_none();
        let name = match name {
            Some(name) => name,
            None => new_id()?,
        };
        let created = layerfs_image::time::now();
        let mut new = NewVolume { name: Some(name.clone()), driver, labels, options, created, anonymous };
        if anonymous {
            // As docker marks them.
            new.labels.insert("com.docker.volume.anonymous".into(), String::new());
        }
        self.volumes.push(new);
        let subpath = subpath.unwrap_or_default();
        self.all.push(MountSpec::Volume { name, target, read_only, no_copy, subpath, anonymous });
        Ok(())
    }
}

/// Why no volume can be where the kernel's own filesystems are. A container whose `/proc/self` is anybody's directory is not
/// confined: what is written there for its labels and limits would go nowhere.
fn refusal_of(target: &str, source: &VolumeSource) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()),
            part => names.push(part),
        }
    }
    let above = names.first().filter(|name| matches!(**name, "proc" | "sys"))?;
    let (what, hint) = match &source.name {
        Some(name) => (format!("volume {name}"), "mount it elsewhere"),
        None => (
            "a volume without a name".to_owned(),
            "if it is the image's own (VOLUME), build an image without it, or mount something else elsewhere",
        ),
    };
    Some(format!("{what} cannot be mounted at {target}: /{above} is the kernel's own filesystem ({hint})"))
}

/// As `-v` does it, a missing source is made (by `start`); `--mount` refuses it.
fn bound(bind: Bind, target: String, read_only: bool) -> anyhow::Result<MountSpec> {
    let source: PathBuf =
        std::path::absolute(&bind.path).with_context(|| format!("find {}", bind.path.display()))?;
    let mut options: Vec<String> =
        bind.propagation.map(|propagation| propagation.word().to_owned()).into_iter().collect();
    match bind.recursive {
        Recursive::Enabled => {}
        Recursive::Disabled => options.push("bind".into()),
        // `ro` of the mount alone; those below stay as they are.
        Recursive::Writable => options.push("rbind".into()),
        Recursive::ReadOnly => options.extend(["rbind".into(), "rro".into()]),
    }
    if bind.create {
        options.push(MAKE_SOURCE.to_owned());
    }
    Ok(MountSpec::Bind { source, target, read_only, options })
}

/// The binds and volumes of another container: `CONTAINER[:ro|rw]`.
fn mounts_from(text: &str, containers: &Containers) -> anyhow::Result<Vec<MountSpec>> {
    let (name, is_read_only) = match text.rsplit_once(':') {
        None => (text, false),
        Some((name, "ro")) => (name, true),
        Some((name, "rw" | "z" | "Z")) => (name, false),
        Some((_, mode)) => return Err(Usage(format!("invalid mode for volumes-from: {mode}")).into()),
    };
    let other = containers.find(name)?;
    let taken = other.config.mounts.into_iter().filter_map(|mut mount| {
        match &mut mount {
            MountSpec::Bind { read_only, .. } => *read_only |= is_read_only,
            // It stays the other one's.
            MountSpec::Volume { read_only, anonymous, .. } => {
                *read_only |= is_read_only;
                *anonymous = false;
            }
            MountSpec::Image { .. } => {}
            MountSpec::Tmpfs { .. } => return None,
        }
        Some(mount)
    });
    Ok(taken.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_before_what_the_image_has() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::at(dir.path()).unwrap();
        let options = CreateOptions {
            volume: vec!["/srv:/data/deep:ro,rslave".into(), "data:/data".into(), "/new".into()],
            mount: vec!["type=bind,src=/srv,dst=/b,readonly".into()],
            tmpfs: vec!["/run:size=1m".into()],
            ..CreateOptions::default()
        };
        let mounts = resolve(&options, &["/data".into(), "/own".into()], &containers).unwrap();
        let targets: Vec<&str> = mounts.all.iter().map(MountSpec::target).collect();
        assert_eq!(targets, ["/data", "/new", "/b", "/run", "/own", "/data/deep"]);
        let Some(MountSpec::Bind { options, read_only, .. }) = mounts.all.last() else { panic!() };
        assert!(
            options.contains(&MAKE_SOURCE.to_owned()) && options.contains(&"rslave".to_owned()) && *read_only
        );
        let Some(MountSpec::Bind { options, .. }) = mounts.all.get(2) else { panic!() };
        assert!(options.is_empty(), "{options:?}");
        let names: Vec<bool> = mounts.volumes.iter().map(|volume| volume.anonymous).collect();
        assert_eq!(names, [false, true, true]);
    }

    #[test]
    fn regression_volumes_where_the_kernels_filesystems_are_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::at(dir.path()).unwrap();
        for target in ["/proc", "/proc/self", "/sys", "//proc/", "/x/../proc/acpi", "/../sys/fs"] {
            let error = resolve(&CreateOptions::default(), &[target.into()], &containers).err().unwrap();
            let error = error.to_string();
            assert!(error.contains(target) && error.contains("kernel's own"), "{target}: {error}");
        }
        let named = CreateOptions { volume: vec!["data:/proc/self".into()], ..CreateOptions::default() };
        let error = resolve(&named, &[], &containers).err().unwrap().to_string();
        assert!(error.contains("volume data cannot be mounted at /proc/self"), "{error}");
        // Where another mount takes its place, the image's own is none.
        let bound = CreateOptions { volume: vec!["/srv:/proc/cpuinfo".into()], ..CreateOptions::default() };
        assert!(resolve(&bound, &["/proc/cpuinfo".into(), "/process".into()], &containers).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |volume: &[&str], tmpfs: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let options =
                CreateOptions { volume: list(volume), tmpfs: list(tmpfs), ..CreateOptions::default() };
            parse(&options).unwrap_err().to_string()
        };
        assert!(refused(&[], &["/run", "/run:size=1m"]).contains("Duplicate"));
        assert!(refused(&["/a:/b", "data:/b"], &[]).contains("Duplicate"));
        let root = refused(&["/a:/"], &[]);
        assert!(root.contains("can't be '/'"), "{root}");
    }
}
