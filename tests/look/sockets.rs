//! Who may ask a daemon, and what is left of one that was killed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::looking::{open, socket, status};
use crate::common::user::NOBODY;
use crate::common::{Mount, as_user};

/// What the socket at `path` answers to `question`.
fn asked(path: &Path, question: &[u8]) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    // It may have been closed already.
    let _ = stream.write_all(question);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    Ok(answer)
}

const FIGURES: &[u8] = b"{\"ask\":\"figures\"}\n";
const DETACH: &[u8] = b"{\"ask\":\"detach\",\"lazily\":true}\n";

#[test]
fn only_root_and_the_owner_may_ask() {
    let mount = Mount::start(&[]);
    let path = socket(&mount);
    let meta = fs::symlink_metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, 0));
    assert_eq!(fs::metadata("/run/loopfs").unwrap().mode() & 0o777, 0o700);
    assert!(
        asked(&path, FIGURES)
            .unwrap()
            .contains("\"state\":\"serving\"")
    );
    let refused = as_user(NOBODY, NOBODY, &[], || asked(&path, FIGURES).unwrap_err());
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    // And if the modes were not what they are: who asks is looked at. At another place, which everybody can reach.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let place = mount.root().join("socket");
    fs::write(&place, "").unwrap();
    rustix::mount::mount_bind(&path, &place).unwrap();
    for question in [FIGURES, DETACH] {
        let answer = as_user(NOBODY, NOBODY, &[], || asked(&place, question).unwrap());
        assert_eq!(answer, "", "not a word");
    }
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(fs::metadata(mount.mnt()).is_ok());
    mount.finish();
}

/// Nonsense, too much, and clients that say nothing are no trouble for anybody.
#[test]
fn nonsense_is_refused() {
    let mount = Mount::start(&[]);
    let path = socket(&mount);
    let silent: Vec<UnixStream> = (0..30)
        .map_while(|_| UnixStream::connect(&path).ok())
        .collect();
    for nonsense in [b"nonsense\n".to_vec(), vec![b'x'; 1 << 20], vec![0; 10]] {
        let _ = asked(&path, &nonsense);
    }
    // The silent ones are given up after two seconds: this waits no longer than that.
    drop(silent);
    assert_eq!(status(&mount)["state"], "serving");
    assert!(asked(&path, b"nonsense\n").unwrap().contains("refused"));
    mount.finish();
}

/// What a killed daemon leaves is removed by the next one.
#[test]
fn a_left_over_is_removed() {
    let env = crate::common::TestEnv::new();
    // In a /run of its own: the daemons of other tests want its lock at the same time.
    let seen = env
        .private_script(
            r#"
            mount -t tmpfs none /run
            mkdir "$ROOT/other"
            "$LOOPFS" -f "$SRC" "$MNT" 2>"$ROOT/daemon.log" & daemon=$!
            timeout 20 sh -c 'until ls /run/loopfs/0:*.sock; do :; done' 2>/dev/null
            kill -9 $daemon; wait $daemon || true
            test -S "$(echo /run/loopfs/*.sock)"; mv /run/loopfs/*.sock /run/loopfs/0:999999.sock
            timeout 20 "$LOOPFS" "$SRC" "$ROOT/other" </dev/null
            echo "sockets: $(ls /run/loopfs | wc -l), of the one killed: $(ls /run/loopfs | grep -c 999999)"
            timeout 20 "$LOOPFS" unmount "$ROOT/other"; umount -l "$MNT"
            "#,
        )
        .success();
    assert!(seen.contains("sockets: 1, of the one killed: 0"), "{seen}");
}

/// Where no socket can be made there is a warning, and a mount; the commands do what they can without it.
#[test]
fn without_a_socket() {
    let env = crate::common::TestEnv::new();
    fs::write(env.src().join("f"), "content").unwrap();
    let seen = env
        .private_script(
            r#"
            mkdir "$ROOT/place"; "$LOOPFS" --version >/dev/null
            mount --bind "$ROOT" /mnt
            mount -t tmpfs -o ro none /tmp
            mount -t tmpfs -o ro none /run
            cd /mnt
            /mnt/loopfs -f /mnt/src /mnt/mnt 2>/mnt/daemon.log & daemon=$!
            timeout 20 sh -c 'until mountpoint -q /mnt/mnt && test -e /mnt/mnt/f; do :; done'
            cat /mnt/mnt/f; echo
            timeout 20 /mnt/loopfs list
            timeout 20 /mnt/loopfs unmount /mnt/mnt
            wait $daemon; echo "ended with $?"
            grep "can't be asked" /mnt/daemon.log
            "#,
        )
        .success();
    assert!(seen.contains("content\n"), "{seen}");
    assert!(
        seen.contains("/mnt/mnt") && seen.contains("serving"),
        "{seen}"
    );
    assert!(seen.contains("has no socket"), "{seen}");
    assert!(seen.contains("ended with 0"), "{seen}");
    assert!(
        seen.contains("'loopfs status' shows little of it"),
        "{seen}"
    );
}

/// Whoever keeps the directory locked, a process that is stopped for one, holds up no mount.
#[test]
fn a_lock_on_the_directory_holds_nobody_up() {
    let env = crate::common::TestEnv::new();
    // In a /run of its own: others want the lock, too.
    let seen = env
        .private_script(
            r#"
            mount -t tmpfs none /run; mkdir -m 700 /run/loopfs
            exec 9</run/loopfs; flock --nonblock 9
            timeout 20 "$LOOPFS" "$SRC" "$MNT" </dev/null 9<&-
            ls /run/loopfs | grep -c '^0:[0-9]*.sock$'
            timeout 20 "$LOOPFS" unmount "$MNT" 9<&-
            timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]
            flock --nonblock 9 && echo "locked"; ls -A /run/loopfs"#,
        )
        .success();
    assert_eq!(seen, "1\nlocked\n");
}

/// A question does not keep the mount busy.
#[test]
fn asking_is_no_use_of_the_mount() {
    let mount = Mount::start(&[]);
    let held = open(&mount);
    drop(held);
    let stream = UnixStream::connect(socket(&mount)).unwrap();
    mount.unmount_with("umount", &[]);
    drop(stream);
    mount.ended();
}
