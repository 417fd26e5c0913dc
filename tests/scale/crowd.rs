//! Many threads at once on a daemon that may have 128 files open: whatever they do to files that lose their
//! descriptors all the time comes out as in a plain directory.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::thread;

use super::limited::Limited;
use crate::common::process::wait_child;
use crate::common::tree::{Times, assert_same, snapshot};
use crate::common::{LIMIT, Mount, TestEnv};

const THREADS: u64 = 6;
const STEPS: usize = 800;
/// Names in the directory of each thread: several times what can be at hand.
const NAMES: u64 = 60;
/// open(2)
const O_PATH: i32 = rustix::fs::OFlags::PATH.bits().cast_signed();
/// Files that each thread has open at a time, at most.
const OPEN: usize = 2;

/// A generator that gives the same numbers for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn told<T>(result: io::Result<T>, tell: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(value) => tell(value),
        Err(error) => format!("error {:?}", error.raw_os_error()),
    }
}

/// One step in `top`: what a program sees of it.
fn step(random: &mut Random, top: &Path, open: &mut Vec<File>) -> String {
    let mut name = || {
        let number = random.below(NAMES);
        // Every tenth name is that of a directory, with others in it.
        match number % 10 {
            0 => format!("d{number}"),
            1..=3 => format!("d{}/{number}", number / 20 * 10),
            _ => format!("{number}"),
        }
    };
    let (name, other) = (name(), name());
    let (path, target) = (top.join(&name), top.join(&other));
    let step = random.below(14);
    let seen = match step {
        0 | 1 => told(File::create(&path), |mut file| {
            told(file.write_all(name.as_bytes()), |()| "written".to_owned())
        }),
        2 => told(fs::create_dir(&path), |()| "made".to_owned()),
        3 => told(fs::rename(&path, &target), |()| "renamed".to_owned()),
        4 => told(fs::hard_link(&path, &target), |()| "linked".to_owned()),
        5 => told(fs::remove_file(&path), |()| "unlinked".to_owned()),
        6 => told(fs::remove_dir(&path), |()| "removed".to_owned()),
        7 => {
            let mode = Permissions::from_mode(0o600 + 0o11 * u32::from(name.len() > 2));
            told(fs::set_permissions(&path, mode), |()| "mode".to_owned())
        }
        8 => told(fs::read_dir(&path), |entries| {
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            format!("{names:?}")
        }),
        9 => {
            if open.len() == OPEN {
                open.remove(0);
            }
            // Half of them with O_PATH: the daemon has nothing open for those.
            let flags = i32::from(random.below(2) == 0) * O_PATH;
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open(&path);
            told(file, |file| {
                open.push(file);
                "opened".to_owned()
            })
        }
        10 => open.first().map_or("none".to_owned(), |file| {
            // Its name may have gone, and another file may have it.
            told(file.write_at(other.as_bytes(), 3), |count| {
                format!("{count}")
            })
        }),
        11 => told(File::open(&path), |mut file| {
            let mut text = Vec::new();
            told(file.read_to_end(&mut text), |_| format!("{text:?}"))
        }),
        _ => told(fs::symlink_metadata(&path), |meta| {
            let size = if meta.is_dir() { 0 } else { meta.len() };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            format!("{:o} {links} {size}", meta.mode())
        }),
    };
    let open: Vec<_> = open
        .iter()
        .map(|file| file.metadata().map(|meta| (meta.nlink(), meta.len())))
        .map(|seen| seen.map_err(|error| error.raw_os_error()))
        .collect();
    format!("{step} {name} {other}: {seen}; open {open:?}")
}

/// Each thread does the same in a directory on the mount and in a plain one, and walks over what all the
/// others do meanwhile.
#[test]
fn many_threads_see_what_they_would_see_in_a_plain_directory() {
    for off in ["", "openat2"] {
        let env = TestEnv::new();
        let plain = env.root().join("plain");
        for top in [&plain, &env.src()] {
            for thread in 0..THREADS {
                fs::create_dir_all(top.join(thread.to_string())).unwrap();
            }
        }
        let mount = Limited::start_with(env, 128, off, &["--threads=4"]);
        assert!(mount.log().contains("reached by file handle"));
        let mnt = mount.mnt();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let tops = [&plain, &mnt].map(|top| top.join(thread.to_string()));
                let mnt = &mnt;
                scope.spawn(move || {
                    let seed = 0x9e37_79b9_7f4a_7c15 ^ (thread + 1);
                    let mut states = tops.map(|top| (top, Random(seed), Vec::new()));
                    for number in 0..STEPS {
                        let [expected, found] = states
                            .each_mut()
                            .map(|(top, random, open)| step(random, top, open));
                        assert_eq!(expected, found, "thread {thread}, step {number}");
                        if number % 100 == 0 {
                            walk(mnt);
                        }
                    }
                });
            }
        });
        mount.check_open_files();
        assert!(!mount.ran_out());
        let expected = snapshot(&plain, Times::Ignored);
        assert_same(&expected, &snapshot(&mnt, Times::Ignored), "MNT");
        assert_same(&expected, &snapshot(&mount.src(), Times::Ignored), "SRC");
        mount.finish();
    }
}

/// Looks at everything; names may come and go meanwhile, but no other error is right.
fn walk(directory: &Path) {
    let check = |error: &io::Error| assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return check(&error),
    };
    for entry in entries {
        let path = entry.unwrap().path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => walk(&path),
            Ok(_) => {}
            Err(error) => check(&error),
        }
    }
}

/// Programs that work in directories of their own, and in one that all of them share.
#[test]
fn sixty_four_programs_at_once() {
    const PROGRAMS: usize = 64;
    const PROGRAM: &str = "
        mkdir own-$0 && cd own-$0
        for n in 1 2 3 4 5 6 7 8; do
            echo $0 $n >f; echo $0 $n >>../shared; [ \"$(cat f)\" = \"$0 $n\" ]
            mv f g; ln g h; rm g; [ \"$(ls)\" = h ]; cp h ../all/$0-$n; rm h
        done";
    let mount = Mount::start(&[]);
    fs::create_dir(mount.path("all")).unwrap();
    let program = |number: usize| {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", PROGRAM, &number.to_string()]);
        command.current_dir(mount.mnt()).spawn().unwrap()
    };
    let mut programs: Vec<_> = (0..PROGRAMS).map(program).collect();
    for program in &mut programs {
        assert!(wait_child(program, LIMIT).expect("it ends").success());
    }
    for top in [mount.mnt(), mount.src()] {
        let shared = fs::read_to_string(top.join("shared")).unwrap();
        let lines: BTreeSet<&str> = shared.lines().collect();
        assert_eq!(
            (lines.len(), shared.lines().count()),
            (8 * PROGRAMS, 8 * PROGRAMS)
        );
        for entry in fs::read_dir(top.join("all")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let expected = format!("{}\n", name.replace('-', " "));
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        assert_eq!(fs::read_dir(top.join("all")).unwrap().count(), 8 * PROGRAMS);
    }
    mount.finish();
}
