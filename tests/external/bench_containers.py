#!/usr/bin/env python3
"""The measurements of scripts/bench-containers.

usage: bench_containers.py SCRATCH ROUNDS MANY PODMAN... -- LAYERFS...
"""

import glob
import json
import os
import statistics
import subprocess
import sys
import time


def quiet(words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def timed(words):
    begin = time.perf_counter()
    done = quiet(words)
    took = (time.perf_counter() - begin) * 1000
    if done.returncode != 0:
        sys.exit(f"{words}: {done.stderr.decode()}")
    return took


class Engine:
    def __init__(self, name, words):
        self.name, self.words, self.times = name, words, {}

    def do(self, row, *words):
        self.times.setdefault(row, []).append(timed(self.words + list(words)))

    def quiet(self, *words):
        quiet(self.words + list(words))

    def one_round(self, has_bridge):
        none = ("--network", "none")
        self.do("run --rm", "run", "--rm", *none, "box", "true")
        if has_bridge:
            self.do("run --rm, bridge", "run", "--rm", "--network", "bridge", "box", "true")
        self.do("create", "create", "--name", "c", *none, "box", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.01; done")
        self.do("start", "start", "c")
        self.do("exec", "exec", "c", "true")
        self.do("stop", "stop", "c")
        self.do("rm", "rm", "c")

    def at_once(self, count):
        begin = time.perf_counter()
        words = self.words + ["run", "--rm", "--network", "none", "box", "true"]
        running = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(count)]
        for process in running:
            if process.wait() != 0:
                sys.exit(f"{words}: {process.stderr.read().decode()}")
        self.times.setdefault(f"{count} x run --rm at once", []).append((time.perf_counter() - begin) * 1000)

    def many(self, count):
        begin = time.perf_counter()
        for at in range(count):
            timed(self.words + ["run", "-d", "--name", f"m{at}", "--network", "none", "box", "sleep", "1000"])
        self.times.setdefault(f"{count} x run -d, one after the other", []).append((time.perf_counter() - begin) * 1000)
        for _ in range(10):
            self.do(f"ps, {count} running", "ps")


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def memory(scratch):
    """KiB of monitor and mount process for each running container."""
    total = count = 0
    for path in glob.glob(os.path.join(scratch, "layerfs/containers/*/state.json")):
        with open(path) as state:
            state = json.load(state)
        if state["monitor"] and state["mount"]:
            total += pss(state["monitor"]["pid"]) + pss(state["mount"]["pid"])
            count += 1
    return total / max(count, 1)


def main():
    scratch, rounds, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    middle = sys.argv.index("--")
    podman, layerfs = Engine("podman", sys.argv[4:middle]), Engine("layerfs", sys.argv[middle + 1:])
    engines = [podman, layerfs]
    for engine in engines:
        engine.quiet("run", "--rm", "--network", "none", "box", "true")
    has_bridge = quiet(podman.words + ["run", "--rm", "--network", "bridge", "box", "true"]).returncode == 0
    if not has_bridge:
        print("podman has no bridge here: that row is left out")
    for at in range(rounds):
        for engine in engines if at % 2 else reversed(engines):
            engine.one_round(has_bridge)
    for _ in range(max(rounds // 5, 2)):
        for engine in engines:
            engine.at_once(20)
    podman.many(many)
    podman.quiet("rm", "--all", "--force", "--time", "0")
    layerfs.many(many)
    # Mounts give back what a start has touched when nothing comes for a moment.
    time.sleep(2)
    kib = memory(scratch)
    print(f"{'milliseconds, medians':40} {'podman':>9} {'layerfs':>9} {'ratio':>6}   spread of layerfs")
    for row, times in layerfs.times.items():
        theirs = podman.times.get(row)
        own = statistics.median(times)
        peer = statistics.median(theirs) if theirs else float("nan")
        print(f"{row:40} {peer:9.1f} {own:9.1f} {own / peer:6.2f}   {min(times):.1f} to {max(times):.1f}")
    print(f"memory of a running container, of {many}: {kib:.0f} KiB (PSS of monitor and mount process)")


if __name__ == "__main__":
    main()
