//! `--one-file-system`: nothing that is mounted below SRC is entered, whenever it was mounted.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::disk::{AT_ONCE, Kind, finish, serve, sys};
use crate::common::{Mount, TestEnv, sh};

const ONE: &[&str] = &["--one-file-system", "-o", "entry_timeout=0,attr_timeout=0"];

/// SRC on ext4 with a tmpfs at `place`, which covers a file.
fn prepared() -> TestEnv {
    let env = TestEnv::new();
    Kind::Ext4.mount(&env, &env.src());
    sh(
        &env.src(),
        "mkdir place later d; echo under >place/covered; echo x >f; echo here >later/own",
    );
    Kind::Tmpfs.mount(&env, &env.src().join("place"));
    fs::write(env.src().join("place/mounted"), "").unwrap();
    env
}

isolated! {
    /// What mounts cover is shown, with SRC's numbers, and can be changed like the rest.
    fn what_mounts_cover_is_shown() {
        let mount = Mount::start_in(prepared(), ONE);
        assert_eq!(sh(&mount.mnt(), "ls place; cat place/covered"), "covered\nunder\n");
        sh(&mount.mnt(), "mv f place/f; ln place/f d/g; mv d place/d; cp -a place/d back; echo new >place/new");
        assert_eq!(sh(&mount.mnt(), "ls place; cat place/d/g"), "covered\nd\nf\nnew\nx\n");
        assert_eq!(sh(&mount.src(), "ls place"), "mounted\n", "SRC itself is what it was");
        let listed = sh(&mount.mnt(), "ls -fi --ignore place | sort -k 2 | grep -v '\\.\\.'");
        assert_eq!(listed, sh(&mount.src(), "ls -fi --ignore place | sort -k 2 | grep -v '\\.\\.'"));
        for name in ["back", "later", "later/own"] {
            let ino = |path: std::path::PathBuf| fs::metadata(path).unwrap().ino();
            assert_eq!(ino(mount.path(name)), ino(mount.source(name)), "{name}");
        }
        // Nothing of this mount keeps the other from being unmounted.
        sys("umount", &[], &mount.source("place"));
        assert_eq!(sh(&mount.src(), "ls place; cat place/f"), "covered\nd\nf\nnew\nx\n");
        finish(mount);
    }

    /// Later mounts don't come, where mounts are handed on to copies of their place (shared) neither.
    fn later_mounts_do_not_appear() {
        let env = prepared();
        sh(env.root(), "mount --make-rshared src");
        let mount = Mount::start_in(env, ONE);
        assert_eq!(sh(&mount.mnt(), "ls later"), "own\n");
        Kind::Tmpfs.mount(&mount, &mount.source("later"));
        fs::write(mount.source("later/mounted"), "").unwrap();
        assert_eq!(sh(&mount.mnt(), "ls later place"), "later:\nown\n\nplace:\ncovered\n");
        sys("umount", &[], &mount.source("later"));
        assert_eq!(sh(&mount.mnt(), "ls later"), "own\n");
        finish(mount);
    }

    /// SRC contains MNT: the directory that MNT covers is shown there, and nothing else changes.
    fn with_mnt_in_src() {
        let env = TestEnv::new();
        let root = env.root().to_owned();
        fs::write(env.mnt().join("covered"), "").unwrap();
        let mount = serve(env, &root, ONE);
        assert_eq!(sh(&mount.mnt(), "ls mnt src"), "mnt:\ncovered\n\nsrc:\n");
        assert!(!mount.path("mnt/mnt").exists());
        finish(mount);
    }

    /// Subvolumes are no mounts.
    fn subvolumes_belong_to_it() {
        let env = TestEnv::new();
        Kind::Btrfs.mount(&env, &env.src());
        sh(&env.src(), "btrfs -q subvolume create a; echo x >a/f");
        let mount = Mount::start_in(env, ONE);
        assert_eq!(sh(&mount.mnt(), "cat a/f"), "x\n");
        finish(mount);
    }

    /// Where the kernel gives no copy of the mount, mount points are listed and can't be entered.
    fn without_a_copy_of_the_mount() {
        let env = prepared();
        let mut command = env.loopfs(["-f"]);
        command.args(ONE).arg(env.src()).arg(env.mnt()).env("LOOPFS_FEATURES_OFF", "private-copy");
        let mount = Mount::start_command(env, command);
        assert_eq!(sh(&mount.mnt(), "ls -U | sort | tr '\\n' ' '"), "d f later lost+found place ");
        for name in ["place", "place/mounted", "place/covered"] {
            let error = fs::metadata(mount.path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EXDEV), "{name}");
        }
        assert_eq!(sh(&mount.mnt(), "mv f d/f; cat d/f; ls later"), "x\nown\n");
        Kind::Tmpfs.mount(&mount, &mount.source("later"));
        assert_eq!(fs::read_dir(mount.path("later")).unwrap_err().raw_os_error(), Some(libc::EXDEV));
        finish(mount);
    }

    /// Without the option it is all crossed.
    fn crossed_otherwise() {
        let mount = Mount::start_in(prepared(), AT_ONCE);
        assert_eq!(sh(&mount.mnt(), "ls place"), "mounted\n");
        finish(mount);
    }
}
