"""One filesystem in one round of one group: mounts, brings caches into a state, times, keeps what was seen."""

import ctypes
import os
import subprocess
import time
from contextlib import contextmanager

from filesystems import BenchError, FreshDirectories, Mount

_libc = ctypes.CDLL(None, use_errno=True)


def write_out(path):
    """syncfs(2) of the filesystem that holds `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)
    finally:
        os.close(descriptor)


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


# Client and server share one processor unless a row is about several clients. Whether the scheduler wakes a server on
# the client's processor or on another one is chance, and on a virtual machine the difference is ten times the work: the
# same loop over 10,000 files takes 0.7 s or 5 s. On one processor it takes the same every time.
_ALL = os.sched_getaffinity(0)
_ONE = {max(_ALL)}


class Results:
    """All samples of a run: samples[row][filesystem] is a list of dictionaries, in the order of the rounds."""

    def __init__(self):
        self.samples = {}

    def add(self, row, fs, **sample):
        self.samples.setdefault(row, {}).setdefault(fs, []).append(sample)


class Session:
    """What a group of workloads is given. `wanted`: the names of the rows to fill."""

    def __init__(self, fs, data, programs, scratch, wanted, results, small, spread_out):
        self.fs = fs
        self.data = data
        self.at = os.path.join(scratch, "merged")
        self._programs = programs
        self._wanted = wanted
        self._results = results
        self._small = small
        self._spread_out = spread_out
        self._mount = None

    def wants(self, row):
        return row in self._wanted

    def count_small(self, full):
        """How often to repeat what is repeated within a round."""
        return 1 if self._small else full

    @contextmanager
    def mounted(self, lowers, bind=False, empty_ext4=False, cwd=None, parallel=False):
        """The filesystem over `lowers` with a new upper. ext4 has no layers: `bind` mounts the one lower itself,
        `empty_ext4` begins empty, else the lowers are copied. `parallel`: on all processors."""
        with FreshDirectories(self.data.backing) as (upper, work):
            if self.fs.kind == "ext4" and bind:
                upper = None
            elif self.fs.kind == "ext4" and empty_ext4:
                lowers = []
            write_out(self.data.backing)
            # What is started from here on, the server among it, may use no others.
            os.sched_setaffinity(0, _ALL if parallel or self._spread_out else _ONE)
            with Mount(self.fs, self._programs, self.at, lowers, upper, work, cwd) as mount:
                self._mount = mount
                yield mount
                self._mount = None

    # --- doing -----------------------------------------------------------------------------------------------

    def command(self, *words):
        """A command that must succeed; what it prints is not wanted."""
        done = subprocess.run(
            words,
            cwd=self.at,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LC_ALL": "C"},
            check=False,
        )
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip()[-2000:]
            raise BenchError(f"on {self.fs.key}: {words} failed with status {done.returncode}: {text}")

    def helper(self, *arguments):
        """A command of syscalls.c: returns the nanoseconds it measured."""
        words = [self._programs["syscalls"], *map(str, arguments)]
        done = subprocess.run(words, cwd=self.at, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip()[-2000:]
            raise BenchError(f"on {self.fs.key}: {words[1:]} failed with status {done.returncode}: {text}")
        return int(done.stdout)

    @staticmethod
    def times(count, action):
        """`action` done `count` times."""

        def repeated():
            for _ in range(count):
                action()

        return repeated

    @staticmethod
    def lines(path):
        with open(path, "rb") as file:
            return sum(1 for _ in file)

    def write_list(self, name, paths):
        """A file that lists `paths`, outside the mount."""
        path = f"{self.data.backing}/data/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{one}\n" for one in paths)
        return path

    # --- timing ----------------------------------------------------------------------------------------------

    def time(self, row, action, operations=1, cold=False, warm=None, share=1, always=False):
        """Times `action`: by what it returns (nanoseconds) or else from outside. `warm` is done before, untimed; `cold`
        drops the caches then. The time is divided by `share`; requests are counted for `operations`. What was not asked
        for is skipped, or, with `always`, done untimed because later rows need it."""
        if not self.wants(row):
            if always:
                action()
            return
        if warm is not None:
            warm()
        mount = self._mount
        write_out(self.at)
        write_out(self.data.backing)
        if cold:
            drop_caches()
        cpu = mount.server_cpu_ms()
        before = mount.requests()
        started = time.perf_counter_ns()
        took = action()
        from_outside = time.perf_counter_ns() - started
        after = mount.requests()
        sample = {
            "value": (took if isinstance(took, int) else from_outside) / 1e6 / share,
            "requests": mount.requests_between(before, after),
            "operations": operations,
        }
        if cpu is not None:
            sample["server_cpu_ms"] = (mount.server_cpu_ms() - cpu) / share
        self._results.add(row, self.fs.key, **sample)

    def record(self, row, value):
        """A figure that was taken elsewhere, in the unit of the row."""
        if self.wants(row):
            self._results.add(row, self.fs.key, value=value, requests={}, operations=1)
