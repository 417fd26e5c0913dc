//! What the kernel remembers, true to SRC: changes made there are told to it (`--cache coherent`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::disk::{Kind, finish, sys};
use crate::common::process::{eventually, wait_child};
use crate::common::tree::{Times, assert_same, snapshot};
use crate::common::{LIMIT, Mount, TestEnv, sh};

/// Whatever is not told stays as it was for hours.
const COHERENT: &[&str] = &["--cache", "coherent", "--io", "cached"];

/// All that stat(2) tells, access times excepted.
fn look(path: &Path) -> Option<([u64; 6], [i64; 4])> {
    let meta = fs::symlink_metadata(path).ok()?;
    let times = [
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    let owner = u64::from(meta.uid()) << 32 | u64::from(meta.gid());
    let numbers = [
        meta.ino(),
        meta.mode().into(),
        owner,
        meta.nlink(),
        meta.len(),
        meta.rdev(),
    ];
    Some((numbers, times))
}

/// Looks at all that is and was below SRC through MNT.
struct Looking<'a> {
    mount: &'a Mount,
    names: BTreeSet<String>,
}

impl<'a> Looking<'a> {
    fn at(mount: &'a Mount) -> Self {
        let names = BTreeSet::new();
        Self { mount, names }
    }

    /// Names and attributes below MNT become those below SRC, then contents are; without a look into a directory or a
    /// file, which would make the kernel ask for more.
    #[track_caller]
    fn follows(&mut self, what: &str) {
        let (src, mnt) = (self.mount.src(), self.mount.mnt());
        let listed = |top: &Path| sh(top, "find . | sort");
        self.names.extend(listed(&src).lines().map(str::to_owned));
        eventually(what, LIMIT, || {
            let same = |name: &String| look(&src.join(name)) == look(&mnt.join(name));
            self.names.iter().all(same)
        });
        eventually(what, LIMIT, || listed(&src) == listed(&mnt));
        for name in &self.names {
            let (behind, through) = (src.join(name), mnt.join(name));
            let content = |path: &PathBuf| path.is_file().then(|| fs::read(path).ok());
            assert!(content(&behind) == content(&through), "{name}: {what}");
            let target = |path: &PathBuf| fs::read_link(path).ok();
            assert_eq!(target(&behind), target(&through), "{name}: {what}");
        }
    }
}

/// What is done in SRC.
const CHANGES: [&str; 20] = [
    "echo more >>f",
    "printf 9 | dd of=f conv=notrunc status=none",
    "truncate -s 5000 f",
    "fallocate -p -o 0 -l 4096 f",
    "chmod 600 f d fifo",
    "chown 3:4 f d; chown -h 3:4 l",
    "touch -d @1 f d d/g",
    "setfattr -n user.a -v b f",
    "setfacl -m u:7:rwx d/g",
    "touch new",
    "mkdir d/e/deep",
    "mv new d/e/moved",
    "ln d/g more-links",
    "rm hard",
    "mv d/g f",
    "mv d renamed",
    "rm l; ln -s new l",
    "rm fifo; mkdir fifo",
    "python3 -c 'import os,mmap; f=open(\"f\",\"r+b\"); m=mmap.mmap(f.fileno(),1); m[0]=65; m.close(); f.close()'",
    "rm -r renamed",
];

/// Each of them shows through MNT, after everything was looked at; and looked at again, a second later, if the first look
/// is remembered no longer than that.
fn each_change_shows(mount: Mount, twice: bool) {
    let mut looking = Looking::at(&mount);
    let (src, mnt) = (mount.src(), mount.mnt());
    let log = mount.log();
    assert!(log.contains("true to the source (fanotify"), "{log}");
    sh(
        &src,
        "mkdir -p d/e; echo 1 >f; echo 2 >d/g; ln -s old l; ln f hard; mkfifo fifo",
    );
    let open = File::open(mnt.join("f")).unwrap();
    for change in CHANGES {
        assert!(!mnt.join("none").exists());
        let _ = mnt.join("new").exists(); // remembered, whatever it is
        looking.follows("what is remembered before");
        if twice {
            thread::sleep(Duration::from_millis(1_100));
            looking.follows("what is remembered for longer");
        }
        sh(&src, change);
        looking.follows(change);
    }
    drop(open);
    mount.finish();
}

isolated! {
    /// Every kind of change, after everything was looked at: it would be remembered for hours.
    fn each_change_is_told() {
        for options in [COHERENT, &["--cache=coherent"], &[]] {
            each_change_shows(Mount::start(options), false);
        }
    }

    /// The same where inodes are watched one by one.
    fn each_change_of_each_inode_is_told() {
        each_change_shows(Mount::start_without("file-handles", &["--cache=coherent"]), true);
    }

    /// Inodes that are forgotten and found again; names that come to nothing in directories that are new.
    fn an_inode_found_again_is_followed_again() {
        let mount = Mount::start_without("file-handles", COHERENT);
        let (src, mnt) = (mount.src(), mount.mnt());
        for round in 0..30 {
            let dir = format!("d{}", round % 3);
            sh(&src, &format!("rm -rf {dir}; mkdir {dir}; echo 1 >{dir}/f"));
            for text in ["1\n", "22\n", "333\n"] {
                fs::write(src.join(&dir).join("f"), text).unwrap();
                eventually("the text is seen", LIMIT, || {
                    fs::read_to_string(mnt.join(&dir).join("f")).is_ok_and(|seen| seen == text)
                });
            }
            assert!(!mnt.join(&dir).join("later").exists());
            fs::write(src.join(&dir).join("later"), "").unwrap();
            eventually("the name is seen", LIMIT, || mnt.join(&dir).join("later").exists());
        }
        mount.finish();
    }

    /// What is remembered is not asked for again; without any cache all of it is.
    fn what_does_not_change_is_asked_for_once() {
        for (cache, off, again) in [("coherent", "", false), ("coherent", "file-handles", false), ("none", "", true)] {
            let env = TestEnv::new();
            let mut command = env.loopfs(["-f", "--cache", cache]);
            command.arg(env.src()).arg(env.mnt()).env("RUST_LOG", "loopfs=trace").env("LOOPFS_FEATURES_OFF", off);
            let mount = Mount::start_command(env, command);
            fs::write(mount.source("f"), "x").unwrap();
            let look = || {
                assert_eq!(fs::metadata(mount.path("f")).unwrap().len(), 1);
                assert!(fs::metadata(mount.path("none")).is_err());
            };
            // The second time after it was told again that the file is new.
            look();
            thread::sleep(Duration::from_millis(1_100));
            look();
            let asked = || mount.requests("lookup") + mount.requests("getattr");
            let before = asked();
            thread::sleep(Duration::from_millis(1_500));
            look();
            assert_eq!(asked() > before, again, "{cache} {off}");
            mount.finish();
        }
    }

    /// A file that was open for reading and writing may be mapped, which changes its times without a word: it is asked for each time
    /// it is looked at, until the kernel knows that nobody has it mapped.
    fn what_may_be_mapped_is_asked_for_until_it_is_not() {
        // Python's own mmap keeps a duplicate of the descriptor.
        const MAPPING: &str = "
import ctypes, os, sys
mmap = ctypes.CDLL(None).mmap
mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
file = os.open(sys.argv[1], os.O_RDWR)
at = mmap(None, 4096, 3, 1, file, 0)
os.close(file)
for line in sys.stdin:
    ctypes.memset(at, ord(line[0]), 1)
    print('done', flush=True)
";
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f", "--cache=coherent"]);
        command.arg(env.src()).arg(env.mnt()).env("RUST_LOG", "loopfs=trace");
        let mount = Mount::start_command(env, command);
        fs::write(mount.source("f"), [b'a'; 4096]).unwrap();
        let path = mount.path("f");
        let modified = || fs::metadata(&path).unwrap().modified().unwrap();
        let mut program = Command::new("python3");
        program.args(["-c", MAPPING]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = program.spawn().unwrap();
        let mut orders = program.stdin.take().unwrap();
        let mut answers = std::io::BufReader::new(program.stdout.take().unwrap());
        for _ in 0..8 {
            use std::io::{BufRead as _, Write as _};
            // A page that is on its disk: the next write to it sets the time.
            File::open(mount.source("f")).unwrap().sync_all().unwrap();
            let before = modified();
            // Time for the kernel to be asked to forget it, and for the clock to go on.
            thread::sleep(Duration::from_millis(50));
            writeln!(orders, "b").unwrap();
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            assert_eq!(line, "done\n");
            assert!(modified() > before, "its file was closed long ago");
        }
        drop(orders);
        assert!(wait_child(&mut program, LIMIT).expect("it ends").success());
        let asked = || mount.requests("lookup") + mount.requests("getattr");
        eventually("it is remembered", LIMIT, || {
            modified();
            // It was told once more that the file had changed.
            thread::sleep(Duration::from_millis(300));
            modified();
            let before = asked();
            modified();
            asked() == before
        });
        mount.finish();
    }

    /// A list of names that has not changed is not read again, however much others do to the file system.
    fn a_list_is_read_once_on_a_busy_file_system() {
        let env = TestEnv::new();
        let mut command = env.loopfs(["-f", "--cache=coherent"]);
        command.arg(env.src()).arg(env.mnt()).env("RUST_LOG", "loopfs=trace");
        let mount = Mount::start_command(env, command);
        sh(&mount.src(), "mkdir d; touch d/1 d/2");
        // A directory that changed just now may change again without another time to tell by.
        thread::sleep(Duration::from_millis(100));
        let list = || sh(&mount.mnt(), "ls d");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let busy = mount.src().with_file_name("busy");
                while !over.load(Ordering::Relaxed) {
                    fs::write(&busy, "x").unwrap();
                }
            });
            for _ in 0..3 {
                assert_eq!(list(), "1\n2\n");
            }
            let before = mount.requests("readdir");
            for _ in 0..20 {
                assert_eq!(list(), "1\n2\n");
            }
            let again = mount.requests("readdir") - before;
            over.store(true, Ordering::Relaxed);
            assert_eq!(again, 0);
        });
        fs::write(mount.source("d/3"), "").unwrap();
        assert_eq!(list(), "1\n2\n3\n", "at once");
        mount.finish();
    }

    /// What other programs do to the file system without concern for SRC is nothing to the kernel.
    fn mounts_below_come_and_go() {
        let mount = Mount::start(COHERENT);
        let (src, mnt) = (mount.src(), mount.mnt());
        sh(&src, "mkdir -p d/stick; echo below >d/stick/f");
        assert_eq!(fs::read_to_string(mnt.join("d/stick/f")).unwrap(), "below\n");
        sys("mount", &["-t", "tmpfs", "stick"], &src.join("d/stick"));
        sh(&src, "echo above >d/stick/f");
        eventually("the mount is seen", LIMIT, || {
            fs::read_to_string(mnt.join("d/stick/f")).is_ok_and(|text| text == "above\n")
        });
        // What is on it is not followed, and kept no longer than usual.
        let mode = || fs::metadata(mnt.join("d/stick/f")).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o644);
        sh(&src, "chmod 600 d/stick/f");
        eventually("a change on it is seen", LIMIT, || mode() == 0o600);
        // Remembered, it is in use.
        sys("umount", &["-l"], &src.join("d/stick"));
        eventually("that it has gone is seen", LIMIT, || {
            fs::read_to_string(mnt.join("d/stick/f")).is_ok_and(|text| text == "below\n")
        });
        mount.finish();
    }

    /// More events than the kernel keeps, while nobody reads them: then all is forgotten, and what is mounted on
    /// MNT stays.
    fn lost_events_lose_nothing() {
        for with_a_mount in [false, true] {
            let mount = Mount::start(COHERENT);
            let (src, mnt) = (mount.src(), mount.mnt());
            sh(&src, "mkdir d gone on; echo 1 >f; echo 1 >d/f; touch gone/f");
            let mut looking = Looking::at(&mount);
            looking.follows("before");
            assert!(!mnt.join("none").exists() && !mnt.join("d/none").exists());
            let inside = File::open(mnt.join("d")).unwrap();
            if with_a_mount {
                sys("mount", &["-t", "tmpfs", "on"], &mnt.join("on"));
                fs::write(mnt.join("on/it"), "").unwrap();
            }
            mount.signal(Signal::STOP);
            sh(&src, "mkdir many; cd many; seq 20000 | xargs touch; cd ..; rm -r many; rm -r gone; chmod 700 d");
            sh(&src, "echo 22 >f; echo 22 >d/f; touch none d/none");
            mount.signal(Signal::CONT);
            if with_a_mount {
                eventually("all is seen", LIMIT, || {
                    mnt.join("d/none").exists() && !mnt.join("gone").exists()
                        && fs::metadata(mnt.join("d/f")).is_ok_and(|meta| meta.len() == 3)
                        && look(&mnt.join("d")) == look(&src.join("d"))
                });
                assert!(mnt.join("on/it").exists());
                sys("umount", &[], &mnt.join("on"));
            }
            looking.follows("all");
            assert!(mount.log().contains("so much has changed"), "{}", mount.log());
            drop(inside);
            mount.finish();
        }
    }

    /// A program that changes SRC as fast as it can, while others look at it through MNT as fast as they can; and
    /// stops now and then: then there is no stale answer any more.
    fn under_load_nothing_stays_stale() {
        const CHANGES: &str = "
import os, random, sys
random.seed(int(sys.argv[1])); os.chdir(sys.argv[2])
names = [d + n for d in ('', 'd0/', 'd1/') for n in 'abcdef']
def write(name):
    with open(name, 'w') as file: file.write('x' * random.randrange(2000))
def one():
    a, b = random.choice(names), random.choice(names)
    random.choice([
        lambda: write(a), lambda: write(a), lambda: os.unlink(a), lambda: os.mkdir(a), lambda: os.rmdir(a),
        lambda: os.rename(a, b), lambda: os.link(a, b), lambda: os.symlink(b, a),
        lambda: os.chmod(a, random.choice([0o600, 0o644, 0o755])), lambda: os.truncate(a, random.randrange(999)),
        lambda: os.rename('d0', 'dx') or os.rename('d1', 'd0') or os.rename('dx', 'd1'),
        lambda: os.utime(a, ns=(1, random.randrange(10**18))),
    ])()
for line in sys.stdin:
    for _ in range(int(line)):
        try: one()
        except OSError: pass
    print('done', flush=True)
";
        for (io, off) in [("cached", ""), ("passthrough", ""), ("cached", "file-handles"), ("passthrough", "file-handles")] {
            let env = TestEnv::new();
            Kind::Ext4.mount(&env, &env.src());
            let mut command = env.loopfs(["-f", "--cache=coherent", "--io", io]);
            command.arg(env.src()).arg(env.mnt()).env("LOOPFS_FEATURES_OFF", off);
            let mount = Mount::start_command(env, command);
            let (src, mnt) = (mount.src(), mount.mnt());
            sh(&src, "mkdir d0 d1");
            let mut changer = Command::new("python3");
            changer.args(["-c", CHANGES, "7"]).arg(&src).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut changer = changer.spawn().unwrap();
            let mut orders = changer.stdin.take().unwrap();
            let mut answers = std::io::BufReader::new(changer.stdout.take().unwrap());
            let mut looking = Looking::at(&mount);
            let (over, looks) = (AtomicBool::new(false), AtomicU64::new(0));
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            for dir in ["", "d0", "d1"] {
                                let names = fs::read_dir(mnt.join(dir)).into_iter().flatten().flatten();
                                for name in names {
                                    let _ = (name.metadata(), fs::read(name.path()), fs::read_link(name.path()));
                                }
                                for name in ["a", "b", "c", "d", "e", "f"] {
                                    let _ = fs::symlink_metadata(mnt.join(dir).join(name));
                                }
                            }
                            looks.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                for _ in 0..20 {
                    use std::io::{BufRead as _, Write as _};
                    writeln!(orders, "400").unwrap();
                    let mut line = String::new();
                    answers.read_line(&mut line).unwrap();
                    assert_eq!(line, "done\n");
                    looking.follows("after many changes");
                }
                over.store(true, Ordering::Relaxed);
            });
            drop(orders);
            assert!(wait_child(&mut changer, LIMIT).expect("it ends").success());
            assert!(looks.into_inner() > 50);
            assert_same(&snapshot(&src, Times::All), &snapshot(&mnt, Times::All), io);
            finish(mount);
        }
    }

    /// Links to a file that is known under one name only, and a file that is open on MNT and has no name any more.
    fn what_is_open_is_followed_without_a_name() {
        let mount = Mount::start(COHERENT);
        let (src, mnt) = (mount.src(), mount.mnt());
        fs::write(src.join("f"), "one").unwrap();
        fs::hard_link(src.join("f"), src.join("g")).unwrap();
        let (open, behind) = (File::open(mnt.join("f")).unwrap(), File::options().write(true).open(src.join("g")).unwrap());
        assert_eq!(open.metadata().unwrap().nlink(), 2);
        fs::remove_file(src.join("f")).unwrap();
        fs::remove_file(src.join("g")).unwrap();
        eventually("it has no link", LIMIT, || open.metadata().unwrap().nlink() == 0);
        behind.write_all_at(b"longer", 0).unwrap();
        eventually("it is longer", LIMIT, || open.metadata().unwrap().len() == 6);
        let mut text = [0; 6];
        open.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"longer");
        symlink("a", src.join("f")).unwrap();
        eventually("another has its name", LIMIT, || fs::read_link(mnt.join("f")).is_ok());
        drop(open);
        mount.finish();
    }

    /// Where changes can't be followed: refused if that was asked for, otherwise said.
    fn where_it_can_not_be_had() {
        let refused = |env: &TestEnv, off: &str, why: &str| {
            let mut command = env.loopfs(["-f", "--cache", "coherent"]);
            command.arg(env.src()).arg(env.mnt()).env("LOOPFS_FEATURES_OFF", off);
            let (code, line) = env.refused_by(&mut command);
            assert_eq!(code, 32);
            assert!(line.contains("cache=coherent can't be had: ") && line.contains(why), "{line}");
        };
        let env = TestEnv::new();
        refused(&env, "fanotify", "switched off by LOOPFS_FEATURES_OFF");
        let mut command = env.loopfs(["-f".into(), env.src(), env.mnt()]);
        command.env("LOOPFS_FEATURES_OFF", "fanotify");
        let mount = Mount::start_command(env, command);
        assert!(mount.log().contains("for a time: not until they change, fanotify is switched off"), "{}", mount.log());
        fs::write(mount.source("f"), "1").unwrap();
        assert_eq!(fs::metadata(mount.path("f")).unwrap().len(), 1);
        fs::write(mount.source("f"), "22").unwrap();
        eventually("it is asked again after a second", LIMIT, || fs::metadata(mount.path("f")).unwrap().len() == 2);
        mount.finish();
        for options in [&["-o", "attr_timeout=5"][..], &["--cache=ttl"], &["-o", "cache=none"]] {
            let mount = Mount::start(options);
            assert!(mount.log().contains("as --cache or a timeout says"), "{}", mount.log());
            mount.finish();
        }
    }
}
