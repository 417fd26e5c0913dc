//! Changes that are made in SRC itself, while MNT is in use and the kernel remembers what was.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    CWD, FileType as NodeType, Mode, OFlags, RenameFlags, mknodat, openat, renameat_with,
};

use super::disk::{AT_ONCE, Kind, finish, path_of};
use crate::common::process::eventually;
use crate::common::{LIMIT, Mount, TestEnv, sh};

/// So long that nothing is asked again while a test runs.
const FOR_EVER: &[&str] = &["-o", "entry_timeout=3600,attr_timeout=3600"];

fn read(path: PathBuf) -> Result<String, i32> {
    fs::read_to_string(path).map_err(|error| error.raw_os_error().unwrap())
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Every kind of change of a file and of names, each seen at the next open.
fn seen_at_open(options: &[&str]) {
    let mount = Mount::start(options);
    let (src, mnt) = (mount.src(), mount.mnt());
    let change = |script: &str| sh(&src, script);
    let f = || read(mount.path("f"));
    change("printf one >f; mkdir d; echo x >d/old");
    assert_eq!(f().unwrap(), "one");
    assert_eq!(sh(&mnt, "ls d"), "old\n");
    change("printf two >>f");
    assert_eq!(f().unwrap(), "onetwo", "grown");
    change("printf x >f");
    assert_eq!(f().unwrap(), "x", "shrunk");
    for letter in ["a", "b", "c"] {
        change(&format!("printf {letter} >f"));
        assert_eq!(f().unwrap(), letter, "of the same size");
    }
    // Seen and never read, so that nothing of its own makes the kernel ask again.
    change(": >e");
    assert_eq!(fs::metadata(mount.path("e")).unwrap().len(), 0);
    change("printf more >e");
    let file = File::open(mount.path("e")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4, "grown, by fstat");
    drop(file);
    change("printf longer >e");
    let mut file = File::options()
        .append(true)
        .read(true)
        .open(mount.path("e"))
        .unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 6, "grown, by seeking");
    file.write_all(b"!").unwrap();
    drop(file);
    assert_eq!(read(mount.path("e")).unwrap(), "longer!");
    change("printf replaced >g; mv g f");
    assert_eq!(f().unwrap(), "replaced");
    change("rm f");
    assert_eq!(f(), Err(libc::ENOENT), "removed");
    change("printf again >f");
    assert_eq!(f().unwrap(), "again");
    assert_eq!(ino(&mount.path("f")), ino(&src.join("f")));
    change("touch d/new");
    assert_eq!(sh(&mnt, "ls d"), "new\nold\n");
    change("rm -r d; mkdir d; touch d/other");
    assert_eq!(
        sh(&mnt, "ls d; ls -d d/*"),
        "other\nd/other\n",
        "a directory made anew"
    );
    mount.finish();
}

isolated! {
    fn at_each_open() {
        seen_at_open(AT_ONCE);
        seen_at_open(&["--cache", "ttl"]);
        seen_at_open(FOR_EVER);
    }

    /// Without timeouts everything else is seen at once as well, and by who has it open.
    fn at_once_without_timeouts() {
        let mount = Mount::start(AT_ONCE);
        let (src, mnt) = (mount.src(), mount.mnt());
        fs::write(src.join("f"), "0").unwrap();
        let open = File::options().read(true).write(true).open(mount.path("f")).unwrap();
        for round in 1..20_u8 {
            let text = [b'0' + round];
            fs::write(src.join("f"), text).unwrap();
            let mut back = [0];
            open.read_exact_at(&mut back, 0).unwrap();
            assert_eq!(back, text, "of the same size, through a file that is open");
        }
        assert!(!mount.path("new").exists());
        for script in [
            "mkdir new",
            "chmod 700 new",
            "touch new/f",
            "mv new moved",
            "ln f moved/g",
            "rm -r moved",
            "truncate -s 1234 f",
            "chown 3:4 f",
        ] {
            sh(&src, script);
            let look = "stat -c '%n %A %s %h %u:%g %Y %i' $(find . -mindepth 1 | sort)";
            assert_eq!(sh(&mnt, look), sh(&src, look), "{script}");
        }
        drop(open);
        mount.finish();
    }

    /// Within the default of a second, what was looked at before; bounded from above.
    fn within_the_timeout() {
        let mount = Mount::start(&[]);
        let src = mount.src();
        sh(&src, "echo 1 >f; echo 1 >renamed; mkdir d; ln -s old l");
        let look = |path: PathBuf| {
            let meta = fs::symlink_metadata(path);
            meta.map(|meta| (meta.ino(), meta.mode(), meta.len(), meta.nlink())).ok()
        };
        let names = ["f", "renamed", "new name", "d", "l"];
        for name in names {
            look(mount.path(name));
        }
        fs::read_link(mount.path("l")).unwrap();
        sh(&src, "echo more >>f; chmod 600 f; mv renamed 'new name'; rmdir d; echo >d; rm l; ln -s other l");
        let changed = Instant::now();
        for name in names {
            eventually(name, LIMIT, || {
                // Looked at before the clock: a look that begins later than the limit, which the kernel counts in ticks,
                // must see it.
                let late = changed.elapsed() > Duration::from_millis(1_100);
                let same = look(mount.path(name)) == look(src.join(name));
                assert!(same || !late, "{name} is not seen after a second");
                same
            });
        }
        assert_eq!(fs::read_link(mount.path("l")).unwrap(), Path::new("other"));
        mount.finish();
    }

    /// An open file stays the file that it is: replaced, removed, its number used again.
    fn an_open_file_stays_what_it_is() {
        for options in [AT_ONCE, FOR_EVER] {
            let env = TestEnv::new();
            Kind::Ext4.mount(&env, &env.src());
            let src = env.src();
            for name in ["replaced", "removed"] {
                fs::write(src.join(name), name).unwrap();
            }
            let mount = Mount::start_in(env, options);
            for name in ["replaced", "removed"] {
                let mut open = File::options().read(true).write(true).open(mount.path(name)).unwrap();
                let number = open.metadata().unwrap().ino();
                fs::remove_file(src.join(name)).unwrap();
                if name == "replaced" {
                    fs::write(src.join("new"), "another").unwrap();
                    fs::rename(src.join("new"), src.join(name)).unwrap();
                    assert_eq!(read(mount.path(name)).unwrap(), "another");
                }
                for other in 0..50 {
                    fs::write(src.join(format!("other-{other}")), "other").unwrap();
                    assert_ne!(ino(&src.join(format!("other-{other}"))), number, "it is in use");
                }
                let mut text = String::new();
                open.read_to_string(&mut text).unwrap();
                assert_eq!(text, name);
                open.write_all(b"!").unwrap();
                open.sync_all().unwrap();
                open.seek(SeekFrom::Start(0)).unwrap();
                text.clear();
                open.read_to_string(&mut text).unwrap();
                assert_eq!(text, format!("{name}!"));
                assert_eq!(open.metadata().unwrap().ino(), number);
                open.set_len(1).unwrap();
                // Opened once more by who has it open.
                let again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open))).unwrap();
                assert_eq!(again.metadata().unwrap().len(), 1);
                drop((open, again));
                assert!(!src.join("removed").exists() || read(mount.path("removed")).unwrap() == "removed");
            }
            assert_eq!(read(mount.path("removed")), Err(libc::ENOENT));
            assert_eq!(read(mount.path("replaced")).unwrap(), "another");
            finish(mount);
        }
    }

    /// A number that is used again, over and over, by files that are made and removed in SRC: each look at a name
    /// shows the file that has it.
    fn numbers_that_are_used_again() {
        let env = TestEnv::new();
        Kind::Ext4.mount(&env, &env.src());
        let src = env.src();
        let mount = Mount::start_in(env, &["-o", "entry_timeout=0,attr_timeout=0"]);
        let mut numbers = std::collections::HashMap::new();
        for round in 0..200_u32 {
            let name = format!("name-{}", round % 3);
            let text = format!("round {round}");
            match round % 4 {
                0 => fs::create_dir(src.join(&name)).unwrap(),
                1 => symlink(&text, src.join(&name)).unwrap(),
                _ => fs::write(src.join(&name), &text).unwrap(),
            }
            let path = mount.path(&name);
            let meta = fs::symlink_metadata(&path).unwrap();
            *numbers.entry(meta.ino()).or_insert(0) += 1;
            assert_eq!(meta.ino(), ino(&src.join(&name)));
            match round % 4 {
                0 => assert_eq!(fs::read_dir(&path).unwrap().count(), 0),
                1 => assert_eq!(fs::read_link(&path).unwrap(), Path::new(&text)),
                _ => assert_eq!(read(path).unwrap(), text),
            }
            let _ = fs::remove_file(src.join(&name)).or_else(|_| fs::remove_dir(src.join(&name)));
            assert!(fs::symlink_metadata(mount.path(&name)).is_err());
        }
        assert!(numbers.values().any(|count| *count > 5), "ext4 uses numbers again: {numbers:?}");
        finish(mount);
    }

    /// The same with the name still in the kernel's cache, with few descriptors, so that nothing keeps the
    /// old inode: no look at the old name finds the new file behind it.
    fn a_remembered_name_of_a_number_that_is_used_again() {
        let env = TestEnv::new();
        Kind::Ext4.mount(&env, &env.src());
        let src = env.src();
        sh(&src, "mkdir old many; for i in $(seq 20); do echo old >old/$i; done");
        sh(&src, "for i in $(seq 400); do echo $i >many/$i; done");
        let mut command = env.loopfs_limited(64, FOR_EVER);
        command.arg("-f").arg(&src).arg(env.mnt());
        let mount = Mount::start_command(env, command);
        let numbers: Vec<u64> = (1..=20).map(|n| ino(&mount.path(format!("old/{n}")))).collect();
        // Others push the old ones' descriptors out.
        for number in 1..=400 {
            assert_eq!(read(mount.path(format!("many/{number}"))).unwrap().trim(), number.to_string());
        }
        sh(&src, "rm old/*; for i in $(seq 20); do echo new $i >old/new-$i; done");
        let reused = (1..=20).filter(|n| numbers.contains(&ino(&src.join(format!("old/new-{n}"))))).count();
        assert!(reused > 0, "ext4 uses numbers again");
        for number in 1..=20 {
            assert_eq!(read(mount.path(format!("old/{number}"))), Err(libc::ENOENT), "neither of the two");
            assert_eq!(read(mount.path(format!("old/new-{number}"))).unwrap(), format!("new {number}\n"));
        }
        finish(mount);
    }

    /// A directory that is renamed, moved and removed in SRC while a process works in it on MNT.
    fn under_a_process_that_is_in_it() {
        for options in [AT_ONCE, &[], FOR_EVER] {
            let mount = Mount::start(options);
            let src = mount.src();
            sh(&src, "mkdir -p a/work b; echo x >a/work/f");
            let inside = File::open(mount.path("a/work")).unwrap();
            let content = |name: &str| {
                let file = openat(&inside, name, OFlags::RDONLY, Mode::empty()).map(File::from);
                file.map_err(rustix::io::Errno::raw_os_error).map(|mut file| {
                    let mut text = String::new();
                    file.read_to_string(&mut text).unwrap();
                    text
                })
            };
            assert_eq!(content("f").unwrap(), "x\n");
            fs::rename(src.join("a/work"), src.join("a/renamed")).unwrap();
            assert_eq!(content("f").unwrap(), "x\n", "renamed");
            fs::rename(src.join("a/renamed"), src.join("b/moved")).unwrap();
            fs::write(src.join("b/moved/new"), "new").unwrap();
            assert_eq!(content("new").unwrap(), "new", "moved");
            assert_eq!(content("f").unwrap(), "x\n");
            openat(&inside, "made", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            assert!(src.join("b/moved/made").exists(), "what is made in it is where it is now");
            // Found under its new name it is the same directory, and says where it is.
            assert_eq!(ino(&mount.path("b/moved")), inside.metadata().unwrap().ino());
            assert_eq!(path_of(&inside), mount.path("b/moved"));
            assert_eq!(fs::read_dir(mount.path("b/moved")).unwrap().count(), 3);
            fs::remove_dir_all(src.join("b/moved")).unwrap();
            let made = openat(&inside, "more", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
            assert!(matches!(made.map_err(rustix::io::Errno::raw_os_error), Err(libc::ENOENT | libc::ESTALE)));
            assert!(matches!(content("none"), Err(libc::ENOENT | libc::ESTALE)));
            fs::create_dir(src.join("b/moved")).unwrap();
            fs::write(src.join("b/moved/other"), "").unwrap();
            assert!(matches!(content("other"), Err(libc::ENOENT | libc::ESTALE)), "another directory of that name");
            assert_eq!(fs::read_dir(mount.path("b/moved")).unwrap().count(), 1);
            drop(inside);
            mount.finish();
        }
    }
    /// A directory that was moved in SRC stays alive when the name that it had on MNT, which is another one's by now, is
    /// removed there, or something is renamed over it.
    fn a_removal_is_not_taken_for_another_directorys() {
        for options in [AT_ONCE, &[], FOR_EVER] {
            for how in ["rmdir", "rename", "rmdir of a known one"] {
                for off in ["", "file-handles"] {
                    let env = TestEnv::new();
                    let mut command = env.loopfs(["-f"]);
                    command.args(options).arg(env.src()).arg(env.mnt()).env("LOOPFS_FEATURES_OFF", off);
                    let mount = Mount::start_command(env, command);
                    let (src, mnt) = (mount.src(), mount.mnt());
                    sh(&src, "mkdir -p d/in other new; echo x >d/in/f");
                    assert_eq!(sh(&mnt, "ls d/in other new"), "d/in:\nf\n\nnew:\n\nother:\n");
                    // Who has a file open keeps the directories above in the kernel's cache.
                    let inside = File::open(mnt.join("d/in/f")).unwrap();
                    sh(&src, "mv d moved");
                    sh(&src, if how.ends_with("known one") { "mv other d" } else { "mkdir d" });
                    match how {
                        "rename" => fs::rename(mnt.join("new"), mnt.join("d")).unwrap(),
                        _ => fs::remove_dir(mnt.join("d")).unwrap(),
                    }
                    let left = if how == "rename" { "d\nmoved\nother\n" } else if how == "rmdir" { "moved\nnew\nother\n" } else { "moved\nnew\n" };
                    assert_eq!(sh(&src, "ls"), left, "{how}");
                    assert_eq!(read(mnt.join("moved/in/f")).unwrap(), "x\n", "{how}");
                    sh(&mnt, "echo y >moved/g; mv moved again; rmdir new 2>/dev/null || rmdir d; mkdir n; mv n m; rmdir m");
                    assert_eq!(read(src.join("again/g")).unwrap(), "y\n", "{how}");
                    drop(inside);
                    mount.finish();
                }
            }
        }
    }

    /// A name that is made on MNT, and replaced by something of another type or removed in SRC in the same
    /// moment: made is made, or the name is somebody else's.
    fn what_is_replaced_as_it_is_made() {
        type Make = fn(&Path) -> io::Result<()>;
        let makes: [(&str, Make); 4] = [
            ("link", |path| fs::hard_link(path.with_file_name("file"), path)),
            ("symlink", |path| symlink("target", path)),
            ("mkdir", |path| fs::create_dir(path)),
            ("mknod", |path| Ok(mknodat(CWD, path, NodeType::Fifo, Mode::RUSR, 0)?)),
        ];
        let mount = Mount::start(FOR_EVER);
        let at = |name: &str| mount.src().join(name);
        fs::write(at("file"), "a file").unwrap();
        let (over, taken) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = fs::hard_link(at("file"), at("other"));
                    // What was there is called "other" then.
                    let swapped = renameat_with(CWD, at("other"), CWD, at("name"), RenameFlags::EXCHANGE);
                    taken.fetch_add(u32::from(swapped.is_ok()), Ordering::Relaxed);
                    let _ = fs::remove_file(at("name"));
                    let _ = fs::remove_file(at("other")).or_else(|_| fs::remove_dir(at("other")));
                }
            });
            // As often as it takes for them to meet.
            let rounds = makes.iter().cycle().take(200_000).enumerate();
            let mut rounds = rounds.take_while(|(round, _)| *round < 8_000 || taken.load(Ordering::Relaxed) <= 100);
            let bad = rounds.find_map(|(_, (what, make))| match make(&mount.path("name")) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Some(format!("{what}: {error}")),
                _ => None,
            });
            over.store(true, Ordering::Relaxed);
            assert_eq!(bad, None);
        });
        assert!(taken.into_inner() > 100, "the two met");
        mount.finish();
    }
}
