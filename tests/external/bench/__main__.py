"""scripts/bench: the union filesystem beside ext4, kernel overlayfs and fuse-overlayfs, in every io mode.

Every round takes every filesystem once, in an order that moves on by one, each with a new upper; what is compared was
measured within seconds of each other. scripts/bench makes the backing filesystem, calls this, and tidies up.
"""

import argparse
import os
import platform
import signal
import sys
import time

import report
from data import Data, check_programs
from filesystems import BY_KEY, FILESYSTEMS, BenchError
from session import Results, Session
from workloads import GROUPS, ROWS

ROUNDS = 3


def split(text):
    return [word for word in text.split(",") if word]


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", type=split, metavar="ROW,...", help="only these rows, or groups of rows")
    parser.add_argument("--fs", type=split, metavar="NAME,...", help="only these filesystems")
    parser.add_argument("--rounds", type=int, help=f"how often each is measured [{ROUNDS}]")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there too")
    parser.add_argument("--processors", choices=("one", "all"), default="one", help="where client and server may run [one]")
    parser.add_argument("--quick", action="store_true", help="one round, an eighth of the data: to see that something moved")
    parser.add_argument("--smoke", action="store_true", help="layerfs and ext4, tiny data: to see that the script works")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bound is missed")
    parser.add_argument("--list", action="store_true", help="the rows and the filesystems")
    parser.add_argument("--show", nargs="+", metavar="FILE", help="measure nothing: the tables of files that --json wrote")
    for name in ("--scratch", "--backing", "--programs", "--root-archive", "--place"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known = {row.name for row in ROWS}
    arguments.rows = []
    for word in arguments.only or GROUPS:
        chosen = [row.name for row in ROWS if word in (row.group, row.name)]
        if word in known and word in GROUPS:
            # A row and its group of one name: the row, unless everything was asked for.
            chosen = [word] if arguments.only else chosen
        if not chosen:
            parser.error(f"no row or group is called {word}: see --list")
        arguments.rows += chosen
    for word in arguments.fs or []:
        if word not in BY_KEY:
            parser.error(f"no filesystem is called {word}: see --list")
    if arguments.fs is None:
        arguments.fs = ["ext4", "auto"] if arguments.smoke else [fs.key for fs in FILESYSTEMS]
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.quick or arguments.smoke else ROUNDS
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return arguments


def show_list():
    for name in GROUPS:
        print(f"{name}:")
        for row in ROWS:
            if row.group == name:
                print(f"  {row.name:15} {row.about}")
    print("filesystems:")
    for fs in FILESYSTEMS:
        print(f"  {fs.key:15} {fs.about}")


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(arguments, programs):
    scale = 256 if arguments.smoke else 8 if arguments.quick else 1
    data = Data(arguments.backing, programs, arguments.root_archive, scale)
    results = Results()
    wanted = set(arguments.rows)
    turn = 0
    spread_out = arguments.processors == "all"
    for name, run in GROUPS.items():
        rows = {row.name for row in ROWS if row.group == name} & wanted
        order = [BY_KEY[key] for key in arguments.fs if run.only is None or key in run.only]
        if not rows or not order:
            continue
        began = time.monotonic()
        if not run.once and not arguments.smoke:
            # Not counted: makes the data, and touches the blocks of the backing for the first time.
            run(Session(order[-1], data, programs, arguments.scratch, rows, Results(), True, spread_out))
        for _ in range(1 if run.once else arguments.rounds):
            turned = order[turn % len(order) :] + order[: turn % len(order)]
            turn += 1
            for fs in turned:
                run(Session(fs, data, programs, arguments.scratch, rows, results, scale > 1, spread_out))
        say(f"{name}: {time.monotonic() - began:.0f} s")
    return results


def main():
    arguments = parse()
    if arguments.list:
        show_list()
        return 0
    if arguments.show:
        return show(arguments)
    if not arguments.scratch:
        sys.exit("bench: this is a part of scripts/bench: call that")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    check_programs(["tar", "find", "git", "rm", "chmod", "chown", "cp", "umount"])
    names = {fs.program for fs in FILESYSTEMS if fs.program} | {"syscalls", "layerfs"}
    programs = {name: f"{arguments.programs}/{name}" for name in names}
    began = time.monotonic()
    try:
        results = measure(arguments, programs)
    except BenchError as error:
        say(error)
        return 2
    about = {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "used": arguments.processors,
        "rounds": arguments.rounds,
        "backing": arguments.place,
        "seconds": round(time.monotonic() - began),
    }
    return conclude(arguments, report.Table(results.samples, arguments.fs), about)


def show(arguments):
    texts = []
    for path in arguments.show:
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    samples, filesystems, about = report.from_json(texts)
    return conclude(arguments, report.Table(samples, filesystems), about)


def conclude(arguments, table, about):
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    report.print_all(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            file.write(report.as_json(table, about) + "\n")
    missed = [row.name for row in table.rows if report.verdict(table, row)]
    if missed:
        print(f"{len(missed)} of {len(table.rows)} rows miss a bound: {' '.join(missed)}")
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
