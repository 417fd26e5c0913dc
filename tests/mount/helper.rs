//! As the helper of mount(8): the real `mount` with `-t fuse.loopfs`, and fstab lines.
//!
//! mount(8) looks for helpers in /sbin only. A copy of the program is put there in a private mount
//! namespace, with an overlay over the directory, which nobody else sees.

use crate::common::TestEnv;

/// `mount.fuse.loopfs` and `mount.loopfs` in /sbin, and a file in SRC.
const PREPARE: &str = r#"
    SBIN=$(realpath /sbin)
    mkdir "$ROOT/over"; mount -t tmpfs over "$ROOT/over"; mkdir "$ROOT/over/upper" "$ROOT/over/work"
    mount -t overlay -o "lowerdir=$SBIN,upperdir=$ROOT/over/upper,workdir=$ROOT/over/work" over "$SBIN"
    ln -s "$LOOPFS" "$SBIN/mount.fuse.loopfs"; ln -s "$LOOPFS" "$SBIN/mount.loopfs"
    echo content >"$SRC/f"
    # The options that the mount table shows for $1, of the mount and of the file system.
    options() { findmnt -n -o VFS-OPTIONS,FS-OPTIONS "$1"; }
    # Ends the mount at $1 and waits for its daemon, which then is the last one.
    end() { umount "$@"; timeout 20 pidwait -f "^[^ ]*loopfs $ROOT/" || [ $? -eq 1 ]; }
"#;

#[track_caller]
fn script(env: &TestEnv, body: &str) -> String {
    env.private_script(&format!("{PREPARE}\n{body}")).success()
}

#[test]
fn mount_t_fuse_loopfs() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mount -t fuse.loopfs "$SRC" "$MNT"
        cat "$MNT/f"; findmnt -n -o FSTYPE,SOURCE "$MNT"; end "$MNT"
        mount -t loopfs -o ro,noexec,fsname=photos "$SRC" "$MNT"
        findmnt -n -o FSTYPE,SOURCE "$MNT"; options "$MNT" | grep -o 'ro,.*noexec'; touch "$MNT/x" || true; end "$MNT"
        "#,
    );
    let src = env.src();
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[0], "content");
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["fuse.loopfs", src.to_str().unwrap()]
    );
    assert_eq!(
        lines[2].split_whitespace().collect::<Vec<_>>(),
        ["fuse.loopfs", "photos"]
    );
    assert!(lines[3].contains("noexec"), "{seen}");
    env.assert_clean();
}

/// Each word that fstab may have, in a line of its own, through `mount -T`.
#[test]
fn words_of_fstab() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        for words in defaults ro user users noauto nofail _netdev x-systemd.automount x-systemd.idle-timeout=5 \
            noauto,x-systemd.automount,nofail,_netdev,ro comment=x group owner X-mount.mkdir=755 \
            nosuid,nodev,noexec,noatime rw,exec,suid,dev,sync,dirsync attr_timeout=0,entry_timeout=0; do
            echo "$SRC $MNT fuse.loopfs $words 0 0" >"$ROOT/fstab"
            mount -T "$ROOT/fstab" "$MNT"
            echo "$words: $(cat "$MNT/f") $(options "$MNT")"
            end "$MNT"
        done"#,
    );
    let shown = |words: &str| {
        let line = seen
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{words}: ")));
        let line = line.unwrap_or_else(|| panic!("{words}: {seen}"));
        assert!(line.starts_with("content "), "{words}: {line}");
        line.to_owned()
    };
    for words in [
        "defaults",
        "noauto",
        "nofail",
        "_netdev",
        "x-systemd.automount",
        "comment=x",
    ] {
        let line = shown(words);
        assert!(line.contains("rw,relatime"), "{words}: {line}");
    }
    assert!(shown("ro").contains("ro,relatime"));
    for words in ["user", "users"] {
        let line = shown(words);
        for flag in ["nosuid", "nodev", "noexec"] {
            assert!(line.contains(flag), "{words}: {line}");
        }
    }
    assert!(shown("nosuid,nodev,noexec,noatime").contains("nosuid,nodev,noexec,noatime"));
    env.assert_clean();
}

/// Paths with spaces, `#` and a backslash, as fstab writes them; `mount -a`; a directory that is made.
#[test]
fn awkward_paths_and_all_at_once() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mkdir "$ROOT/a b" "$ROOT/c#d"; echo one >"$ROOT/a b/f"; echo two >"$ROOT/c#d/f"
        cat >"$ROOT/fstab" <<END
# a comment
$ROOT/a\040b $ROOT/x\040y fuse.loopfs defaults,x-mount.mkdir 0 0
$ROOT/c#d $ROOT/back\134slash fuse.loopfs ro,x-mount.mkdir,nofail 0 0
$ROOT/none $ROOT/none fuse.loopfs noauto 0 0
END
        mount -a -T "$ROOT/fstab"
        cat "$ROOT/x y/f" "$ROOT/back\\slash/f"
        umount "$ROOT/x y"; end "$ROOT/back\\slash""#,
    );
    assert_eq!(seen, "one\ntwo\n");
    env.assert_clean();
}

/// `-f` checks and mounts nothing; `-s` passes over unknown options, which are an error without it.
#[test]
fn fake_and_sloppy() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mount.fuse.loopfs "$SRC" "$MNT" -f; mountpoint -q "$MNT" || echo nothing
        code=0; mount.fuse.loopfs "$SRC/none" "$MNT" -f 2>&1 || code=$?; echo $code
        code=0; mount -t fuse.loopfs -o strange "$SRC" "$MNT" 2>&1 || code=$?; echo $code
        mount -s -t fuse.loopfs -o strange "$SRC" "$MNT"; cat "$MNT/f"; end "$MNT"
        code=0; mount.loopfs "$SRC" 2>&1 || code=$?; echo $code"#,
    );
    let root = format!("{}/", env.root().display());
    let seen = seen.replace(&root, "");
    assert!(seen.starts_with("nothing\n"), "{seen}");
    assert!(
        seen.contains("SRC 'src/none': no such file or directory: check the path, or mount what it is on\n32\n"),
        "{seen}"
    );
    assert!(seen.contains("unknown mount option 'strange'"), "{seen}");
    assert!(seen.contains("\n1\ncontent\n"), "{seen}");
    assert!(seen.contains("MNT is missing"), "{seen}");
    assert!(seen.ends_with("\n1\n"), "{seen}");
    env.assert_clean();
}

/// `-N`: the mount appears in the other mount namespace, and not in this one.
#[test]
fn another_mount_namespace() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mkfifo "$ROOT/go"
        unshare --mount --propagation private sh -euc 'read -r line <"$ROOT/go"; cat "$MNT/f"; umount "$MNT"' &
        other=$!
        until [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do kill -0 $other; done
        mount -N $other -t fuse.loopfs "$SRC" "$MNT"
        mountpoint -q "$MNT" || echo "not here"
        echo >"$ROOT/go"; wait $other
        timeout 20 pidwait -f "^[^ ]*loopfs $ROOT/" || [ $? -eq 1 ]"#,
    );
    assert_eq!(seen, "not here\ncontent\n");
    env.assert_clean();
}

/// `remount` through mount(8): to and fro, refused while a file is open for writing, and for what is none of ours.
#[test]
fn remount() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mount -t fuse.loopfs -o ro,noexec "$SRC" "$MNT"
        touch "$MNT/new" 2>/dev/null || echo "read-only"
        mount -o remount,rw "$MNT"; touch "$MNT/new" && echo writable; options "$MNT" | grep -o noexec || true
        exec 3>"$MNT/new"; code=0; mount -o remount,ro "$MNT" 2>"$ROOT/said" || code=$?
        echo $code; grep -o 'files are open for writing' "$ROOT/said"; exec 3>&-
        mount -o remount,ro "$MNT"; touch "$MNT/new" 2>/dev/null || echo "read-only again"
        end "$MNT"
        mount -t tmpfs other "$MNT"; code=0; mount.fuse.loopfs "$SRC" "$MNT" -o remount,ro 2>"$ROOT/said" || code=$?
        echo $code; grep -o 'nothing of type fuse.loopfs' "$ROOT/said"; touch "$MNT/x"; umount "$MNT""#,
    );
    assert_eq!(
        seen,
        "read-only\nwritable\nnoexec\n32\nfiles are open for writing\nread-only again\n32\nnothing of type fuse.loopfs\n"
    );
    env.assert_clean();
}
