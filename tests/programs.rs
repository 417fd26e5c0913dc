//! Real programs on the mount: each does its work on a plain directory and on the mount, and what
//! it leaves behind must be the same, seen through the mount and in SRC.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::tree::{Times, assert_same, snapshot};
use common::{Mount, TestEnv, run, sh};

/// Runs `script` in `plain` and in the mount, below directories of the same name, and gives back
/// what each printed.
fn on_both(mount: &Mount, script: &str) -> (String, String) {
    let (plain, mounted) = (mount.root().join("plain"), mount.path("work"));
    for path in [&plain, &mounted] {
        if !path.exists() {
            fs::create_dir(path).unwrap();
        }
    }
    (sh(&plain, script), sh(&mounted, script))
}

#[track_caller]
fn assert_trees_agree(mount: &Mount, times: Times) {
    let through = snapshot(&mount.path("work"), Times::All);
    assert_same(
        &snapshot(&mount.source("work"), Times::All),
        &through,
        "MNT against SRC",
    );
    let (plain, through) = (
        snapshot(&mount.root().join("plain"), times),
        snapshot(&mount.path("work"), times),
    );
    assert_same(&plain, &through, "MNT against the plain directory");
}

/// A tree with everything in it that an archiver can carry: owners, modes, special bits, times to
/// the nanosecond, hard links, symlinks, a sparse file, xattrs, ACLs, FIFOs, devices, odd names.
const RICH_TREE: &str = r#"
    umask 022
    mkdir -p tree/sub/deep tree/empty
    seq 1 10000 >tree/numbers; printf 'no newline' >tree/sub/short; : >tree/sub/deep/nothing
    ln tree/numbers tree/sub/hard; ln tree/numbers tree/sub/deep/harder
    ln -s numbers tree/soft; ln -s /nowhere/at/all tree/dangling; ln -s ../sub tree/sub/loop
    truncate -s 5M tree/sparse; printf data | dd of=tree/sparse bs=1 seek=3000000 conv=notrunc status=none
    mkfifo tree/fifo; mknod tree/null c 1 3; mknod tree/block b 7 200
    printf x >"tree/name with blanks"; printf y >"$(printf 'tree/two\nlines')"; printf z >"$(printf 'tree/\377')"
    printf '#!/bin/sh\n' >tree/setuid; chown 12:34 tree/setuid; chmod 4755 tree/setuid
    chmod 2775 tree/sub; chmod 1777 tree/empty; chown -h 56:78 tree/soft; chmod 000 tree/sub/short
    setfattr -n user.colour -v blue tree/numbers; setfattr -n trusted.t -v 1 tree/sub
    setfacl -m u:65534:rw,g:42:r tree/numbers; setfacl -d -m u:1:rwx tree/sub/deep
    find tree -depth -exec touch -h -d '1999-12-31 23:59:59.123456789' {} +
"#;

/// git: clone, commits, branches, a merge, a repack; fsck finds nothing.
#[test]
fn git_clone_and_fsck() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    sh(
        mount.root(),
        r#"
        export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1
        git init -q -b main origin && cd origin
        git config user.name A && git config user.email a@example.org
        for n in $(seq 1 30); do mkdir -p d$n; seq 1 $((n * 50)) >d$n/f; git add .; git commit -q -m "number $n"; done"#,
    );
    let script = r#"
        export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE=@1700000000+0000 GIT_COMMITTER_DATE=@1700000000+0000
        git -c safe.directory='*' clone -q --no-hardlinks ../origin clone 2>&1 || git -c safe.directory='*' clone -q --no-hardlinks ../../origin clone
        cd clone
        git config user.name A && git config user.email a@example.org
        git checkout -q -b side; echo side >side; git add side; git commit -q -m side
        git checkout -q main; echo main >main; git add main; git commit -q -m main
        git merge -q -m merged side
        git mv d1 moved; git commit -q -m moved; git rm -q -r d2; git commit -q -m removed
        git repack -q -a -d; git gc -q --prune=now; git stash list
        git fsck --full --strict
        git status --porcelain; git rev-parse HEAD; git log --oneline | wc -l; git ls-files -s | sha256sum"#;
    // The origin is one level up from the plain directory, two from the one in the mount.
    fs::create_dir(mount.root().join("plain")).unwrap();
    fs::create_dir(mount.path("work")).unwrap();
    let plain = sh(&mount.root().join("plain"), script);
    let mounted = sh(
        &mount.path("work"),
        &script.replace(
            "clone -q --no-hardlinks ../origin clone 2>&1 ||",
            "clone -q --no-hardlinks ../../origin clone ||",
        ),
    );
    assert_eq!(mounted, plain);
    mount.finish();
}

/// tar: a rich tree packed from the mount and unpacked onto it keeps every attribute.
#[test]
fn tar_round_trip() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    sh(mount.root(), RICH_TREE);
    let options = "--acls --xattrs --xattrs-include='*' --numeric-owner --sparse -p --format=posix";
    let root = mount.root().display();
    sh(mount.root(), &format!("tar {options} -cf plain.tar tree"));
    let script = format!(
        "tar {options} -xf {root}/plain.tar && tar {options} -cf {root}/again.tar tree && mkdir again && tar {options} -xf {root}/again.tar -C again"
    );
    on_both(&mount, &script);
    assert_trees_agree(&mount, Times::Files);
    let original = snapshot(&mount.root().join("tree"), Times::All);
    assert_same(
        &original,
        &snapshot(&mount.path("work/tree"), Times::All),
        "unpacked on the mount",
    );
    assert_same(
        &original,
        &snapshot(&mount.path("work/again/tree"), Times::All),
        "packed from the mount, unpacked on it",
    );
    assert!(
        fs::metadata(mount.path("work/tree/sparse"))
            .map(|m| std::os::unix::fs::MetadataExt::blocks(&m))
            .unwrap()
            < 100
    );
    mount.finish();
}

/// rsync: onto the mount, a second time without work to do, then an update with deletion.
#[test]
fn rsync_round_trip() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    sh(mount.root(), RICH_TREE);
    let options = "-aHAXS --numeric-ids --devices --specials --itemize-changes --delete";
    let root = mount.root().display();
    let copy = format!("rsync {options} {root}/tree/ copy/");
    on_both(&mount, &copy);
    assert_trees_agree(&mount, Times::Files);
    assert_same(
        &snapshot(&mount.root().join("tree"), Times::All),
        &snapshot(&mount.path("work/copy"), Times::All),
        "the copy on the mount",
    );
    assert_eq!(
        on_both(&mount, &copy),
        (String::new(), String::new()),
        "nothing is left to do"
    );
    sh(
        &mount.root().join("tree"),
        // Old times: rsync leaves the time of a directory that it made within the same second alone.
        "rm -r sub; mkdir added; echo a >added/f; echo more >>numbers; chmod 711 empty
         find . -depth -exec touch -h -d '2001-02-03 04:05:06.789012345' {} +",
    );
    on_both(&mount, &copy);
    assert_trees_agree(&mount, Times::Files);
    on_both(&mount, &format!("rsync {options} copy/ back/"));
    assert_same(
        &snapshot(&mount.root().join("tree"), Times::All),
        &snapshot(&mount.path("work/back"), Times::All),
        "copied from the mount onto it",
    );
    mount.finish();
}

/// cp -a of a rich tree within the mount, then diff and a recursive removal.
#[test]
fn cp_diff_and_rm() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    on_both(&mount, RICH_TREE);
    on_both(&mount, "cp -a tree copy; rm copy/fifo copy/null copy/block");
    on_both(
        &mount,
        "rm tree/fifo tree/null tree/block; diff -r --no-dereference tree copy",
    );
    assert_trees_agree(&mount, Times::Files);
    on_both(&mount, "rm -r tree; ls -a");
    assert_trees_agree(&mount, Times::Ignored);
    mount.finish();
}

/// cargo: a crate built, tested and rebuilt with sources and target directory on the mount.
#[test]
fn cargo_build() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    let cargo = env!("CARGO");
    let script = format!(
        r#"
        mkdir -p tiny/src; cd tiny
        unset CARGO_TARGET_DIR RUSTFLAGS
        export CARGO_INCREMENTAL=1 CARGO_TERM_COLOR=never CARGO_NET_OFFLINE=true
        printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n' >Cargo.toml
        printf 'pub fn two() -> u32 {{ 1 + 1 }}\n#[test] fn it() {{ assert_eq!(two(), 2) }}\n' >src/lib.rs
        printf 'fn main() {{ println!("{{}}", tiny::two()) }}\n' >src/main.rs
        "{cargo}" build -q; ./target/debug/tiny
        "{cargo}" test -q --lib | grep 'test result' | cut -d. -f1
        printf 'pub fn two() -> u32 {{ 3 - 1 }}\n' >src/lib.rs; touch -d '+2 seconds' src/lib.rs
        "{cargo}" build 2>&1 | grep -c Compiling
        "{cargo}" build 2>&1 | grep -c Compiling || true
        ./target/debug/tiny"#
    );
    let (plain, mounted) = on_both(&mount, &script);
    assert_eq!(mounted, plain);
    assert!(mounted.starts_with("2\n"), "{mounted}");
    mount.finish();
}

/// sqlite: a database in WAL mode with a reader and two writers at once, and one in rollback mode.
#[test]
fn sqlite_in_wal_mode() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    let script = r#"
        for mode in wal delete; do
            sqlite3 $mode.db "pragma journal_mode = $mode; create table t (k integer primary key, w text, v text);"
            for writer in a b; do
                for n in $(seq 1 20); do
                    echo ".timeout 20000"
                    echo "begin immediate; insert into t (w, v) select '$writer', hex(zeroblob(100)) from generate_series(1, 50); commit;"
                done | sqlite3 $mode.db & eval "$writer=\$!"
            done
            for n in $(seq 1 10); do sqlite3 -cmd ".timeout 20000" $mode.db "select count(*) >= 0 from t;" >/dev/null; done
            wait $a; wait $b
            sqlite3 $mode.db "select w, count(*), sum(length(v)) from t group by w order by w; pragma integrity_check; vacuum; pragma wal_checkpoint(truncate);"
        done
        ls"#;
    let (plain, mounted) = on_both(&mount, script);
    assert_eq!(mounted, plain);
    assert!(
        mounted.contains("a|1000|200000\nb|1000|200000\nok"),
        "{mounted}"
    );
    mount.finish();
}

/// find, grep, sort -o in place, sed -i, install, patch-like edits: what shell scripts do.
#[test]
fn shell_tools() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    let (plain, mounted) = on_both(
        &mount,
        r"
        mkdir -p a/b/c; seq 1 2000 | split -l 100 - a/b/part-
        cat a/b/part-* | sort -rn -o a/all; sort -n -o a/all a/all
        sed -i 's/^1/one/' a/b/part-aa; grep -rl one . | sort
        install -m 750 a/all a/b/c/installed; mv a/b/part-ab a/b/c/
        find . -type f -size -2k | sort; find . -name 'part-*' -print0 | sort -z | xargs -0 cat | sha256sum
        du --apparent-size -ab a/b | sort; chmod -R go-w .; ls -lR --time-style=+ | grep -v ^total",
    );
    assert_eq!(mounted, plain);
    assert_trees_agree(&mount, Times::Ignored);
    mount.finish();
}

/// The helper of the stress tests, for a second: what it wrote is what it reads, and SRC has it.
#[test]
fn churn() {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    let mut churn = std::process::Command::new(env!("CARGO_BIN_EXE_loopfs-churn"));
    churn
        .args(["--seconds", "1", "--jobs", "3"])
        .arg(mount.mnt());
    let finished = run(&mut churn, common::LIMIT);
    assert_eq!(finished.code(), 0, "{finished:#?}");
    assert!(finished.stdout.contains("errors=0"), "{finished:#?}");
    let verify = |path: &Path| {
        let mut churn = std::process::Command::new(env!("CARGO_BIN_EXE_loopfs-churn"));
        churn.arg("--verify").arg(path);
        run(&mut churn, common::LIMIT).success()
    };
    let through = verify(&mount.mnt());
    assert_eq!(through, verify(&mount.src()));
    mount.finish();
}
