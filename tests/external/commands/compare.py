#!/usr/bin/env python3
"""Runs the lines of lines.txt by podman and by layerfs, and compares what their users see.

usage: compare.py LINES TMP PODMAN... -- LAYERFS...

PODMAN and LAYERFS are the words that begin their command lines. Prints a line for each that differs and is not said to;
exit status 1 if there is any.
"""

import os
import re
import shlex
import subprocess
import sys
import time

HEX = re.compile(r"\b[0-9a-f]{64}\b")
SHORT = re.compile(r"\b[0-9a-f]{12}\b")


def alike(text):
    text = text.replace("\r", "")
    text = SHORT.sub("SHORT", HEX.sub("ID", text))
    text = re.sub(r"sha256:ID", "ID", text)
    # podman puts a registry before names without one, where docker shows none.
    return text.replace("localhost/", "").strip()


def run(command, words):
    try:
        done = subprocess.run(command + words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return 124, "", "took more than a minute"
    decode = lambda raw: raw.decode("utf-8", "replace")
    return done.returncode, alike(decode(done.stdout)), decode(done.stderr).strip()


def ask(command, words, scratch, name):
    """Exit code, output and errors of an engine, made comparable."""
    own = os.path.join(scratch, name)
    code, out, err = run(command, [word.replace("{tmp}", own) for word in words])
    # Of failures of its own podman says 125 everywhere, docker with `run` alone; else 1.
    if code == 125 and name == "podman" and words[0] != "run":
        code = 1
    return code, out.replace(own, "TMP"), err


def main():
    lines, scratch = sys.argv[1:3]
    middle = sys.argv.index("--")
    podman, layerfs = sys.argv[3:middle], sys.argv[middle + 1:]
    compared = failed = 0
    with open(lines) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            if not line or line.startswith("#"):
                continue
            kind, rest = line[0], line[2:]
            text, _, why = rest.partition(" #")
            words = shlex.split(text)
            code, out, err = ask(podman, words, scratch, "podman")
            own_code, own_out, own_err = ask(layerfs, words, scratch, "layerfs")
            asked = time.monotonic()
            while kind == "?" and (code, out) != (own_code, own_out) and time.monotonic() < asked + 10:
                code, out, err = ask(podman, words, scratch, "podman")
            if kind == ".":
                continue
            if words[0] == "diff":
                # podman has them in no order.
                out, own_out = ("\n".join(sorted(text.splitlines())) for text in (out, own_out))
            compared += 1
            problems = []
            if kind != "!" and code != own_code:
                problems.append(f"exit code {own_code}, not {code}")
            if kind in "=?" and out != own_out:
                problems.append(f"output {own_out!r}, not {out!r}")
            if kind in "~!" and not why:
                problems.append("it does not say why it differs")
            if problems:
                failed += 1
                print(f"{number}: {text}\n    {'; '.join(problems)}\n    podman: {err[:200]}\n    layerfs: {own_err[:200]}")
    print(f"{compared} command lines compared, {failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
