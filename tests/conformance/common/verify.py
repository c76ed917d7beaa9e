"""What is checked around every mounted test: lower layers untouched, work empty, processes and mounts gone, and
kernel overlayfs showing the tree that the mount showed.

Faults go to STATE/faults, one per line; the driver fails the test for any.
"""

import ctypes
import errno
import hashlib
import json
import os
import select
import signal
import stat
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY = 1
MNT_DETACH = 2
# A mount's process must be gone this soon after the unmount (seconds).
PROCESS_EXIT_SECONDS = 20
BLOCK = 1 << 16
ZEROS = bytes(BLOCK)
# Differences shown per comparison.
SHOWN = 12


def text(name):
    return os.fsencode(name).decode("utf-8", "backslashreplace") if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


def xattrs_of(name):
    """All xattrs of one object of the current directory, never following it; values as hex."""
    found = {}
    try:
        names = os.listxattr(name, follow_symlinks=False)
    except OSError as error:
        return {"(listxattr)": os.strerror(error.errno)}
    for key in names:
        try:
            found[key] = os.getxattr(name, key, follow_symlinks=False).hex()
        except OSError as error:
            found[key] = "getxattr: " + os.strerror(error.errno)
    return found


def content_of(name, st):
    """A digest of what a regular file or symlink holds."""
    if stat.S_ISLNK(st.st_mode):
        return os.fsencode(os.readlink(name)).hex()
    if not stat.S_ISREG(st.st_mode):
        return None
    try:
        # Reading for a check must not be what changes a lower file's atime.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME)
    except OSError as error:
        return "open: " + os.strerror(error.errno)
    digest = hashlib.sha256(str(st.st_size).encode())
    at = 0
    try:
        # Holes are stepped over, and blocks of zeros left out: where holes lie is not content.
        while at < st.st_size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            block = os.pread(fd, BLOCK, at)
            if not block:
                break
            if block != ZEROS[: len(block)]:
                digest.update(b"%d:" % at)
                digest.update(block)
            at += BLOCK
    except OSError as error:
        return "read: " + os.strerror(error.errno)
    finally:
        os.close(fd)
    return digest.hexdigest()


def walk(root, exact):
    """{path: properties} of everything under root. `exact` is for a layer (all that is stored), else for comparing
    two views of one union (what every union filesystem must agree on)."""
    tree = {}
    links = {}

    def one(name, path):
        st = os.lstat(name)
        entry = {
            "type": stat.S_IFMT(st.st_mode),
            "mode": oct(stat.S_IMODE(st.st_mode)),
            "owner": f"{st.st_uid}:{st.st_gid}",
            "mtime": st.st_mtime_ns,
            "content": content_of(name, st),
            "xattrs": xattrs_of(name),
        }
        if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            entry["device"] = f"{os.major(st.st_rdev)}:{os.minor(st.st_rdev)}"
        if not stat.S_ISDIR(st.st_mode):
            entry["size"] = st.st_size
        if exact:
            # Not blocks: data written just before may still be waiting for its blocks.
            entry.update(ctime=st.st_ctime_ns, ino=st.st_ino, nlink=st.st_nlink)
        elif not stat.S_ISDIR(st.st_mode):
            links.setdefault((st.st_dev, st.st_ino), []).append(path)
        tree[path] = entry
        return st

    def descend(fd, path):
        os.fchdir(fd)
        for name in sorted(os.listdir(fd)):
            below = f"{path}/{text(name)}"
            try:
                st = one(name, below)
            except OSError as error:
                tree[below] = {"error": os.strerror(error.errno)}
                continue
            if stat.S_ISDIR(st.st_mode):
                try:
                    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME)
                except OSError as error:
                    tree[below]["error"] = os.strerror(error.errno)
                    continue
                try:
                    descend(inner, below)
                finally:
                    os.close(inner)
                os.fchdir(fd)

    sys.setrecursionlimit(20000)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        os.fchdir(fd)
        one(".", "")
        descend(fd, "")
    finally:
        os.chdir("/")
        os.close(fd)
    if not exact:
        for names in links.values():
            if len(names) > 1:
                for name in names:
                    tree[name]["links"] = sorted(names)
    return tree


def differences(before, after, what):
    found = []
    for path in sorted(before.keys() | after.keys()):
        shown = path or "/"
        if path not in after:
            found.append(f"{what}: {shown}: gone")
        elif path not in before:
            found.append(f"{what}: {shown}: new")
        else:
            for key in sorted(before[path].keys() | after[path].keys()):
                left, right = before[path].get(key), after[path].get(key)
                if left != right:
                    found.append(f"{what}: {shown}: {key} {left} -> {right}")
    if len(found) > SHOWN:
        found[SHOWN:] = [f"{what}: and {len(found) - SHOWN} more"]
    return found


def record(target, *roots):
    with open(target, "w", encoding="utf-8") as out:
        json.dump({root: walk(root, True) for root in roots}, out)


def mounts_below(root):
    """[(mountpoint, device number)], deepest last."""
    found = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split()
            point = fields[4].decode("unicode_escape").encode("latin-1")
            point = os.fsdecode(point)
            if point == root or point.startswith(root + "/"):
                found.append((point, fields[2].decode()))
    return found


def processes_of(tag):
    """Process ids whose environment says that they serve a mount of this test (or of any beneath the directory)."""
    exact = b"CONFORMANCE_MOUNT=" + os.fsencode(tag)
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environment:
                words = environment.read().split(b"\0")
            if any(word == exact or word.startswith(exact + b"/") for word in words):
                found.append(int(pid))
        except OSError:
            continue  # gone, or not ours to read
    return found


def still_there(tag, seconds):
    """Waits until the processes serving the test's mounts have left; those that have not."""
    poll = select.poll()
    waiting = {}
    for pid in processes_of(tag):
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        waiting[fd] = pid
        poll.register(fd, select.POLLIN)
    while waiting:
        ready = poll.poll(seconds * 1000)
        if not ready:
            break
        for fd, _ in ready:
            poll.unregister(fd)
            os.close(fd)
            del waiting[fd]
    return sorted(waiting.values())


def leftovers(work, fstyp):
    """What lies in a work directory that was unmounted cleanly, apart from its empty fixed directories."""
    found = []
    fixed = {"work", "index", "incompat", "work/incompat"}
    if fstyp == "overlay":
        # Kept on purpose: the index of index=on is state of the upper, and the marker of volatile stays.
        fixed.update(("work/incompat/volatile", "work/incompat/volatile/dirty"))
    for folder, folders, files in os.walk(work):
        here = os.path.relpath(folder, work)
        if fstyp == "overlay" and here == "index":
            folders.clear()
            continue
        for name in folders + files:
            path = os.path.normpath(os.path.join(here, name))
            if path not in fixed:
                found.append(path)
    return sorted(found)[:SHOWN]


def mount(kind, target, options):
    if LIBC.mount(b"kernel-view", os.fsencode(target), kind.encode(), MS_RDONLY, os.fsencode(options)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def escape(path):
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def kernel_tree(base, layers, options, state):
    """The tree that kernel overlayfs shows of the layers (top first), mounted read-only with upper as the top lower."""
    empty = os.path.join(state, "empty")
    view = os.path.join(state, "view")
    os.makedirs(empty, exist_ok=True)
    os.makedirs(view, exist_ok=True)
    if len(layers) == 1:
        layers = layers + [empty]  # overlayfs wants two without an upper
    os.chdir(base)
    names = [os.path.relpath(layer, base) if layer.startswith(base + "/") else layer for layer in layers]
    words = "lowerdir=" + ":".join(escape(name) for name in names)
    if "userxattr" in options.split(","):
        words += ",userxattr"
    else:
        words += ",redirect_dir=nofollow" if "redirect_dir=nofollow" in options else ",redirect_dir=follow,metacopy=on"
    try:
        mount("overlay", view, words)
    finally:
        os.chdir("/")
    try:
        return walk(view, False)
    finally:
        LIBC.umount2(os.fsencode(view), MNT_DETACH)


def after(arguments):
    """All checks that follow an unmount."""
    values = {}
    while arguments and arguments[0].startswith("--"):
        values[arguments[0][2:]] = arguments[1]
        arguments = arguments[2:]
    lowers = arguments
    state, tag = values["state"], values["tag"]
    faults = []
    left = still_there(tag, PROCESS_EXIT_SECONDS)
    if left:
        faults.append(f"{len(left)} process(es) still serve the mount {PROCESS_EXIT_SECONDS} s after the unmount")
    with open(os.path.join(state, "lowers.json"), encoding="utf-8") as file:
        before = json.load(file)
    for number, (root, tree) in enumerate(before.items(), 1):
        faults.extend(differences(tree, walk(root, True), f"lower layer {number} changed"))
    if values["mode"] != "-r" and "work" not in os.environ.get("SKIPPED_CHECKS", "").split():
        faults.extend(f"left in work: {item}" for item in leftovers(values["work"], values["fstyp"]))
    if values["kernel-view"] != "no":
        layers = list(lowers) if values["mode"] == "-r" else [values["upper"], *lowers]
        with open(os.path.join(state, "merged.json"), encoding="utf-8") as file:
            merged = json.load(file)
        try:
            seen = kernel_tree(tag, layers, values["options"], state)
        except OSError as error:
            faults.append(f"kernel overlayfs cannot mount the layers: {error.strerror}")
        else:
            # Through JSON, so that both sides have the same types.
            faults.extend(differences(merged, json.loads(json.dumps(seen)), "mount -> kernel overlayfs"))
    if faults:
        with open(os.path.join(state, "faults"), "a", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in faults)


def compare(one, other):
    """Prints how two recorded trees differ."""
    trees = []
    for name in (one, other):
        with open(name, encoding="utf-8") as file:
            trees.append(json.load(file))
    for line in differences(*trees, "tree"):
        print(line)


def left(root):
    """For mounts that a test made by hand: prints how many of their processes stay."""
    for _ in still_there(root, PROCESS_EXIT_SECONDS):
        print("a process outlives its mount")


def abort(root):
    """Breaks the FUSE connections of a hung test, so that its processes can be ended and its mounts taken away."""
    for _, device in mounts_below(root):
        minor = device.partition(":")[2]
        path = f"/sys/fs/fuse/connections/{minor}/abort"
        if os.path.exists(path):
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write("1")
            except OSError as error:
                print(f"abort {path}: {error.strerror}")


def sweep(root):
    """Removes every mount beneath root and the processes behind them; true when nothing had to be forced.

    The backing's own mount (root/space) is expected, everything else was left behind by somebody."""
    clean = True
    for point, _ in reversed(mounts_below(root)):
        if LIBC.umount2(os.fsencode(point), 0) != 0:
            abort(point)
            if LIBC.umount2(os.fsencode(point), MNT_DETACH) != 0:
                print(f"cannot unmount {point}: {os.strerror(ctypes.get_errno())}")
                clean = False
            elif not point.endswith("/space"):
                print(f"was busy: {point}")
                clean = False
    for pid in still_there(root, 5):
        print(f"killed process {pid}, which outlived its mount")
        clean = False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return clean


def main():
    command, *rest = sys.argv[1:]
    if command == "record":
        record(*rest)
    elif command == "tree":
        tree = walk(rest[0], False)
        with open(rest[1], "w", encoding="utf-8") as out:
            json.dump(tree, out)
    elif command == "after":
        after(rest)
    elif command == "compare":
        compare(*rest)
    elif command == "left":
        left(rest[0])
    elif command == "abort":
        abort(rest[0])
    elif command == "sweep":
        sys.exit(0 if sweep(rest[0]) else 1)
    else:
        sys.exit(f"verify.py: unknown command {command}")


if __name__ == "__main__":
    main()
