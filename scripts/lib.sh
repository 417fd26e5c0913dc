# shellcheck shell=bash
#
# What scripts/fsx, scripts/pjdfstest, scripts/stress-ng and scripts/on-filesystems share. It is sourced at the
# start, before anything else:
#
#   . "$(dirname "$0")/lib.sh"
#
# and goes to the root of this checkout. What it says and makes has the name of the script.

script=$(realpath "$0")
name=${script##*/}
[[ -z ${LOOPFS:-} ]] || LOOPFS=$(realpath "$LOOPFS")
TMPDIR=$(realpath "${TMPDIR:-/tmp}")
export TMPDIR
cd "$(dirname "$script")/.." || exit

say() { printf '%s: %s\n' "$name" "$*"; }
die() {
    printf '%s: error: %s\n' "$name" "$*" >&2
    exit 1
}

# help: the head of the script.
help() {
    sed -n '3,/^$/s/^# \{0,1\}//p' "$script"
    exit 0
}

# own_namespace ARGUMENTS: starts the script again in a mount namespace of its own, so that no mount outlives it.
# Others' FUSE mounts are left out: a mount lives as long as any namespace has a copy of it, and one whose daemon
# is stuck holds up who comes across it.
own_namespace() {
    local flag=LOOPFS_PRIVATE_${name//[^a-z]/_} mount
    [[ $EUID -eq 0 ]] || die "it mounts file systems: run it as root"
    [[ -n ${!flag:-} ]] || exec env "$flag=1" unshare --mount --propagation private "$script" "$@"
    unset "$flag"
    while read -r mount; do
        # One that holds the directory under test is not somebody else's.
        [[ $TMPDIR/ == "$mount"/* ]] || umount --lazy "$mount" || true
    done < <(awk '/ - fuse([.][^ ]*)? / { print $5 }' /proc/self/mountinfo | while read -r mount; do printf '%b\n' "$mount"; done)
}

# find_loopfs: sets loopfs.
find_loopfs() {
    loopfs=${LOOPFS:-}
    if [[ -z $loopfs ]]; then
        say "building loopfs"
        cargo build --release --locked --quiet --bin loopfs
        loopfs=$(realpath "${CARGO_TARGET_DIR:-target}")/release/loopfs
    fi
}

# install_crate ARGUMENTS: what it runs for is short, so what takes a compiler's time is left out.
install_crate() {
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked "$@"
}

# find_crate NAME VERSION: sets program to the program of that name, which is installed if it is not there.
find_crate() {
    program=$(command -v "$1" || true)
    if [[ -z $program && -x ${CARGO_HOME:-$HOME/.cargo}/bin/$1 ]]; then
        program=${CARGO_HOME:-$HOME/.cargo}/bin/$1
    fi
    if [[ -z $program || $("$program" --version) != "$1 $2" ]]; then
        say "installing $1 $2"
        install_crate "$1" --version "$2"
        program=${CARGO_HOME:-$HOME/.cargo}/bin/$1
    fi
}

# find_package PROGRAM PACKAGE...: installs the packages if the program is not there.
find_package() {
    command -v "$1" >/dev/null && return
    say "installing ${*:2}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${@:2}" >/dev/null
}

# find_deb: sets LOOPFS_DEB to the Debian package, which is built if there is none.
find_deb() {
    local target
    target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    if [[ -z ${LOOPFS_DEB:-} ]]; then
        if ! cargo deb --version >/dev/null 2>&1; then
            say "installing cargo-deb"
            install_crate cargo-deb
        fi
        say "building the package"
        rm -rf "$target/debian"
        cargo deb --quiet --strip --output "$target/debian/"
        LOOPFS_DEB=$(find "$target/debian" -name 'loopfs_*.deb')
    fi
    [[ -f $LOOPFS_DEB ]] || die "there is no package '$LOOPFS_DEB'"
    LOOPFS_DEB=$(realpath "$LOOPFS_DEB")
    export LOOPFS_DEB
}

# make_work: sets work, a new directory below TMPDIR that everybody may enter and that goes at the end, after
# clean_up, which a script may define.
work='' daemon=''
make_work() {
    work=$(mktemp -d "$TMPDIR/loopfs-$name.XXXXXX")
    chmod 755 "$work"
    trap at_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}
clean_up() { :; }
at_end() {
    local status=$?
    trap - EXIT INT TERM HUP
    if [[ -n $daemon ]] && kill -0 "$daemon" 2>/dev/null; then
        kill -TERM "$daemon" 2>/dev/null || true
        timeout 15 tail --pid="$daemon" -f /dev/null || kill -KILL "$daemon" 2>/dev/null || true
    fi
    clean_up || status=1
    local mount
    for mount in $(awk -v below="$work/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac); do
        umount "$mount" 2>/dev/null || umount --lazy "$mount" || true
    done
    if grep -qF " $work" /proc/self/mountinfo; then
        say "still mounted, so kept: $work" >&2
        status=1
    else
        # A case that was killed may have left a file that chattr made immutable.
        chattr -R -f -i -a "$work" 2>/dev/null || true
        rm -rf --one-file-system "$work"
    fi
    exit "$status"
}

is_mounted() { grep -qF " $1 " /proc/self/mountinfo; }

# start_loopfs SRC MNT [OPTION]...: returns when the mount can be used. Its log is $work/daemon.log.
start_loopfs() {
    "$loopfs" -f "${@:3}" "$1" "$2" >"$work/daemon.log" 2>&1 &
    daemon=$!
    # The mount appears in the table when it can be used; findmnt waits for the table to change.
    local deadline=$((SECONDS + 30))
    until is_mounted "$2"; do
        kill -0 "$daemon" 2>/dev/null || { cat "$work/daemon.log" >&2 && die "loopfs did not start"; }
        ((SECONDS < deadline)) || die "loopfs is not ready after 30 seconds"
        findmnt --poll --timeout 200 >/dev/null 2>&1 || true
    done
}

# stop_loopfs MNT: ends it, and the script if anything is wrong with that.
stop_loopfs() {
    local status=0
    kill -TERM "$daemon" 2>/dev/null || true
    timeout 30 tail --pid="$daemon" -f /dev/null || die "loopfs did not end within 30 seconds"
    wait "$daemon" || status=$?
    daemon=
    ((status == 0)) || { tail -n 20 "$work/daemon.log" && die "loopfs ended with status $status"; }
    if is_mounted "$1"; then die "still mounted after the end"; fi
    if grep -E 'panicked|ERROR' "$work/daemon.log"; then die "the log of loopfs tells of a fault"; fi
}
