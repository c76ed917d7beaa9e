"""What scripts/bench measures: groups of workloads that share a mount, and the rows they fill.

A group is a function of a `Session`. It mounts, brings about the state that a row is about (warm or cold caches, files in
place), and times the row; it skips rows that were not asked for. What must hold: a row does not depend on another row of
its group having run before it.
"""

import os
from dataclasses import dataclass

from data import LOWER_TREES
from filesystems import DEFAULT_MODE

# Bounds by name: to fuse-overlayfs 2.0.0, to kernel overlayfs, and which io modes are held to them.
ANY_MODE = ("auto", "cached", "writeback", "passthru", "indexed")
AS_IT_COMES = ("auto",)
WITH_INDEX = ("auto", "indexed")


@dataclass(frozen=True)
class Bound:
    """Highest ratios allowed; None: nothing is asked."""

    to_fuse_overlayfs: float | None
    to_overlay: float | None
    held: tuple = AS_IT_COMES  # the best of these counts


BOUNDS = {
    "lookups": Bound(0.5, 1.2, ANY_MODE),
    "stat": Bound(1.0, 1.2, ANY_MODE),
    "walk": Bound(0.5, 1.5, WITH_INDEX),
    "start": Bound(0.75, 1.3),
    "create": Bound(0.75, 4.0),
    "stream": Bound(1.05, 1.1, ("passthru",)),
    "lower": Bound(0.5, 1.0),
    # Nothing but that the default mode may not lose to fuse-overlayfs 2.0.0.
    "none": Bound(None, None),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    group: str
    about: str
    bound: str = "none"
    per: str = ""  # what one operation is, for the request counts
    unit: str = "ms"


ROWS = []
GROUPS = {}


def group(name, *rows, only=None, once=False):
    """Registers a group. `only`: the filesystems that it is about; `once`: one round says all."""

    def register(function):
        for row in rows:
            ROWS.append(Row(row[0], name, *row[1:]))
        function.only = only
        function.once = once
        GROUPS[name] = function
        return function

    return register


def in_root(session, *command):
    """A command in a chroot on the mount."""
    session.command("chroot", session.at, *command)


@group("mount", ("mount", "the mount command until it returns, one layer, new upper", "none", "mount"))
def mount(session):
    if session.fs.kind == "ext4":
        return
    for _ in range(session.count_small(5)):
        with session.mounted([session.data.root()]) as mounted:
            session.record("mount", mounted.mount_ns / 1e6)


PYTHON = "import argparse, collections, email, json, logging, re, subprocess, tempfile, threading, unittest"
C_SOURCE = b"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint main(void) { return puts(getenv(\"HOME\")) < 0; }\n"


@group(
    "tree",
    ("find-cold", "find over the Debian root after dropping caches", "walk", "tree"),
    ("find-warm", "the same again", "lookups", "tree"),
    ("du-cold", "every entry's status too, after dropping caches", "none", "tree"),
    ("du-warm", "the same again", "lookups", "tree"),
    ("read-cold", "every file read to its end after dropping caches", "none", "tree"),
    ("read-warm", "the same again", "walk", "tree"),
    ("stat", "lstat of 1,000 names over and over, 200,000 in all", "stat", "call"),
    ("stat-neg", "lstat of 1,000 missing names over and over, 200,000", "lookups", "call"),
    ("stat-neg-new", "lstat of missing names, each the first time", "lookups", "call"),
    ("open-close", "open, read 4 KiB, close of 1,000 files, 50,000 in all", "lookups", "open"),
    ("python-cold", "python3 with ten modules in a chroot, after dropping caches", "none", "start"),
    ("python", "the same, warm, 10 times", "start", "start"),
    ("gcc", "gcc -O1 -c of a small file in a chroot, warm, 5 times", "start", "start"),
)
def tree(session):
    data = session.data
    lower = data.root_copy() if session.fs.kind == "ext4" else data.root()
    with session.mounted([lower], bind=True):
        at = session.at

        def find():
            session.command("find", at)

        def walk():
            return session.helper("walk", at)

        everything = data.paths("files")
        some = data.paths("some", 1000)

        def read_all():
            return session.helper("read-all", everything)

        session.time("find-cold", find, cold=True)
        session.time("find-warm", find, warm=find)
        session.time("du-cold", walk, cold=True)
        session.time("du-warm", walk, warm=walk)
        session.time("read-cold", read_all, cold=True)
        session.time("read-warm", read_all, warm=read_all)
        calls = data.count(200000)
        session.time("stat", lambda: session.helper("stat", some, calls), calls, warm=lambda: session.helper("stat", some, 1000))
        absent = data.paths("absent", 1000)
        session.time(
            "stat-neg",
            lambda: session.helper("missing", absent, calls),
            calls,
            warm=lambda: session.helper("missing", absent, 1000),
        )
        fresh = data.paths("fresh")
        names = session.lines(fresh)
        # Its directories are known, none of its names is.
        session.time("stat-neg-new", lambda: session.helper("missing", fresh, names), names, warm=walk)
        opens = data.count(50000)
        session.time(
            "open-close",
            lambda: session.helper("open-read-close", some, opens),
            opens,
            warm=lambda: session.helper("open-read-close", some, 1000),
        )
        if not os.path.exists(f"{at}/usr/bin/python3"):
            return

        def python():
            in_root(session, "/usr/bin/python3", "-c", PYTHON)

        session.time("python-cold", python, cold=True)
        session.time("python", session.times(10, python), 10, warm=python, share=10)

        if session.wants("gcc"):
            with open(f"{at}/tmp/bench.c", "wb") as file:
                file.write(C_SOURCE)

            def compile_once():
                in_root(session, "/usr/bin/gcc", "-O1", "-c", "/tmp/bench.c", "-o", "/tmp/bench.o")

            session.time("gcc", session.times(5, compile_once), 5, warm=compile_once, share=5)


@group(
    "big",
    ("seq-write", "a new file of 1 GiB written by 1 MiB, fsync", "stream", "file"),
    ("seq-read", "that file read by 1 MiB after dropping caches", "stream", "file"),
    ("seq-reread", "the same again", "stream", "file"),
    ("seq-read-low", "a lower file of 1 GiB read after dropping caches", "none", "file"),
    ("rand-read", "5,000 random reads of 4 KiB in the new file, after dropping caches", "stream", "read"),
    ("rand-reread", "100,000 of them, warm", "stream", "read"),
    ("rand-write", "20,000 random writes of 4 KiB in the new file, fsync", "stream", "write"),
    ("rand-write-low", "the first write to the lower file of 1 GiB: one byte appended", "none", "write"),
)
def big(session):
    data = session.data
    size = data.big_size()
    with session.mounted([data.big()]):
        new, lower = f"{session.at}/new", f"{session.at}/big"

        def write():
            return session.helper("seq-write", new, size)

        def read():
            return session.helper("seq-read", new, size)

        def ready():
            # The file is there already unless only rows that read it were asked for.
            if not os.path.exists(new):
                write()

        session.time("seq-write", write)
        session.time("seq-read", read, cold=True, warm=ready)
        session.time("seq-reread", read, warm=lambda: (ready(), read()))
        session.time("seq-read-low", lambda: session.helper("seq-read", lower, size), cold=True)
        reads = data.count(5000)
        session.time("rand-read", lambda: session.helper("rand-read", new, reads), reads, cold=True, warm=ready)
        many = data.count(100000)
        session.time("rand-reread", lambda: session.helper("rand-read", new, many), many, warm=lambda: (ready(), read()))
        writes = data.count(20000)
        session.time("rand-write", lambda: session.helper("rand-write", new, writes), writes, warm=ready)
        if session.wants("rand-write-low"):
            name = session.write_list("append-big", ["big"])
            session.time("rand-write-low", lambda: session.helper("append", name))


@group(
    "create",
    ("create-unlink", "10,000 files made, closed and removed, one after the other", "create", "file"),
    ("untar", "tar -x of a source tree of some thousand files", "create", "file"),
    ("rm-new", "rm -rf of that tree", "create", "file"),
    ("dpkg", "300 files written, synced and renamed into place", "none", "file"),
)
def create(session):
    data = session.data
    lowers = [data.root()]
    archive, entries = data.source_archive()
    with session.mounted(lowers, empty_ext4=True):
        work = f"{session.at}/bench"
        os.mkdir(work)
        os.mkdir(f"{work}/tree")

        def untar():
            session.command("tar", "-C", f"{work}/tree", "-xf", archive)

        def ready():
            if not os.listdir(f"{work}/tree"):
                untar()

        files = data.count(10000)
        session.time("create-unlink", lambda: session.helper("create-unlink", work, files), files)
        session.time("untar", untar, entries)
        session.time("rm-new", lambda: session.command("rm", "-rf", f"{work}/tree"), entries, warm=ready)
        replaced = data.count(300)
        session.time("dpkg", lambda: session.helper("replace", work, replaced), replaced)


@group(
    "parallel",
    ("read-1", "every file read by 1 process, warm, all processors allowed", "none", "tree"),
    ("read-2", "the same by 2 processes at once, each everything", "none", "tree"),
    ("read-4", "the same by 4 processes", "none", "tree"),
    ("clients-1", "4,000 files made, written, looked at, removed by 1 process", "none", "file"),
    ("clients-4", "the same 4,000 by 4 processes", "none", "file"),
    ("clients-16", "the same 4,000 by 16 processes", "none", "file"),
)
def parallel(session):
    data = session.data
    everything = data.paths("files")
    lower = data.root_copy() if session.fs.kind == "ext4" else data.root()
    with session.mounted([lower], bind=True, parallel=True):
        for processes in (1, 2, 4):
            session.time(
                f"read-{processes}",
                lambda: session.helper("readers", everything, processes),
                warm=lambda: session.helper("read-all", everything),
            )
        work = f"{session.at}/bench"
        os.mkdir(work)
        made = data.count(4000)
        for clients in (1, 4, 16):
            session.time(f"clients-{clients}", lambda: session.helper("clients", work, clients, made), made)
        os.rmdir(work)


GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "safe.directory=*")


@group(
    "git",
    ("git-add", "git add of /usr/include, 1,600 files", "create", "run"),
    ("git-commit", "git commit", "create", "run"),
    ("git-status", "git status, warm", "create", "run"),
    ("git-gc", "git gc", "create", "run"),
)
def git(session):
    headers = session.data.headers_archive()
    with session.mounted([session.data.root()], empty_ext4=True):
        work = f"{session.at}/repository"

        def git_do(*arguments):
            session.command(*GIT, "-C", work, *arguments)

        os.mkdir(work)
        session.command("tar", "-C", work, "-xf", headers)
        git_do("init", "--quiet")
        # One after the other by their nature: those before the last one asked for are done, timed or not.
        session.time("git-add", lambda: git_do("add", "-A"), always=True)
        session.time("git-commit", lambda: git_do("commit", "--quiet", "-m", "bench"), always=True)
        session.time("git-status", lambda: git_do("status", "--short"), warm=lambda: git_do("status", "--short"))
        session.time("git-gc", lambda: git_do("gc", "--quiet"))


@group(
    "lower",
    ("chmod-R", "chmod -R of a lower source tree", "lower", "entry"),
    ("chown-R", "chown -R of another", "lower", "entry"),
    ("append", "one byte appended to each of 1,000 lower files", "none", "file"),
    ("rm-lower", "rm -rf of a lower source tree", "lower", "entry"),
)
def lower_trees(session):
    data = session.data
    _, entries = data.source_archive()
    append_list, appended = data.append_list()
    with session.mounted([data.lower_trees()]):
        at = session.at
        for name in LOWER_TREES:
            session.command("find", f"{at}/{name}")
        session.time("chmod-R", lambda: session.command("chmod", "-R", "go-w,u+x", f"{at}/chmod"), entries)
        session.time("chown-R", lambda: session.command("chown", "-R", "1000:1000", f"{at}/chown"), entries)
        session.time("append", lambda: session.helper("append", append_list), appended)
        session.time("rm-lower", lambda: session.command("rm", "-rf", f"{at}/remove"), entries)


LAYERS = (1, 10, 100, 500)


def _layer_rows():
    for layers in LAYERS:
        word = "layer" if layers == 1 else "layers"
        yield (f"mount-{layers}", f"mount of {layers} {word}, 2,000 files in all", "none", "mount")
        yield (f"lookup-{layers}", f"each of those files, and as many missing ones, looked up once, {layers} {word}", "none", "call")


@group("layers", *_layer_rows(), only=("overlay", "fo-1.10", "fo-2.0.0", DEFAULT_MODE, "indexed"))
def stacks(session):
    for layers in LAYERS:
        if not (session.wants(f"mount-{layers}") or session.wants(f"lookup-{layers}")):
            continue
        path, lists = session.data.stack(layers)
        names = [f"{layer:03}" for layer in range(layers)]
        for again in range(session.count_small(3)):
            with session.mounted(names, cwd=path) as mounted:
                session.record(f"mount-{layers}", mounted.mount_ns / 1e6)
                if again == 0:
                    files = session.lines(lists["present"])

                    def look_up():
                        present = session.helper("stat", lists["present"], files)
                        return present + session.helper("missing", lists["absent"], files)

                    session.time(f"lookup-{layers}", look_up, 2 * files)


@group(
    "memory",
    ("walk-million", "1,000,000 files looked up, once", "none", "file"),
    ("memory", "heap of the mount process after that", "none", "", "MiB"),
    only=("fo-1.10", "fo-2.0.0", DEFAULT_MODE, "indexed"),
    once=True,
)
def memory(session):
    path, files = session.data.million()
    with session.mounted([path]) as mounted:
        session.time("walk-million", lambda: session.helper("walk", session.at), files, always=True)
        session.record("memory", mounted.server_memory()["anonymous"] / (1 << 20))
