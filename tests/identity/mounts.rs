//! Several file systems in one tree: no two files are taken for one another, and each stays what it is.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::disk::{Kind, finish};
use crate::common::tree::{Times, assert_same, snapshot};
use crate::common::{Mount, TestEnv, sh};

/// What tells one file from another: device and number.
type Id = (u64, u64);

/// Everything below `top` with its identity.
fn walk(top: &Path) -> BTreeMap<PathBuf, Id> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = top.join(&relative);
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            pending.extend(entries.map(|entry| relative.join(entry.unwrap().file_name())));
        }
        found.insert(relative, (meta.dev(), meta.ino()));
    }
    found
}

/// SRC on ext4, and below it another ext4, a tmpfs, and a btrfs with two subvolumes: each with files of the
/// same numbers, and with hard links.
fn several(env: &TestEnv) -> PathBuf {
    let src = env.src();
    Kind::Ext4.mount(env, &src);
    for (name, kind) in [
        ("ext4", Kind::Ext4),
        ("tmpfs", Kind::Tmpfs),
        ("btrfs", Kind::Btrfs),
    ] {
        fs::create_dir(src.join(name)).unwrap();
        fs::write(src.join(name).join("covered"), "").unwrap();
        kind.mount(env, &src.join(name));
    }
    sh(
        &src.join("btrfs"),
        "btrfs -q subvolume create one; btrfs -q subvolume create two",
    );
    for place in [".", "ext4", "tmpfs", "btrfs", "btrfs/one", "btrfs/two"] {
        let script =
            "for i in 1 2 3 4 5; do echo $0 $i >f$i; ln f$i l$i; mkdir d$i; echo $i >d$i/f; done";
        sh(&src.join(place), &script.replace("$0", place));
    }
    src
}

isolated! {
    /// Equal numbers on several file systems are different ones on MNT; hard links have the same one; and
    /// looked up again, in another order, each has the number that it had.
    fn no_two_files_share_a_number() {
        let env = TestEnv::new();
        let src = several(&env);
        let mount = Mount::start_in(env, &["-o", "entry_timeout=0,attr_timeout=0"]);
        let behind = walk(&src);
        let mut shared: HashMap<u64, usize> = HashMap::new();
        for (_, ino) in behind.values() {
            *shared.entry(*ino).or_default() += 1;
        }
        assert!(shared.values().any(|count| *count >= 4), "numbers that several have");
        // Deepest first: nothing depends on what is asked for first.
        let mut through = BTreeMap::new();
        for relative in behind.keys().rev() {
            let meta = fs::symlink_metadata(mount.path(relative)).unwrap();
            through.insert(relative.clone(), (meta.dev(), meta.ino()));
        }
        let mut pairs = HashMap::new();
        let mut back = HashMap::new();
        for (path, id) in &behind {
            let seen = through[path];
            assert_eq!(*pairs.entry(id).or_insert(seen), seen, "{path:?}: one file, one number");
            assert_eq!(*back.entry(seen).or_insert(id), id, "{path:?}: one number, one file");
        }
        let devices: Vec<u64> = through.values().map(|(device, _)| *device).collect();
        assert!(devices.iter().all(|device| *device == devices[0]), "one device");
        assert_eq!(walk(&mount.mnt()), through, "by listing");
        assert_eq!(walk(&mount.mnt()), through, "once more");
        let own = |path: &Path| fs::metadata(path).unwrap().dev() == fs::metadata(&src).unwrap().dev();
        for (path, (_, ino)) in behind.iter().filter(|(path, _)| own(&src.join(path))) {
            assert_eq!(through[path].1, *ino, "{path:?}: SRC's own number");
        }
        finish(mount);
    }

    /// `d_ino` is `st_ino`, as in SRC; only that of a mount point may be that of the directory it covers, which is what
    /// SRC says, and no other.
    fn listed_numbers_are_those_of_stat() {
        let env = TestEnv::new();
        let src = several(&env);
        let mount = Mount::start_in(env, &[]);
        let all: HashMap<u64, PathBuf> = walk(&mount.mnt()).into_iter().map(|(path, id)| (id.1, path)).collect();
        let mut mount_points = 0;
        for round in 0..2 {
            for directory in walk(&mount.mnt()).keys().filter(|path| mount.path(path).is_dir()) {
                for entry in fs::read_dir(mount.path(directory)).unwrap() {
                    let entry = entry.unwrap();
                    let stat = entry.metadata().unwrap().ino();
                    let behind = src.join(directory).join(entry.file_name());
                    let is_other = fs::symlink_metadata(&behind).unwrap().dev()
                        != fs::symlink_metadata(src.join(directory)).unwrap().dev();
                    if is_other {
                        mount_points += 1;
                        let listed = all.get(&entry.ino());
                        let itself = directory.join(entry.file_name());
                        assert!(listed.is_none_or(|path| *path == itself), "{itself:?} is listed as {listed:?}");
                    } else {
                        assert_eq!(entry.ino(), stat, "round {round}: {:?}", entry.path());
                    }
                }
            }
        }
        assert_eq!(mount_points, 10);
        finish(mount);
    }

    /// Programs that go by numbers: nothing is left out as a hard link that is none.
    fn programs_that_go_by_numbers() {
        let env = TestEnv::new();
        let src = several(&env);
        let mount = Mount::start_in(env, &[]);
        let (mnt, root) = (mount.mnt(), mount.root().to_owned());
        for script in [
            "du -s --apparent-size -B1 --exclude lost+found . | cut -f 1",
            "tar -c --exclude lost+found --sort=name . | tar -tv | grep -c ' link to '",
            "for f in $(find . -name f3 | sort); do find . -samefile $f | sort; done",
        ] {
            assert_eq!(sh(&mnt, script), sh(&src, script), "{script}");
        }
        // In SRC others have that number too.
        assert_eq!(sh(&mnt, "find . -inum $(stat -c %i f2) | sort"), "./f2\n./l2\n");
        let pairs = sh(&mnt, "find . -type f -links 2 -printf '%i\n' | sort | uniq -c | grep -c '^ *2 '");
        assert_eq!(pairs, "30\n");
        sh(&root, "cp -a mnt copy; rm -rf copy/lost+found copy/ext4/lost+found");
        let copied = snapshot(&root.join("copy"), Times::Ignored);
        sh(&src, "rmdir lost+found ext4/lost+found");
        assert_same(&snapshot(&src, Times::Ignored), &copied, "a copy of MNT (found) and SRC (expected)");
        finish(mount);
    }

    /// One file system is not another: EXDEV, as in SRC.
    fn nothing_goes_across() {
        let env = TestEnv::new();
        let src = several(&env);
        let mount = Mount::start_in(env, &[]);
        let tried = |top: &Path| {
            let mut seen = Vec::new();
            let across = [
                ("f1", "ext4/x"),
                ("tmpfs/f1", "x"),
                ("btrfs/one/f1", "btrfs/two/x"),
                ("d1", "tmpfs/x"),
            ];
            for (from, to) in across {
                let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
                seen.push(errno(fs::rename(top.join(from), top.join(to))));
                if !from.starts_with('d') {
                    seen.push(errno(fs::hard_link(top.join(from), top.join(to))));
                }
            }
            seen
        };
        let plain = tried(&src);
        assert!(plain.iter().all(|errno| *errno == Some(libc::EXDEV)), "{plain:?}");
        assert_eq!(tried(&mount.mnt()), plain);
        // And a mount point can't be moved or removed.
        for top in [&src, &mount.mnt()] {
            let busy = fs::remove_dir(top.join("tmpfs")).unwrap_err().raw_os_error();
            assert_eq!(busy, Some(libc::EBUSY), "{top:?}");
            let busy = fs::rename(top.join("tmpfs"), top.join("y")).unwrap_err().raw_os_error();
            assert_eq!(busy, Some(libc::EBUSY), "{top:?}");
        }
        finish(mount);
    }

    /// A directory that is bound to a second place: two directories, the same files behind them, no loop.
    fn a_bind_mount_of_a_directory_of_src() {
        let env = TestEnv::new();
        let src = env.src();
        Kind::Ext4.mount(&env, &src);
        sh(&src, "mkdir -p d/e again; echo x >d/e/f; mount --bind d again; mkdir d/e/self; mount --bind . d/e/self");
        let mount = Mount::start_in(env, &["-o", "entry_timeout=0,attr_timeout=0"]);
        let through = walk(&mount.mnt());
        assert_eq!(through.keys().collect::<Vec<_>>(), walk(&src).keys().collect::<Vec<_>>());
        let mut seen = HashMap::new();
        for (path, id) in &through {
            assert!(seen.insert(*id, path).is_none(), "{path:?} and {:?}", seen[id]);
        }
        fs::write(mount.path("again/e/f"), "through the second").unwrap();
        assert_eq!(fs::read_to_string(mount.path("d/e/f")).unwrap(), "through the second");
        let script = "cd again/e/../..; pwd -P; cd d/e/self/d; pwd -P";
        assert_eq!(sh(&mount.mnt(), script), sh(&src, script).replace("/src", "/mnt"));
        finish(mount);
    }

    /// What is mounted while the tree is served shows at once; what is unmounted lets go when the kernel has
    /// forgotten it.
    fn mounts_that_come_and_go() {
        let env = TestEnv::new();
        let place = env.src().join("place");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("covered"), "").unwrap();
        let mount = Mount::start_in(env, &["-o", "entry_timeout=0,attr_timeout=0"]);
        assert!(mount.path("place/covered").exists());
        let before = fs::metadata(mount.path("place")).unwrap().ino();
        Kind::Tmpfs.mount(&mount, &place);
        fs::write(place.join("mounted"), "").unwrap();
        assert!(mount.path("place/mounted").exists() && !mount.path("place/covered").exists());
        assert_ne!(fs::metadata(mount.path("place")).unwrap().ino(), before);
        sh(mount.root(), "umount -l src/place");
        assert!(mount.path("place/covered").exists() && !mount.path("place/mounted").exists());
        assert_eq!(fs::metadata(mount.path("place")).unwrap().ino(), before);
        finish(mount);
    }
}
