#!/usr/bin/env bash
#
# Ends a FUSE loopback daemon in every way there is, idle and under load, many times over, and says
# what it left behind. `--help` has the options, `--list` the scenarios.
#
# A round makes a directory, starts the daemon on it as a child, lets a scenario end it, and then
# asks the same questions whatever the scenario was: how did it end, how soon after nothing held the
# mount, is a mount, a process or a connection left, is MNT a plain directory again, is every file
# that the load had closed whole in SRC, and does a second mount of the same daemon, which nobody
# had asked to end, still serve.
#
# Rules that the script keeps:
# - All that it makes lies below one directory from mktemp and carries a mark in its environment;
#   nothing else is signalled, unmounted or aborted. A connection is aborted by its number only while
#   the inode of its fusectl directory is the one seen when our mount had that number.
# - What touches a mount runs in a child with a time limit, and not even that child is waited for
#   without one: a request that hangs in the kernel hangs nobody else.
# - Nothing sleeps in the hope that something has happened: conditions are polled until a deadline.

set -uo pipefail
export LC_ALL=C

usage() {
    cat <<'END'
Usage: stress-unmount.sh [OPTIONS]

  --rounds N           rounds of each scenario under each load [10]
  --load KIND          none, light (1 process), heavy (3 processes, 6 threads), both (none and heavy) [both]
  --scenario LIST|all  names or patterns, separated by commas: 'uz,sig-*' [all]
  --list               list the scenarios and end
  --daemon COMMAND     what to run, in the foreground, with {src} and {mnt}: 'bindfs -f {src} {mnt}';
                       {opts}, if it is there, takes the options of loopfs that a scenario needs
                       (--drain-timeout, --replace-stale) and switches on what only loopfs promises;
                       {peers} is where --build-peers puts its programs. Or one word for a command
                       known here: loopfs, supervised (loopfs --supervise), bindfs, passthrough_ll, passthrough_hp [loopfs]
  --name NAME          its name in the report [the program's]
  --build-peers        build libfuse's passthrough_ll and passthrough_hp first, from Debian's
                       libfuse3-dev and source package, in the temporary directory
  --within SECONDS     how soon it has to end once nothing holds the mount [1]
  --patience SECONDS   after which a daemon counts as hung [15]
  --churn FILE         the load's program, loopfs-churn [found beside loopfs]
  --json FILE|-        write the report as JSON, too; with - the table goes to stderr
  --logs DIR           keep what the daemon said in rounds that failed
  --keep-going         go on after a round that failed
  --every SECONDS      how often to say how far it is when stderr is no terminal [15]
  -h, --help           this text

loopfs is $LOOPFS, or release/loopfs below $CARGO_TARGET_DIR or target/, or the one in $PATH.
In the table, worst is the longest time from when nothing held the mount (the unmount or signal, or the
end of the load if that came later) to the end of the daemon; 0.000 if it ended before its users had.

Needs root. The status is 0 if every round passed, 1 if one failed, 2 if it could not run, 130 after
Ctrl-C, which cleans up and prints what there is.
END
}

# name|what is done
scenarios=(
    "sig-int|SIGINT"
    "sig-term|SIGTERM"
    "sig-hup|SIGHUP"
    "sig-five|five signals at once"
    "sig-again|a second signal during the shutdown"
    "sig-writing|SIGTERM while a file is open and being written"
    "sig-early|a signal in the first 20 ms after exec"
    "sig-on-mount|SIGTERM as soon as the mount is in the table"
    "sig-vs-umount|SIGTERM racing with an unmount from outside"
    "u|fusermount3 -u"
    "u-busy|fusermount3 -u with a file open: refused, and served on"
    "uz|fusermount3 -uz"
    "uz-writing|fusermount3 -uz while a file is open and being written"
    "uz-parallel|twenty fusermount3 -uz at once"
    "uz-newcomer|-uz, another mount at MNT while a file is open, SIGTERM"
    "umount-early|an unmount in the first 20 ms, or right after the mount"
    "umount-l|umount -l"
    "umount-f|umount -f"
    "umount-f-busy|umount -f with a file open"
    "umount-lf|umount -l -f"
    "umount-lf-busy|umount -l -f with a file open"
    "abort|abort through fusectl"
    "abort-busy|abort through fusectl with a file open"
    "mixed|two to four of all these at random, 0 to 5 ms apart, a file open in every other round"
    "covered|something mounted on top, SIGTERM"
    "src-hangs|SRC on a FUSE mount whose daemon is stopped, SIGTERM"
    "src-removed|SRC removed while mounted"
    "src-unreadable|SRC made unreadable while mounted"
    "src-full|SRC full while mounted"
    "kill9|SIGKILL, then a new start with --replace-stale (loopfs only)"
)

die() {
    echo "stress-unmount: $*" >&2
    exit 2
}

## What was asked for

rounds=10 load=both wanted=all daemon=loopfs name='' build_peers='' within_s=1 patience_s=15 churn='' json=''
logs='' keep_going='' every=15
while (($# > 0)); do
    case $1 in
    --rounds | --load | --scenario | --daemon | --name | --within | --patience | --churn | --json | --logs | --every)
        (($# > 1)) || die "$1 needs a value"
        value=$2
        ;;&
    --rounds) rounds=$value ;;
    --load) load=$value ;;
    --scenario) wanted=$value ;;
    --daemon) daemon=$value ;;
    --name) name=$value ;;
    --within) within_s=$value ;;
    --patience) patience_s=$value ;;
    --churn) churn=$value ;;
    --json) json=$value ;;
    --logs) logs=$value ;;
    --every) every=$value ;;
    --list)
        for entry in "${scenarios[@]}"; do
            IFS='|' read -r scenario what <<<"$entry"
            printf '%-16s %s\n' "$scenario" "$what"
        done
        exit 0
        ;;
    --build-peers) build_peers=1 ;;
    --keep-going) keep_going=1 ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) die "unknown option $1 (--help lists them)" ;;
    esac
    case $1 in
    --build-peers | --keep-going) shift ;;
    *) shift 2 ;;
    esac
done

for number in "$rounds" "$within_s" "$patience_s" "$every"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || die "'$number' is not a whole number above 0"
done
case $load in
none | light | heavy) loads=("$load") ;;
both) loads=(none heavy) ;;
*) die "--load is none, light, heavy or both, not '$load'" ;;
esac

chosen=()
for pattern in ${wanted//,/ }; do
    found=''
    for entry in "${scenarios[@]}"; do
        # shellcheck disable=SC2053 # a pattern is what may be given
        if [[ $pattern == all || ${entry%%|*} == $pattern ]]; then
            chosen+=("${entry%%|*}")
            found=1
        fi
    done
    [[ $found ]] || die "no scenario '$pattern' (--list lists them)"
done
((${#chosen[@]} > 0)) || die "no scenario chosen"

((EUID == 0)) || die "mounts, forced unmounts and fusectl need root"
for program in fusermount3 umount mount timeout setsid setpriv env stat find grep mktemp; do
    command -v "$program" >/dev/null || die "$program is not installed"
done
[[ -c /dev/fuse ]] || die "there is no /dev/fuse"

root=$(realpath "$(dirname "$0")/..")
release=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")/release
loopfs=${LOOPFS:-$release/loopfs}
[[ -x $loopfs ]] || loopfs=$(command -v loopfs || true)
if [[ -z $churn ]]; then
    for churn in "${loopfs%/*}/loopfs-churn" "$release/loopfs-churn"; do
        [[ ! -x $churn ]] || break
    done
fi
[[ -x $churn ]] || die "there is no loopfs-churn, the load's program: cargo build --release, or --churn FILE"

case $daemon in
loopfs | supervised)
    [[ -x $loopfs ]] || die "there is no loopfs: cargo build --release, or --daemon 'COMMAND'"
    template="$loopfs -f {opts} {src} {mnt}"
    [[ $daemon == loopfs ]] || template="$loopfs -f --supervise {opts} {src} {mnt}"
    ;;
bindfs) template='bindfs -f {src} {mnt}' ;;
passthrough_ll) template='{peers}/passthrough_ll -f -o source={src} {mnt}' ;;
passthrough_hp) template='{peers}/passthrough_hp --foreground {src} {mnt}' ;;
*'{src}'*'{mnt}'* | *'{mnt}'*'{src}'*) template=$daemon ;;
*) die "--daemon '$daemon' is no name known here and has no {src} and {mnt}" ;;
esac
if [[ -z $name ]]; then
    name=${template%% *}
    name=${name##*/}
fi
# What only loopfs promises is asked only of what takes its options.
is_loopfs=''
[[ $template != *'{opts}'* ]] || is_loopfs=1

## What is ours

work=$(mktemp -d "$(realpath "${TMPDIR:-/tmp}")/stress-unmount.XXXXXX") || exit 2
# Paths go into a command line and are compared with the mount table as they are.
[[ $work =~ ^[A-Za-z0-9/._-]+$ ]] || {
    rmdir "$work"
    die "TMPDIR: only letters, digits and '/._-' can be dealt with"
}
# Others than root have to get through to MNT in one scenario.
chmod 711 "$work"
# In the environment of whatever runs in a round, and of the neighbour, which outlives rounds.
mark=STRESS_UNMOUNT=${work##*.}-$$
neighbour_mark=STRESS_UNMOUNT_NEIGHBOUR=${work##*.}-$$
round=$work/round
mkdir "$work/ctl" "$work/tmpfs" "$work/neighbour" "$work/neighbour/src" "$work/neighbour/mnt"
# A pipe in which nothing ever is: reading it with a time limit is a pause without a process.
exec {never}<> <(:)

# now: the time in microseconds, in REPLY.
now() { REPLY=${EPOCHREALTIME/./}; }

# pause MICROSECONDS
pause() {
    local seconds
    printf -v seconds '%d.%06d' $(($1 / 1000000)) $(($1 % 1000000))
    read -rt "$seconds" -u "$never" || true
}

# within MILLISECONDS CONDITION...: polls until CONDITION holds; fails if it does not in time.
within() {
    local until=$((${EPOCHREALTIME/./} + $1 * 1000))
    shift
    until "$@"; do
        ((${EPOCHREALTIME/./} < until)) || return 1
        pause 1000
    done
}

# Processes are known by pid and start time: a pid alone may soon be somebody else's.
declare -A started=()

# process PID: sets state, threads and start as its stat has them; fails if it is gone.
process() {
    local line fields
    { IFS= read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -ra fields <<<"${line##*) }"
    state=${fields[0]} threads=${fields[17]} start=${fields[19]}
}

# know PID: takes note of a child of ours.
know() {
    local state threads start=''
    process "$1"
    started[$1]=$start
}

# alive PID: a child of ours has not ended, with all of its threads.
alive() {
    local state threads start
    process "$1" && [[ $start == "${started[$1]:-}" ]] && ! [[ $state == [ZX] && $threads -le 1 ]]
}
ended() { ! alive "$1"; }
all_ended() {
    local pid
    for pid in "$@"; do
        if alive "$pid"; then return 1; fi
    done
}

# signal NAME PID
signal() {
    if alive "$2"; then kill -"$1" "$2" 2>/dev/null; fi
}

# marked MARK: the processes that carry it, in the array found.
marked() {
    local files
    # A process that is about to end has no environment any more, or none that can be read.
    files=$(timeout -k 1 5 grep -lzxF "$1" /proc/[0-9]*/environ 2>/dev/null)
    files=${files//\/proc\//}
    read -rd '' -a found <<<"${files//\/environ/}"
    true
}

# The mount table, read at once. An entry: id parent major:minor root MOUNT-POINT options ... - type ...
# mount_at PATH: the uppermost mount at PATH: sets mount_id, mount_minor and mount_type; fails if there is none.
mount_at() {
    local table line
    mapfile -t table </proc/self/mountinfo
    mount_id=''
    for line in "${table[@]}"; do
        [[ $line == *" $1 "* ]] || continue
        local fields
        read -ra fields <<<"$line"
        [[ ${fields[4]} == "$1" ]] || continue
        mount_id=${fields[0]}
        mount_minor=${fields[2]#*:}
        mount_type=${line##* - }
        mount_type=${mount_type%% *}
    done
    [[ $mount_id ]]
}

# mounts_below PATH: the mount points at and below PATH, the last first, in the array found.
mounts_below() {
    local table line fields
    mapfile -t table </proc/self/mountinfo
    found=()
    for line in "${table[@]}"; do
        [[ $line == *" $1"[/\ ]* ]] || continue
        read -ra fields <<<"$line"
        [[ ${fields[4]} != "$1" && ${fields[4]} != "$1/"* ]] || found=("${fields[4]}" "${found[@]}")
    done
}

# has_mount ID PATH: the mount with ID stands at PATH, covered or not.
has_mount() { grep -qE "^$1 [0-9]+ [0-9:]+ [^ ]+ $2 " /proc/self/mountinfo; }

# A connection: MINOR:INODE of its directory in fusectl. The number is given to the next one at once.
connection_of() {
    local inode
    inode=$(stat -c %i "$work/ctl/$1" 2>/dev/null) && echo "$1:$inode"
}
has_connection() { [[ $1 && $(connection_of "${1%%:*}") == "$1" ]]; }
no_connection() { ! has_connection "$1"; }
abort_connection() {
    has_connection "$1" && echo 1 >"$work/ctl/${1%%:*}/abort"
}

# bounded SECONDS COMMAND...: runs what may touch a mount; sets status and said. Whoever hangs in the
# kernel can't even be killed: then it is left alone and the status is 124.
bounded() {
    local limit=$1 helper
    shift
    env "$mark" timeout -k 1 "$limit" "$@" >"$round/said" 2>&1 </dev/null &
    helper=$!
    know "$helper"
    status=124 said="still running after $limit s"
    if within $((limit * 1000 + 2000)) ended "$helper"; then
        wait "$helper"
        status=$?
        said=$(<"$round/said")
    fi
    return "$status"
}

## A round

# problem TEXT...: what went wrong, in the same words whenever it is the same thing: they are counted.
problems=()
problem() { problems+=("$*"); }

# launch SRC MNT LOG [OPTIONS]: starts the daemon, with $daemon_mark; sets pid.
daemon_mark=$mark
launch() {
    local command=${template//'{src}'/"$1"} words
    command=${command//'{mnt}'/"$2"}
    command=${command//'{peers}'/"$work/peers"}
    command=${command//'{opts}'/"${4:-}"}
    eval "words=($command)"
    # Bash has a background child ignore SIGINT, and nohup SIGHUP; what is ignored stays so over exec.
    setsid env --default-signal=INT,QUIT,HUP,TERM,PIPE "$daemon_mark" "${words[@]}" >"$3" 2>&1 </dev/null &
    pid=$!
    know "$pid"
}

# executes PID: it has become the daemon.
executes() {
    local comm=''
    { read -r comm <"/proc/$1/comm"; } 2>/dev/null
    [[ $comm != "$own_comm" && $comm != setsid && $comm != env ]]
}
read -r own_comm </proc/self/comm

mounted() { mount_at "$mnt" && [[ $mount_type == fuse* ]]; }
mounted_or_ended() { mounted || ended "$pid"; }
not_mounted() { ! mount_at "$mnt"; }

# await_mount: until it is in the table; takes note of the connection.
await_mount() {
    if within 5000 mounted_or_ended && mounted; then
        connection=$(connection_of "$mount_minor")
        return 0
    fi
    problem "was not mounted within 5 s"
    return 1
}

# serve [OPTIONS]: the daemon runs, serves, and the load works on the mount.
serve() {
    launch "$src" "$mnt" "$round/log" "${1:-}"
    await_mount || return 1
    bounded 5 cat "$mnt/hello"
    [[ $status == 0 && $said == hello ]] || {
        problem "does not serve"
        return 1
    }
    start_load "$mnt"
}

# serves: it still does.
serves() {
    alive "$pid" || {
        problem "ended although it should go on serving"
        return 1
    }
    bounded 5 cat "$mnt/hello"
    [[ $status == 0 && $said == hello ]] || {
        problem "does not go on serving"
        return 1
    }
}

# start_load DIRECTORY [not-yet]: as much load as this round has; returns when it works. It works in a
# directory that the one below the mount does not have: late starters find nothing there.
start_load() {
    local processes jobs number
    case $round_load in
    none) return ;;
    light) processes=1 jobs=1 ;;
    heavy) processes=3 jobs=2 ;;
    esac
    for ((number = 0; number < processes; number++)); do
        env "$mark" timeout -k 2 120 "$churn" --jobs "$jobs" "$1/load" \
            >"$round/load.$number" 2>"$round/load.$number.err" &
        churners+=($!)
        know $!
    done
    [[ ${2:-} ]] || within 10000 load_works "$processes" || problem "the load does not come to work"
}
load_works() {
    local directories files
    shopt -s nullglob
    directories=("$src"/load/churn-*) files=("$src"/load/churn-*/whole-*)
    shopt -u nullglob
    ((${#directories[@]} >= $1 && ${#files[@]} > 0))
}
stop_load() {
    local churner
    for churner in "${churners[@]}"; do signal TERM "$churner"; done
    within 10000 all_ended "${churners[@]}" || problem "the load hangs"
    load_stopped=1
}

# hold: a process that has a file of the mount open, until release.
hold() {
    # shellcheck disable=SC2016 # it is that bash's
    use_file 'exec 3<"$1/hello"; : >"$2/open"; await "$2/go"; exec 3<&-'
}
# write_on: a process that has a file open, goes on writing it after release, closes it, and says so if
# every write and the close succeeded (Bash does not look at what close(2) returns; cat does).
write_on() {
    # shellcheck disable=SC2016 # it is that bash's
    use_file 'set -e -o pipefail; exec 3>"$1/written"; echo begun >&3; : >"$2/open"; await "$2/go"
        for line in {1..500}; do echo "line $line"; done | cat >&3; exec 3>&-; : >"$2/closed"'
}
use_file() {
    # shellcheck disable=SC2016 # it is that bash's
    local await='exec {never}<> <(:); await() { until [[ -e $1 ]]; do read -rt 0.001 -u "$never" || true; done; }'
    rm -f "$round/open" "$round/go" "$round/closed"
    env "$mark" timeout -k 2 60 bash -c "$await; $1" use_file "$mnt" "$round" >"$round/holder" 2>&1 </dev/null &
    holder=$!
    know "$holder"
    within 5000 test -e "$round/open" || problem "a file can't be opened"
}
release() {
    : >"$round/go"
    within 5000 ended "$holder" || problem "who has a file open hangs"
    now
    released=$REPLY
}
# written: what the writer wrote and closed is in SRC.
written() {
    if [[ ! -e $round/closed ]]; then
        problem "the writer could not finish"
    elif ! cmp -s "$src/written" <(echo begun && printf 'line %d\n' {1..500}); then
        problem "bytes of a closed file are lost"
    fi
}

# unmount COMMAND...: an unmount from outside.
unmount() { bounded 10 "$@" "$mnt"; }
# unmount_aside COMMAND...: the same, not waited for.
unmount_aside() {
    env "$mark" timeout -k 1 10 "$@" "$mnt" >>"$round/aside" 2>&1 </dev/null &
    helpers+=($!)
    know $!
}
# must_unmount COMMAND...: what is idle has to let itself be unmounted. Under load it may be busy.
must_unmount() {
    unmount "$@" || [[ $round_load != none ]] || problem "'$*' fails"
}
# unmount_idle: the load ends, and then it has to go. A close may take a moment to arrive.
unmount_idle() {
    stop_load
    trigger
    within 2000 unmount fusermount3 -u || problem "'fusermount3 -u' fails when nothing holds the mount"
}

# newcomer: mounts something else at MNT. stays: it is there still; then it is taken away.
newcomer() {
    bounded 5 mount -t tmpfs newcomer "$mnt"
    mount_at "$mnt"
    newcomer_id=$mount_id
    [[ $mount_type == tmpfs ]] || problem "nothing can be mounted at MNT"
}
stays() { has_mount "$newcomer_id" "$mnt" || problem "SOMEBODY ELSE'S MOUNT WAS TAKEN"; }
newcomer_leaves() {
    stays
    if mount_at "$mnt" && [[ $mount_id == "$newcomer_id" ]]; then bounded 5 umount "$mnt"; fi
}

# trigger: the end begins now.
trigger() {
    now
    triggered=$REPLY
}
# spread MILLISECONDS: another pause for each round, from 0 to so many; half of them in the first quarter,
# where a daemon starts and ends.
spread() {
    local most=$(($1 * 1000)) steps=$((rounds - 1))
    if ((steps > 0)); then
        pause $((most * (round_number - 1) * (round_number - 1) / (steps * steps)))
    else
        pause $((RANDOM % (most + 1)))
    fi
}

# finish [STATUS...]: waits for the end, and checks how it came; 0 is always right. The clock runs
# from the trigger, or from when the load has ended if that is what the mount was held by.
finish() {
    local REPLY until free=$triggered at='' code
    ((released <= free)) || free=$released
    [[ $load_stopped || $load_aside ]] || ((${#churners[@]} == 0)) || free=''
    until=$((triggered + patience_s * 1000000))
    while :; do
        now
        if [[ -z $free ]] && all_ended "${churners[@]}"; then free=$REPLY; fi
        if ended "$pid"; then
            at=$REPLY
            break
        fi
        ((REPLY < until)) || break
        pause 1000
    done
    if [[ -z $at ]]; then
        problem "had not ended after $patience_s s"
        elapsed=$((patience_s * 1000000))
        return
    fi
    # Its users may end after it: then nothing was waited for.
    elapsed=$((at - ${free:-$at}))
    ((elapsed <= limit_s * 1000000)) || problem "ended later than $limit_s s after nothing held the mount"
    wait "$pid"
    code=$?
    [[ " 0 $* " == *" $code "* ]] || problem "status $code"
}

# judge: what has to hold whatever the scenario was.
judge() {
    local found
    ((${#helpers[@]} == 0)) || within 12000 all_ended "${helpers[@]}" || problem "an unmount command hangs"
    mounts_below "$round"
    ((${#found[@]} == 0)) || problem "a mount is left"
    bounded 5 ls -A "$mnt"
    [[ $status == 0 && -z $said ]] || ((${#found[@]} > 0)) || problem "MNT is no empty directory afterwards"
    [[ $said != *"Transport endpoint"* ]] || problem "'Transport endpoint is not connected' is left"
    if ! within 5000 all_ended "${churners[@]}"; then
        problem "the load hangs"
    elif [[ ${data:-} != gone ]]; then
        judge_data
    fi
    within 1000 no_connection "$connection" || problem "a connection is left"
    within 1000 nobody_left || problem "a process is left"
    ! grep -qiE "panicked at|segmentation fault|core dumped|assertion .*failed" "$round/log" || problem "panic"
    has_mount "$bystander_id" "$work/tmpfs" || problem "SOMEBODY ELSE'S MOUNT WAS TAKEN"
    neighbour_serves || {
        problem "a second mount, that nobody ended, serves no more"
        stop_neighbour
        start_neighbour
    }
}

nobody_left() {
    local found
    marked "$mark"
    ((${#found[@]} == 0))
}
# kill_marked MARK
kill_marked() {
    local found other
    marked "$1"
    for other in "${found[@]}"; do kill -KILL "$other" 2>/dev/null; done
}

# judge_data: each job keeps every tenth file, whose name ends in 0, after it has closed it; the name
# tells the content. What the unmount made fail was not reported as done.
judge_data() {
    local number line kept=0 there
    for ((number = 0; number < ${#churners[@]}; number++)); do
        line=$(<"$round/load.$number")
        if [[ $line =~ kept=([0-9]+) ]]; then
            kept=$((kept + BASH_REMATCH[1]))
        elif ! grep -q '^loopfs-churn: /' "$round/load.$number.err"; then
            problem "the load did not end by itself"
        fi
        if grep -q 'wrong content' "$round/load.$number.err"; then problem "wrong content is read"; fi
        # ENOENT (the path leads below the mount), ENODEV, ECONNABORTED, ENOTCONN; ENOSPC where that is the point.
        if grep '^loopfs-churn: job' "$round/load.$number.err" |
            grep -qvE "os error (2|19|103|107${legal_errors:-})\)"; then
            problem "errors that no unmount explains"
        fi
    done
    ((${#churners[@]} > 0)) || return 0
    there=$(find "$src/load" -path '*/churn-*/whole-*0' | wc -l)
    ((there >= kept)) || problem "files that were closed are lost"
    # Where the load met ENOSPC, only what it had made durable counts: it does not look at what close says.
    "$churn" --verify "$src/load" >"$round/verified" 2>&1 ||
        { [[ ${legal_errors:-} ]] && ! grep -q 'whole-[0-9-]*0: ' "$round/verified"; } ||
        problem "files in SRC are not whole"
}

# scrub: whatever the round left is taken away, by force.
scrub() {
    local found at other
    abort_connection "$connection"
    for other in "${pid:-}" "${lower:-}"; do
        if [[ $other ]] && alive "$other"; then
            signal CONT "$other"
            signal KILL "$other"
        fi
    done
    abort_connection "${lower_connection:-}"
    mounts_below "$round"
    for at in "${found[@]}"; do bounded 10 umount -l "$at"; done
    kill_marked "$mark"
    within 5000 nobody_left || echo "stress-unmount: a process of round $round_number can't be killed" >&2
    mounts_below "$round"
    if ((${#found[@]} == 0)); then
        rm -rf --one-file-system "$round"
    else
        # Nothing more can be done about it here: the next round has another directory.
        round+=x
    fi
}

# The neighbour is the same daemon on another mount, which nobody ends: it has to serve throughout.
start_neighbour() {
    local pid mnt=$work/neighbour/mnt connection='' daemon_mark=$neighbour_mark
    launch "$work/neighbour/src" "$mnt" "$work/neighbour/log"
    neighbour=$pid
    await_mount && neighbour_serves && return
    die "'$template' does not serve a directory: $(tail -n 5 "$work/neighbour/log")"
}
neighbour_serves() { bounded 5 cat "$work/neighbour/mnt/hello" && [[ $said == hello ]]; }
stop_neighbour() {
    [[ $neighbour ]] || return 0
    if mount_at "$work/neighbour/mnt"; then bounded 5 fusermount3 -uz "$work/neighbour/mnt"; fi
    within 3000 ended "$neighbour" || kill_marked "$neighbour_mark"
    neighbour=''
}

## The scenarios

end_by_signal() {
    serve || return
    trigger
    signal "$1" "$pid"
    finish
}
scenario_sig_int() { end_by_signal INT; }
scenario_sig_term() { end_by_signal TERM; }
scenario_sig_hup() { end_by_signal HUP; }

scenario_sig_five() {
    local number
    serve || return
    trigger
    for number in TERM INT HUP TERM INT; do signal "$number" "$pid"; done
    finish
}

scenario_sig_again() {
    serve || return
    trigger
    signal TERM "$pid"
    spread 10
    signal INT "$pid"
    finish
}

scenario_sig_writing() {
    serve || return
    write_on
    trigger
    signal TERM "$pid"
    within 3000 not_mounted || problem "stays mounted after SIGTERM while a file is open"
    release
    # Only loopfs promises to let the writer finish; what was closed has to be there in any case.
    if [[ $is_loopfs || -e $round/closed ]]; then written; fi
    finish
}

# load_beside: there is no mount yet to work on; the load disturbs the machine.
load_beside() {
    load_aside=1
    start_load "$src"
}

scenario_sig_early() {
    local names=(TERM INT HUP) number
    local which=${names[round_number % 3]}
    load_beside
    launch "$src" "$mnt" "$round/log"
    within 2000 executes "$pid"
    spread 20
    trigger
    signal "$which" "$pid"
    # It may come before it can be caught, or before the mount was ready.
    number=$(kill -l "$which")
    finish 8 $((128 + number))
    stop_load
}

scenario_sig_on_mount() {
    load_beside
    launch "$src" "$mnt" "$round/log"
    await_mount || return
    trigger
    signal TERM "$pid"
    finish
    stop_load
}

scenario_sig_vs_umount() {
    local ways=('fusermount3 -u' 'fusermount3 -uz' 'umount -l' 'umount') way
    serve || return
    read -ra way <<<"${ways[round_number % 4]}"
    trigger
    unmount_aside "${way[@]}"
    spread 6
    signal TERM "$pid"
    finish
}

scenario_u() {
    serve || return
    trigger
    if ! unmount fusermount3 -u; then
        [[ $round_load != none ]] || problem "'fusermount3 -u' fails when nothing holds the mount"
        [[ $said == *[bB]usy* ]] || problem "'fusermount3 -u' fails, but not with EBUSY"
        serves
        unmount_idle
    fi
    finish
}

scenario_u_busy() {
    serve || return
    hold
    unmount fusermount3 -u && problem "'fusermount3 -u' takes a mount that is in use"
    [[ $said == *[bB]usy* ]] || problem "'fusermount3 -u' fails, but not with EBUSY"
    serves
    release
    unmount_idle
    finish
}

end_by_unmount() {
    serve || return
    trigger
    must_unmount "$@"
    finish
}
scenario_uz() { end_by_unmount fusermount3 -uz; }
scenario_umount_l() { end_by_unmount umount -l; }
scenario_umount_f() { end_by_unmount umount -f; }
scenario_umount_lf() { end_by_unmount umount -l -f; }

scenario_uz_writing() {
    serve || return
    write_on
    trigger
    must_unmount fusermount3 -uz
    not_mounted || problem "stays mounted after -uz"
    alive "$pid" || problem "ended while a file was open"
    release
    written
    finish
}

scenario_uz_parallel() {
    serve || return
    trigger
    for _ in {1..20}; do unmount_aside fusermount3 -uz; done
    finish
}

scenario_uz_newcomer() {
    serve || return
    hold
    must_unmount fusermount3 -uz
    newcomer
    trigger
    signal TERM "$pid"
    # Time to do the wrong thing: until it has ended, or for a moment if it waits for the file.
    within 100 ended "$pid"
    stays
    release
    finish
    newcomer_leaves
}

scenario_umount_early() {
    load_beside
    launch "$src" "$mnt" "$round/log"
    if ((round_number % 2)); then
        within 2000 executes "$pid"
        spread 20
        trigger
        # Too early, it finds nothing; the next try may not fail.
        unmount fusermount3 -uz || status=1
    else
        await_mount || return
        status=1
    fi
    if ((status != 0)); then
        await_mount || return
        trigger
        within 2000 unmount fusermount3 -u || problem "'fusermount3 -u' fails when nothing holds the mount"
    fi
    finish
    stop_load
}

# with_file_open COMMAND...: the daemon has to end although somebody has a file open: its connection is cut.
with_file_open() {
    serve || return
    hold
    trigger
    "$@"
    finish
    release
}
scenario_umount_f_busy() { with_file_open unmount umount -f; }
scenario_umount_lf_busy() { with_file_open unmount umount -l -f; }

cut() {
    abort_connection "$connection" || problem "fusectl does not know the connection"
}
scenario_abort() {
    serve || return
    trigger
    cut
    finish
    log_says 'connection|abort|cut'
}
scenario_abort_busy() {
    with_file_open cut
    log_says 'connection|abort|cut'
}

scenario_mixed() {
    local signals=(INT TERM HUP) number draw done_so_far=''
    # The same for every daemon and every run.
    RANDOM=$((round_number * 7919))
    serve || return
    if ((round_number % 2)); then hold; fi
    trigger
    for ((number = RANDOM % 3 + 2; number > 0; number--)); do
        draw=$((RANDOM % 9))
        case $draw in
        0) unmount_aside fusermount3 -u ;;
        1) unmount_aside fusermount3 -uz ;;
        2) unmount_aside umount -l ;;
        3) unmount_aside umount -f ;;
        4) unmount_aside umount -l -f ;;
        5) abort_connection "$connection" ;;
        *) signal "${signals[draw % 3]}" "$pid" ;;
        esac
        done_so_far+=" $draw"
        pause $((RANDOM % 5000))
    done
    echo "draws:$done_so_far" >>"$round/aside"
    # Whatever came: after the file is closed and one signal more, it is over.
    within 12000 all_ended "${helpers[@]}" || problem "an unmount command hangs"
    [[ -z $holder ]] || release
    trigger
    signal TERM "$pid"
    finish
}

# log_says PATTERN: loopfs has to say what happened.
log_says() {
    [[ -z $is_loopfs ]] || grep -qiE "$1" "$round/log" || problem "the log does not say what happened"
}
ended_or_says() { ended "$pid" || grep -q "$1" "$round/log"; }

scenario_covered() {
    # In odd rounds it is waited for, in even ones it gives its connection up.
    local waits=$((round_number % 2)) opts=''
    if ! ((waits)); then opts='--drain-timeout 1'; fi
    serve "$opts" || return
    newcomer
    trigger
    signal TERM "$pid"
    within 2000 ended_or_says 'on top of'
    stays
    if ((waits)); then
        newcomer_leaves
        trigger
        finish
        return
    fi
    limit_s=$((limit_s + 3))
    finish
    log_says 'on top of'
    newcomer_leaves
    # It could not take its dead mount from below the other one, and has said so: that is all one can ask.
    if [[ $is_loopfs ]] && mount_at "$mnt" && [[ $mount_type == fuse* ]]; then
        log_says 'stays below'
        bounded 5 umount -l "$mnt"
    fi
}

# somebody_waits CONNECTION: a request of it is under way.
somebody_waits() {
    local waiting=0
    { read -r waiting <"$work/ctl/${1%%:*}/waiting"; } 2>/dev/null
    ((waiting > 0))
}

# has_closed PID FILE: it has FILE open in no way that closing would flush; O_PATH descriptors don't count.
has_closed() {
    local fd key flags
    for fd in "/proc/$1/fd"/*; do
        [[ $(readlink "$fd") == "$2" ]] || continue
        while read -r key flags; do
            [[ $key != flags: ]] || ((8#$flags & 8#10000000)) || return 1
        done 2>/dev/null <"/proc/$1/fdinfo/${fd##*/}"
    done
}

# server_of PID: which process serves; of a supervised daemon it is the last child.
server_of() {
    local children=''
    if [[ $daemon == supervised ]]; then
        # It ends with a space, and without a newline.
        IFS= read -r children <"/proc/$1/task/$1/children" || true
        children=${children% }
    fi
    children=${children##* }
    echo "${children:-$1}"
}

# stopped PID: all of its threads are; kill(2) returns before they have heard of it.
stopped() {
    local task line
    for task in "/proc/$1/task"/*; do
        { IFS= read -r line <"$task/stat"; } 2>/dev/null || return 1
        [[ ${line##*) } == [Tt]* ]] || return 1
    done
}

scenario_src_hangs() {
    local below=$round/below upper=$mnt
    mkdir -p "$below/load"
    echo hello >"$below/hello"
    echo new >"$below/new"
    rm -r "$src/hello" "$src/load"
    # The lower mount is the same daemon's, at SRC.
    mnt=$src
    launch "$below" "$src" "$round/lower.log"
    lower=$pid
    await_mount || return
    lower_connection=$connection connection='' mnt=$upper
    # The load starts on a mount that hangs already. Not even SIGKILL ends a wait for what the lower
    # daemon has taken and not answered, nor one for the FLUSH that comes with closing a file (both in
    # fs/fuse/dev.c, request_wait_answer): no daemon could pass that.
    local real_load=$round_load
    round_load=none
    serve '--drain-timeout 1'
    round_load=$real_load
    ((${#problems[@]} == 0)) || return
    within 2000 has_closed "$pid" "$src/hello" || problem "keeps a file of SRC open"
    local server
    server=$(server_of "$lower")
    know "$server"
    signal STOP "$server"
    within 2000 stopped "$server" || problem "the lower daemon can't be stopped"
    env "$mark" timeout -k 2 60 cat "$mnt/new" >"$round/holder" 2>&1 </dev/null &
    holder=$!
    know "$holder"
    start_load "$mnt" not-yet
    within 5000 somebody_waits "$lower_connection" || problem "no request hangs in SRC"
    trigger
    signal TERM "$pid"
    # What hangs holds the mount: a second for --drain-timeout, three to cut the connection and give up.
    limit_s=$((within_s + 4))
    local others=("${churners[@]}")
    churners=()
    finish
    signal CONT "$server"
    churners=("${others[@]}")
    within 5000 all_ended "$holder" "${churners[@]}" || problem "a request hangs for ever"
    bounded 5 fusermount3 -uz "$src"
    within 3000 ended "$lower" || problem "the lower daemon does not end"
    within 1000 no_connection "$lower_connection" || problem "a connection is left"
    data=gone
}

scenario_src_removed() {
    serve || return
    within 5000 remove_source || problem "SRC can't be removed"
    bounded 5 touch "$mnt/new" && problem "a file can be made in a directory that is gone"
    alive "$pid" || problem "ended although it should go on serving"
    data=gone
    unmount_idle
    finish
}
remove_source() { rm -rf "$src" 2>/dev/null; }

scenario_src_unreadable() {
    serve || return
    chmod 000 "$src"
    within 3000 refuses_nobody || problem "what can't be read in SRC can be read through the mount"
    alive "$pid" || problem "ended although it should go on serving"
    chmod 755 "$src"
    serves
    unmount_idle
    finish
}
# The kernel may keep attributes for a moment.
refuses_nobody() { ! bounded 5 setpriv --reuid 65534 --regid 65534 --clear-groups ls "$mnt"; }

scenario_src_full() {
    bounded 5 mount -t tmpfs -o size=2m full "$src"
    echo hello >"$src/hello"
    mkdir "$src/load"
    legal_errors='|28'
    serve || return
    bounded 10 dd if=/dev/zero of="$mnt/big" bs=64k count=64 && problem "more fits in than there is room"
    [[ $said == *"No space left"* ]] || problem "a full SRC is not told as ENOSPC"
    serves
    unmount_idle
    finish
    judge_data
    data=gone
    bounded 5 umount "$src"
}

scenario_kill9() {
    serve || return
    {
        signal KILL "$pid"
        within 5000 ended "$pid"
        wait "$pid"
    } 2>/dev/null # where Bash says "Killed"
    within 5000 all_ended "${churners[@]}" || problem "the load hangs"
    if [[ $daemon == supervised ]]; then
        # The serving process does not stay alone.
        within 5000 gone_from_table || problem "the mount outlives its supervisor"
    else
        stays_dead
    fi
    local before=("${churners[@]}")
    launch "$src" "$mnt" "$round/log" --replace-stale
    within 5000 stands_anew || problem "--replace-stale does not mount"
    connection=$(connection_of "$mount_minor")
    churners=()
    serves
    trigger
    unmount fusermount3 -u || problem "'fusermount3 -u' fails when nothing holds the mount"
    finish
    churners=("${before[@]}")
}
gone_from_table() { ! mounted; }
stays_dead() {
    bounded 5 ls "$mnt" && problem "a dead mount can be listed"
    launch "$src" "$mnt" "$round/log.refused"
    within 5000 ended "$pid" || problem "starts over a dead mount without --replace-stale"
    wait "$pid"
    status=$?
    ((status == 32)) || problem "status $status over a dead mount"
    grep -q 'replace-stale' "$round/log.refused" || problem "does not offer --replace-stale"
}
stands_anew() { mounted && bounded 5 cat "$mnt/hello"; }

## All rounds

declare -A done_rounds=() passed_rounds=() worst=() reasons=()

run_round() {
    local scenario=$1 reason cell text REPLY
    # What the scenario and its checks tell each other.
    local pid='' connection='' lower='' lower_connection='' holder='' newcomer_id='' status said=''
    local triggered=0 released=0 elapsed=0 limit_s=$within_s data='' legal_errors='' load_stopped='' load_aside=''
    local src=$round/src mnt=$round/mnt churners=() helpers=() problems=()
    round_load=$2 round_number=$3 cell="$1 $2"
    mkdir -p "$src/load" "$mnt"
    echo hello >"$src/hello"
    : >"$round/log"
    "scenario_${scenario//-/_}"
    judge
    done_rounds[$cell]=$((${done_rounds[$cell]:-0} + 1))
    ((elapsed <= ${worst[$cell]:-0})) || worst[$cell]=$elapsed
    if ((${#problems[@]} == 0)); then
        passed_rounds[$cell]=$((${passed_rounds[$cell]:-0} + 1))
    else
        # Each thing once a round.
        mapfile -t problems < <(printf '%s\n' "${problems[@]}" | sort -u)
        for reason in "${problems[@]}"; do reasons[$cell|$reason]=$((${reasons[$cell|$reason]:-0} + 1)); done
        printf -v text '%s; ' "${problems[@]}"
        say "FAILED $scenario, load $round_load, round $round_number: ${text%; }"
        [[ $logs ]] && keep_logs "$scenario-$round_load-$round_number"
        failed=$((failed + 1))
    fi
    scrub
    ((${#problems[@]} == 0))
}

keep_logs() {
    mkdir -p "$logs/$1"
    cp "$round"/{log*,*.log,load.*,holder,aside,verified} "$logs/$1/" 2>/dev/null
    printf '%s\n' "${problems[@]}" >"$logs/$1/problems"
}

# say TEXT: a line on stderr, over the progress line if there is one.
say() {
    [[ ! -t 2 ]] || printf '\r\e[K' >&2
    echo "$*" >&2
}
last_said=$SECONDS
progress() {
    local text="$name: $finished of $total rounds, $failed failed, $SECONDS s: $1, load $2"
    if [[ -t 2 ]]; then
        printf '\r\e[K%s' "${text:0:${COLUMNS:-79}}" >&2
    elif ((SECONDS - last_said >= every)); then
        last_said=$SECONDS
        echo "$text" >&2
    fi
}

# applies SCENARIO
applies() { [[ $1 != kill9 || $is_loopfs ]]; }

seconds() { printf -v REPLY '%d.%03d' $(($1 / 1000000)) $(($1 % 1000000 / 1000)); }

# why CELL: what went wrong there, with counts, in REPLY.
why() {
    local key
    REPLY=''
    while IFS= read -r key; do
        [[ $key != "$1|"* ]] || REPLY+="${REPLY:+; }${key#*|} (${reasons[$key]})"
    done < <(printf '%s\n' "${!reasons[@]}" | sort)
}

table() {
    local scenario kind cell time REPLY
    printf '%-16s %-6s %9s %9s  %s\n' scenario load passed "worst [s]" "what went wrong (rounds)"
    for kind in "${loads[@]}"; do
        for scenario in "${chosen[@]}"; do
            cell="$scenario $kind"
            if [[ -z ${done_rounds[$cell]:-} ]]; then
                applies "$scenario" && REPLY='not run' || REPLY='does not apply'
                printf '%-16s %-6s %9s %9s  %s\n' "$scenario" "$kind" - - "$REPLY"
                continue
            fi
            seconds "${worst[$cell]:-0}"
            time=$REPLY
            why "$cell"
            printf '%-16s %-6s %9s %9s  %s\n' "$scenario" "$kind" \
                "${passed_rounds[$cell]:-0}/${done_rounds[$cell]}" "$time" "$REPLY"
        done
    done
    echo "$name: $((finished - failed)) of $finished rounds passed, $failed failed, $SECONDS s, $(uname -sr)"
}

# quoted TEXT: as a JSON string, in REPLY.
quoted() {
    REPLY=${1//\\/\\\\}
    REPLY=${REPLY//\"/\\\"}
    REPLY="\"${REPLY//[[:cntrl:]]/ }\""
}

report_json() {
    local scenario kind cell key first=1 inner REPLY name_json template_json kernel_json
    quoted "$name" && name_json=$REPLY
    quoted "$template" && template_json=$REPLY
    quoted "$(uname -sr)" && kernel_json=$REPLY
    printf '{"name":%s,"daemon":%s,"kernel":%s,' "$name_json" "$template_json" "$kernel_json"
    printf '"date":"%(%Y-%m-%dT%H:%M:%S%z)T","rounds":%d,"within_seconds":%d,' -1 "$rounds" "$within_s"
    printf '"finished":%d,"failed":%d,"seconds":%d,"results":[' "$finished" "$failed" "$SECONDS"
    for kind in "${loads[@]}"; do
        for scenario in "${chosen[@]}"; do
            cell="$scenario $kind"
            [[ ${done_rounds[$cell]:-} ]] || continue
            ((first)) || printf ','
            first=0 inner=''
            for key in "${!reasons[@]}"; do
                [[ $key == "$cell|"* ]] || continue
                quoted "${key#*|}"
                inner+="${inner:+,}$REPLY:${reasons[$key]}"
            done
            seconds "${worst[$cell]:-0}"
            printf '\n{"scenario":"%s","load":"%s","rounds":%d,"passed":%d,"worst_seconds":%s,"problems":{%s}}' \
                "$scenario" "$kind" "${done_rounds[$cell]}" "${passed_rounds[$cell]:-0}" "$REPLY" "$inner"
        done
    done
    printf '\n]}\n'
}

report() {
    [[ ! -t 2 ]] || printf '\r\e[K' >&2
    case $json in
    '') table ;;
    -)
        table >&2
        report_json
        ;;
    *)
        table
        report_json >"$json"
        ;;
    esac
}

# Peers: passthrough_ll is in Debian's libfuse3-dev as an example, passthrough_hp only in the source
# package. It is fetched with lists of our own; what apt knows of the machine stays as it is.
build_peers() {
    local here=$work/peers flags libraries options version
    for program in gcc g++ pkg-config; do
        command -v "$program" >/dev/null || die "--build-peers needs $program"
    done
    mkdir -p "$here/lists/partial"
    read -ra flags < <(pkg-config --cflags fuse3)
    read -ra libraries < <(pkg-config --libs fuse3)
    ((${#libraries[@]} > 0)) || die "--build-peers needs libfuse3-dev"
    gcc -O2 -w "${flags[@]}" /usr/share/doc/libfuse3-dev/examples/passthrough_ll.c -o "$here/passthrough_ll" \
        "${libraries[@]}" ||
        die "passthrough_ll can't be built"
    # shellcheck disable=SC2016 # the names are apt's
    apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        sort -u >"$here/sources.list"
    options=(
        -qq -o "Dir::Etc::sourcelist=$here/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$here/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root
    )
    # shellcheck disable=SC2016 # the names are dpkg's
    version=$(dpkg-query -W -f '${source:Version}' libfuse3-dev)
    (
        cd "$here" && apt-get "${options[@]}" update &&
            apt-get "${options[@]}" source --download-only "fuse3=$version" &&
            mkdir source && tar -xf fuse3_*.orig.tar.xz -C source --strip-components=1
    ) >&2 || die "Debian's source of fuse3 $version can't be had"
    g++ -O2 -w "${flags[@]}" "$here/source/example/passthrough_hp.cc" -o "$here/passthrough_hp" \
        "${libraries[@]}" -pthread ||
        die "passthrough_hp can't be built"
}

neighbour='' bystander_id='' finished=0 failed=0 total=0 running=''
round_load=none round_number=0

cleanup() {
    local code=$? found at
    trap '' INT TERM HUP
    mkdir -p "$round"
    stop_neighbour
    scrub
    mkdir -p "$round"
    mounts_below "$work"
    for at in "${found[@]}"; do bounded 10 umount -l "$at"; done
    kill_marked "$neighbour_mark"
    mounts_below "$work"
    if ((${#found[@]} > 0)); then
        echo "stress-unmount: left mounted: ${found[*]}" >&2
    else
        rm -rf --one-file-system "$work"
    fi
    exit "$code"
}
interrupted() {
    trap '' INT TERM HUP
    if [[ $running ]]; then report; fi
    exit 130
}
trap cleanup EXIT
trap interrupted INT TERM HUP

mkdir -p "$round"
mnt=$work/neighbour/mnt pid='' connection=''
mount -t fusectl none "$work/ctl" || die "fusectl can't be mounted"
mount -t tmpfs bystander "$work/tmpfs" || die "tmpfs can't be mounted"
mount_at "$work/tmpfs"
bystander_id=$mount_id
[[ -z $build_peers ]] || build_peers
echo hello >"$work/neighbour/src/hello"
start_neighbour
rm -rf "$round"

for scenario in "${chosen[@]}"; do
    if applies "$scenario"; then total=$((total + rounds * ${#loads[@]})); fi
done
running=1
for kind in "${loads[@]}"; do
    for scenario in "${chosen[@]}"; do
        applies "$scenario" || continue
        for ((number = 1; number <= rounds; number++)); do
            progress "$scenario" "$kind"
            run_round "$scenario" "$kind" "$number" || [[ $keep_going ]] || break 3
            finished=$((finished + 1))
        done
    done
done
# The round that ended it is one that ran.
((failed == 0)) || [[ $keep_going ]] || finished=$((finished + 1))
running=''
report
((failed == 0))
