#!/usr/bin/env python3
"""Compares two trees in everything a user can see: names, types, content, modes, owners, devices, times, symlink
targets, xattrs, and which names are hard links of each other.

    treediff.py snapshot DIR FILE          write what DIR holds to FILE
    treediff.py compare A B [options]      A, B: a directory or a snapshot; exit 1 if they differ

What must hold: taking a snapshot changes nothing, not even access times where O_NOATIME is allowed (symlinks are the
exception: Linux has no way to read one without). Names are bytes; a snapshot stores them so that any name survives.
"""

import argparse
import hashlib
import json
import os
import stat
import sys

# Compared unless left out; `ino`, `ctime`, `atime` and `dirlinks` only when asked for.
FIELDS = [
    "type", "mode", "uid", "gid", "rdev", "size", "mtime", "target", "sha256", "xattrs", "nlink", "links",
]  # fmt: skip
MORE_FIELDS = ["ino", "ctime", "atime", "dirlinks"]

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def text(name):
    """A byte string as JSON can store it, any byte kept."""
    return os.fsdecode(name)


def open_quietly(path, flags):
    """Opens without changing the access time, where the caller may ask for that."""
    try:
        return os.open(path, flags | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def sha256_of(path):
    fd = open_quietly(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else digest(file)


def digest(file):
    """hashlib.file_digest for Python before 3.11."""
    hasher = hashlib.sha256()
    while block := file.read(1 << 20):
        hasher.update(block)
    return hasher.hexdigest()


def names_in(path):
    fd = open_quietly(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sorted(os.fsencode(name) for name in os.listdir(fd))
    finally:
        os.close(fd)


def xattrs_of(path):
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        found[name] = os.getxattr(path, name, follow_symlinks=False).hex()
    return dict(sorted(found.items()))


class Snapshot:
    """Path relative to the root (`.` for the root itself) to a dictionary of fields."""

    def __init__(self):
        self.entries = {}

    @classmethod
    def of(cls, argument):
        """A snapshot file, or a directory that is walked now."""
        if os.path.isdir(argument):
            return cls.of_tree(argument)
        self = cls()
        with open(argument, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                path, entry = json.loads(line)
                self.entries[path] = entry
        return self

    @classmethod
    def of_tree(cls, root):
        self = cls()
        root = os.fsencode(root)
        digests = {}
        groups = {}
        self._add(root, b".", digests, groups)
        for names in groups.values():
            first = min(names)
            for name in names:
                self.entries[name]["links"] = first
        return self

    def _add(self, root, relative, digests, groups):
        # An explicit stack: trees of tests nest deeper than the interpreter does.
        pending = [relative]
        while pending:
            relative = pending.pop()
            path = os.path.join(root, relative)
            found = os.lstat(path)
            kind = TYPES[stat.S_IFMT(found.st_mode)]
            entry = {
                "type": kind,
                "mode": oct(stat.S_IMODE(found.st_mode)),
                "uid": found.st_uid,
                "gid": found.st_gid,
                "mtime": found.st_mtime_ns,
                "ino": found.st_ino,
                "ctime": found.st_ctime_ns,
                "xattrs": xattrs_of(path),
            }
            if kind == "directory":
                entry["dirlinks"] = found.st_nlink
                entry["atime"] = found.st_atime_ns
                pending += [os.path.join(relative, name) for name in reversed(names_in(path))]
            else:
                entry["nlink"] = found.st_nlink
                inode = (found.st_dev, found.st_ino)
                if found.st_nlink > 1:
                    groups.setdefault(inode, []).append(text(relative))
            if kind == "file":
                entry["size"] = found.st_size
                entry["atime"] = found.st_atime_ns
                if inode not in digests or found.st_nlink == 1:
                    digests[inode] = sha256_of(path)
                entry["sha256"] = digests[inode]
            elif kind == "symlink":
                entry["size"] = found.st_size
                entry["target"] = text(os.readlink(path))
            elif kind in ("char", "block"):
                entry["rdev"] = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
            self.entries[text(relative)] = entry

    def save(self, file):
        with open(file, "w", encoding="ascii") as out:
            for path in sorted(self.entries):
                json.dump([path, self.entries[path]], out)
                out.write("\n")


def differences(left, right, fields, excluded=()):
    """Lines that say how two snapshots differ: `-` only left, `+` only right, `~` in a field."""

    def kept(path):
        return not any(path == name or path.startswith(name + "/") for name in excluded)

    for path in sorted(left.entries.keys() | right.entries.keys()):
        if not kept(path):
            continue
        if path not in right.entries:
            yield f"- {path!r}"
        elif path not in left.entries:
            yield f"+ {path!r}"
        else:
            one, other = left.entries[path], right.entries[path]
            for field in fields:
                if one.get(field) != other.get(field):
                    yield f"~ {path!r}: {field} {one.get(field)} -> {other.get(field)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    snapshot = commands.add_parser("snapshot")
    snapshot.add_argument("directory")
    snapshot.add_argument("file")
    compare = commands.add_parser("compare")
    compare.add_argument("left")
    compare.add_argument("right")
    compare.add_argument("--with", dest="more", default="", help=f"also compare, by comma: {','.join(MORE_FIELDS)}")
    compare.add_argument("--without", dest="fewer", default="", help=f"do not compare, by comma: {','.join(FIELDS)}")
    compare.add_argument("--exclude", action="append", default=[], help="leave out this path and what is below it")
    compare.add_argument("--limit", type=int, default=50, help="differences shown (all are counted)")
    arguments = parser.parse_args()

    if arguments.command == "snapshot":
        Snapshot.of_tree(arguments.directory).save(arguments.file)
        return 0

    more = [field for field in arguments.more.split(",") if field]
    fewer = [field for field in arguments.fewer.split(",") if field]
    for field in more + fewer:
        if field not in FIELDS + MORE_FIELDS:
            parser.error(f"unknown field {field}")
    fields = [field for field in FIELDS + more if field not in fewer]
    excluded = [os.path.join(".", path) for path in arguments.exclude]
    left, right = Snapshot.of(arguments.left), Snapshot.of(arguments.right)
    count = 0
    for line in differences(left, right, fields, excluded):
        count += 1
        if count <= arguments.limit:
            print(line)
    if count:
        print(f"{count} differences between {arguments.left} and {arguments.right}")
        return 1
    print(f"{len(left.entries)} entries are the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
