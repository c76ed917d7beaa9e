"""Interleaved times of OCI runtimes; called by scripts/bench-runtime with its scratch directory and the rounds."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

SCRATCH, ROUNDS = sys.argv[1], int(sys.argv[2])
BUNDLE = os.path.join(SCRATCH, "bundle")
RUNTIMES = {"layerfs": os.path.join(SCRATCH, "layerfs-runtime"), "crun": shutil.which("crun"), "runc": shutil.which("runc")}
CAPS = ["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
DOCUMENT = {
    "ociVersion": "1.0.2",
    "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/",
                "capabilities": {"bounding": CAPS, "effective": CAPS, "permitted": CAPS}, "noNewPrivileges": True},
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "bench",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "maskedPaths": ["/proc/kcore", "/proc/keys"], "readonlyPaths": ["/proc/sys"],
    },
}


def write_document(name, args):
    document = json.loads(json.dumps(DOCUMENT))
    document["process"]["args"] = args
    document["linux"]["cgroupsPath"] = "/" + name
    with open(os.path.join(BUNDLE, "config.json"), "w", encoding="utf-8") as file:
        json.dump(document, file)


def call(runtime, *words):
    state = os.path.join(SCRATCH, "state-" + os.path.basename(runtime))
    begun = time.perf_counter()
    with open(os.devnull, "r+b") as null, open(os.path.join(SCRATCH, "errors"), "wb") as errors:
        status = subprocess.run([runtime, "--root", state, *words], stdin=null, stdout=null, stderr=errors, check=False)
    took = (time.perf_counter() - begun) * 1000
    if status.returncode != 0:
        with open(os.path.join(SCRATCH, "errors"), encoding="utf-8") as file:
            raise SystemExit(f"{runtime} {' '.join(words)}: {file.read().strip()}")
    return took


def peak_memory(runtime):
    """KiB of the largest process of a `run`, as the kernel counts them for a parent."""
    write_document("layerfs-bench-memory", ["true"])
    state = os.path.join(SCRATCH, "state-" + os.path.basename(runtime))
    # The parent counts too: it has to be a small one.
    counted = subprocess.run(["busybox", "time", "-f", "%M", runtime, "--root", state, "run", "--bundle", BUNDLE, "memory"],
                             stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return int(counted.stderr.split()[-1])


def main():
    found = {name: path for name, path in RUNTIMES.items() if path}
    times = {name: {} for name in found}
    for number in range(ROUNDS):
        order = list(found.items())
        for name, path in order[number % len(order):] + order[: number % len(order)]:
            ident = f"layerfs-bench-{name}-{number}"
            note = lambda what, took: times[name].setdefault(what, []).append(took)  # noqa: E731
            write_document(ident, ["true"])
            note("run", call(path, "run", "--bundle", BUNDLE, ident))
            write_document(ident, ["sleep", "1000"])
            note("create", call(path, "create", "--bundle", BUNDLE, ident))
            note("start", call(path, "start", ident))
            note("exec", call(path, "exec", ident, "true"))
            note("kill", call(path, "kill", ident, "KILL"))
            # What a monitor does before it deletes: see the end.
            while b'"stopped"' not in subprocess.run(
                    [path, "--root", os.path.join(SCRATCH, "state-" + os.path.basename(path)), "state", ident],
                    capture_output=True, check=False).stdout.replace(b" ", b""):
                pass
            note("delete", call(path, "delete", ident))
    print("| what | " + " | ".join(f"{name}, ms" for name in found) + " | to crun |")
    print("|---|" + "---|" * (len(found) + 1))
    for what in ("run", "create", "start", "exec", "kill", "delete"):
        medians = {name: statistics.median(times[name][what]) for name in found}
        ratio = f"{medians['layerfs'] / medians['crun']:.2f}" if "crun" in medians else ""
        print(f"| `{what}` | " + " | ".join(f"{medians[name]:.1f}" for name in found) + f" | {ratio} |")
    memory = {name: peak_memory(path) for name, path in found.items()}
    print("| peak memory, MiB | " + " | ".join(f"{memory[name] / 1024:.1f}" for name in found) + " | |")


main()
