#!/usr/bin/env bash
#
# Restart without anybody noticing, under load: programs write, append, create, rename, list, lock, map and unlink through a
# mount with --supervise while the process that serves it is killed with SIGKILL at random moments. No program may see an
# error, every file must hold what a run without kills would have left, and nothing may stay behind.
#
#   scripts/stress-restart.sh                  100 kills with the default options
#   scripts/stress-restart.sh --kills 500      more of them
#   scripts/stress-restart.sh --matrix         event loops, ways of reading and writing, and request sizes, one after the other
#   scripts/stress-restart.sh --quick          the same, with few kills and fewer combinations: a minute
#   scripts/stress-restart.sh --kills 0 --upgrades 50 --other-loopfs FILE
#                                              `loopfs upgrade`, from one build to another and back, with kills beside it if
#                                              there are some
#
# Further options go to scripts/stress-restart.d/run.py, such as --threads 1, --io cached, --size 4096, --seed 7,
# --logs DIR. LOOPFS names the program (default: target/release/loopfs). TMPDIR decides which file system SRC is on:
# scripts/on-filesystems -- scripts/stress-restart.sh tries several. Whole programs go through the same with
# scripts/programs --kills 100 postgresql sqlite git cargo.

set -euo pipefail
cd "$(dirname "$0")/.."

kills=100
matrix=
options=()
while (($# > 0)); do
    case "$1" in
    --kills)
        kills=${2:?"--kills needs a number"}
        shift
        ;;
    --matrix) matrix=all ;;
    --quick) matrix=quick ;;
    *) options+=("$1") ;;
    esac
    shift
done

if [[ $EUID -ne 0 ]]; then
    echo "scripts/stress-restart.sh: it mounts file systems, and inodes are found again by root only: run it as root" >&2
    exit 1
fi
loopfs=${LOOPFS:-target/release/loopfs}
[[ -x $loopfs ]] || {
    echo "scripts/stress-restart.sh: there is no $loopfs: cargo build --release, or set LOOPFS" >&2
    exit 1
}

passed=0 failed=0
try() {
    if python3 scripts/stress-restart.d/run.py --loopfs "$loopfs" "$@" ${options[@]+"${options[@]}"}; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
}

case "$matrix" in
'') try --kills "$kills" ;;
quick)
    try --kills 15 --threads 1 --io auto --size 4096
    try --kills 15 --threads 4 --io cached --size 1048576
    try --kills 15 --threads 1 --io cached --size 4096
    ;;
all)
    for threads in 1 4; do
        for io in auto cached direct; do
            for size in 4096 1048576; do
                try --kills "$kills" --threads "$threads" --io "$io" --size "$size"
            done
        done
    done
    ;;
esac
echo "stress-restart: $passed passed, $failed failed"
((failed == 0))
