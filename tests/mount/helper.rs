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
    # The lines on stdin are /etc/fstab from now on.
    fstab() { cat >"$ROOT/fstab"; mountpoint -q /etc/fstab || mount --bind "$ROOT/fstab" /etc/fstab; }
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

/// Words of a line in fstab; what mount(8) makes of them for its helper; what the mount table shows then.
const WORDS: &[(&str, &str, &str)] = &[
    ("defaults", "rw", "rw,relatime"),
    ("rw", "rw", "rw,relatime"),
    ("ro", "ro", "ro,relatime"),
    (
        "user",
        "rw,noexec,nosuid,nodev,user",
        "rw,nosuid,nodev,noexec,relatime",
    ),
    (
        "users",
        "rw,noexec,nosuid,nodev,users",
        "rw,nosuid,nodev,noexec,relatime",
    ),
    (
        "user,exec",
        "rw,nosuid,nodev,user,exec",
        "rw,nosuid,nodev,relatime",
    ),
    ("nouser", "rw", "rw,relatime"),
    ("owner", "rw,nosuid,nodev", "rw,nosuid,nodev,relatime"),
    ("group", "rw,nosuid,nodev", "rw,nosuid,nodev,relatime"),
    ("auto", "rw", "rw,relatime"),
    ("noauto", "rw", "rw,relatime"),
    ("nofail", "rw,nofail", "rw,relatime"),
    ("_netdev", "rw,_netdev", "rw,relatime"),
    ("_rnetdev", "rw,_rnetdev", "rw,relatime"),
    (
        "noauto,x-systemd.automount,nofail,_netdev,ro",
        "ro,nofail,_netdev",
        "ro,relatime",
    ),
    ("x-systemd.automount", "rw", "rw,relatime"),
    ("x-systemd.idle-timeout=5", "rw", "rw,relatime"),
    ("x-systemd.requires-mounts-for=/srv", "rw", "rw,relatime"),
    ("x-mount.mkdir", "rw", "rw,relatime"),
    ("X-mount.mkdir=755", "rw", "rw,relatime"),
    ("x-gvfs-name=Photos", "rw", "rw,relatime"),
    ("comment=x", "rw", "rw,relatime"),
    ("comment=a\\040b", "rw", "rw,relatime"),
    ("uhelper=x", "rw,uhelper=x", "rw,relatime"),
    ("helper=x", "rw,helper=x", "rw,relatime"),
    (
        "nosuid,nodev,noexec",
        "rw,nosuid,nodev,noexec",
        "rw,nosuid,nodev,noexec,relatime",
    ),
    ("suid,dev,exec", "rw", "rw,relatime"),
    ("noatime", "rw,noatime", "rw,noatime"),
    ("atime,diratime", "rw", "rw,relatime"),
    ("relatime", "rw,relatime", "rw,relatime"),
    ("strictatime", "rw,strictatime", "rw,relatime"),
    ("lazytime", "rw,lazytime", "rw,relatime"),
    ("sync", "rw,sync", "rw,relatime"),
    ("async", "rw", "rw,relatime"),
    ("dirsync", "rw,dirsync", "rw,relatime"),
    ("silent", "rw,silent", "rw,relatime"),
    ("loud", "rw", "rw,relatime"),
    ("nodiratime", "rw,nodiratime", "rw,relatime"),
    ("norelatime,nostrictatime,nolazytime", "rw", "rw,relatime"),
    ("nomand,noiversion", "rw", "rw,relatime"),
    ("noowner,nogroup,nousers", "rw", "rw,relatime"),
    ("private", "rw", "rw,relatime"),
    ("symfollow", "rw", "rw,relatime"),
    ("nosymfollow", "rw,nosymfollow", "rw,relatime,nosymfollow"),
    ("X-mount.mode=755,X-mount.owner=0", "rw", "rw,relatime"),
    // What SELinux has to say is left out by mount(8) where there is none.
    ("context=system_u:object_r:tmp_t:s0", "rw", "rw,relatime"),
    ("mand,iversion", "rw,mand,iversion", "rw,relatime"),
    (
        "allow_other,default_permissions",
        "rw,allow_other,default_permissions",
        "rw,relatime",
    ),
    (
        "attr_timeout=0,fsname=a\\040b",
        "rw,attr_timeout=0,fsname=a b",
        "rw,relatime",
    ),
];

/// Each of them in a line of its own: mount(8) calls the helper so, and what it calls works.
#[test]
fn words_of_fstab() {
    let env = TestEnv::new();
    let words: Vec<_> = WORDS
        .iter()
        .map(|(words, ..)| format!("'{words}'"))
        .collect();
    let seen = script(
        &env,
        &format!(
            r#"
        # What stands in the helper's place notes its arguments, and calls it.
        mkdir "$ROOT/bin"; mv "$SBIN/mount.fuse.loopfs" "$ROOT/bin/"
        cat >"$SBIN/mount.fuse.loopfs" <<END
#!/bin/sh
for word; do printf '[%s]' "\$word"; done >>"$ROOT/arguments"
exec "$ROOT/bin/mount.fuse.loopfs" "\$@"
END
        chmod 755 "$SBIN/mount.fuse.loopfs"
        for words in {}; do
            printf '%s\n' "$SRC $MNT fuse.loopfs $words 0 0" | fstab
            rm -f "$ROOT/arguments"
            mount "$MNT"
            printf '%s|%s|%s|%s\n' "$words" "$(cat "$ROOT/arguments")" "$(cat "$MNT/f")" \
                "$(findmnt -n -o VFS-OPTIONS "$MNT")"
            end "$MNT"
        done"#,
            words.join(" ")
        ),
    );
    let operands = format!("[{}][{}]", env.src().display(), env.mnt().display());
    assert_eq!(seen.lines().count(), WORDS.len(), "{seen}");
    for (line, (words, passed, shown)) in seen.lines().zip(WORDS) {
        assert_eq!(
            line,
            format!("{words}|{operands}[-o][{passed}]|content|{shown}")
        );
    }
    env.assert_clean();
}

/// Whatever makes the mount, nobody is led on by a symlink; it can be changed; SRC's own mount decides where nothing is said.
#[test]
fn nosymfollow() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        ln -s f "$SRC/link"
        look() { readlink "$MNT/link"; cat "$MNT/link" 2>/dev/null || echo "not followed"; }
        for off in "" new-mount-api; do
            LOOPFS_FEATURES_OFF=$off mount -t fuse.loopfs -o nosymfollow "$SRC" "$MNT"; look; cat "$MNT/f"
            mount -o remount,symfollow "$MNT"; look; mount -o remount,nosymfollow "$MNT"; look; end "$MNT"
        done
        mount --bind "$SRC" "$SRC"; mount -o remount,bind,nosymfollow "$SRC"
        mount -t fuse.loopfs "$SRC" "$MNT"; look; end "$MNT"
        mount.fuse.loopfs "$SRC" "$MNT" -o symfollow; look; end "$MNT""#,
    );
    let (not, followed) = ("f\nnot followed\n", "f\ncontent\n");
    let once = format!("{not}content\n{followed}{not}");
    assert_eq!(seen, format!("{once}{once}{not}{followed}"));
    env.assert_clean();
}

/// The letters of mount(8) that reach the helper, each with what it does.
#[test]
fn letters_of_mount() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        echo "$SRC $MNT fuse.loopfs noexec 0 0" | fstab
        for letter in -n -v -r -w --mkdir; do
            mount "$letter" "$MNT" 2>/dev/null >&2
            echo "$letter $(findmnt -n -o VFS-OPTIONS "$MNT")"
            end "$MNT"
        done
        mount -f "$MNT"; mountpoint -q "$MNT" || echo "-f nothing"
        echo "$SRC $MNT fuse.loopfs strange 0 0" | fstab
        code=0; mount "$MNT" 2>/dev/null || code=$?; echo "strange $code"
        mount -s "$MNT"; cat "$MNT/f"; end "$MNT""#,
    );
    let expected = "-n rw,noexec,relatime\n-v rw,noexec,relatime\n-r ro,noexec,relatime\n-w rw,noexec,relatime\n\
                    --mkdir rw,noexec,relatime\n-f nothing\nstrange 1\ncontent\n";
    assert_eq!(seen, expected);
    env.assert_clean();
}

/// umount(8) in its three ways, of what is idle and of what is in use.
#[test]
fn umount_lazily_and_by_force() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        echo "$SRC $MNT fuse.loopfs defaults 0 0" | fstab
        gone() { timeout 20 pidwait -f "^[^ ]*loopfs $ROOT/" || [ $? -eq 1 ]; mountpoint -q "$MNT" || echo "$1"; }
        for way in "" -l -f; do mount "$MNT"; umount $way "$MNT"; gone "idle $way"; done
        mount "$MNT"; exec 3<"$MNT/f"
        umount "$MNT" 2>/dev/null || echo "busy"; cat "$MNT/f"
        umount -l "$MNT"; cat <&3; exec 3<&-; gone "-l in use"
        mount "$MNT"; exec 3<"$MNT/f"
        umount -f "$MNT" 2>/dev/null || echo "in use by force: refused"
        gone "-f in use"; exec 3<&-"#,
    );
    let expected = "idle \nidle -l\nidle -f\nbusy\ncontent\ncontent\n-l in use\nin use by force: refused\n-f in use\n";
    assert_eq!(seen, expected);
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
        fstab <<END
# a comment
$ROOT/a\040b $ROOT/x\040y fuse.loopfs defaults,x-mount.mkdir 0 0
$ROOT/c#d $ROOT/back\134slash fuse.loopfs ro,x-mount.mkdir,nofail 0 0
$ROOT/none $ROOT/none fuse.loopfs noauto 0 0
END
        mount -a; mount -a
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
/// What it can't change is named, unless it is so already.
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
        mount -t fuse.loopfs -o cache=ttl,noallow_other "$SRC" "$MNT"
        echo "$SRC $MNT fuse.loopfs cache=ttl,noallow_other 0 0" | fstab
        mount -o remount,ro "$MNT" 2>"$ROOT/said"; sed 's/.*: a remount/a remount/' "$ROOT/said"; : >"$ROOT/fstab"
        mount -o remount,rw "$MNT" 2>&1
        mount -o remount,allow_other,io=direct "$MNT" 2>"$ROOT/said"; sed 's/.*: a remount/a remount/' "$ROOT/said"
        end "$MNT"
        mount -t tmpfs other "$MNT"; code=0; mount.fuse.loopfs "$SRC" "$MNT" -o remount,ro 2>"$ROOT/said" || code=$?
        echo $code; grep -o 'nothing of type fuse.loopfs' "$ROOT/said"; touch "$MNT/x"; umount "$MNT""#,
    );
    assert_eq!(
        seen,
        "read-only\nwritable\nnoexec\n32\nfiles are open for writing\nread-only again\n\
         a remount changes ro, rw and the flags from nosuid to dirsync; as it was mounted stays: cache. \
         Unmount it and mount it again to change that\n\
         a remount changes ro, rw and the flags from nosuid to dirsync; as it was mounted stays: allow_other, io. \
         Unmount it and mount it again to change that\n\
         32\nnothing of type fuse.loopfs\n"
    );
    env.assert_clean();
}

/// Lines with `user` and `users`: mounted and unmounted by a real user, through mount(8), which gives up its
/// rights before it calls the helper, and fusermount3. Without such a word it does so, too (since util-linux 2.35);
/// what the user may not, fusermount3 refuses.
#[test]
fn users_mount_what_fstab_allows() {
    let env = TestEnv::new();
    let seen = script(
        &env,
        r#"
        mkdir "$ROOT/dev"; mount -t tmpfs -o mode=755 dev "$ROOT/dev"; mknod -m 666 "$ROOT/dev/fuse" c 10 229
        mount --bind "$ROOT/dev/fuse" /dev/fuse; chmod 755 "$ROOT"; chown 65534:65534 "$MNT"
        me() { timeout 30 setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
        other() { timeout 30 setpriv --reuid 1 --regid 1 --clear-groups "$@"; }
        ended() { timeout 20 pidwait -f "^[^ ]*loopfs $ROOT/" || [ $? -eq 1 ]; }
        for word in user users; do
            echo "$SRC $MNT fuse.loopfs $word,noauto 0 0" | fstab
            me mount "$MNT"; me cat "$MNT/f"; findmnt -n -o VFS-OPTIONS,FS-OPTIONS "$MNT" | sed 's/  */ /g'
            other cat "$MNT/f" 2>/dev/null || echo "$word: for nobody else"
            other umount "$MNT" 2>/dev/null && echo "$word: unmounted by another user" || me umount "$MNT"
            mountpoint -q "$MNT" || echo "$word: unmounted"; ended
        done
        echo "$SRC $MNT fuse.loopfs defaults 0 0" | fstab
        me mount "$MNT"; me cat "$MNT/f"; findmnt -n -o VFS-OPTIONS "$MNT"; me umount "$MNT"; ended
        other mount "$MNT" 2>&1 || echo "refused: $?""#,
    );
    let flags = "rw,nosuid,nodev,noexec,relatime rw,user_id=65534,group_id=65534";
    let mnt = env.mnt().display().to_string();
    assert_eq!(
        seen.replace(&mnt, "MNT"),
        format!(
            "content\n{flags}\nuser: for nobody else\nuser: unmounted\n\
             content\n{flags}\nusers: for nobody else\nusers: unmounted by another user\nusers: unmounted\n\
             content\nrw,nosuid,nodev,relatime\n\
             loopfs: fusermount3 refused to mount on MNT: user has no write access to mountpoint MNT: mount on a \
             directory of your own\nrefused: 32\n"
        )
    );
    env.assert_clean();
}
