//! `COPY`, `ADD` and the directory of `WORKDIR`: a layer that is written without a mount.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, anyhow, bail};
use layerfs_build::config::CopyAction;
use layerfs_build::context::SourceTree;
use layerfs_build::copy::{
    Content, CopyError, Group, GroupKind, Item, Placement, Selection, add_to_key, place, select,
};
use layerfs_build::key::KeyBuilder;
use layerfs_build::parse::Node;
use layerfs_image::compression::decompress;
use layerfs_image::digest::{Algorithm, Digest, Hasher};
use layerfs_image::layer::Stack;
use layerfs_image::store::{LayerInput, StagedStep};
use layerfs_image::tar::{Entry, EntryKind, TarLimits, TarReader};

use super::executor::{Built, Executor};
use crate::exit::Hinted;

/// A copy whose sources are known.
pub(super) struct PreparedCopy {
    pub(super) key: Digest,
    groups: Selection,
    placement: Placement,
}

fn told(error: CopyError) -> anyhow::Error {
    match error.hint() {
        Some(hint) => {
            let message = crate::ui::chain(&anyhow::Error::from(error));
            Hinted { message, hint: hint.to_owned() }.into()
        }
        None => error.into(),
    }
}

fn now(executor: &Executor<'_>) -> (i64, u32) {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = (i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos());
    executor.request.timestamp.map_or(now, |time| now.min((time, 0)))
}

fn key_for(executor: &Executor<'_>, kind: &str, built: &Built) -> KeyBuilder {
    let mut key = KeyBuilder::new(kind);
    key.add("parent", built.chain().map(|chain| chain.0.to_string()).unwrap_or_default());
    key.add("time", executor.request.timestamp.map(|time| time.to_string()).unwrap_or_default());
    key
}

/// The directory that `WORKDIR` names.
pub(super) fn directory(
    executor: &Executor<'_>,
    path: &str,
    user: Option<&str>,
    built: &Built,
) -> anyhow::Result<PreparedCopy> {
    let mut key = key_for(executor, "directory", built);
    key.add("path", path);
    key.add("user", user.unwrap_or_default());
    let owner = match user {
        Some(user) => Some(owner_of(user, executor, built)?),
        None => None,
    };
    let placement = Placement {
        destination: format!("{}/", path.trim_end_matches('/')),
        owner,
        now: now(executor),
        latest: executor.request.timestamp,
        ..Placement::default()
    };
    Ok(PreparedCopy { key: key.finish(), groups: Vec::new(), placement })
}

/// Finds what is to be copied, and its key.
pub(super) fn prepare(
    executor: &Executor<'_>,
    stage: usize,
    action: &CopyAction,
    node: &Node,
    built: &Built,
) -> anyhow::Result<PreparedCopy> {
    let _in_place = executor.in_place.read().unwrap_or_else(PoisonError::into_inner);
    let spec = &action.spec;
    let mut groups: Selection = Vec::new();
    let tree = || -> anyhow::Result<Arc<SourceTree>> {
        match &spec.from {
            Some(from) => executor.source_tree(from, stage, node),
            None => executor.input.context().cloned(),
        }
    };
    let mut opened = None;
    for source in &spec.sources {
        if action.is_add && is_git(source) {
            bail!(Hinted {
                message: format!("ADD {source}: git repositories are not fetched"),
                hint: "clone it in a step, or into the context".into(),
            });
        }
        if action.is_add && (source.starts_with("http://") || source.starts_with("https://")) {
            groups.push(downloaded(executor, source, action)?);
            continue;
        }
        if spec.checksum.is_some() {
            bail!("--checksum is for files from the web; {source:?} is none");
        }
        let tree = match &opened {
            Some(tree) => tree,
            None => opened.insert(tree()?),
        };
        let mut found = select(tree, source, spec, &executor.hashes).map_err(told)?;
        if action.is_add && spec.unpack != Some(false) {
            for group in &mut found {
                unpack_if_archive(group)?;
            }
        }
        groups.extend(found);
    }
    for file in &spec.inline {
        let mut entry = Entry::new(Vec::new(), EntryKind::File);
        entry.mode = 0o644;
        entry.size = file.content.len() as u64;
        entry.mtime = now(executor);
        groups.push(single(
            file.name.clone().into_bytes(),
            entry,
            Content::Bytes(file.content.clone().into_bytes()),
            Digest::of(&file.content),
            &file.name,
        ));
    }
    // What stands alone does not depend on what is below.
    let mut key = match spec.link {
        true => KeyBuilder::new("copy-link"),
        false => key_for(executor, "copy", built),
    };
    key.add("parent-of-link", built.chain().map(|chain| chain.0.to_string()).unwrap_or_default());
    key.add("destination", &action.destination);
    key.add("chown", spec.chown.as_deref().unwrap_or_default());
    key.add("chmod", spec.chmod.as_deref().unwrap_or_default());
    key.add("latest", executor.request.timestamp.map(|time| time.to_string()).unwrap_or_default());
    add_to_key(&mut key, &groups);
    let owner = spec.chown.as_deref().map(|text| owner_of(text, executor, built)).transpose()?;
    let mode = spec.chmod.as_deref().and_then(|text| u32::from_str_radix(text, 8).ok());
    let placement = Placement {
        destination: action.destination.clone(),
        owner,
        mode,
        link: spec.link,
        now: now(executor),
        latest: executor.request.timestamp,
    };
    Ok(PreparedCopy { key: key.finish(), groups, placement })
}

fn is_git(source: &str) -> bool {
    source.starts_with("git@")
        || source.starts_with("git://")
        || source.starts_with("ssh://")
        || source.starts_with("http")
            && source.split(['#', '?']).next().is_some_and(|url| url.ends_with(".git"))
}

fn single(base: Vec<u8>, entry: Entry, content: Content, digest: Digest, source: &str) -> Group {
    let item = Item { name: Vec::new(), entry, content, digest: Some(digest), same_as: None };
    Group { base, kind: GroupKind::File, items: vec![item], source: source.to_owned() }
}

/// A file of the web, in the session's directory.
fn downloaded(executor: &Executor<'_>, url: &str, action: &CopyAction) -> anyhow::Result<Group> {
    let file = layerfs_image::registry::get_file(url).map_err(|why| anyhow!("download {url}: {why}"))?;
    if action.destination.ends_with('/') && file.name.is_empty() {
        bail!(Hinted {
            message: format!("{url}: it has no file name"),
            hint: "write the destination with the file's name, without a slash at its end".into(),
        });
    }
    let mut hasher = match action.spec.checksum.as_deref().map(Digest::parse).transpose()? {
        Some(digest) => Hasher::new(digest.algorithm()),
        None => Hasher::new(Algorithm::Sha256),
    };
    let path = executor.step_directory()?.join("file");
    let mut out = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut reader = file.reader;
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0_u64;
    loop {
        executor.check_stopped()?;
        let len = reader.read(&mut buffer).with_context(|| format!("download {url}"))?;
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
        out.write_all(&buffer[..len]).with_context(|| format!("write {}", path.display()))?;
        size += len as u64;
    }
    let digest = hasher.finish();
    if let Some(wanted) = action.spec.checksum.as_deref().map(Digest::parse).transpose()?
        && wanted != digest
    {
        bail!("{url}: its digest is {digest}, not {wanted}");
    }
    let mut entry = Entry::new(Vec::new(), EntryKind::File);
    entry.mode = 0o600;
    entry.size = size;
    entry.mtime = (file.last_modified.unwrap_or(0), 0);
    let mut group = single(file.name.into_bytes(), entry, Content::File(path), digest, url);
    if action.spec.unpack == Some(true) {
        unpack_if_archive(&mut group)?;
    }
    Ok(group)
}

/// An archive in a form that is known is unpacked; all else is a file.
fn unpack_if_archive(group: &mut Group) -> anyhow::Result<()> {
    let [item] = group.items.as_slice() else { return Ok(()) };
    if group.kind != GroupKind::File || item.entry.kind != EntryKind::File || item.entry.size == 0 {
        return Ok(());
    }
    let words = || format!("read {}", group.source);
    let file = match &item.content {
        Content::Object(tree, object) => File::from(object.open(&tree.stack).with_context(words)?),
        Content::File(path) => File::open(path).with_context(words)?,
        _ => return Ok(()),
    };
    let Ok((_, plain)) = decompress(BufReader::new(file)) else { return Ok(()) };
    let mut reader = TarReader::new(plain, TarLimits::default());
    // An archive of nothing cannot be told from a file of zeros.
    if matches!(reader.next_entry(), Ok(Some(_))) {
        group.kind = GroupKind::Archive;
    }
    Ok(())
}

/// `USER[:GROUP]` by the image's own files; a user alone gives the group too.
fn owner_of(text: &str, executor: &Executor<'_>, built: &Built) -> anyhow::Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let tree = SourceTree::layers(executor.stack(&built.layers)?, "the image".into());
    let lines = |path: &str| -> anyhow::Result<Vec<Vec<String>>> {
        let bytes = tree
            .read(path, 16 << 20)
            .with_context(|| format!("read /{path} of the image"))?
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
    };
    let number = |line: &[String], at: usize| line.get(at).and_then(|field| field.trim().parse::<u32>().ok());
    let (uid, default_gid) = match user.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) => {
            let passwd = lines("etc/passwd")?;
            let line = passwd.iter().find(|line| line.first().is_some_and(|name| name == user));
            let ids = line.and_then(|line| number(line, 2).zip(number(line, 3)));
            ids.ok_or_else(|| anyhow!("user {user:?} is not in the image's /etc/passwd"))?
        }
    };
    let gid = match group {
        None => default_gid,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => {
                let groups = lines("etc/group")?;
                let line = groups.iter().find(|line| line.first().is_some_and(|name| name == group));
                let gid = line.and_then(|line| number(line, 2));
                gid.ok_or_else(|| anyhow!("group {group:?} is not in the image's /etc/group"))?
            }
        },
    };
    Ok((uid, gid))
}

/// Writes the layer.
pub(super) fn execute(
    executor: &Executor<'_>,
    prepared: PreparedCopy,
    built: &Built,
) -> anyhow::Result<StagedStep> {
    let _in_place = executor.in_place.read().unwrap_or_else(PoisonError::into_inner);
    let lowers = executor.stack(&built.layers)?;
    taken_in(executor, |out| {
        place(&prepared.placement, &prepared.groups, &lowers, out).map(drop).map_err(told)
    })
}

/// Takes a layer in that `write` writes as an archive.
pub(super) fn taken_in(
    executor: &Executor<'_>,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()> + Send,
) -> anyhow::Result<StagedStep> {
    let (mut reader, writer) = std::io::pipe().context("make a pipe")?;
    // A pipe of the usual size makes many small steps.
    rustix::pipe::fcntl_setpipe_size(writer.as_fd(), 1 << 20).ok();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> anyhow::Result<()> {
            let mut out = std::io::BufWriter::with_capacity(256 * 1024, writer);
            write(&mut out)?;
            out.flush().context("write the layer")
        });
        let input = LayerInput { reader: &mut reader, blob: None, diff_id: None, keep_blob: true };
        let taken = executor.store.ingest_layer(executor.session, input);
        if taken.is_err() {
            // Nobody reads any more: the next write fails.
            drop(reader);
        }
        match writing.join() {
            Ok(Ok(())) => {}
            // What the writer says explains what the reader found.
            Ok(Err(error)) => return Err(error),
            Err(_) => bail!("writing the layer ended early"),
        }
        let mut layer = taken?;
        let (blob, size) = (layer.take_blob(), layer.size);
        let staged = executor.store.complete_layer(&mut layer, &[], &std::collections::HashMap::new())?;
        Ok(StagedStep::of(staged.context("a new layer")?, blob, size))
    })
}

/// Copies a selection into a new directory, for mounts of what an ignore file filters.
pub(super) fn into_directory(groups: &Selection, directory: &Path) -> anyhow::Result<()> {
    let placement = Placement { destination: "/".into(), ..Placement::default() };
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            place(&placement, groups, &Stack::new(Vec::new()), std::io::BufWriter::new(writer))
                .map(drop)
                .map_err(told)
        });
        let unpacked = super::input::unpack_into(directory, BufReader::new(reader));
        match writing.join() {
            Ok(Ok(())) => unpacked,
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("copying ended early"),
        }
    })
}
