"""The trees that scripts/bench works on. Made once for a run on the backing filesystem, each only when a workload needs it."""

import os
import subprocess

from filesystems import BenchError, run_quietly

# Parts of the Debian root that look like source trees: what is unpacked, committed and changed.
SOURCE_PARTS = ("usr/include", "usr/lib/python3.11", "usr/share/perl")
# The copies of that tree which the workloads on lower trees use up, one for each.
LOWER_TREES = ("chmod", "chown", "remove", "append")


class Data:
    """What the workloads read. `scale` divides sizes and counts."""

    def __init__(self, backing, programs, root_archive, scale):
        self.backing = backing
        self.scale = scale
        self._helper = programs["syscalls"]
        self._layerfs = programs["layerfs"]
        self._root_archive = root_archive
        self._made = {}

    def count(self, full):
        return max(full // self.scale, 8)

    def _once(self, name, make):
        if name not in self._made:
            self._made[name] = make(f"{self.backing}/data/{name}")
            os.sync()
        return self._made[name]

    def _index(self, layer):
        run_quietly([self._layerfs, "index", layer])

    def helper(self, *arguments):
        run_quietly([self._helper, *map(str, arguments)])

    # --- the Debian root -------------------------------------------------------------------------------------

    def root(self):
        """A root filesystem, one layer, with an index beside it. Without an archive (`--smoke`): made-up files."""

        def make(path):
            os.makedirs(path)
            if self._root_archive:
                run_quietly(["tar", "-C", path, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", self._root_archive])
            else:
                for part in SOURCE_PARTS:
                    os.makedirs(f"{path}/{part}")
                    self.helper("make-files", f"{path}/{part}", 100)
                os.makedirs(f"{path}/tmp")
            self._index(path)
            return path

        return self._once("root", make)

    def root_copy(self):
        """The root once more, for ext4 to write to: it has no upper."""

        def make(path):
            run_quietly(["cp", "-a", self.root(), path])
            return path

        return self._once("root-ext4", make)

    def paths(self, kind, limit=None):
        """A file that lists files of the root, relative to it: `files` (all), `some` (spread over it), `absent` (names
        beside those that do not exist), `fresh` (the same, of other names)."""

        def make(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            root = self.root()
            found = []
            for directory, _, names in os.walk(root):
                for name in names:
                    full = os.path.join(directory, name)
                    if os.path.isfile(full) and not os.path.islink(full) and "\n" not in full:
                        found.append(os.path.relpath(full, root))
            found.sort()
            if limit is not None:
                found = found[:: max(1, len(found) // limit)][:limit]
            suffix = {"absent": ".absent", "fresh": ".fresh"}.get(kind, "")
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}{suffix}\n" for name in found)
            return path

        return self._once(f"lists/{kind}", make)

    # --- trees -----------------------------------------------------------------------------------------------

    def source_parts(self):
        return [part for part in SOURCE_PARTS if os.path.isdir(f"{self.root()}/{part}")]

    def source_archive(self):
        """A tar of some thousand files, and how many entries it has."""

        def make(path):
            run_quietly(["tar", "-C", self.root(), "-cf", path, *self.source_parts()])
            listed = subprocess.run(["tar", "-tf", path], stdout=subprocess.PIPE, check=True).stdout
            return path, listed.count(b"\n")

        return self._once("source.tar", make)

    def headers_archive(self):
        """A tar of a part of it: git's own work on all of it would take minutes."""

        def make(path):
            run_quietly(["tar", "-C", f"{self.root()}/{SOURCE_PARTS[0]}", "-cf", path, "."])
            return path

        return self._once("headers.tar", make)

    def lower_trees(self):
        """A layer with a copy of the source tree for each workload that changes one."""

        def make(path):
            archive, _ = self.source_archive()
            for name in LOWER_TREES:
                os.makedirs(f"{path}/{name}")
                run_quietly(["tar", "-C", f"{path}/{name}", "-xpf", archive])
            self._index(path)
            return path

        return self._once("trees", make)

    def append_list(self):
        """Files of the tree `append`, spread over it."""

        def make(path):
            root = self.lower_trees()
            found = []
            for directory, _, names in os.walk(f"{root}/append"):
                found += [os.path.join(directory, name) for name in names]
            found = sorted(name for name in found if os.path.isfile(name) and not os.path.islink(name))
            wanted = self.count(1000)
            found = found[:: max(1, len(found) // wanted)][:wanted]
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(os.path.relpath(name, root) + "\n" for name in found)
            return path, len(found)

        return self._once("lists-append", make)

    # --- big and many ----------------------------------------------------------------------------------------

    def big_size(self):
        return max((1 << 30) // self.scale, 8 << 20)

    def big(self):
        """A layer with one big file, `big`."""

        def make(path):
            os.makedirs(path)
            self.helper("make-data", f"{path}/big", self.big_size())
            self._index(path)
            return path

        return self._once("big", make)

    def stack(self, layers):
        """A directory of layers 000, 001... that hold the same files in all, whatever their number: 20 directories that
        every layer has, and files dealt out to the layers one by one. Returns it and a list of the files."""

        def make(path):
            files = self.count(2000)
            names = []
            for layer in range(layers):
                for directory in range(20):
                    os.makedirs(f"{path}/{layer:03}/d{directory:02}")
            for number in range(files):
                name = f"d{number % 20:02}/file-{number:05}"
                os.mknod(f"{path}/{number // 20 % layers:03}/{name}", 0o100644)
                names.append(name)
            # As the kernel counts: three digits each, for the one page that its options may fill.
            for layer in range(layers):
                self._index(f"{path}/{layer:03}")
            lists = {"present": f"{path}.present", "absent": f"{path}.absent"}
            for kind, file_name in lists.items():
                with open(file_name, "w", encoding="ascii") as file:
                    file.writelines(name + ("" if kind == "present" else ".absent") + "\n" for name in names)
            return path, lists

        return self._once(f"stack-{layers}", make)

    def million(self):
        """A layer with very many files, and their number."""

        def make(path):
            files = self.count(1000000)
            os.makedirs(path)
            self.helper("make-files", path, files)
            self._index(path)
            return path, files

        return self._once("million", make)


def check_programs(names):
    """Programs that the workloads call."""
    for name in names:
        if not any(os.access(f"{directory}/{name}", os.X_OK) for directory in os.environ["PATH"].split(":")):
            raise BenchError(f"{name} is not installed: run scripts/setup")
