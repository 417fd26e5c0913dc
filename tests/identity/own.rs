//! Mounts that contain themselves and each other: nobody walks round and round, and nobody waits for ever.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::disk::{AT_ONCE, Kind, finish, serve};
use crate::common::process::eventually;
use crate::common::{LIMIT, Mount, TestEnv, run, sh};

/// A second daemon in the same directory: SRC and MNT are given. It ends by being unmounted.
struct Second(std::path::PathBuf);

impl Second {
    #[track_caller]
    fn start(env: &TestEnv, source: &Path, target: &Path) -> Self {
        let mut command = env.loopfs(AT_ONCE);
        command.arg(source).arg(target);
        run(&mut command, LIMIT).success();
        Self(target.to_owned())
    }

    #[track_caller]
    fn end(self, env: &TestEnv, left: usize) {
        sh(env.root(), &format!("umount {}", self.0.display()));
        let running = || crate::common::process::processes_naming(env.root()).len();
        eventually("the second daemon has ended", LIMIT, || running() == left);
    }
}

fn errno(path: &Path) -> Option<i32> {
    fs::metadata(path)
        .err()
        .and_then(|error| error.raw_os_error())
}

isolated! {
    /// `loopfs / MNT`: the whole system, with MNT several levels deep in it.
    fn the_whole_system() {
        let env = TestEnv::new();
        fs::write(env.mnt().join("covered"), "").unwrap();
        fs::write(env.src().join("f"), "content").unwrap();
        let mount = serve(env, Path::new("/"), &[]);
        let below = |path: &Path| mount.mnt().join(path.strip_prefix("/").unwrap());
        assert_eq!(fs::read_to_string(below(&mount.source("f"))).unwrap(), "content");
        assert!(mount.path("proc/1/root").symlink_metadata().is_ok(), "what is mounted there is crossed");
        let inner = below(&mount.mnt());
        let names: Vec<_> = fs::read_dir(&inner).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["covered"]);
        fs::write(inner.join("new"), "").unwrap();
        assert!(inner.join("new").exists() && !mount.path("new").exists());
        // Down to the directory that MNT covers and no further, from either side.
        let found = sh(&below(mount.root()), "find . -name daemon.log -prune -o -print | sort");
        assert_eq!(found, ".\n./mnt\n./mnt/covered\n./mnt/new\n./src\n./src/f\n");
        assert_eq!(fs::metadata("/").unwrap().ino(), fs::metadata(mount.mnt()).unwrap().ino());
        finish(mount);
    }

    /// Each of two mounts contains the other: neither is entered through the other, where each lap would hold up
    /// one more thread of both.
    fn two_that_contain_each_other() {
        let env = TestEnv::new();
        let src = env.src();
        sh(&src, "mkdir -p x/other; echo content >f");
        let mount = Mount::start_in(env, AT_ONCE);
        let other = src.join("x/other");
        let second = Second::start(&mount, mount.root(), &other);
        // The second contains the first at `mnt`, the first contains the second at `x/other`.
        assert_eq!(fs::read_to_string(other.join("src/f")).unwrap(), "content\n");
        assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "content\n");
        for round in 0..8 {
            let lap = mount.path("x/other/mnt/".repeat(round + 1));
            assert_eq!(errno(&lap), Some(libc::ELOOP), "{lap:?}");
            let lap = other.join("mnt/x/other/".repeat(round + 1));
            assert_eq!(errno(&lap), Some(libc::ELOOP), "{lap:?}");
        }
        assert_eq!(sh(&mount.mnt(), "ls x; ls"), "other\nf\nx\n", "but it is listed");
        sh(&mount.mnt(), "find . >/dev/null 2>&1 || true");
        sh(&other, "find . >/dev/null 2>&1 || true");
        second.end(&mount, 1);
        assert_eq!(errno(&mount.path("x/other")), None, "and entered when the other has gone");
        finish(mount);
    }

    /// A mount whose source lies on ours would ask us, too.
    fn one_that_is_served_from_the_other() {
        let env = TestEnv::new();
        sh(&env.src(), "mkdir -p a/b place; echo content >a/b/f");
        let mount = Mount::start_in(env, AT_ONCE);
        let place = mount.source("place");
        let second = Second::start(&mount, &mount.path("a"), &place);
        assert_eq!(fs::read_to_string(place.join("b/f")).unwrap(), "content\n", "a loopfs of a loopfs");
        assert_eq!(errno(&mount.path("place")), Some(libc::ELOOP));
        second.end(&mount, 1);
        finish(mount);
    }

    /// Two that have nothing of each other: one is entered through the other like any file system.
    fn another_that_does_not_lead_back() {
        let env = TestEnv::new();
        let elsewhere = env.root().join("elsewhere");
        sh(env.root(), "mkdir -p elsewhere/d src/place; echo there >elsewhere/d/f");
        let mount = Mount::start_in(env, AT_ONCE);
        let second = Second::start(&mount, &elsewhere, &mount.source("place"));
        assert_eq!(fs::read_to_string(mount.path("place/d/f")).unwrap(), "there\n");
        sh(&mount.mnt(), "cp -a place/d d; mv place/d/f place/d/g; echo new >place/new");
        assert_eq!(fs::read_to_string(elsewhere.join("new")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "there\n");
        // Let go of it before it is unmounted.
        let env = finish(mount);
        second.end(&env, 0);
    }

    /// A loopfs of a loopfs, with more inodes than descriptors: it does not lean on handles that the one below may
    /// forget.
    fn a_mount_of_a_mount() {
        let env = TestEnv::new();
        let disk = env.root().join("disk");
        Kind::Tmpfs.mount(&env, &disk);
        sh(&disk, "mkdir d; for i in $(seq 300); do echo $i >d/$i; done; ln d/7 hard");
        let below = env.src();
        let second = Second::start(&env, &disk, &below);
        let mount = Mount::start_in(env, AT_ONCE);
        assert!(mount.log().contains("keeps a file open"), "{}", mount.log());
        for number in 1..=300 {
            let text = fs::read_to_string(mount.path(format!("d/{number}"))).unwrap();
            assert_eq!(text.trim(), number.to_string());
        }
        let ino = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(ino(&mount.path("hard")), ino(&disk.join("d/7")));
        assert_eq!(ino(&mount.path("d/7")), ino(&mount.path("hard")));
        sh(&mount.mnt(), "mv d/8 d/new; ln d/new d/8; rm hard; cat d/8");
        assert_eq!(fs::read_to_string(disk.join("d/8")).unwrap(), "8\n");
        let env = finish(mount);
        second.end(&env, 0);
    }
}
