# shellcheck shell=bash
# What the programs have in common that are built from a source package, or that are servers.

# Autoconf and its like run again when a file that they read seems newer than what they wrote; a checkout of a
# tarball never needs them.
# shellcheck disable=SC2034 # used by those that read this
readonly NO_AUTOTOOLS=(ACLOCAL=: AUTOMAKE=: AUTOCONF=: AUTOHEADER=: MAKEINFO=:)

# source_package NAME: puts the package's upstream source, as it is in Debian, into $INPUT. It has lists of its own
# for that, so that this machine's are left alone.
source_package() {
    compgen -G "$INPUT/$1_*.orig.tar.*" >/dev/null && return
    local apt=$INPUT/apt file codename options
    mkdir -p "$apt/sources" "$apt/lists"
    # Of the distribution itself: others often have no sources.
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    for file in /etc/apt/sources.list.d/*.sources; do
        if [[ -e $file ]] && grep -q "^Suites:.*$codename" "$file"; then
            sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt/sources/${file##*/}"
        fi
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [[ ! -e $file ]] || sed -n "/ $codename/s/^deb /deb-src /p" "$file" >"$apt/sources/${file##*/}.list"
    done
    (
        cd "$INPUT" || exit
        options=(-qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/sources"
            -o Dir::State::lists="$apt/lists" -o APT::Sandbox::User=root)
        apt-get "${options[@]}" update
        apt-get "${options[@]}" --download-only source "$1"
    )
}

# unpack_packages NAME...: the packages and those of their dependencies that are not installed, in $INPUT/root. None of
# their scripts run: no user is made, nothing is written to /etc, no service starts.
unpack_packages() {
    [[ ! -e $INPUT/root ]] || return 0
    rm -rf "$INPUT/debs" "$INPUT/root.new"
    mkdir -p "$INPUT/debs/partial" "$INPUT/root.new"
    apt-get -qq install --reinstall --download-only --no-install-recommends -y -o APT::Sandbox::User=root \
        -o Dir::Cache::archives="$INPUT/debs" "$@"
    local deb
    for deb in "$INPUT"/debs/*.deb; do dpkg-deb -x "$deb" "$INPUT/root.new"; done
    mv "$INPUT/root.new" "$INPUT/root"
}

# use_unpacked: finds programs and libraries there.
use_unpacked() {
    local libraries
    libraries=$INPUT/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo "$(uname -m)-linux-gnu")
    export LD_LIBRARY_PATH=$libraries
    PATH=$INPUT/root/usr/bin:$INPUT/root/usr/sbin:$PATH
}

# until_true COMMAND...: waits for it, for a minute.
until_true() {
    local deadline=$((SECONDS + 60))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "gave up: $*" && return 1; }
        sleep 0.05
    done
}

# unpack NAME: its source in the directory NAME of the current one.
unpack() {
    local tarball
    tarball=$(compgen -G "$INPUT/$1_*.orig.tar.*" | grep -v '\.asc$')
    mkdir "$1"
    tar -C "$1" --strip-components=1 -xf "$tarball"
    # Debian leaves out manuals whose licence it does not like; make looks for their sources.
    [[ ! -d $1/doc || -e $1/doc/$1.texi ]] || touch "$1/doc/$1.texi"
}

# as USER COMMAND...: with no other rights than that user's.
as() {
    local user=$1
    shift
    if [[ $user == root ]]; then
        "$@"
    else
        setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@"
    fi
}

# automake_results: the result of each test, of those that automake ran below the current directory.
automake_results() {
    find . -name '*.trs' | sort | while read -r file; do
        # More than one result in a file: cases of one test.
        sed -n "s|^:test-result: |${file%.trs}: |p" "$file"
    done
}
