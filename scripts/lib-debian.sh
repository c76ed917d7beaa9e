# shellcheck shell=bash
# Shared by the scripts that work on a Debian root: the machine's own way to a Debian mirror, and a root made from it.
# Sourced after lib.sh.

# The suite of this machine, in $suite.
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
[ -n "$suite" ] || die "/etc/os-release names no VERSION_CODENAME: this needs Debian"

# The archive of the machine's suite: no third-party repository.
debian_sources() {
    # shellcheck disable=SC2016 # apt-get's own placeholders
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' 'Created-By: Packages' 'Origin: Debian' |
        grep -E " $suite(-updates|-security)? " | sort -u
}

# Finds the mirror: its lines for sources.list in $sources, options of apt for a proxy in $proxy_options.
find_mirror() {
    sources=$(debian_sources || true)
    if [ -z "$sources" ]; then
        # The package lists were never fetched, or were cleaned away.
        apt-get update -q >&2
        sources=$(debian_sources)
    fi
    [ -n "$sources" ] || die "apt knows no Debian mirror for $suite: check /etc/apt/sources.list"
    mapfile -t proxy_options < <(apt-config dump | grep -E '^Acquire::(http|https)::[Pp]roxy' || true)
}

# A tar of a minimal root with the packages named (joined by commas), on stdout: make_debian_root PACKAGES
make_debian_root() {
    local option aptopts=()
    for option in "${proxy_options[@]}"; do
        aptopts+=(--aptopt="$option")
    done
    printf '%s\n' "$sources" |
        mmdebstrap --quiet --variant=minbase --mode=root --include="$1" --format=tar "${aptopts[@]}" "$suite" - -
}

# The same, made once and kept in target/cache: debian_root_archive NAME PACKAGES. Prints its path.
debian_root_archive() {
    # shellcheck disable=SC2154 # lib.sh, which is sourced first, sets it
    local cache=$target/cache/$1-root-$suite-$2.tar
    if [ ! -e "$cache" ]; then
        need_programs mmdebstrap apt-get
        find_mirror
        note "making a Debian root (kept in ${cache#"$repo"/})"
        mkdir -p "${cache%/*}"
        if ! make_debian_root "$2" >"$cache.new"; then
            rm -f "$cache.new"
            die "making the Debian root failed"
        fi
        mv "$cache.new" "$cache"
    fi
    echo "$cache"
}
