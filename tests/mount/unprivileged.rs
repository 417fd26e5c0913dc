//! Users without privilege: through fusermount3, and in a user namespace of their own.
//!
//! The shared /dev/fuse may be root's alone; a node that everybody may open is bound over it in a
//! private mount namespace, which nobody else sees.

use std::fs;

use crate::common::TestEnv;

/// A /dev/fuse for everybody, MNT and SRC of user 65534, and `$AS` to act as that user.
const PREPARE: &str = r#"
    mkdir "$ROOT/dev"
    mount -t tmpfs -o mode=755 dev "$ROOT/dev"
    mknod "$ROOT/dev/fuse" c 10 229; chmod 666 "$ROOT/dev/fuse"
    mount --bind "$ROOT/dev/fuse" /dev/fuse
    chown 65534:65534 "$MNT" "$SRC"
    echo content >"$SRC/f"; chmod 644 "$SRC/f"
    AS="setpriv --reuid 65534 --regid 65534 --clear-groups timeout 30"
    umask 022
    # Waits until no daemon is running, at most 20 seconds. One that has ended counts as gone whether or not
    # somebody has waited for it: in a container the first process may not.
    ended() { timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]; }
"#;

fn script(env: &TestEnv, body: &str) -> String {
    env.private_script(&format!("{PREPARE}\n{body}")).success()
}

/// In the background, used, unmounted with `fusermount3 -u`.
#[test]
fn through_fusermount3() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        $AS "$LOOPFS" "$SRC" "$MNT" </dev/null
        grep " $MNT " /proc/self/mountinfo
        $AS cat "$MNT/f"
        $AS sh -c 'echo new >"$MNT/g"; mkdir "$MNT/d"; mv "$MNT/g" "$MNT/d/"; ls "$MNT/d"'
        $AS fusermount3 -u "$MNT"
        ended
        echo "mounted: $(grep -c " $MNT " /proc/self/mountinfo || true)""#,
    );
    assert!(seen.contains("fuse.loopfs"), "{seen}");
    assert!(seen.contains("content\ng\nmounted: 0"), "{seen}");
    assert_eq!(fs::read_to_string(env.src().join("d/g")).unwrap(), "new\n");
    env.assert_clean();
}

/// In the foreground, ended by a signal: status 0, unmounted with the helper's aid. What the helper mounts
/// can be seen before it is tried out, and a signal until then ends a start-up: so the log is waited for.
#[test]
fn through_fusermount3_ended_by_a_signal() {
    for signal in ["TERM", "INT", "HUP"] {
        let env = TestEnv::new();
        let seen = script(
            &env,
            &format!(
                r#"
            setpriv --reuid 65534 --regid 65534 --clear-groups "$LOOPFS" -f "$SRC" "$MNT" </dev/null >"$ROOT/daemon.log" 2>&1 &
            pid=$!
            timeout 20 sh -c 'until grep -q "serving " "$ROOT/daemon.log"; do kill -0 '$pid'; done'
            grep -q " $MNT " /proc/self/mountinfo
            $AS cat "$MNT/f"
            kill -{signal} $pid
            ended
            code=0; wait $pid || code=$?
            echo "code $code, mounted: $(grep -c " $MNT " /proc/self/mountinfo || true)""#
            ),
        );
        assert_eq!(seen.trim(), "content\ncode 0, mounted: 0", "{signal}");
        env.assert_clean();
    }
}

/// fusermount3 does not know `nosymfollow`; root of a user namespace does without it.
#[test]
fn nosymfollow_takes_more_than_fusermount3() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        ln -s f "$SRC/link"
        $AS "$LOOPFS" -o nosymfollow "$SRC" "$MNT" </dev/null 2>&1 || echo "refused: $?"
        grep -c " $MNT " /proc/self/mountinfo || true
        $AS unshare --user --map-root-user --mount sh -euc '
            "$LOOPFS" -o nosymfollow "$SRC" "$MNT" </dev/null
            readlink "$MNT/link"; cat "$MNT/link" 2>/dev/null || echo "not followed"
            umount "$MNT"'
        ended"#,
    );
    let mnt = env.mnt().display().to_string();
    assert_eq!(
        seen.replace(&mnt, "MNT"),
        "loopfs: fusermount3 refused to mount on MNT: unknown option 'nosymfollow': this fusermount3 does not know it: \
         leave it out, or mount as root\nrefused: 32\n0\nf\nnot followed\n"
    );
    env.assert_clean();
}

/// Root of a user namespace mounts directly, without a helper.
#[test]
fn in_a_user_namespace() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        $AS unshare --user --map-root-user --mount sh -euc '
            "$LOOPFS" "$SRC" "$MNT" </dev/null
            grep " $MNT " /proc/self/mountinfo
            cat "$MNT/f"
            echo new >"$MNT/g"
            umount "$MNT"
            echo "mounted: $(grep -c " $MNT " /proc/self/mountinfo || true)"'
        "#,
    );
    assert!(seen.contains("fuse.loopfs"), "{seen}");
    assert!(seen.contains("content\nmounted: 0"), "{seen}");
    assert_eq!(fs::read_to_string(env.src().join("g")).unwrap(), "new\n");
}

/// Another user can't enter such a mount, root neither: the kernel's rule without allow_other.
#[test]
fn others_are_kept_out() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        $AS "$LOOPFS" "$SRC" "$MNT" </dev/null
        cat "$MNT/f" 2>&1 || true
        setpriv --reuid 1 --regid 1 --clear-groups cat "$MNT/f" 2>&1 || true
        $AS fusermount3 -u "$MNT"
        ended"#,
    );
    assert_eq!(seen.matches("Permission denied").count(), 2, "{seen}");
    env.assert_clean();
}

/// What a user writes takes set-id bits from a file, and leaves the sticky bit, as in SRC.
#[test]
fn set_id_bits_go_and_the_sticky_bit_stays() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        $AS "$LOOPFS" "$SRC" "$MNT" </dev/null
        changed() {
            for mode in 7777 5777 3777 6755 1777 2767; do
                for change in 'printf x >>f' 'printf x 1<>f' 'truncate -s 100 f' ': >f' 'chown 65534 f'; do
                    $AS sh -euc "cd $1; rm -f f; echo content >f; chmod $mode f; $change; stat -c '$mode %a %s' f"
                done
            done
        }
        mkdir "$SRC/plain" "$SRC/through"; chown 65534:65534 "$SRC/plain" "$SRC/through"
        changed "$SRC/plain" >"$ROOT/plain"
        changed "$MNT/through" >"$ROOT/through"
        diff "$ROOT/plain" "$ROOT/through"
        grep -c '7777 1777' "$ROOT/plain"
        $AS fusermount3 -u "$MNT"
        ended"#,
    );
    assert_eq!(seen, "5\n");
    env.assert_clean();
}

/// What others do in SRC is told to a user as well, of what the user may read; the rest shows after a second.
#[test]
fn changes_in_src_are_followed() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        echo secret >"$SRC/private"; chmod 600 "$SRC/private"; mkdir "$SRC/d"
        # Waits until a user sees a size.
        sees() { timeout 20 setpriv --reuid 65534 --regid 65534 --clear-groups \
            sh -c 'until [ "$(stat -c %s "$MNT/$1" 2>&1)" = "$2" ]; do :; done' sh "$@"; }
        look() { $AS stat -c '%s %n' "$MNT/f" "$MNT/private" "$MNT/d"; $AS ls "$MNT/none" && false || true; }
        RUST_LOG=info setpriv --reuid 65534 --regid 65534 --clear-groups "$LOOPFS" -f --cache=coherent "$SRC" "$MNT" \
            </dev/null >"$ROOT/daemon.log" 2>&1 &
        pid=$!
        timeout 20 sh -c 'until grep -q "serving " "$ROOT/daemon.log"; do kill -0 '$pid'; done'
        export MNT
        look; sleep 1.2; look
        echo more >>"$SRC/f"; sees f 13
        echo more >>"$SRC/private"; sees private 12
        echo n >"$SRC/none"; sees none 2
        mv "$SRC/none" "$SRC/d/gone"; sees d/gone 2
        $AS sh -c 'while [ -e "$MNT/none" ]; do :; done'
        grep -c "true to the source (fanotify, of what this process can read)" "$ROOT/daemon.log"
        kill $pid; wait $pid; echo "code $?""#,
    );
    assert!(seen.ends_with("1\ncode 0\n"), "{seen}");
    env.assert_clean();
}

/// What takes privilege is left out, and each such thing has a line that says so: as a user, and as root of a user
/// namespace. With `--io passthrough` and the like it is refused instead.
#[test]
fn what_takes_privilege_is_left_out_and_said() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        ME="setpriv --reuid 65534 --regid 65534 --clear-groups"
        for how in "" "unshare --user --map-root-user --mount"; do
            echo "as a user: $how"
            $ME $how "$LOOPFS" -f "$SRC" "$MNT" </dev/null >"$ROOT/daemon.log" 2>&1 &
            pid=$!
            timeout 20 sh -c 'until grep -q "serving " "$ROOT/daemon.log"; do kill -0 '$pid'; done'
            kill $pid; wait $pid; cat "$ROOT/daemon.log"
        done
        for option in "--io passthrough" "--low-latency"; do
            code=0; $AS "$LOOPFS" $option "$SRC" "$MNT" 2>&1 || code=$?; echo "$option: $code"
        done"#,
    );
    let lines = [
        "files are read and written through this process: no passthrough, it takes CAP_SYS_ADMIN",
        "each inode that the kernel remembers keeps a file open",
    ];
    // Root of a user namespace acts as the users of that, and has no others.
    assert_eq!(
        seen.matches("what is made through the mount belongs to the user who mounted")
            .count(),
        1,
        "{seen}"
    );
    let ways = seen.split("as a user: ").skip(1);
    assert_eq!(ways.clone().count(), 2, "{seen}");
    for way in ways {
        for line in lines {
            assert_eq!(way.matches(line).count(), 1, "{line}\n{way}");
        }
    }
    assert!(
        seen.contains("loopfs: io=passthrough can't be had: it takes CAP_SYS_ADMIN"),
        "{seen}"
    );
    assert!(seen.contains("--io passthrough: 32\n"), "{seen}");
    assert!(
        seen.contains("it takes root, or leave the option out\n--low-latency: 2\n"),
        "{seen}"
    );
    env.assert_clean();
}

/// `allow_other` is what /etc/fuse.conf allows. Others then have their own rights, not those of the user who mounted,
/// and what they make belongs to that user.
#[test]
fn others_are_let_in_as_fuse_conf_permits() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        : >"$ROOT/fuse.conf"; chmod 644 "$ROOT/fuse.conf"; mount --bind "$ROOT/fuse.conf" /etc/fuse.conf
        code=0; $AS "$LOOPFS" -o allow_other "$SRC" "$MNT" 2>&1 || code=$?; echo "$code"
        echo user_allow_other >>/etc/fuse.conf
        echo secret >"$SRC/private"; chown 65534 "$SRC/private"; chmod 600 "$SRC/private"; chmod 777 "$SRC"
        OTHER="setpriv --reuid 1 --regid 1 --clear-groups timeout 30"
        $AS "$LOOPFS" -o allow_other "$SRC" "$MNT" </dev/null
        $OTHER cat "$MNT/f"; $OTHER cat "$MNT/private" 2>/dev/null || echo "not the private one"
        $OTHER sh -c ': >"$MNT/new"'; stat -c %u "$SRC/new"
        $AS fusermount3 -u "$MNT"; ended"#,
    );
    let mnt = env.mnt().display().to_string();
    let expected = "loopfs: fusermount3 refused to mount on MNT: option allow_other only allowed if 'user_allow_other' is set \
                    in /etc/fuse.conf: let root write the line user_allow_other in /etc/fuse.conf, or mount without \
                    allow_other\n2\ncontent\nnot the private one\n65534\n";
    assert_eq!(seen.replace(&mnt, "MNT"), expected);
    env.assert_clean();
}

/// The caller's directory is left before there is a thread or a mount: the helper sees where its caller is.
#[test]
fn the_callers_directory_is_left_early() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mkdir "$ROOT/bin" "$ROOT/here"; touch "$ROOT/seen"; chmod 666 "$ROOT/seen"
        real=$(command -v fusermount3)
        cat >"$ROOT/bin/fusermount3" <<END
#!/bin/sh
readlink /proc/\$PPID/cwd >"$ROOT/seen"
exec "$real" "\$@"
END
        chmod 755 "$ROOT/bin/fusermount3"
        cd "$ROOT/here"
        PATH="$ROOT/bin:$PATH" $AS "$LOOPFS" "$SRC" "$MNT" </dev/null
        cd /
        cat "$ROOT/seen"
        $AS fusermount3 -u "$MNT"
        ended"#,
    );
    assert_eq!(seen, "/\n");
    env.assert_clean();
}
