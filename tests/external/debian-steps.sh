#!/bin/bash
# What scripts/debian-root does inside the root, one function a step: real programs that lean on the filesystem.
# Runs in a chroot on the mount: /bin/bash debian-steps.sh STEP. A step fails with its first failing command.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
work=/srv/work
mkdir -p $work

step_install() {
    apt-get update -q
    apt-get install -y -q --no-install-recommends gcc libc6-dev make git python3 dpkg-dev
    gcc --version
    git --version
    python3 --version
}

# Two projects with the Debian source format unpacked, configured, built, checked and installed: one by hand-written
# makefile, one by autoconf.
step_build() {
    cd $work
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
    apt-get update -q
    apt-get source -q bzip2 hello
    cd $work/bzip2-*/
    make -j2
    make test
    make install PREFIX=/usr/local
    ls -l >listing
    bzip2 -k listing
    /usr/local/bin/bunzip2 -c listing.bz2 | cmp - listing
    cd $work/hello-*/
    FORCE_UNSAFE_CONFIGURE=1 ./configure
    make -j2
    make install
    [ "$(hello)" = "Hello, world!" ]
    # Built a second time there must be nothing to do: times are kept.
    make | tee $work/again
    ! grep -E '\bgcc\b|\bcc\b' $work/again
}

step_git() {
    cd $work
    git config --global user.name tester
    git config --global user.email tester@example.invalid
    git config --global init.defaultBranch main
    rm -rf origin clone
    git init -q origin
    cd origin
    local round dir file
    for dir in $(seq 40); do
        mkdir "dir$dir"
        for file in $(seq 50); do
            seq "$dir" $((dir + file)) >"dir$dir/file$file"
        done
    done
    git add .
    git commit -q -m start
    for round in $(seq 30); do
        for dir in $(seq 2 40); do
            echo "round $round" >>"dir$dir/file$round"
        done
        git mv "dir1/file$round" "dir2/moved$round"
        git commit -q -a -m "round $round"
    done
    [ "$(git count-objects | cut -d' ' -f1)" -gt 3000 ]
    # A local clone hard-links the objects.
    git clone -q . ../clone
    [ "$(stat -c %h "$(find ../clone/.git/objects -type f | head -n 1)")" -gt 1 ]
    git clone -q --no-local . ../copy
    cd ../clone
    git fsck --full --strict
    git gc -q
    git fsck --full --strict
    git checkout -q -b other HEAD~10
    git checkout -q main
    # What the index recorded about each file must still hold: any difference would show the file as changed.
    [ -z "$(git status --porcelain)" ]
    [ -z "$(git diff-files --name-only)" ]
    cd ../origin
    git fsck --full --strict
    git gc -q --prune=now
    git fsck --full --strict
    [ -z "$(git status --porcelain)" ]
    diff -r --exclude=.git ../origin ../clone
    diff -r --exclude=.git ../origin ../copy
}

# One database, two processes, in the rollback journal (POSIX locks) and in the write-ahead log (shared memory mapping).
step_sqlite() {
    cd $work
    rm -f test.db*
    cat >writers.py <<'PYTHON'
import sqlite3
import subprocess
import sys

ROWS = 400


def connect():
    return sqlite3.connect("test.db", timeout=120, isolation_level=None)


def write(name):
    database = connect()
    for number in range(ROWS):
        database.execute("begin immediate")
        (total,) = database.execute("select count(*) from entry").fetchone()
        database.execute("insert into entry values (?, ?, ?, ?)", (name, number, total, "x" * (number * 7 % 5000)))
        if number % 10 == 9:
            database.execute("delete from entry where writer = ? and number = ?", (name, number - 5))
        database.execute("commit")


def check(mode):
    database = connect()
    (now,) = database.execute(f"pragma journal_mode = {mode}").fetchone()
    assert now == mode, now
    database.execute("drop table if exists entry")
    database.execute("create table entry (writer text, number int, seen int, filler text)")
    writers = [subprocess.Popen([sys.executable, __file__, "write", name]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    for name in ("one", "two"):
        (count,) = database.execute("select count(*) from entry where writer = ?", (name,)).fetchone()
        assert count == ROWS - ROWS // 10, (name, count)
    database.execute("vacuum")
    assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    print(mode, "ok")


if sys.argv[1:2] == ["write"]:
    write(sys.argv[2])
else:
    check("delete")
    check("wal")
PYTHON
    python3 writers.py
}

# Ordinary programs on what the layers hold: links, marks, metadata.
step_layers() {
    cd /opt/tree
    # Taken away, replaced, renamed and changed in the top layer.
    [ ! -e gone ]
    [ "$(ls replaced)" = new ]
    [ ! -e moved ]
    [ "$(find renamed -type f | wc -l)" -eq 200 ]
    [ "$(cat renamed/file-7)" = "moved 7" ]
    [ "$(stat -c %a meta)" = 600 ]
    [ "$(cat meta)" = "content of meta" ]
    # Hard links of a lower layer stay links when written to through one name.
    [ "$(stat -c %h hard1)" -eq 3 ]
    echo more >>hard1
    [ "$(tail -n 1 hard2)" = more ]
    [ "$(tail -n 1 sub/hard3)" = more ]
    [ "$(stat -c %i hard1)" = "$(stat -c %i sub/hard3)" ]
    [ "$(stat -c %h hard2)" -eq 3 ]
    ln hard2 hard4
    rm hard1
    [ "$(stat -c %h sub/hard3)" -eq 3 ]
    # A directory of a lower layer and one of the merged view, renamed and written to.
    mv keep kept
    echo new >kept/new
    [ "$(cat kept/a)" = a ]
    mv renamed/file-1 renamed/first
    rm renamed/file-2
    mv renamed again
    [ "$(find again -type f | wc -l)" -eq 199 ]
    # Metadata only, then data.
    chmod 640 big
    chown 7:8 big
    [ "$(stat -c %a:%u:%g big)" = 640:7:8 ]
    sum=$(md5sum <big)
    printf x | dd of=big conv=notrunc bs=1 seek=500000 status=none
    [ "$sum" != "$(md5sum <big)" ]
    [ "$(stat -c %s big)" -eq 1000000 ]
    # Set-id bits go when someone writes, and come back only by chmod.
    [ "$(stat -c %a setid)" = 4755 ]
    chmod o+w setid
    setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'echo x >>setid'
    [ "$(stat -c %a setid)" = 757 ]
}

step_verify() {
    # Names what differs from what the packages hold; nothing may.
    dpkg --audit
    dpkg --verify >$work/verify || true
    cat $work/verify
    [ ! -s $work/verify ]
    [ -z "$(dpkg --audit)" ]
}

# The commands go to the output, so that the one that failed is the last.
PS4='+ ${LINENO}: '
set -x
"step_$1"
