//! Numbers of the FUSE protocol as Linux speaks it (`include/uapi/linux/fuse.h`), version 7.

use bitflags::bitflags;

/// Major version of the protocol.
pub(super) const MAJOR: u32 = 7;
/// Newest minor version whose messages are known here (passthrough came with 40).
pub(super) const MINOR: u32 = 40;
/// Oldest minor version whose messages have the layout known here (Linux 3.15).
pub(super) const OLDEST_MINOR: u32 = 23;

/// Bytes of `struct fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `struct fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;
/// Bytes of `struct fuse_dirent` without the name.
pub(super) const DIRENT: usize = 24;
/// Bytes of `struct fuse_entry_out`.
pub(super) const ENTRY_OUT: usize = 128;

macro_rules! operations {
    ($($name:ident = $number:literal, $word:literal;)*) => {
        /// What a request asks for (`enum fuse_opcode`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Op { $($name,)* }

        impl Op {
            /// From the number in a request's header.
            pub(super) fn of(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its name in reports and logs.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

operations! {
    Lookup = 1, "lookup";
    Forget = 2, "forget";
    GetAttr = 3, "getattr";
    SetAttr = 4, "setattr";
    ReadLink = 5, "readlink";
    Symlink = 6, "symlink";
    MkNod = 8, "mknod";
    MkDir = 9, "mkdir";
    Unlink = 10, "unlink";
    RmDir = 11, "rmdir";
    Rename = 12, "rename";
    Link = 13, "link";
    Open = 14, "open";
    Read = 15, "read";
    Write = 16, "write";
    StatFs = 17, "statfs";
    Release = 18, "release";
    Fsync = 20, "fsync";
    SetXattr = 21, "setxattr";
    GetXattr = 22, "getxattr";
    ListXattr = 23, "listxattr";
    RemoveXattr = 24, "removexattr";
    Flush = 25, "flush";
    Init = 26, "init";
    OpenDir = 27, "opendir";
    ReadDir = 28, "readdir";
    ReleaseDir = 29, "releasedir";
    FsyncDir = 30, "fsyncdir";
    Access = 34, "access";
    Create = 35, "create";
    Interrupt = 36, "interrupt";
    Bmap = 37, "bmap";
    Destroy = 38, "destroy";
    Ioctl = 39, "ioctl";
    Poll = 40, "poll";
    BatchForget = 42, "batch_forget";
    Fallocate = 43, "fallocate";
    ReadDirPlus = 44, "readdirplus";
    Rename2 = 45, "rename2";
    Lseek = 46, "lseek";
    CopyFileRange = 47, "copy_file_range";
    TmpFile = 51, "tmpfile";
    Statx = 52, "statx";
}

bitflags! {
    /// What kernel and server can do (`FUSE_*` of `struct fuse_init_in` and `fuse_init_out`); those used here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct InitFlags: u64 {
        /// Several reads of one file at a time.
        const ASYNC_READ = 1;
        /// Writes of more than a page.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask.
        const DONT_MASK = 1 << 6;
        /// Directories are read with the attributes of their entries.
        const DO_READDIRPLUS = 1 << 13;
        /// Several direct requests at a time.
        const ASYNC_DIO = 1 << 15;
        /// The kernel keeps written pages and writes them back later.
        const WRITEBACK_CACHE = 1 << 16;
        /// ENOSYS to an open means: no opens are sent.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and readdirs of one directory at a time.
        const PARALLEL_DIROPS = 1 << 18;
        /// The kernel checks and caches POSIX ACLs.
        const POSIX_ACL = 1 << 20;
        /// `max_pages` of the answer counts.
        const MAX_PAGES = 1 << 22;
        /// Targets of symlinks are cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// ENOSYS to an opendir means: none are sent.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// The server clears set-id bits and capabilities where it is told to.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// `flags2` counts.
        const INIT_EXT = 1 << 30;
        /// The kernel reads and writes backing files itself.
        const PASSTHROUGH = 1 << 37;
    }
}

bitflags! {
    /// How the kernel treats an open file (`FOPEN_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct FopenFlags: u32 {
        /// Every read and write is a request.
        const DIRECT_IO = 1;
        /// Pages that are cached are still right.
        const KEEP_CACHE = 1 << 1;
        /// Reads and writes go to the backing file named in the answer.
        const PASSTHROUGH = 1 << 7;
    }
}

/// Which fields of a SETATTR count (`FATTR_*`).
pub(super) mod fattr {
    pub(in super::super) const MODE: u32 = 1;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
}

/// Flags of a WRITE (`FUSE_WRITE_*`).
pub(super) mod write_flag {
    /// Written back from the page cache.
    pub(in super::super) const CACHE: u32 = 1;
    /// Set-id bits and capabilities have to go.
    pub(in super::super) const KILL_SUIDGID: u32 = 1 << 2;
}

/// `FUSE_FSYNC_FDATASYNC`.
pub(super) const FSYNC_DATA: u32 = 1;

/// Codes of messages that the server sends unasked (`enum fuse_notify_code`).
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_by_number() {
        assert_eq!(Op::of(1), Some(Op::Lookup));
        assert_eq!(Op::of(51), Some(Op::TmpFile));
        assert_eq!(Op::of(7), None, "no such number");
        assert_eq!(Op::of(4096), None, "CUSE");
        for op in Op::ALL {
            assert!(!op.name().is_empty());
        }
    }
}
