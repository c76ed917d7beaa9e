"""File operations for the test scripts: what the shell cannot say, and errno names instead of messages.

Used in two ways: `_py <<'PY' ... PY` runs a script with all of this imported; `_op COMMAND ARG...` runs one of the
commands at the end. Everything printed is stable: no times, numbers of inodes or paths of this machine.
"""

import base64  # noqa: F401  (for the scripts)
import ctypes
import errno
import fcntl
import functools
import hashlib  # noqa: F401
import mmap
import os
import random
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback

LIBC = ctypes.CDLL(None, use_errno=True)
T, MNT, U, W = (os.environ.get(name, "") for name in ("T", "MNT", "U", "W"))
L1, L2, L3, L4 = (os.environ.get(name, "") for name in ("L1", "L2", "L3", "L4"))
FSTYP, BACKING, VARIANT = (os.environ.get(name, "") for name in ("FSTYP", "BACKING", "VARIANT"))
PLAIN = bool(os.environ.get("PLAIN"))
CLOCK_REALTIME_COARSE = 5  # the clock that filesystems stamp with; Python has no name for it
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_FOLLOW = 0x400
AT_EACCESS = 0x200

# ---------------------------------------------------------------- results


def why(error):
    """An error as its errno's name."""
    return errno.errorcode.get(error.errno, str(error.errno)) if isinstance(error, OSError) else repr(error)


def attempt(call, *arguments, **keywords):
    """The call's result, or its errno's name."""
    try:
        return call(*arguments, **keywords)
    except OSError as error:
        return why(error)


def shown(value):
    return "ok" if value is None else value


def show(label, call, *arguments, **keywords):
    """Prints `label: result`, where the result is ok, a value, or an errno's name."""
    value = attempt(call, *arguments, **keywords)
    print(f"{label}: {shown(value)}", flush=True)
    return value


def try_open(*arguments, **keywords):
    """Opens and closes: for showing whether that works."""
    os.close(os.open(*arguments, **keywords))


def check(label, truth, detail=""):
    """Prints `label: yes` or `label: NO`."""
    print(f"{label}: yes" if truth else f"{label}: NO {detail}".rstrip(), flush=True)
    return truth


def note(*words):
    """For debugging: the filter drops these lines."""
    print("conformance-debug:", *words, flush=True)


# ---------------------------------------------------------------- files


def put(path, data=b"", mode=0o644):
    """Writes a whole file."""
    if isinstance(data, str):
        data = data.encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def append(path, data):
    if isinstance(data, str):
        data = data.encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def get(path):
    """A whole file, as text where it is short ASCII."""
    fd = os.open(path, os.O_RDONLY)
    try:
        data = b""
        while block := os.read(fd, 1 << 20):
            data += block
    finally:
        os.close(fd)
    return data.decode("latin-1")


def exists(path):
    return os.path.lexists(path)


def names(path="."):
    return " ".join(sorted(os.listdir(path)))


TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def kind(path):
    """The type's name, or ENOENT."""
    return attempt(lambda: TYPES[stat.S_IFMT(os.lstat(path).st_mode)])


def perms(path):
    return f"{stat.S_IMODE(os.lstat(path).st_mode):04o}"


def owner(path):
    st = os.lstat(path)
    return f"{st.st_uid}:{st.st_gid}"


def ino(path):
    return os.lstat(path).st_ino


def nlink(path):
    return os.lstat(path).st_nlink


def size(path):
    return os.lstat(path).st_size


def blocks(path):
    return os.lstat(path).st_blocks


def mtime(path):
    return os.lstat(path).st_mtime_ns


def ctime(path):
    return os.lstat(path).st_ctime_ns


def make(path, what, data="data"):
    """An object of the named type; `char` and `block` are 1:3 and 7:99, `null` is a character device 0:0."""
    if what == "file":
        put(path, data)
    elif what == "dir":
        os.mkdir(path)
    elif what == "symlink":
        os.symlink("target-of-" + os.path.basename(path), path)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o644)
    elif what == "char":
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))
    elif what == "block":
        os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(7, 99))
    elif what == "null":
        whiteout(path)
    else:
        raise ValueError(what)


ALL_TYPES = ("file", "dir", "symlink", "fifo", "socket", "char", "block")


def whiteout(path):
    """The kernel's form: a character device 0:0."""
    os.mknod(path, stat.S_IFCHR | 0o000, os.makedev(0, 0))


def is_whiteout(path):
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def mark(path, key, value):
    os.setxattr(path, key, value if isinstance(value, bytes) else value.encode(), follow_symlinks=False)


def xattr(path, key):
    return os.getxattr(path, key, follow_symlinks=False)


def xattrs(path, prefix=""):
    return " ".join(sorted(x for x in os.listxattr(path, follow_symlinks=False) if x.startswith(prefix)))


class Tick:
    """Times of an object before an operation, to say which of them it moved. Both are set back first: then any
    change is a change, however coarse the clock is. On a union the object is copied up before, with its data:
    copying is bound to move ctime, and is not what these tests are about."""

    def __init__(self, path):
        self.path = path
        self.reset()

    def reset(self):
        if kind(self.path) == "file":
            os.close(os.open(self.path, os.O_WRONLY))
        os.utime(self.path, ns=(10**18, 10**18), follow_symlinks=False)
        # ctime cannot be set; step past the clock's grain by waiting for it to move.
        before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
            pass
        st = os.lstat(self.path)
        self.mtime, self.ctime = st.st_mtime_ns, st.st_ctime_ns

    def moved(self):
        st = os.lstat(self.path)
        found = [name for name, old, new in (("mtime", self.mtime, st.st_mtime_ns), ("ctime", self.ctime, st.st_ctime_ns)) if old != new]
        return "+".join(found) or "none"


def tick():
    """Returns when the clock that filesystems stamp with has moved on."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        pass


# ---------------------------------------------------------------- calls that Python lacks


def libc(name, *arguments):
    result = getattr(LIBC, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


def renameat2(old, new, flags=0):
    libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


FALLOC = {"plain": 0, "keep": 1, "punch": 3, "collapse": 8, "zero": 16, "zero-keep": 17, "insert": 32, "unshare": 64}


def fallocate(fd, mode, offset, length):
    libc("fallocate", fd, FALLOC.get(mode, mode), ctypes.c_long(offset), ctypes.c_long(length))


def linkat(old_dir, old, new_dir, new, flags=0):
    libc("linkat", old_dir, os.fsencode(old), new_dir, os.fsencode(new), flags)


def link_fd(fd, new):
    """Gives an O_TMPFILE (or any open) file a name."""
    linkat(AT_FDCWD, f"/proc/self/fd/{fd}", AT_FDCWD, new, AT_SYMLINK_FOLLOW)


def fchmodat_nofollow(path, mode):
    """fchmodat2(2); not in libc yet."""
    result = LIBC.syscall(452, AT_FDCWD, os.fsencode(path), mode, AT_SYMLINK_NOFOLLOW)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def faccessat(path, mode, flags=0):
    libc("faccessat", AT_FDCWD, os.fsencode(path), mode, flags)


def syncfs(fd):
    libc("syncfs", fd)


class Statx(ctypes.Structure):
    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("times", ctypes.c_uint64 * 8),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("spare", ctypes.c_uint64 * 13),
    ]


def statx(path, flags=AT_SYMLINK_NOFOLLOW, mask=0x7FF | 0x1000):
    result = Statx()
    libc("statx", AT_FDCWD, os.fsencode(path), flags, mask, ctypes.byref(result))
    return result


class Dirent(ctypes.Structure):
    _fields_ = [
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    ]


LIBC.opendir.restype = ctypes.c_void_p
LIBC.fdopendir.restype = ctypes.c_void_p
LIBC.readdir.restype = ctypes.POINTER(Dirent)
LIBC.telldir.restype = ctypes.c_long


class Directory:
    """A directory stream with positions."""

    def __init__(self, path):
        self.stream = ctypes.c_void_p(LIBC.opendir(os.fsencode(path)))
        if not self.stream:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def next(self):
        """(name, d_ino, d_type) or None at the end."""
        ctypes.set_errno(0)
        entry = LIBC.readdir(self.stream)
        if not entry:
            code = ctypes.get_errno()
            if code:
                raise OSError(code, os.strerror(code))
            return None
        return os.fsdecode(entry.contents.name), entry.contents.ino, entry.contents.type

    def rest(self):
        found = []
        while (entry := self.next()) is not None:
            found.append(entry)
        return found

    def tell(self):
        return LIBC.telldir(self.stream)

    def seek(self, position):
        LIBC.seekdir(self.stream, ctypes.c_long(position))

    def rewind(self):
        LIBC.rewinddir(self.stream)

    def close(self):
        LIBC.closedir(self.stream)


def getdents(fd, length=32768):
    """One getdents64(2): [(name, d_ino, d_off, d_type)]."""
    buffer = ctypes.create_string_buffer(length)
    got = LIBC.syscall(217 if os.uname().machine == "x86_64" else 61, fd, buffer, length)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    raw, at, found = buffer.raw, 0, []
    while at < got:
        number, offset, step, what = struct.unpack_from("=QqHB", raw, at)
        name = raw[at + 19 : raw.index(b"\0", at + 19)]
        found.append((os.fsdecode(name), number, offset, what))
        at += step
    return found


# ---------------------------------------------------------------- ACLs and capabilities

ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
ACL_TAGS = {"u": (0x01, 0x02), "g": (0x04, 0x08), "m": (0x10, 0x10), "o": (0x20, 0x20)}


def acl_bytes(words):
    """`u::rw-,u:1000:r--,g::r--,m::r--,o::---` as the xattr's value."""
    out = struct.pack("<I", 2)
    entries = []
    for word in words.split(","):
        tag, who, bits = word.split(":")
        code = ACL_TAGS[tag][1 if who else 0]
        value = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in bits)
        entries.append((code, int(who) if who else 0xFFFFFFFF, value))
    for code, who, value in sorted(entries):
        out += struct.pack("<HHI", code, value, who)
    return out


def acl_text(value):
    tags = {0x01: "u:", 0x02: "u", 0x04: "g:", 0x08: "g", 0x10: "m:", 0x20: "o:"}
    words = []
    for at in range(4, len(value), 8):
        code, bits, who = struct.unpack_from("<HHI", value, at)
        letters = "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        name = tags[code] if tags[code].endswith(":") else f"{tags[code]}:{who}"
        words.append(f"{name}:{letters}")
    return ",".join(words)


def set_acl(path, words, default=False):
    os.setxattr(path, ACL_DEFAULT if default else ACL_ACCESS, acl_bytes(words))


def acl(path, default=False):
    try:
        return acl_text(os.getxattr(path, ACL_DEFAULT if default else ACL_ACCESS))
    except OSError as error:
        return why(error)


CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)  # cap_net_raw=ep


def set_capability(path):
    os.setxattr(path, "security.capability", CAPABILITY)


def has_capability(path):
    return "cap" if attempt(os.getxattr, path, "security.capability") == CAPABILITY else "nocap"


# ---------------------------------------------------------------- other users and processes


def as_user(uid, gid, call, groups=(), umask=None):
    """Runs the call in a process of another user, without capabilities."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            if umask is not None:
                os.umask(umask)
            call()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        print("the other user's process failed")


def in_child(call):
    """Runs the call in a child; its exit status, or the signal's name."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            call()
            status = 0
        except OSError as error:
            print(why(error))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Peer:
    """Another process that runs statements or expressions one by one and answers with the result."""

    def __init__(self):
        sys.stdout.flush()
        down_r, down_w = os.pipe()
        up_r, up_w = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(down_w)
            os.close(up_r)
            space = dict(sys._getframe(1).f_globals)
            with os.fdopen(down_r) as commands, os.fdopen(up_w, "w") as answers:
                for line in commands:
                    source = eval(line)
                    try:
                        try:
                            code = compile(source, "peer", "eval")
                        except SyntaxError:
                            exec(source, space)
                            value = None
                        else:
                            value = eval(code, space)
                        answer = str(shown(value))
                    except OSError as error:
                        answer = why(error)
                    except BaseException as error:
                        answer = "peer: " + repr(error)
                    answers.write(repr(answer) + "\n")
                    answers.flush()
            os._exit(0)
        os.close(down_r)
        os.close(up_w)
        self.commands = os.fdopen(down_w, "w")
        self.answers = os.fdopen(up_r)

    def send(self, source):
        self.commands.write(repr(source) + "\n")
        self.commands.flush()

    def answer(self):
        return eval(self.answers.readline() or "'peer died'")

    def answered_within(self, seconds):
        return bool(select.select([self.answers], [], [], seconds)[0])

    def __call__(self, source):
        self.send(source)
        return self.answer()

    def close(self):
        self.commands.close()
        os.waitpid(self.pid, 0)
        self.answers.close()


def parallel(count, call):
    """Runs call(i) in `count` processes at once; the failures' text goes to stdout."""
    sys.stdout.flush()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                call(number)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    bad = 0
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        bad += status != 0
    if bad:
        print(f"{bad} of {count} processes failed")
    return bad


# ---------------------------------------------------------------- layers


def tree_marks(root):
    """What lies in a layer: path, type, and the marks that say where data or children lie. Their values, and where
    a directory is marked opaque, are an implementation's choice: what they mean shows in the tree."""
    lines = []
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            what = "whiteout" if is_whiteout(path) else kind(path)
            marks = []
            try:
                listed = os.listxattr(path, follow_symlinks=False)
            except OSError:
                listed = []
            for key in sorted(listed):
                space, _, rest = key.partition(".overlay.")
                if space in ("trusted", "user") and rest in ("metacopy", "redirect"):
                    marks.append(rest)
            lines.append(" ".join([os.path.relpath(path, root), what, *marks]))
    return sorted(lines)


def skeleton(source, target):
    """Directories of one tree made in another with the same attributes."""
    for folder, folders, _ in os.walk(source, topdown=False):
        copy = os.path.normpath(os.path.join(target, os.path.relpath(folder, source)))
        os.makedirs(copy, exist_ok=True)
    for folder, folders, _ in os.walk(source, topdown=False):
        copy = os.path.normpath(os.path.join(target, os.path.relpath(folder, source)))
        st = os.lstat(folder)
        os.chown(copy, st.st_uid, st.st_gid)
        os.chmod(copy, stat.S_IMODE(st.st_mode))
        for key in os.listxattr(folder):
            os.setxattr(copy, key, os.getxattr(folder, key))
        os.utime(copy, ns=(st.st_atime_ns, st.st_mtime_ns))


def main():
    command, *rest = sys.argv[1:]
    if command == "tree-marks":
        for line in tree_marks(rest[0]):
            print(line)
    elif command == "skeleton":
        skeleton(*rest)
    elif command == "whiteout":
        for path in rest:
            whiteout(path)
    elif command == "mark":
        mark(rest[0], rest[1], rest[2])
    elif command == "rename":
        show("rename", renameat2, rest[0], rest[1], int(rest[2]) if len(rest) > 2 else 0)
    elif command == "kind":
        for path in rest:
            print(f"{path}: {kind(path)}")
    elif command == "ino":
        print(ino(rest[0]))
    elif command == "get":
        show(rest[0], get, rest[0])
    else:
        sys.exit(f"fsops: unknown command {command}")


_ = (fcntl, functools, mmap, random, resource, socket, subprocess, threading)

if __name__ == "__main__":
    main()
