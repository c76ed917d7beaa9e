"""The filesystems that scripts/bench compares, and how each is mounted, watched and unmounted.

What must hold: whatever was mounted is unmounted and its process has ended when `Mount.close` returns, also after a
failure; only processes that this run started are waited for or killed.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

# What an unmount may take before the process that served the mount is taken for hung.
SERVER_EXIT_SECONDS = 30


class BenchError(Exception):
    """The run cannot go on; the text says what failed and on what."""


@dataclass(frozen=True)
class Filesystem:
    """One column of the table."""

    key: str  # its name on the command line and in the table
    kind: str  # ext4, overlay, fuse-overlayfs or layerfs
    about: str
    options: str = ""
    program: str = ""  # which program serves it
    indexed: bool = False  # the lower layers have an index and the mount uses it

    @property
    def is_layerfs(self):
        return self.kind == "layerfs"

    @property
    def is_peer(self):
        return self.kind in ("overlay", "fuse-overlayfs")


_OPEN = "allow_other,suid,dev"

FILESYSTEMS = [
    Filesystem("ext4", "ext4", "the backing itself, without layers: a copy of the lower tree"),
    Filesystem(
        "overlay",
        "overlay",
        "kernel overlayfs with the features that layerfs has switched on",
        "redirect_dir=on,metacopy=on",
    ),
    Filesystem("fo-1.10", "fuse-overlayfs", "fuse-overlayfs of Debian", _OPEN, "fuse-overlayfs"),
    Filesystem("fo-2.0.0", "fuse-overlayfs", "fuse-overlayfs 2.0.0 of crates.io", _OPEN, "fuse-overlayfs-2"),
    Filesystem("auto", "layerfs", "layerfs as it comes, lower layers without index", "layer_index=off", "layerfs"),
    Filesystem("cached", "layerfs", "layerfs, io=cached", "io=cached,layer_index=off", "layerfs"),
    Filesystem("writeback", "layerfs", "layerfs, io=writeback", "io=writeback,layer_index=off", "layerfs"),
    Filesystem("passthru", "layerfs", "layerfs, io=passthrough", "io=passthrough,layer_index=off", "layerfs"),
    Filesystem("indexed", "layerfs", "layerfs, lower layers with index that nobody changes", "layer_index=trusted", "layerfs", True),
]

BY_KEY = {fs.key: fs for fs in FILESYSTEMS}
DEFAULT_MODE = "auto"


def servers_of(program, target):
    """Processes of `program` with `target` among their arguments."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if not os.path.samefile(f"/proc/{entry}/exe", program):
                continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile, or is a kernel thread
        if os.fsencode(target) in words:
            found.append(int(entry))
    return found


def run_quietly(command, cwd=None):
    """A command that must succeed. Its output goes to a file in memory, not a pipe: the process that a mount command
    leaves in the background may keep it open."""
    descriptor = os.memfd_create("output")
    with open(descriptor, "w+b") as output:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
        if done.returncode != 0:
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
            raise BenchError(f"{command[0]} failed with status {done.returncode}: {text[:2000]}\n  {command}")


class Mount:
    """A filesystem mounted at `at`, from lower layers (top first) and, unless `upper` is None, a directory pair."""

    def __init__(self, fs, programs, at, lowers, upper=None, work=None, cwd=None):
        self.fs = fs
        self.at = at
        self.server = None
        self._question = None
        self._program = programs.get(fs.program)
        os.makedirs(at, exist_ok=True)
        self._prepare_ext4(lowers, upper)
        command = self._command(lowers, upper, work)
        self.mount_ns = 0
        try:
            started = time.perf_counter_ns()
            run_quietly(command, cwd)
            self.mount_ns = time.perf_counter_ns() - started
            if not os.path.ismount(at):
                raise BenchError(f"{command[0]} succeeded, but nothing is mounted at {at}")
            if self._program:
                servers = servers_of(self._program, at)
                if len(servers) != 1:
                    raise BenchError(f"{len(servers)} processes serve {at}: expected one")
                self.server = servers[0]
                self._watch = os.pidfd_open(self.server)
        except BaseException:
            self.close()
            raise

    def _prepare_ext4(self, lowers, upper):
        if self.fs.kind == "ext4" and upper is not None:
            for lower in reversed(lowers):
                run_quietly(["cp", "-a", f"{lower}/.", f"{upper}/"])

    def _command(self, lowers, upper, work):
        if self.fs.kind == "ext4":
            return ["mount", "--bind", upper if upper is not None else lowers[0], self.at]
        options = "lowerdir=" + ":".join(lowers)
        if upper is not None:
            options += f",upperdir={upper},workdir={work}"
        if self.fs.options:
            options += "," + self.fs.options
        if self.fs.kind == "overlay":
            return ["mount", "-t", "overlay", "overlay", "-o", options, self.at]
        if self.fs.is_layerfs:
            return [self._program, "mount", "-o", options, self.at]
        return [self._program, "-o", options, self.at]

    def requests(self):
        """How often the kernel asked for what, since the mount. The question itself counts, as getxattr."""
        if not self.fs.is_layerfs:
            return {}
        return json.loads(os.getxattr(self.at, "layerfs.report"))["requests"]

    def requests_between(self, before, after):
        """What was asked for between two answers of `requests`, without the second question."""
        if not self.fs.is_layerfs:
            return {}
        if self._question is None:
            first = self.requests()["getxattr"]
            self._question = self.requests()["getxattr"] - first
        counts = {kind: after[kind] - before.get(kind, 0) for kind in sorted(after)}
        counts["getxattr"] -= self._question
        return {kind: count for kind, count in counts.items() if count > 0}

    def server_cpu_ms(self):
        """Processor time that the serving process has used, or None for a filesystem of the kernel."""
        if self.server is None:
            return None
        with open(f"/proc/{self.server}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")

    def server_memory(self):
        """Bytes of the serving process: what is its own (heap and stacks), and all that is resident."""
        if self.server is None:
            return None
        fields = {}
        with open(f"/proc/{self.server}/status", encoding="ascii") as file:
            for line in file:
                key, _, value = line.partition(":")
                if value.strip().endswith(" kB"):
                    fields[key] = int(value.split()[0]) * 1024
        return {"anonymous": fields["RssAnon"], "resident": fields["VmRSS"]}

    def close(self):
        if os.path.ismount(self.at):
            done = subprocess.run(["umount", self.at], stderr=subprocess.DEVNULL, check=False)
            if done.returncode != 0:
                subprocess.run(["umount", "-l", self.at], check=False)
                print(f"bench: {self.at} was busy and has been detached", flush=True)
        elif self._program and self.server is None:
            # The mount failed half-way: the process may be there all the same.
            for pid in servers_of(self._program, self.at):
                os.kill(pid, signal.SIGTERM)
        if self.server is not None:
            # The upper is complete only when the process has left.
            if not select.select([self._watch], [], [], SERVER_EXIT_SECONDS)[0]:
                print(f"bench: process {self.server} outlived its mount {self.at}; killing it", flush=True)
                signal.pidfd_send_signal(self._watch, signal.SIGKILL)
                select.select([self._watch], [], [], SERVER_EXIT_SECONDS)
            os.close(self._watch)
            self.server = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class FreshDirectories:
    """An empty upper and work directory, removed with all that was written there."""

    def __init__(self, parent):
        self.root = os.path.join(parent, "round")

    def __enter__(self):
        shutil.rmtree(self.root, ignore_errors=True)
        for name in ("upper", "work"):
            os.makedirs(f"{self.root}/{name}", mode=0o755)
        return f"{self.root}/upper", f"{self.root}/work"

    def __exit__(self, *_):
        run_quietly(["rm", "-rf", self.root])
