//! Reading the marks of objects in layers.

use std::ffi::CString;
use std::os::fd::AsFd;

use super::dir::DirFlags;
use crate::error::Errno;
use crate::marks::{FUSE_OVERLAYFS_OPAQUE, MarkNames, OVERRIDE_STAT, Opaque, OverrideStat};
use crate::sys::xattr::{self, Target};

/// Where the xattrs of an object come from: the disk, or a layer index.
pub trait XattrSource {
    /// The value of `name`.
    fn get(&self, name: &std::ffi::CStr) -> Result<Option<Vec<u8>>, Errno>;
    /// All names.
    fn names(&self) -> Result<Vec<Vec<u8>>, Errno>;
}

impl XattrSource for Target<'_> {
    fn get(&self, name: &std::ffi::CStr) -> Result<Option<Vec<u8>>, Errno> {
        xattr::get_vec(*self, name)
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        xattr::list_vec(*self)
    }
}

/// The xattrs of an object whose names were listed once.
pub(super) struct Listed<'a> {
    source: &'a dyn XattrSource,
    names: Vec<Vec<u8>>,
}

impl<'a> Listed<'a> {
    /// Lists the names.
    pub(super) fn new(source: &'a dyn XattrSource) -> Result<Self, Errno> {
        Ok(Self { source, names: source.names()? })
    }
}

impl XattrSource for Listed<'_> {
    fn get(&self, name: &std::ffi::CStr) -> Result<Option<Vec<u8>>, Errno> {
        self.source.get(name)
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        Ok(self.names.clone())
    }
}

/// A name for system calls; names with NUL do not exist.
pub fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

/// The xattrs of `name` in `dir`, handed to `read`.
pub fn with_name<T>(
    dir: impl AsFd,
    name: &[u8],
    read: impl FnOnce(Target<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let name = c_name(name)?;
    read(Target::Name(dir.as_fd(), &name))
}

/// Marks of a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirMarks {
    /// The opaque mark.
    pub opaque: Opaque,
    /// The redirect mark, unparsed.
    pub redirect: Option<Vec<u8>>,
    /// The impure mark, and the one for plain `.wh.` names.
    pub flags: DirFlags,
}

/// Reads a directory's marks. `lower`: both namespaces' opaque marks count there, only the mount's own in the upper.
pub fn dir_marks(
    source: &(impl XattrSource + ?Sized),
    names: &MarkNames,
    lower: bool,
) -> Result<DirMarks, Errno> {
    let mut marks = DirMarks::default();
    // One call answers for the many directories without any xattr.
    let present = source.names()?;
    if present.is_empty() {
        return Ok(marks);
    }
    let has = |name: &std::ffi::CStr| present.iter().any(|p| p == name.to_bytes());
    if has(FUSE_OVERLAYFS_OPAQUE) && source.get(FUSE_OVERLAYFS_OPAQUE)?.is_some_and(|v| v == b"y") {
        marks.opaque = Opaque::Yes;
    }
    // Privileged, layers made with either namespace are read; with `userxattr` only its own, as the kernel does.
    let both = [MarkNames::trusted().opaque, MarkNames::user().opaque];
    let opaque_names =
        if lower && names.is_trusted() { &both[..] } else { std::slice::from_ref(&names.opaque) };
    for name in opaque_names {
        if marks.opaque == Opaque::No && has(name) {
            marks.opaque = source.get(name)?.map_or(Opaque::No, |v| Opaque::parse(&v));
        }
    }
    if has(&names.redirect) {
        marks.redirect = source.get(&names.redirect)?;
    }
    marks.flags = DirFlags { impure: has(&names.impure), plain_names: has(&names.plain_names) };
    Ok(marks)
}

/// The override_stat of an object, in the order of precedence.
pub fn override_stat(source: &(impl XattrSource + ?Sized)) -> Result<Option<OverrideStat>, Errno> {
    // One call answers for the many objects without any xattr.
    let present = source.names()?;
    if !present.iter().any(|p| OVERRIDE_STAT.iter().any(|n| n.to_bytes() == p)) {
        return Ok(None);
    }
    for name in OVERRIDE_STAT {
        if let Some(value) = source.get(name)? {
            return Ok(OverrideStat::parse(&value));
        }
    }
    Ok(None)
}
