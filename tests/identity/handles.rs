//! File handles of MNT, as an NFS server uses them: opened while the kernel knows the inode, after it has
//! forgotten it, and by a daemon that never saw it.
//!
//! How the kernel is made to forget one inode: it is renamed in SRC, and then asked for under the old name
//! on MNT. The name is gone, and with its last name in the cache the kernel drops the inode.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};

use super::disk::{AT_ONCE, Handle, Kind, finish, path_of, serve};
use crate::common::process::eventually;
use crate::common::tree::{checksum, read_all};
use crate::common::{LIMIT, Mount, TestEnv, sh};

/// The content of the file that a handle leads to.
fn content(handle: &Handle, mount: &File) -> io::Result<String> {
    let file = handle.open(mount, libc::O_RDONLY)?;
    Ok(String::from_utf8(read_all(&file)?).unwrap())
}

#[track_caller]
fn assert_stale<T: std::fmt::Debug>(result: io::Result<T>, what: &str) {
    let errno = result.map_err(|error| error.raw_os_error());
    assert!(
        matches!(errno, Err(Some(libc::ESTALE))),
        "{what}: {errno:?}"
    );
}

/// Makes the kernel forget `name`: `to` is its new one.
#[track_caller]
fn forget(source: &Path, mnt: &Path, name: &str, to: &str) {
    fs::rename(source.join(name), source.join(to)).unwrap();
    assert!(!mnt.join(name).exists());
    // FORGET is read by the daemon along with other requests, so that some of those see it done.
    for _ in 0..64 {
        fs::metadata(mnt).unwrap();
    }
}

/// Makes new files in SRC until one has the number of a file that is gone; its path on MNT.
#[track_caller]
fn with_number(source: &Path, mnt: &Path, number: u64) -> PathBuf {
    let mut names = (0..).map(|number| format!("new-{number}"));
    let mut found = None;
    // xfs frees inodes in the background.
    eventually("the number is used again", LIMIT, || {
        let name = names.next().unwrap();
        fs::write(source.join(&name), "new").unwrap();
        found = Some(mnt.join(&name));
        fs::metadata(mnt.join(&name)).unwrap().ino() == number
    });
    found.unwrap()
}

/// Everything that an NFS server does, on the whole of a file system.
fn on_a_whole(kind: Kind) {
    let env = TestEnv::new();
    let src = env.src();
    kind.mount(&env, &src);
    sh(
        &src,
        "mkdir -p d/e/g; echo -n f >d/e/f; ln d/e/f second; echo -n top >top; ln -s top link",
    );
    mknodat(CWD, src.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let mount = Mount::start_in(env, AT_ONCE);
    let of = |name: &str| Handle::of(mount.path(name)).unwrap();
    let handles = ["", "d", "d/e", "d/e/g", "d/e/f", "top", "link", "fifo"].map(of);
    assert_eq!(BTreeSet::from_iter(&handles).len(), handles.len());
    let [root, d, _, g, f, top, link, fifo] = &handles;
    assert_eq!(f, &of("second"), "hard links");

    // Known to the kernel.
    let at = File::open(mount.mnt()).unwrap();
    assert_eq!(content(f, &at).unwrap(), "f");
    assert!(root.open(&at, libc::O_RDONLY).is_ok() && d.open(&at, libc::O_DIRECTORY).is_ok());
    for (handle, kind) in [(link, FileType::Symlink), (fifo, FileType::Fifo)] {
        let object = handle.open(&at, libc::O_PATH | libc::O_NOFOLLOW).unwrap();
        assert_eq!(
            FileType::from_raw_mode(object.metadata().unwrap().mode()),
            kind
        );
    }
    assert_eq!(
        content(link, &at).unwrap_err().raw_os_error(),
        Some(libc::ELOOP)
    );

    // Forgotten by the kernel.
    forget(&src, &mount.mnt(), "d/e/g", "d/e/h");
    forget(&src, &mount.mnt(), "top", "over");
    assert_eq!(content(top, &at).unwrap(), "top");
    let opened = g.open(&at, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    assert_eq!(path_of(&opened), mount.path("d/e/h"), "it has its place");
    let above = openat(&opened, "..", OFlags::PATH, Mode::empty()).unwrap();
    let above = File::from(above).metadata().unwrap().ino();
    assert_eq!(above, fs::metadata(src.join("d/e")).unwrap().ino());
    assert_eq!(
        Handle::of(mount.path("d/e/h")).unwrap(),
        *g,
        "found anew, the same handle"
    );
    assert_eq!(Handle::of(mount.path("over")).unwrap(), *top);
    drop((opened, at));

    // Never seen by this daemon. Deepest first, so that nothing on the way is known.
    let mount = Mount::start_in(finish(mount), AT_ONCE);
    let at = File::open(mount.mnt()).unwrap();
    if kind == Kind::Tmpfs {
        // Not without the generation of the inode, which tmpfs tells nobody.
        assert_stale(g.open(&at, libc::O_DIRECTORY), "directory");
        assert_stale(content(f, &at), "file");
        fs::metadata(mount.path("d/e/f")).unwrap();
        fs::metadata(mount.path("d/e/h")).unwrap();
    }
    let opened = g.open(&at, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    assert_eq!(path_of(&opened), mount.path("d/e/h"));
    assert_eq!(content(f, &at).unwrap(), "f");
    assert_eq!(
        Handle::of(mount.path("second")).unwrap(),
        *f,
        "the generation is the same"
    );
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(
        ino(&mount.mnt()),
        ino(&src),
        "the root's number, after it was looked up as .."
    );

    // Deleted, in SRC and on MNT; the number used again.
    let number = ino(&src.join("over"));
    let gone = Handle::of(mount.path("over")).unwrap();
    fs::remove_file(src.join("over")).unwrap();
    assert_stale(content(&gone, &at), "deleted in SRC");
    assert!(!mount.path("over").exists());
    assert_stale(content(&gone, &at), "forgotten, too");
    if matches!(kind, Kind::Ext4 | Kind::Xfs) {
        let new = with_number(&src, &mount.mnt(), number);
        assert_stale(content(&gone, &at), "its number is another's");
        let handle = Handle::of(&new).unwrap();
        assert_ne!(handle, gone);
        assert_eq!(content(&handle, &at).unwrap(), "new");
    }
    fs::remove_file(mount.path("second")).unwrap();
    assert_eq!(content(f, &at).unwrap(), "f", "it has another name");
    fs::remove_file(mount.path("d/e/f")).unwrap();
    assert_stale(content(f, &at), "deleted on MNT");
    fs::remove_dir(src.join("d/e/h")).unwrap();
    drop(opened);
    assert_stale(g.open(&at, libc::O_RDONLY), "a removed directory");
    drop(at);
    finish(mount);
}

/// Where SRC is a part of its file system nothing outside can be reached, whatever the handle says.
fn on_a_part(kind: Kind, bound: bool) {
    let env = TestEnv::new();
    let disk = env.root().join("disk");
    kind.mount(&env, &disk);
    sh(
        &disk,
        "mkdir -p out/dir src/in/deep src/moving; echo -n secret >out/secret; echo -n f >src/in/f",
    );
    sh(
        &disk,
        "mkdir src/in/other; ln out/secret out/link; echo -n inside >src/both; ln src/both out/both",
    );
    // The handles of a mount of the whole disk are just what somebody outside could make up.
    let whole = serve(env, &disk, &[]);
    let of = |name: &str| Handle::of(whole.path(name)).unwrap();
    let [secret, dir, deep, f] = ["out/secret", "out/dir", "src/in/deep", "src/in/f"].map(of);
    let at = File::open(whole.mnt()).unwrap();
    let plain = Handle::of(&disk).unwrap();
    let mut hashed = plain.kind.to_ne_bytes().to_vec();
    hashed.extend(&plain.bytes);
    let number = fs::metadata(&disk).unwrap().ino();
    let top = Handle::forged(number, checksum(&hashed));
    assert_eq!(content(&secret, &at).unwrap(), "secret");
    drop(at);

    let env = finish(whole);
    let src = disk.join("src");
    let mount = if bound {
        sh(env.root(), "mount --bind disk/src src");
        Mount::start_in(env, AT_ONCE)
    } else {
        serve(env, &src, AT_ONCE)
    };
    let at = File::open(mount.mnt()).unwrap();
    for (handle, what) in [
        (&secret, "a file"),
        (&dir, "a directory"),
        (&top, "the top"),
    ] {
        assert_stale(handle.open(&at, libc::O_PATH), what);
    }
    if kind == Kind::Tmpfs {
        fs::metadata(mount.path("in/deep")).unwrap();
    }
    assert_stale(content(&f, &at), "a file does not show where it is");
    let opened = deep.open(&at, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    assert_eq!(path_of(&opened), mount.path("in/deep"), "a directory does");
    drop(opened);
    assert_eq!(fs::read(mount.path("in/f")).unwrap(), b"f");
    forget(&src, &mount.mnt(), "in/f", "in/g");
    assert_eq!(
        content(&f, &at).unwrap(),
        "f",
        "looked up once, it can be opened"
    );

    // Moved out of SRC, and in again.
    let moving = Handle::of(mount.path("moving")).unwrap();
    fs::rename(src.join("moving"), disk.join("moved")).unwrap();
    assert!(!mount.path("moving").exists());
    assert_stale(moving.open(&at, libc::O_RDONLY), "moved out");
    fs::rename(disk.join("moved"), src.join("in/back")).unwrap();
    let opened = moving.open(&at, libc::O_RDONLY).unwrap();
    assert_eq!(path_of(&opened), mount.path("in/back"));
    drop((opened, at));
    finish(mount);
}

isolated! {
    fn handles_on_ext4() { on_a_whole(Kind::Ext4); }
    fn handles_on_xfs() { on_a_whole(Kind::Xfs); }
    fn handles_on_btrfs() { on_a_whole(Kind::Btrfs); }
    fn handles_on_tmpfs() { on_a_whole(Kind::Tmpfs); }

    fn nothing_outside_on_ext4() { on_a_part(Kind::Ext4, false); }
    fn nothing_outside_on_xfs() { on_a_part(Kind::Xfs, false); }
    fn nothing_outside_on_btrfs() { on_a_part(Kind::Btrfs, false); }
    fn nothing_outside_on_tmpfs() { on_a_part(Kind::Tmpfs, false); }
    fn nothing_outside_of_a_bind_mount() { on_a_part(Kind::Ext4, true); }

    /// Where each inode keeps a descriptor, a handle works as long as the kernel knows the inode, and never
    /// leads to another one.
    fn without_handles_of_src() {
        let env = TestEnv::new();
        let src = env.src();
        Kind::Ext4.mount(&env, &src);
        fs::write(src.join("f"), "f").unwrap();
        let mut command = env.loopfs(["-f"]);
        command.args(AT_ONCE).arg(&src).arg(env.mnt());
        command.env("LOOPFS_FEATURES_OFF", "file-handles");
        let mount = Mount::start_command(env, command);
        let f = Handle::of(mount.path("f")).unwrap();
        let at = File::open(mount.mnt()).unwrap();
        assert_eq!(content(&f, &at).unwrap(), "f");
        forget(&src, &mount.mnt(), "f", "g");
        assert_stale(content(&f, &at), "forgotten");
        assert_eq!(Handle::of(mount.path("g")).unwrap(), f, "looked up anew");
        assert_eq!(content(&f, &at).unwrap(), "f");
        let number = fs::metadata(mount.path("g")).unwrap().ino();
        fs::remove_file(mount.path("g")).unwrap();
        with_number(&src, &mount.mnt(), number);
        assert_stale(content(&f, &at), "another file's number");
        drop(at);
        finish(mount);
    }

    /// On a mount below SRC too.
    fn below_a_mount_in_src() {
        let env = TestEnv::new();
        let below = env.src().join("below");
        Kind::Ext4.mount(&env, &below);
        fs::write(below.join("f"), "f").unwrap();
        let mount = Mount::start_in(env, AT_ONCE);
        let f = Handle::of(mount.path("below/f")).unwrap();
        let at = File::open(mount.mnt()).unwrap();
        assert_eq!(content(&f, &at).unwrap(), "f");
        let number = fs::metadata(mount.path("below/f")).unwrap().ino();
        fs::remove_file(mount.path("below/f")).unwrap();
        with_number(&below, &mount.path("below"), number);
        assert_stale(content(&f, &at), "another file's number");
        drop(at);
        finish(mount);
    }

    /// Through the copy of SRC's mount as well.
    fn with_one_file_system() {
        let env = TestEnv::new();
        let disk = env.root().join("disk");
        Kind::Ext4.mount(&env, &disk);
        sh(&disk, "mkdir -p src/in/deep out; echo -n f >src/in/f");
        let src = disk.join("src");
        let mount = serve(env, &src, &["--one-file-system"]);
        let [deep, f] = ["in/deep", "in/f"].map(|name| Handle::of(mount.path(name)).unwrap());
        let mount = serve(finish(mount), &src, &["--one-file-system"]);
        let at = File::open(mount.mnt()).unwrap();
        assert_stale(content(&f, &at), "a file does not show where it is");
        let opened = deep.open(&at, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        assert_eq!(path_of(&opened), mount.path("in/deep"));
        assert_eq!(content(&f, &at).unwrap(), "f", "the way to a directory lists what lies on it");
        fs::rename(src.join("in"), disk.join("out/in")).unwrap();
        drop((opened, at));
        let mount = serve(finish(mount), &src, &["--one-file-system"]);
        let at = File::open(mount.mnt()).unwrap();
        assert_stale(deep.open(&at, libc::O_PATH), "outside");
        drop(at);
        finish(mount);
    }

    /// The root is found as `..` by its node number, and keeps its own for programs.
    fn the_root_keeps_its_number() {
        let env = TestEnv::new();
        Kind::Ext4.mount(&env, &env.src());
        fs::create_dir(env.src().join("d")).unwrap();
        let mount = Mount::start_in(env, AT_ONCE);
        let d = Handle::of(mount.path("d")).unwrap();
        let mount = Mount::start_in(finish(mount), &["-o", "entry_timeout=3600,attr_timeout=3600"]);
        let at = File::open(mount.mnt()).unwrap();
        let opened = d.open(&at, libc::O_PATH | libc::O_DIRECTORY).unwrap();
        let above = openat(&opened, "..", OFlags::PATH, Mode::empty()).unwrap();
        let ino = fs::metadata(mount.src()).unwrap().ino();
        assert_eq!(File::from(above).metadata().unwrap().ino(), ino);
        assert_eq!(fs::metadata(mount.mnt()).unwrap().ino(), ino);
        drop((opened, at));
        finish(mount);
    }

    /// Subvolumes, which number their inodes each from 256 on.
    fn in_subvolumes() {
        let env = TestEnv::new();
        let src = env.src();
        Kind::Btrfs.mount(&env, &src);
        let script = "btrfs -q subvolume create $i; mkdir $i/d; echo -n $i >$i/d/f";
        sh(&src, &format!("for i in a b; do {script}; done"));
        let mount = Mount::start_in(env, AT_ONCE);
        let of = |name: &str| Handle::of(mount.path(name)).unwrap();
        let [a, b, top] = ["a/d/f", "b/d/f", "b"].map(of);
        let at = File::open(mount.mnt()).unwrap();
        forget(&src, &mount.mnt(), "a/d", "a/e");
        forget(&src, &mount.mnt(), "b", "c");
        assert_eq!(content(&a, &at).unwrap(), "a");
        assert_eq!(content(&b, &at).unwrap(), "b");
        let opened = top.open(&at, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        assert_eq!(path_of(&opened), mount.path("c"));
        drop((opened, at));
        finish(mount);
    }

    /// More inodes than are remembered: on tmpfs the oldest are forgotten, the newest not.
    fn the_newest_are_remembered() {
        let env = TestEnv::new();
        let src = env.src();
        Kind::Tmpfs.mount(&env, &src);
        fs::create_dir(src.join("d")).unwrap();
        for number in 0..100 {
            fs::write(src.join(format!("d/{number}")), number.to_string()).unwrap();
        }
        let mount = Mount::start_in(env, AT_ONCE);
        let of = |number| Handle::of(mount.path(format!("d/{number}"))).unwrap();
        let handles: Vec<Handle> = (0..100).map(of).collect();
        let at = File::open(mount.mnt()).unwrap();
        forget(&src, &mount.mnt(), "d", "e");
        for (number, handle) in handles.iter().enumerate() {
            assert_eq!(content(handle, &at).unwrap(), number.to_string());
        }
        drop(at);
        finish(mount);
    }
}
