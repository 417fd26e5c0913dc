//! Mounts of users without privilege: theirs to look at and to end, and nobody else's but root's.

use crate::common::TestEnv;

/// As in tests/mount/unprivileged.rs: a /dev/fuse for everybody, and user 65534 with a mount.
const PREPARE: &str = r#"
    mkdir "$ROOT/dev"
    mount -t tmpfs -o mode=755 dev "$ROOT/dev"
    mknod "$ROOT/dev/fuse" c 10 229; chmod 666 "$ROOT/dev/fuse"
    mount --bind "$ROOT/dev/fuse" /dev/fuse
    mkdir -p "$ROOT/runtime"; chown 65534:65534 "$MNT" "$SRC" "$ROOT/runtime"; chmod 700 "$ROOT/runtime"
    AS="setpriv --reuid 65534 --regid 65534 --clear-groups timeout 30"
    OTHER="setpriv --reuid 1 --regid 1 --clear-groups timeout 30"
    umask 022
    ended() { timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; }
"#;

fn script(env: &TestEnv, body: &str) -> String {
    env.private_script(&format!("{PREPARE}\n{body}")).success()
}

/// Without a runtime directory the socket is in /tmp, where root finds it too.
#[test]
fn theirs_to_look_at_and_to_end() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mount -t tmpfs none /run
        $AS env -u XDG_RUNTIME_DIR "$LOOPFS" "$SRC" "$MNT" </dev/null
        stat -c '%a %u' /tmp/loopfs-65534 /tmp/loopfs-65534/*.sock
        $AS "$LOOPFS" status "$MNT" | grep state
        echo root; "$LOOPFS" status "$MNT" | grep state
        echo other; $OTHER "$LOOPFS" list >"$ROOT/list"; grep "$SRC  *$MNT " "$ROOT/list"
        # Said once for all of them, and there may be others' mounts beside this one.
        grep -o "only root and the user who mounted it may ask" "$ROOT/list"
        $OTHER "$LOOPFS" unmount "$MNT" 2>&1 || echo "other: $?"
        $AS "$LOOPFS" unmount "$MNT"
        ended
        ls -A /tmp/loopfs-65534
        grep -c " $MNT " /proc/self/mountinfo || true"#,
    );
    let mut lines = seen.lines();
    let mut next = || lines.next().unwrap_or_else(|| panic!("{seen}"));
    assert_eq!(next(), "700 65534");
    assert_eq!(next(), "600 65534");
    assert!(next().contains("serving for"), "{seen}");
    assert_eq!(next(), "root");
    assert!(next().contains("serving for"), "{seen}");
    assert_eq!(next(), "other");
    assert!(next().contains("unknown"), "{seen}");
    assert!(
        next().contains("only root and the user who mounted it may ask"),
        "{seen}"
    );
    assert!(next().contains("was mounted by user 65534"), "{seen}");
    assert_eq!(next(), "other: 2");
    assert_eq!(next(), "0", "no socket, no mount: {seen}");
}

/// A directory that somebody else has put at the name is not used.
#[test]
fn a_squatted_directory_is_not_used() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mount -t tmpfs none /run; mkdir "$ROOT/t"; chmod 1777 "$ROOT/t"
        mount --bind "$ROOT" /mnt; mount -t tmpfs -o mode=1777 none /tmp
        $OTHER mkdir -m 777 /tmp/loopfs-65534
        cd /mnt
        $AS env -u XDG_RUNTIME_DIR /mnt/loopfs -f /mnt/src /mnt/mnt </dev/null 2>/mnt/t/daemon.log &
        timeout 20 sh -c 'until grep -q "serving " /mnt/t/daemon.log; do :; done'
        ls -A /tmp/loopfs-65534
        grep "belongs to somebody else" /mnt/t/daemon.log
        $AS /mnt/loopfs unmount /mnt/mnt; wait; echo "ended"
        "#,
    );
    assert!(seen.contains("can't be asked"), "{seen}");
    assert!(seen.ends_with("ended\n"), "{seen}");
}

/// With one, it is there.
#[test]
fn in_their_runtime_directory() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        $AS env XDG_RUNTIME_DIR="$ROOT/runtime" "$LOOPFS" "$SRC" "$MNT" </dev/null
        stat -c %a "$ROOT/runtime/loopfs"; ls "$ROOT/runtime/loopfs" | grep -c '^0:[0-9]*.sock$'
        $AS env XDG_RUNTIME_DIR="$ROOT/runtime" "$LOOPFS" list --json | grep -c '"state": "serving"'
        $AS env XDG_RUNTIME_DIR="$ROOT/runtime" "$LOOPFS" unmount --force "$MNT"
        ended; ls -A "$ROOT/runtime/loopfs""#,
    );
    assert_eq!(seen, "700\n1\n1\n");
}
