//! Where SRC gives no file handles, or none that the daemon could open: each inode that the kernel
//! remembers keeps a file open.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::limited::{Limited, OUT_OF_THEM, file, make_files};
use crate::common::process::eventually;
use crate::common::{LIMIT, TestEnv, run, sh};

/// The kernel must be one that can be asked to forget.
#[track_caller]
fn check_kernel() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let numbers = release
        .split(['.', '-'])
        .map_while(|word| word.parse::<u32>().ok());
    let version: Vec<u32> = numbers.take(2).collect();
    assert!(
        version >= vec![6, 18],
        "this test needs Linux 6.18, whose FUSE client can be asked to forget (FUSE_NOTIFY_PRUNE)"
    );
}

/// Walks, reads and copies several times as many inodes as files are allowed, four at a time.
#[track_caller]
fn walk_and_copy(mount: &Limited, files: usize) {
    let (src, mnt) = (mount.src(), mount.mnt());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for number in 0..files {
                    let path = file(&mnt, number);
                    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "{}", path.display());
                    assert_eq!(File::open(&path).unwrap().read(&mut [0; 8]).unwrap(), 0);
                }
            });
        }
    });
    mount.check_open_files();
    sh(mount.root(), "cp -a mnt copy; diff -r src copy");
    mount.check_open_files();
    sh(&mnt, "rm -rf [1-9]*");
    assert_eq!(fs::read_dir(&src).unwrap().count(), 1);
}

/// More inodes than files are allowed: the kernel is asked to forget, and no program gets an error.
#[test]
fn the_kernel_is_asked_to_forget_in_time() {
    check_kernel();
    for threads in ["--threads=1", "--threads=4"] {
        let env = TestEnv::new();
        make_files(&env.src(), 1200);
        let mount = Limited::start_with(env, 512, "file-handles", &[threads]);
        walk_and_copy(&mount, 1200);
        assert!(!mount.ran_out());
        let left = mount.finish();
        assert!(left < 512, "{left} inodes left");
    }
}

/// What is in use is not forgotten: an open file, a listing under way, a working directory.
#[test]
fn what_is_in_use_is_not_forgotten() {
    check_kernel();
    let env = TestEnv::new();
    make_files(&env.src(), 3000);
    fs::write(env.src().join("open"), "content").unwrap();
    let mount = Limited::start(env, 512, "file-handles");
    let mnt = mount.mnt();
    let mut open = File::open(mnt.join("open")).unwrap();
    fs::remove_file(mnt.join("open")).unwrap();
    let mut listing = fs::read_dir(mnt.join("1")).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();
    let working = format!(
        "cd 2; find .. -links 1000; test -e 2500; test \"$(pwd)\" = '{}/2'",
        mnt.display()
    );
    sh(&mnt, &working);
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(
        (content.as_str(), open.metadata().unwrap().nlink()),
        ("content", 0)
    );
    let names = listing.map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| *name != first).count(), 999);
    assert!(!mount.ran_out());
    drop(open);
    mount.finish();
}

#[track_caller]
fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    Errno::from_io_error(&result.err().expect("an error"))
}

/// A kernel that can't be asked to forget: what is known can be used, what is not gets EMFILE and changes
/// nothing, the log says so once and says what to do, and when something was forgotten it goes on.
#[test]
fn without_room_new_inodes_get_emfile_and_known_ones_go_on() {
    let env = TestEnv::new();
    make_files(&env.src(), 2000);
    for known in ["known", "listed"] {
        fs::create_dir(env.src().join(known)).unwrap();
    }
    fs::write(env.src().join("known/file"), "content").unwrap();
    let mount = Limited::start(env, 256, "file-handles,prune");
    let (src, mnt) = (mount.src(), mount.mnt());
    let mut open = File::options()
        .read(true)
        .write(true)
        .open(mnt.join("known/file"))
        .unwrap();
    let listing = fs::read_dir(mnt.join("listed")).unwrap();

    let refused = (0..2000).find(|number| fs::metadata(file(&mnt, *number)).is_err());
    let refused = refused.expect("an inode too many");
    assert!((100..256).contains(&refused), "refused after {refused}");
    assert_eq!(errno(fs::metadata(file(&mnt, refused))), Some(Errno::MFILE));
    mount.check_open_files();

    // Known: all as ever, also when the kernel asks for the names anew, and with files opened.
    open.write_all(b"CON").unwrap();
    assert_eq!(
        fs::read_to_string(mnt.join("known/file")).unwrap(),
        "CONtent"
    );
    fs::set_permissions(
        mnt.join("known/file"),
        fs::metadata(&src).unwrap().permissions(),
    )
    .unwrap();
    fs::rename(mnt.join("known/file"), mnt.join("known/renamed")).unwrap();
    fs::hard_link(mnt.join("known/renamed"), mnt.join("listed/linked")).unwrap();
    assert_eq!(fs::read_dir(mnt.join("known")).unwrap().count(), 1);
    let listed = listing.map(|entry| entry.unwrap().file_name());
    assert_eq!(listed.collect::<Vec<_>>(), ["linked"]);
    for number in 0..refused {
        let path = file(&mnt, number);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(File::open(&path).unwrap().read(&mut [0; 8]).unwrap(), 0);
    }
    // Names are listed even if nothing can be said about them.
    assert_eq!(fs::read_dir(mnt.join("0")).unwrap().count(), 1000);

    // New ones: refused before anything is done.
    let new = mnt.join("known/new");
    assert_eq!(errno(File::create(&new)), Some(Errno::MFILE));
    assert_eq!(errno(fs::create_dir(&new)), Some(Errno::MFILE));
    assert_eq!(errno(symlink("x", &new)), Some(Errno::MFILE));
    let node = run(Command::new("mkfifo").arg(&new), LIMIT);
    assert!(node.stderr.contains("Too many open files"), "{node:?}");
    assert!(!src.join("known/new").exists());
    let log = mount.log();
    assert_eq!(log.matches(OUT_OF_THEM).count(), 1, "said once");
    let line = log.lines().find(|line| line.contains(OUT_OF_THEM)).unwrap();
    for what in [
        "lookup",
        "256 files",
        "ulimit -Hn",
        "LimitNOFILE=",
        "file handles",
    ] {
        assert!(line.contains(what), "{line}");
    }

    // Room again.
    for number in 0..100 {
        fs::remove_file(file(&mnt, number)).unwrap();
    }
    eventually(
        "the kernel has told what it forgot",
        Duration::from_secs(5),
        || File::create(&new).is_ok(),
    );
    for number in refused..refused + 50 {
        assert_eq!(fs::metadata(file(&mnt, number)).unwrap().len(), 0);
    }
    mount.check_open_files();
    drop(open);
    mount.finish();
}

/// A user who may not open file handles, through fusermount3.
#[test]
fn for_a_user_without_privilege() {
    check_kernel();
    let env = TestEnv::new();
    make_files(&env.src(), 1500);
    let script = r#"
        mkdir "$ROOT/dev"
        mount -t tmpfs -o mode=755 dev "$ROOT/dev"
        mknod "$ROOT/dev/fuse" c 10 229; chmod 666 "$ROOT/dev/fuse"
        mount --bind "$ROOT/dev/fuse" /dev/fuse
        chown -R 65534:65534 "$MNT" "$SRC"
        as="setpriv --reuid 65534 --regid 65534 --clear-groups timeout 30"
        $as prlimit --nofile=512:512 "$LOOPFS" "$SRC" "$MNT" </dev/null
        $as find "$MNT" -links 1000
        $as find "$MNT" -type f -exec cat {} +
        $as sh -c 'for file in "$MNT"/0/*; do mv "$file" "$file.new"; done'
        $as find "$MNT" -name '*.new' | wc -l
        $as find "$MNT" -mindepth 1 -delete
        $as fusermount3 -u "$MNT"
        timeout 20 pidwait -f "^$LOOPFS" || [ $? -eq 1 ]"#;
    let finished = env.private_script(script);
    assert_eq!(finished.stderr, "");
    assert_eq!(finished.success().trim(), "1000");
    assert_eq!(fs::read_dir(env.src()).unwrap().count(), 0);
    env.assert_clean();
}

/// An overlayfs at `at`, with files in its lower layer and its other directories beside it.
struct Overlay(PathBuf);

impl Overlay {
    fn new(root: &Path, at: PathBuf, options: &str, files: usize) -> Self {
        for name in ["lower", "upper", "work"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        make_files(&root.join("lower"), files);
        let options = format!("lowerdir=lower,upperdir=upper,workdir=work{options}");
        let mut mount = Command::new("mount");
        mount
            .current_dir(root)
            .args(["-t", "overlay", "loopfs-test", "-o", &options])
            .arg(&at);
        run(&mut mount, LIMIT).success();
        Self(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// SRC on an overlayfs, which gives no handles by itself.
#[test]
fn on_an_overlayfs() {
    check_kernel();
    let env = TestEnv::new();
    let overlay = Overlay::new(env.root(), env.src(), "", 1500);
    let mount = Limited::start(env, 512, "");
    assert!(mount.log().contains("keeps a file open, 360 at most"));
    walk_and_copy(&mount, 1500);
    assert!(!mount.ran_out());
    let (env, _) = mount.end();
    drop(overlay);
    env.assert_clean();
}

/// SRC on an overlayfs that was told to give handles.
#[test]
fn on_an_overlayfs_with_nfs_export() {
    let env = TestEnv::new();
    let overlay = Overlay::new(env.root(), env.src(), ",index=on,nfs_export=on", 1500);
    let mount = Limited::start(env, 512, "");
    assert!(mount.log().contains("reached by file handle"));
    walk_and_copy(&mount, 1500);
    assert!(!mount.ran_out());
    let (env, _) = mount.end();
    drop(overlay);
    env.assert_clean();
}
