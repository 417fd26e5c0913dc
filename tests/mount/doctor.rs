//! `loopfs doctor`: each thing that can be wrong is made so in a private mount namespace, found, and mended by the very
//! command that is shown.

use crate::common::TestEnv;

/// `wrong ABOUT`: the line about it; `mend ABOUT`: runs the command below that. `$AS` acts as a user.
const PREPARE: &str = r#"
    PATH="$ROOT:$PATH"
    doctor() { timeout 30 "$LOOPFS" doctor "$@" >"$ROOT/found" 2>&1 || echo "status $?"; }
    # The first line about $1, and the command below it, without its remark.
    about() { grep -F -m 1 "  $1: " "$ROOT/found" || { echo "nothing about $1:"; cat "$ROOT/found"; }; }
    command_for() { grep -F -m 1 -A 1 "  $1: " "$ROOT/found" | sed -n '2s/^ \{9\}//p' | sed 's/    # .*//'; }
    # There may be no sudo here, and none is needed.
    mend() { sudo() { "$@"; }; command_for "$1" | sed "s,^,+ ,"; eval "$(command_for "$1")"; }
    AS="setpriv --reuid 65534 --regid 65534 --clear-groups timeout 30"
    # A /dev/fuse of one's own: whatever is done to it nobody else sees.
    mkdir "$ROOT/dev"; mount -t tmpfs -o mode=755 dev "$ROOT/dev"; mknod -m 600 "$ROOT/dev/fuse" c 10 229
    mount --bind "$ROOT/dev/fuse" /dev/fuse
    ended() { timeout 20 pidwait -f "^$LOOPFS $ROOT" || [ $? -eq 1 ]; }
    daemon() { pgrep -f "^$LOOPFS .*$1"; }
"#;

#[track_caller]
fn script(env: &TestEnv, body: &str) -> String {
    let seen = env.private_script(&format!("{PREPARE}\n{body}")).success();
    seen.replace(&env.root().display().to_string(), "ROOT")
}

/// A dead mount, one whose daemon is stopped, one that is covered: found without being held up.
#[test]
fn mounts_that_are_dead_stopped_or_covered() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        "$LOOPFS" "$SRC" "$MNT" </dev/null; doctor "$MNT"; about "$MNT"
        kill -KILL "$(daemon "$MNT")"; ended; doctor; about "$MNT"; mend "$MNT"; doctor "$MNT"; about "$MNT"
        "$LOOPFS" "$SRC" "$MNT" </dev/null
        pid=$(daemon "$MNT"); kill -STOP $pid; doctor "$MNT"
        about "$MNT" | sed "s/$pid/PID/"; mend "$MNT" | sed "s/$pid/PID/"; doctor "$MNT"; about "$MNT"
        mount -t tmpfs over "$MNT"; doctor "$MNT"; grep -F over "$ROOT/found"; umount "$MNT"
        umount "$MNT"; ended"#,
    );
    let expected = "\
ok     ROOT/mnt: serving
status 2
WRONG  ROOT/mnt: dead (Transport endpoint is not connected): its daemon ended without unmounting it
+ umount -l ROOT/mnt
ok     ROOT/mnt: nothing is mounted there, and it can be mounted on
status 2
WRONG  ROOT/mnt: its daemon is there and does not answer: it is stopped (a signal, a debugger), or hangs (process PID)
+ kill -CONT PID
ok     ROOT/mnt: serving
status 2
WRONG  ROOT/mnt: something else is mounted over it, so nobody sees it
";
    assert_eq!(seen, expected);
    env.assert_clean();
}

/// SRC is on another loopfs, which is stopped: the request that waits there is named, and the end helps.
#[test]
fn a_source_that_hangs() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mkdir "$ROOT/upper"; echo x >"$SRC/f"
        "$LOOPFS" -o attr_timeout=0,entry_timeout=0 "$SRC" "$MNT" </dev/null; "$LOOPFS" "$MNT" "$ROOT/upper" </dev/null
        below=$(daemon "$SRC $MNT"); kill -STOP $below
        until ! grep -h ^State: /proc/$below/task/*/status | grep -qv T; do :; done
        cat "$ROOT/upper/f" >/dev/null 2>&1 & reader=$!
        # Five seconds make a hang of a wait. One look each half a second: there may be no CPU for more.
        for try in $(seq 60); do
            findmnt --poll --timeout 500 >/dev/null || true
            code=0; "$LOOPFS" doctor "$ROOT/upper" >"$ROOT/found" || code=$?
            ! grep -q " waits for " "$ROOT/found" || break
        done
        echo "status $code"; about "$ROOT/upper" | sed 's/[0-9]* s in/N s in/'
        # It unmounts, and waits for the daemon, which ends when SRC goes on.
        mend "$ROOT/upper" >"$ROOT/mended" 2>&1 & mending=$!
        timeout 30 sh -c 'while mountpoint -q "$ROOT/upper"; do findmnt --poll --timeout 100 >/dev/null || true; done'
        kill -CONT $below; wait $mending; head -n 1 "$ROOT/mended"
        mountpoint -q "$ROOT/upper" || echo "unmounted"
        wait $reader || echo "cut off"
        umount "$MNT"; ended"#,
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "status 2", "{seen}");
    assert!(lines[1].starts_with("WRONG  ROOT/upper: "), "{seen}");
    assert!(
        lines[1].ends_with(" waits for N s in ROOT/mnt: what that is on hangs, or is slow"),
        "{seen}"
    );
    assert_eq!(
        &lines[2..],
        [
            "+ loopfs unmount --force ROOT/upper",
            "unmounted",
            "cut off"
        ]
    );
    env.assert_clean();
}

/// The device and the helper, as root and as a user, for whom the same is worse.
#[test]
fn device_and_helper() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        chmod 777 "$MNT"; doctor() { "$LOOPFS" doctor "$MNT" >"$ROOT/found" || echo "status $?"; }
        as_user() { $AS "$LOOPFS" doctor "$MNT" >"$ROOT/found" 2>&1 || echo "status $?"; }
        doctor; about /dev/fuse; as_user; about /dev/fuse; mend /dev/fuse; as_user; about /dev/fuse
        helper=$(realpath "$(command -v fusermount3)"); cp "$helper" "$ROOT/dev/helper"; chmod 755 "$ROOT/dev/helper"
        mount --bind "$ROOT/dev/helper" "$helper"
        as_user; about fusermount3; doctor; about fusermount3; mend fusermount3; as_user; about fusermount3; umount "$helper"
        mount --bind /dev/null "$helper"; as_user; about fusermount3; command_for fusermount3; umount "$helper"
        mkdir "$ROOT/empty"; mount --bind "$ROOT/empty" /dev; doctor; about /dev/fuse; command_for /dev/fuse"#,
    );
    let expected = "\
note   /dev/fuse: not every user may open it (its mode is 0600), so other users can't mount
status 2
WRONG  /dev/fuse: can't be opened: Permission denied (os error 13)
+ sudo chmod 666 /dev/fuse
ok     /dev/fuse: every user may open it
status 2
WRONG  fusermount3: /usr/bin/fusermount3 is not set-user-ID root: it can't mount for users
note   fusermount3: /usr/bin/fusermount3 is not set-user-ID root: it can't mount for users
+ sudo sh -c 'chown root /usr/bin/fusermount3 && chmod u+s /usr/bin/fusermount3'
ok     fusermount3: /usr/bin/fusermount3 is set-user-ID root
status 2
WRONG  fusermount3: not installed: only root can mount
apt install fuse3
status 2
WRONG  /dev/fuse: missing: the module is not loaded, or the container lacks the device
modprobe fuse
";
    assert_eq!(seen, expected);
    env.assert_clean();
}

/// What fusermount3 allows users, fusectl, the limit on open files, features that are switched off.
#[test]
fn what_is_allowed_and_what_is_missing() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        doctor() { "$LOOPFS" doctor "$MNT" >"$ROOT/found" || echo "status $?"; }; chmod 777 "$MNT"
        : >"$ROOT/fuse.conf"; chmod 644 "$ROOT/fuse.conf"; chmod 666 /dev/fuse; mount --bind "$ROOT/fuse.conf" /etc/fuse.conf
        doctor; about user_allow_other; mend user_allow_other; doctor; about user_allow_other
        echo "mount_max = 1" >>/etc/fuse.conf; mkdir "$ROOT/one"; "$LOOPFS" "$SRC" "$ROOT/one" </dev/null
        $AS "$LOOPFS" doctor "$MNT" >"$ROOT/found" || echo "status $?"; about mount_max | sed 's/[0-9]* FUSE/N FUSE/'
        mend mount_max; doctor; about mount_max | sed 's/[0-9]* FUSE/N FUSE/'; umount "$ROOT/one"; ended
        umount /sys/fs/fuse/connections 2>/dev/null || true
        doctor; about /sys/fs/fuse/connections; mend /sys/fs/fuse/connections; doctor; about /sys/fs/fuse/connections
        prlimit --nofile=512:512 "$LOOPFS" doctor "$MNT" >"$ROOT/found" || echo "status $?"; about "open files"
        LOOPFS_FEATURES_OFF=statmount,passthrough "$LOOPFS" doctor "$MNT" >"$ROOT/found"
        about statmount; about passthrough; mend statmount"#,
    );
    let expected = "\
note   user_allow_other: not in /etc/fuse.conf: a user's mount is for that user only, allow_other is refused
+ echo user_allow_other | sudo tee -a /etc/fuse.conf
user_allow_other
ok     user_allow_other: users may mount with allow_other (/etc/fuse.conf)
status 2
WRONG  mount_max: N FUSE mounts, of 1 up to which users may make new ones (/etc/fuse.conf)
+ echo 'mount_max = 2000' | sudo tee -a /etc/fuse.conf
mount_max = 2000
ok     mount_max: N FUSE mounts, of 2000 up to which users may make new ones (/etc/fuse.conf)
note   /sys/fs/fuse/connections: not mounted: the connection of a mount that hangs can't be cut from outside
+ sudo mount -t fusectl fusectl /sys/fs/fuse/connections
ok     /sys/fs/fuse/connections: mounted
status 2
WRONG  open files: a daemon that is started from here may have 512 open: programs get EMFILE (Too many open files) soon where SRC gives no file handles
note   statmount: switched off by LOOPFS_FEATURES_OFF: the mount table is read as a whole
note   passthrough: switched off by LOOPFS_FEATURES_OFF: open files are read and written through the daemon (--io cached)
+ unset LOOPFS_FEATURES_OFF
";
    assert_eq!(seen, expected);
    env.assert_clean();
}

/// Where nothing is mounted yet.
#[test]
fn a_place_for_a_mount() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        doctor "$ROOT/it's new"; about "$ROOT/it's new"; mend "$ROOT/it's new"; doctor "$ROOT/it's new"; about "$ROOT/it's new"
        : >"$SRC/file"; doctor "$SRC/file"; about "$SRC/file"
        chmod 666 /dev/fuse; $AS "$LOOPFS" doctor "$SRC" >"$ROOT/found" || echo "status $?"; about "$SRC"
        USER=65534; mend "$SRC"; $AS "$LOOPFS" doctor "$SRC" >"$ROOT/found" || echo "status $?"; about "$SRC"
        mount -t tmpfs other "$MNT"; doctor "$MNT"; about "$MNT""#,
    );
    let expected = "\
status 2
WRONG  ROOT/it's new: does not exist
+ mkdir -p 'ROOT/it'\\''s new'
ok     ROOT/it's new: nothing is mounted there, and it can be mounted on
status 2
WRONG  ROOT/src/file: not a directory
status 2
WRONG  ROOT/src: this user may not write there, so may not mount on it
+ sudo chown $USER ROOT/src
ok     ROOT/src: nothing is mounted there, and it can be mounted on
note   ROOT/mnt: nothing of loopfs is mounted there, but tmpfs
";
    assert_eq!(seen, expected);
    env.assert_clean();
}

/// `--json` has the same in fields.
#[test]
fn findings_for_programs() {
    let env = TestEnv::new();
    let seen =
        env.private_script(r#""$LOOPFS" doctor --json "$ROOT/none" || echo "status $?" >&2"#);
    assert_eq!(seen.stderr, "status 2\n");
    let findings: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    let all = findings.as_array().unwrap();
    for finding in all {
        let verdict = finding["verdict"].as_str().unwrap();
        assert!(["ok", "note", "wrong"].contains(&verdict), "{finding}");
        assert!(!finding["what"].as_str().unwrap().is_empty());
    }
    let last = all.last().unwrap();
    let place = env.root().join("none").display().to_string();
    assert_eq!(last["about"], place);
    assert_eq!(last["verdict"], "wrong");
    assert_eq!(last["mend"], format!("mkdir -p {place}"));
}
