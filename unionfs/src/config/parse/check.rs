//! The last step: what was said becomes one [`Config`], or one contradiction.
//!
//! The dependencies between features are those of kernel overlayfs (a stated word beats a default, two stated
//! words that exclude each other are an error), so that an upper written here mounts there.

use std::path::{Path, PathBuf};

use crate::config::{Config, IoMode, LowerSpec, MarkNamespace, RedirectDir, UpperSpec};

use super::error::OptionError;
use super::{Builder, MAX_LOWERS, Parsed};

pub(super) fn build(mut builder: Builder) -> Result<Parsed, OptionError> {
    if builder.remount {
        return Err(OptionError::Remount);
    }
    let lowers = lowers(&mut builder)?;
    let upper = upper(&mut builder, &lowers)?;
    features(&mut builder, upper.is_some())?;
    durability(&mut builder, upper.is_some())?;
    io(&mut builder)?;

    let Builder { mut config, warnings, debug, labels, fsname, source, squash_to_root, .. } = builder;
    if squash_to_root {
        // squash_to_uid and squash_to_gid say it more precisely.
        config.squash.uid.get_or_insert(0);
        config.squash.gid.get_or_insert(0);
    }
    if !labels.is_empty() {
        let labels: Vec<String> = labels.iter().map(|(name, label)| format!("{name}=\"{label}\"")).collect();
        config.flags.context = Some(labels.join(","));
    }
    if let Some(name) = fsname.or(source) {
        config.flags.source = name;
    }
    config.flags.read_only |= upper.is_none();
    let config = Config { lowers: lowers.into_iter().map(LowerSpec::plain).collect(), upper, ..config };
    Ok(Parsed { config, warnings, debug })
}

fn lowers(builder: &mut Builder) -> Result<Vec<PathBuf>, OptionError> {
    let words = std::mem::take(&mut builder.word_lowers);
    let flags = std::mem::take(&mut builder.flag_lowers);
    let lowers = match (words.is_empty(), flags.is_empty()) {
        (true, true) => return Err(OptionError::NoLower),
        (false, false) => {
            // Which of the two would be on top is nowhere said.
            let (what, flag, option) = ("the stack of lower layers", "--lower", "lowerdir");
            return Err(OptionError::GivenTwice { what, flag, option });
        }
        (false, true) => words,
        (true, false) => flags,
    };
    if lowers.len() > MAX_LOWERS {
        return Err(OptionError::TooManyLowers { count: lowers.len(), max: MAX_LOWERS });
    }
    if lowers.iter().any(|l| l.as_os_str().is_empty()) {
        return Err(OptionError::EmptyLayer { option: "lower", value: "".into() });
    }
    // As the kernel, which answers ELOOP. Only what the text shows; other spellings are seen at mount.
    let mut seen = std::collections::HashSet::new();
    for lower in &lowers {
        if !seen.insert(plain(lower)) {
            return Err(OptionError::DuplicateLower { path: lower.clone() });
        }
    }
    Ok(lowers)
}

fn upper(builder: &mut Builder, lowers: &[PathBuf]) -> Result<Option<UpperSpec>, OptionError> {
    let upper = either(
        builder.flag_upper.take(),
        builder.word_upper.take(),
        OptionError::GivenTwice { what: "the upper", flag: "--upper", option: "upperdir" },
    )?;
    let work = either(
        builder.flag_work.take(),
        builder.word_work.take(),
        OptionError::GivenTwice { what: "the work directory", flag: "--work", option: "workdir" },
    )?;
    let (upper, work) = match (upper, work) {
        (None, None) => return Ok(None),
        (Some(upper), None) => return Err(OptionError::UpperWithoutWork { upper }),
        (None, Some(work)) => return Err(OptionError::WorkWithoutUpper { work }),
        (Some(upper), Some(work)) => (upper, work),
    };
    let (plain_upper, plain_work) = (plain(&upper), plain(&work));
    if plain_upper.starts_with(&plain_work) || plain_work.starts_with(&plain_upper) {
        return Err(OptionError::UpperOverlapsWork { upper, work });
    }
    for lower in lowers {
        for (writable, role) in [(&plain_upper, "upperdir"), (&plain_work, "workdir")] {
            if plain(lower) == *writable {
                return Err(OptionError::LowerIsWritable { path: lower.clone(), role });
            }
        }
    }
    Ok(Some(UpperSpec { upper, work }))
}

fn either(
    flag: Option<PathBuf>,
    word: Option<PathBuf>,
    both: OptionError,
) -> Result<Option<PathBuf>, OptionError> {
    match (flag, word) {
        (Some(_), Some(_)) => Err(both),
        (flag, word) => Ok(flag.or(word)),
    }
}

/// The path without `.` components, doubled and trailing slashes. `..` stays: before a symlink is resolved
/// nobody knows where it leads.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|c| *c != std::path::Component::CurDir).collect()
}

fn features(builder: &mut Builder, writable: bool) -> Result<(), OptionError> {
    let contradiction = |first, second, reason| Err(OptionError::Contradiction { first, second, reason });
    let redirect_word = match builder.redirect_dir {
        Some(RedirectDir::On) => "redirect_dir=on",
        Some(RedirectDir::Follow) => "redirect_dir=follow",
        Some(RedirectDir::Off) => "redirect_dir=off",
        Some(RedirectDir::NoFollow) => "redirect_dir=nofollow",
        None => "redirect_dir",
    };
    if builder.nfs_export == Some(true) {
        if builder.index == Some(false) {
            return contradiction("nfs_export=on", "index=off", "file handles need the inode index");
        }
        if builder.metacopy == Some(true) {
            return contradiction(
                "nfs_export=on",
                "metacopy=on",
                "a file handle cannot follow a metadata-only copy",
            );
        }
        builder.warn("option `nfs_export=on` has no effect: this mount gives out no lasting file handles");
    }
    if builder.index == Some(true) {
        let kept = if writable { "hard links stay links without one" } else { "there is no upper" };
        builder.warn(format!("option `index=on` has no effect: no inode index is written, {kept}"));
    }
    if builder.config.marks == MarkNamespace::User {
        // The kernel trusts neither mark in user xattrs, which anybody may forge; an upper with them would show
        // a different tree there.
        if builder.metacopy == Some(true) {
            return contradiction("userxattr", "metacopy=on", "the mark is not trusted in user xattrs");
        }
        if builder.redirect_dir.is_some_and(|r| r != RedirectDir::NoFollow) {
            return contradiction("userxattr", redirect_word, "the mark is not trusted in user xattrs");
        }
        builder.config.metacopy = false;
        builder.config.redirect_dir = RedirectDir::NoFollow;
        return Ok(());
    }
    let follows = match builder.redirect_dir {
        None | Some(RedirectDir::On) => true,
        // Without an upper no mark is written, so following is all there is to it.
        Some(RedirectDir::Follow) => !writable,
        Some(RedirectDir::Off | RedirectDir::NoFollow) => false,
    };
    if builder.metacopy == Some(true) && !follows {
        return contradiction(
            "metacopy=on",
            redirect_word,
            "the data of a renamed metadata-only copy is found by a redirect",
        );
    }
    builder.config.metacopy = builder.metacopy.unwrap_or(follows);
    builder.config.redirect_dir = builder.redirect_dir.unwrap_or_default();
    Ok(())
}

fn durability(builder: &mut Builder, writable: bool) -> Result<(), OptionError> {
    if builder.volatile && builder.fsync == Some(true) {
        let (first, second) = ("volatile", "fsync=1");
        return Err(OptionError::Contradiction {
            first,
            second,
            reason: "volatile means that fsync does nothing",
        });
    }
    let asked = builder.volatile || builder.fsync == Some(false);
    // Not an error: engines add the word to every mount, also to those they make read-only.
    let idle = !writable || builder.config.flags.read_only;
    if asked && idle {
        let word = if builder.volatile { "volatile" } else { "fsync=0" };
        builder.warn(format!("option `{word}` has no effect on a read-only mount"));
    }
    builder.config.volatile = asked && !idle;
    Ok(())
}

fn io(builder: &mut Builder) -> Result<(), OptionError> {
    let contradiction = |first, second, reason| Err(OptionError::Contradiction { first, second, reason });
    if builder.writeback_cache {
        match builder.config.io {
            IoMode::Auto | IoMode::Writeback => builder.config.io = IoMode::Writeback,
            IoMode::Passthrough => {
                return contradiction(
                    "io=passthrough",
                    "writeback_cache",
                    "the kernel offers one or the other for a mount",
                );
            }
            IoMode::Cached => {
                return contradiction("io=cached", "writeback_cache", "io=cached writes through");
            }
        }
    }
    if builder.config.trust_index && builder.config.volatile_lower {
        return contradiction(
            "layer_index=trusted",
            "volatile_lower",
            "one says that nobody changes the layers, the other that somebody does",
        );
    }
    if builder.config.io == IoMode::Writeback && builder.config.volatile_lower {
        return contradiction(
            if builder.writeback_cache { "writeback_cache" } else { "io=writeback" },
            "volatile_lower",
            "with the writeback cache the kernel never asks again for the size of a file",
        );
    }
    Ok(())
}
