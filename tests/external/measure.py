#!/usr/bin/env python3
"""The parts of scripts/measure-union that need a clock: builds trees, times single operations, watches latencies.

Each command prints one JSON object. Times are in milliseconds, sizes in bytes. What must hold: a timed operation is done
exactly once, so that nothing of it is cached from an earlier try.
"""

import argparse
import ctypes
import errno
import json
import os
import subprocess
import sys
import time

AT_FDCWD = -100
AT_STATX_FORCE_SYNC = 0x2000
STATX_BASIC_STATS = 0x7FF

libc = ctypes.CDLL(None, use_errno=True)


def stat_at_server(path):
    """statx that asks the filesystem itself, whatever the kernel has cached. `path` is bytes."""
    buffer = ctypes.create_string_buffer(256)
    if libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)


def timed(operation):
    started = time.perf_counter_ns()
    operation()
    return (time.perf_counter_ns() - started) / 1e6


def make_files(arguments):
    """`count` files with a line of text each."""
    os.makedirs(arguments.directory, exist_ok=True)
    for number in range(arguments.count):
        with open(f"{arguments.directory}/file-{number:06}", "w", encoding="ascii") as file:
            file.write(f"content {number}\n")
    return {"files": arguments.count}


def make_data(arguments):
    """A file of `size` bytes of data, written out: no part of it is a hole."""
    block = os.urandom(1 << 20)
    with open(arguments.file, "wb", buffering=0) as file:
        for _ in range(arguments.size >> 20):
            file.write(block)
        os.fsync(file.fileno())
    return {"size": arguments.size}


def make_stack(arguments):
    """`layers` directories 000, 001... with `entries` entries in all, many names in several layers."""
    per_layer = arguments.entries // arguments.layers
    for layer in range(arguments.layers):
        made = 1
        directory = 0
        while made < per_layer:
            # Every second directory is in all layers, the others only in one.
            name = f"shared-{directory}" if directory % 2 else f"own-{layer}-{directory}"
            path = f"{arguments.directory}/{layer:03}/{name}"
            os.makedirs(path)
            made += 1
            for number in range(min(99, per_layer - made)):
                os.close(os.open(f"{path}/file-{layer % 10}-{number}", os.O_CREAT | os.O_WRONLY, 0o644))
                made += 1
            directory += 1
    return {"layers": arguments.layers, "entries": per_layer * arguments.layers}


def chmod(arguments):
    return {"chmod_ms": timed(lambda: os.chmod(arguments.file, 0o600))}


def rename(arguments):
    """rename(2), or, where the filesystem refuses that, what mv(1) then does."""

    def move():
        try:
            os.rename(arguments.old, arguments.new)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            subprocess.run(["mv", arguments.old, arguments.new], check=True)

    return {"rename_ms": timed(move)}


def latency(arguments):
    """What others wait for while another process's first write to `big` copies it up."""
    directory = os.fsencode(arguments.directory)
    names = [os.path.join(directory, name) for name in os.listdir(directory)]
    reference = os.fsencode(arguments.reference)
    worst = {"stat": 0.0, "lookup": 0.0, "readdir": 0.0, "read": 0.0, "reference": 0.0}
    counts = dict.fromkeys(worst, 0)

    def observe(what, operation):
        worst[what] = max(worst[what], timed(operation))
        counts[what] += 1

    def missing(path):
        try:
            os.stat(path)
        except FileNotFoundError:
            return
        raise AssertionError(path)

    def read(path):
        with open(path, "rb") as file:
            file.read()

    stat_at_server(names[0])
    # A union may copy at the open or at the first write: both, and closed.
    code = "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND); os.write(fd, b'x'); os.close(fd)"
    started = time.perf_counter_ns()
    writer = subprocess.Popen([sys.executable, "-c", code, arguments.big])
    number = 0
    while writer.poll() is None:
        path = names[number % len(names)]
        observe("stat", lambda: stat_at_server(path))
        observe("lookup", lambda: missing(directory + b"/missing-%d" % number))
        observe("reference", lambda: stat_at_server(reference))
        if number % 10 == 0:
            observe("read", lambda: read(path))
        if number % 200 == 0:
            observe("readdir", lambda: os.listdir(arguments.other))
        number += 1
    took = (time.perf_counter_ns() - started) / 1e6
    if writer.returncode != 0:
        raise SystemExit(f"writing to {arguments.big} failed")
    result = {"copy_up_ms": took}
    for what, value in worst.items():
        result[f"worst_{what}_ms"] = value
        result[f"{what}_calls"] = counts[what]
    return result


def memory(arguments):
    """Of a process: all that is resident, and the part that is its own (not mapped files)."""
    fields = {}
    with open(f"/proc/{arguments.pid}/status", encoding="ascii") as file:
        for line in file:
            key, _, value = line.partition(":")
            if value.strip().endswith(" kB"):
                fields[key] = int(value.split()[0]) * 1024
    return {"resident": fields["VmRSS"], "anonymous": fields["RssAnon"], "peak": fields["VmHWM"]}


def run(arguments):
    """Time of a command, from its start to its exit."""
    return {"ms": timed(lambda: subprocess.run(arguments.command, check=True, stdin=subprocess.DEVNULL))}


def walk(arguments):
    """Every directory listed, every entry's status read."""
    entries = 0

    def everything():
        nonlocal entries
        for _, names, files in os.walk(arguments.directory):
            entries += len(names) + len(files)

    took = timed(everything)
    return {"walk_ms": took, "entries": entries}


# What was promised (on an idle machine), and what no machine may exceed.
LIMITS = {
    "chmod of a 1 GiB lower file, ms": (5, 200),
    "data allocated by it, bytes": (65536, 1048576),
    "mv of a lower directory of 50,000 files, ms": (5, 500),
    "worst stat during a 2 GiB copy-up, ms": (20, 2000),
    "worst lookup during it, ms": (20, 2000),
    "mount of 100 layers over mount of 1, ms": (20, 2000),
}


def report(arguments):
    """A table of `name=value` pairs; fails on those beyond their limits."""
    figures = {}
    for pair in arguments.figures:
        name, _, value = pair.rpartition("=")
        figures[name] = float(value)
    bad = []
    width = max(map(len, figures))
    for name, value in figures.items():
        promised, gross = LIMITS.get(name, (None, None))
        limit = promised if arguments.strict else gross
        words = "" if promised is None else f"  (promised: {promised})"
        if limit is not None and value > limit:
            bad.append(name)
            words += f"  BEYOND {limit}"
        shown = f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"
        print(f"{name:{width}}  {shown:>16}{words}")
    if arguments.json:
        with open(arguments.json, "w", encoding="ascii") as file:
            json.dump({"filesystem": arguments.filesystem, "figures": figures}, file, indent=2)
            file.write("\n")
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)

    def command(function, *names):
        sub = commands.add_parser(function.__name__.replace("_", "-"))
        for name in names:
            number = name in ("count", "size", "layers", "entries", "pid")
            sub.add_argument(name, type=int if number else str)
        sub.set_defaults(function=function)
        return sub

    command(make_files, "directory", "count")
    command(make_data, "file", "size")
    command(make_stack, "directory", "layers", "entries")
    command(chmod, "file")
    command(rename, "old", "new")
    command(latency, "big", "directory", "other", "reference")
    command(memory, "pid")
    command(walk, "directory")
    command(run).add_argument("command", nargs="+")
    table = command(report)
    table.add_argument("--strict", action="store_true", help="hold the figures to what was promised")
    table.add_argument("--json", help="write them to this file")
    table.add_argument("--filesystem", default="")
    table.add_argument("figures", nargs="+", metavar="NAME=VALUE")
    arguments = parser.parse_args()
    result = arguments.function(arguments)
    if isinstance(result, int):
        return result
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
