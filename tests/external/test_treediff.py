#!/usr/bin/env python3
"""Each way in which two trees can differ is seen by treediff, and equal trees are equal. Needs no privilege."""

import os
import tempfile
import unittest

import treediff


def build(root):
    """A small tree with one of each thing that needs no privilege; the same content and times every time."""
    os.mkdir(f"{root}/dir")
    for name in ("dir/file", "other", b"name-\xff"):
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(b"content of " + os.fsencode(name))
    os.symlink("dir/file", f"{root}/link")
    os.link(f"{root}/other", f"{root}/dir/hard")
    os.link(f"{root}/dir/file", f"{root}/dir/hard2")
    os.mkfifo(f"{root}/fifo", 0o640)
    settle(root)


def settle(root):
    """The same times on everything, so that only what a test changed differs."""
    for directory, names, files in os.walk(os.fsencode(root), topdown=False):
        for name in names + files:
            os.utime(os.path.join(directory, name), (1, 1), follow_symlinks=False)
    os.utime(root, (1, 1))


class Differences(unittest.TestCase):
    def setUp(self):
        self.dirs = tempfile.TemporaryDirectory()
        self.addCleanup(self.dirs.cleanup)
        self.left, self.right = f"{self.dirs.name}/left", f"{self.dirs.name}/right"
        for root in (self.left, self.right):
            os.mkdir(root)
            build(root)

    def differences(self, fields=tuple(treediff.FIELDS), excluded=()):
        left = treediff.Snapshot.of_tree(self.left)
        # Through a file, as scripts do.
        treediff.Snapshot.of_tree(self.right).save(f"{self.dirs.name}/saved")
        right = treediff.Snapshot.of(f"{self.dirs.name}/saved")
        return [line.split(" -> ")[0] for line in treediff.differences(left, right, fields, excluded)]

    def check(self, *expected):
        settle(self.right)
        found = self.differences()
        self.assertEqual(len(found), len(expected), found)
        for line, start in zip(found, expected):
            self.assertTrue(line.startswith(start), f"{line} does not begin with {start}")

    def test_equal(self):
        self.check()

    def test_content_of_equal_size(self):
        with open(f"{self.right}/dir/file", "r+b") as file:
            file.write(b"C")
        self.check("~ './dir/file': sha256", "~ './dir/hard2': sha256")

    def test_size(self):
        os.truncate(b"%s/name-\xff" % os.fsencode(self.right), 1)
        self.check(r"~ './name-\udcff': size", r"~ './name-\udcff': sha256")

    def test_mode(self):
        os.chmod(f"{self.right}/dir", 0o700)
        self.check("~ './dir': mode")

    def test_mtime_in_nanoseconds(self):
        settle(self.right)
        os.utime(f"{self.right}/fifo", ns=(1, 1_000_000_001))
        self.assertEqual(self.differences(), ["~ './fifo': mtime 1000000000"])

    def test_type_and_target(self):
        os.unlink(f"{self.right}/link")
        os.symlink("dir/file2", f"{self.right}/link")
        os.unlink(f"{self.right}/fifo")
        os.mkdir(f"{self.right}/fifo", 0o640)
        self.check(
            "~ './fifo': type", "~ './fifo': nlink", "~ './link': size", "~ './link': target dir/file"
        )  # fmt: skip

    def test_missing_and_added(self):
        os.rename(f"{self.right}/fifo", f"{self.right}/gifo")
        self.check("- './fifo'", "+ './gifo'")

    def test_xattr(self):
        try:
            os.setxattr(f"{self.right}/other", "user.test", b"\x00\x01")
        except OSError as error:
            self.skipTest(f"no user xattrs here: {error}")
        self.check("~ './dir/hard': xattrs", "~ './other': xattrs")

    def test_link_groups_with_equal_counts(self):
        # Both files keep two links and their content; only which names belong together changes.
        for root in (self.left, self.right):
            for name in ("a", "b"):
                with open(f"{root}/{name}", "wb") as file:
                    file.write(b"same")
        os.link(f"{self.left}/a", f"{self.left}/a2")
        os.link(f"{self.left}/b", f"{self.left}/b2")
        os.link(f"{self.right}/a", f"{self.right}/b2")
        os.link(f"{self.right}/b", f"{self.right}/a2")
        settle(self.left)
        self.check("~ './a2': links", "~ './b': links", "~ './b2': links")

    def test_broken_link(self):
        os.unlink(f"{self.right}/dir/hard")
        with open(f"{self.right}/dir/hard", "wb") as file:
            file.write(b"content of other")
        self.check(
            "~ './dir/hard': nlink", "~ './dir/hard': links", "~ './other': nlink", "~ './other': links"
        )  # fmt: skip

    def test_owner(self):
        if os.geteuid() != 0:
            self.skipTest("changing an owner needs root")
        os.chown(f"{self.right}/link", 1, 2, follow_symlinks=False)
        self.check("~ './link': uid", "~ './link': gid")

    def test_excluded(self):
        os.chmod(f"{self.right}/dir", 0o700)
        os.unlink(f"{self.right}/dir/file")
        settle(self.right)
        self.assertEqual(
            self.differences(excluded=["./dir"]), []
        )

    def test_snapshot_changes_no_access_time(self):
        treediff.Snapshot.of_tree(self.right)
        for name in ("", "dir", "dir/file", "other"):
            self.assertEqual(os.stat(f"{self.right}/{name}").st_atime, 1, name)


if __name__ == "__main__":
    unittest.main()
