# shellcheck shell=bash
# Shared by the scripts beside it: the filesystem under test, its backing, and the undoing of both.
#
# A script sources this file, calls `scratch_start`, makes a backing, and mounts the filesystem that FSTYP names.
# Each step registers how it is undone before the next one begins; the exit trap runs those in reverse, so nothing
# stays mounted however the script ends. What must hold: only what a script made itself is unmounted or killed.

set -euo pipefail

# The repository, and where build results go.
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$repo/target}
tools=$target/tools
# shellcheck disable=SC2034 # for the scripts that source this
external=$repo/tests/external

# Filesystems that a script can be pointed at.
known_fstyps="ext4 overlay fuse-overlayfs layerfs"

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

note() {
    echo "${0##*/}: $*" >&2
}

# The comment at the top of the script.
usage() {
    awk 'NR > 1 && (!/^#/ || /^# shellcheck/) { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "needs root: run it as root (it mounts filesystems)"
}

# Goes on in a mount namespace of the script's own: own_namespace "$@", after the options. What is mounted from here on is
# seen by nobody else, who could hold it or unmount it, and is gone when the script is, however it ends. The unions that
# other tests have mounted are let go here, or they would be busy for as long.
own_namespace() {
    local at type
    if [ "${LAYERFS_OWN_NAMESPACE:-}" != "$0" ]; then
        LAYERFS_OWN_NAMESPACE=$0 exec unshare --mount --propagation private "$0" "$@"
    fi
    unset LAYERFS_OWN_NAMESPACE
    findmnt -rn -o TARGET,FSTYPE | while read -r at type; do
        case $type:$at in
        fuse.*:/tmp/* | overlay:/tmp/* | fuse.*:"$target"/* | overlay:"$target"/*) umount -l "$at" || true ;;
        esac
    done
}

need_programs() {
    local program
    for program; do
        command -v "$program" >/dev/null || die "$program is not installed: run scripts/setup"
    done
}

# The program under test: $LAYERFS, else the newest of the release and the debug build.
find_layerfs() {
    local build newest=
    if [ -n "${LAYERFS:-}" ]; then
        [ -x "$LAYERFS" ] || die "LAYERFS=$LAYERFS cannot be executed"
        realpath "$LAYERFS"
        return
    fi
    for build in "$target/debug/layerfs" "$target/release/layerfs"; do
        if [ -x "$build" ] && { [ -z "$newest" ] || [ "$build" -nt "$newest" ]; }; then
            newest=$build
        fi
    done
    [ -n "$newest" ] || die "no layerfs binary: build one with cargo build, or name one in LAYERFS"
    realpath "$newest"
}

# A copy of that program for this run alone, named in LAYERFS: a build meanwhile must not change what is tested. Only for
# FSTYP=layerfs; needs the scratch directory.
take_layerfs() {
    [ "$1" = layerfs ] || return 0
    cp "$(find_layerfs)" "$scratch/layerfs"
    export LAYERFS=$scratch/layerfs
}

# --- undoing ---------------------------------------------------------------------------------------------------

undo_steps=()

# Registers a command for the end of the script; the last registered runs first.
undo() {
    local step
    printf -v step '%q ' "$@"
    undo_steps+=("$step")
}

# Runs what was registered, last first. A step that fails is reported and does not stop the others.
run_undo() {
    local status=$1 step
    trap - EXIT
    # A second signal must not stop what the first one began.
    trap '' HUP INT TERM
    set +e
    # Children of an interrupted run, and theirs, would keep its mounts busy.
    local job
    for job in $(jobs -pr); do
        pkill -TERM -P "$job"
        kill -TERM "$job"
    done
    wait
    while [ ${#undo_steps[@]} -gt 0 ]; do
        step=${undo_steps[-1]}
        unset 'undo_steps[-1]'
        if ! eval "$step"; then
            note "cleaning up failed: $step"
            [ "$status" -ne 0 ] || status=1
        fi
    done
    exit "$status"
}
trap 'run_undo $?' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A directory of this run alone, in $scratch. Not below a world-writable one: it holds set-id files.
scratch_start() {
    mkdir -p "$target/scratch"
    scratch=$(mktemp -d "$target/scratch/$1.XXXXXX")
    undo rm -rf --one-file-system "$scratch"
    chmod 755 "$scratch"
}

# Runs a command or function by itself, as `set -e` means it: its first failing command ends it. The exit status comes in
# $status. (Called as the condition of `if` or `||`, a function would run on after a failure.) What it registers with
# `undo` is lost.
try() {
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
}

# --- mounting --------------------------------------------------------------------------------------------------

# Unmounts a directory if it is a mount. A busy one is detached, so that nothing stays, and counts as a failure.
unmount() {
    mountpoint -q "$1" || return 0
    umount "$1" 2>/dev/null && return 0
    note "$1 is busy; detaching it"
    umount -l "$1"
    return 1
}

# An ext4 filesystem in a file, mounted at $2. $1 is its size as truncate(1) takes it; blocks are not allocated before
# they are used. With a third word, `memory`, the file is in memory where there is room for it: for a suite that syncs
# all the time and does not ask what survives a crash. Further words are options of mkfs.ext4.
backing_start() {
    local size=$1 at=$2 image=$scratch/backing.img
    if [ "${3:-}" = memory ] && [ "$(df --output=avail -B 1M /dev/shm | tail -n 1)" -gt 2048 ]; then
        image=$(mktemp /dev/shm/layerfs-XXXXXX)
        undo rm -f "$image"
    fi
    truncate -s "$size" "$image"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "${@:4}" "$image"
    mkdir -p "$at"
    undo unmount "$at"
    mount -o loop "$image" "$at"
}

# Processes that serve the FUSE mount at $1: those of the program $2 with the mountpoint on their command line.
fuse_servers() {
    local dir word
    local -a words
    for dir in /proc/[0-9]*; do
        [ "$dir/exe" -ef "$2" ] || continue
        mapfile -d '' -t words 2>/dev/null <"$dir/cmdline" || continue
        for word in "${words[@]}"; do
            if [ "$word" = "$1" ]; then
                echo "${dir#/proc/}"
                break
            fi
        done
    done
}

# Processes of other mount namespaces in which something is mounted at $1: a copy there keeps the server busy.
mount_holders() {
    local table found=
    for table in /proc/[0-9]*/mountinfo; do
        if grep -qF " $1 " "$table" 2>/dev/null; then
            found+="$(tr '\0' ' ' <"${table%mountinfo}cmdline" | cut -c1-100)(${table//[^0-9]/}); "
        fi
    done
    echo "${found:-none}"
}

# Mounts the filesystem under test: fut_mount FSTYP MERGED LOWERS UPPER WORK [OPTIONS]. LOWERS is top first, joined by
# colons. On ext4, which has no layers, the lowers are copied into the upper once and the upper is bound to MERGED.
fut_mount() {
    local fstyp=$1 merged=$2 lowers=$3 upper=$4 work=$5 options=${6:+,$6} lower i
    local -a parts
    mkdir -p "$merged"
    undo fut_umount "$merged"
    case $fstyp in
    ext4)
        IFS=: read -ra parts <<<"$lowers"
        if [ ! -e "$work/copied" ]; then
            for ((i = ${#parts[@]} - 1; i >= 0; i--)); do
                lower=${parts[i]}
                cp -a "$lower/." "$upper/"
            done
            touch "$work/copied"
        fi
        mount --bind "$upper" "$merged"
        ;;
    overlay)
        mount -t overlay overlay \
            -o "lowerdir=$lowers,upperdir=$upper,workdir=$work,redirect_dir=on,metacopy=on$options" "$merged"
        ;;
    fuse-overlayfs)
        need_programs fuse-overlayfs
        fuse-overlayfs -o "lowerdir=$lowers,upperdir=$upper,workdir=$work,allow_other,suid,dev$options" "$merged"
        ;;
    layerfs)
        "$(find_layerfs)" mount -o "lowerdir=$lowers,upperdir=$upper,workdir=$work$options" "$merged"
        ;;
    *) die "unknown filesystem $fstyp: one of $known_fstyps" ;;
    esac
    mountpoint -q "$merged" || die "mounting $fstyp at $merged succeeded, but nothing is mounted there"
}

# Unmounts the filesystem under test and waits until the process that served it has left: only then is the upper
# complete. Fails when it was busy, or when the process stays.
fut_umount() {
    local merged=$1 server status=0
    local -a servers=()
    mountpoint -q "$merged" || return 0
    case $(findmnt -n -o FSTYPE --mountpoint "$merged" | tail -n 1) in
    fuse.layerfs) mapfile -t servers < <(fuse_servers "$merged" "$(find_layerfs)") ;;
    fuse.fuse-overlayfs) mapfile -t servers < <(fuse_servers "$merged" "$(realpath "$(command -v fuse-overlayfs)")") ;;
    esac
    unmount "$merged" || status=1
    for server in "${servers[@]}"; do
        # Ends at the process's exit; the limit is for a process that hangs, and makes the run fail.
        if ! timeout 30 tail --pid="$server" -s 0.05 -f /dev/null; then
            note "process $server still runs after $merged was unmounted; killing it"
            note "mount namespaces that still have it: $(mount_holders "$merged")"
            kill -KILL "$server" || true
            status=1
        fi
    done
    return $status
}

# --- tools from crates.io --------------------------------------------------------------------------------------

# Installs a program of a crate at exactly this version below target/tools, once: install_crate NAME VERSION.
# Prints its path.
install_crate() {
    local name=$1 version=$2 dir=$tools/$1-$2
    if [ ! -x "$dir/bin/$name" ]; then
        note "installing $name $version from crates.io"
        CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$dir" --version "=$version" "$name" >&2 ||
            die "installing $name $version failed"
        rm -rf "$tools/build"
    fi
    echo "$dir/bin/$name"
}

# --- io modes --------------------------------------------------------------------------------------------------

# The io modes to run a suite in: those asked for, else all where the filesystem has them.
io_modes_of() {
    local fstyp=$1
    shift
    if [ "$fstyp" != layerfs ]; then
        echo default
    elif [ $# -gt 0 ]; then
        echo "$@"
    else
        echo cached writeback passthrough
    fi
}

# The mount options for an io mode, joined with further ones: mount_options MODE [OPTIONS]. `auto` leaves the choice to
# the mount, `default` is for filesystems without modes.
mount_options() {
    local options=${2:-}
    case $1 in
    auto | default) echo "$options" ;;
    *) echo "io=$1${options:+,$options}" ;;
    esac
}
