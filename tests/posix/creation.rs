//! What a new object is: owner, group, mode and ACLs, by every kind of caller in every kind of directory,
//! as one table; and what a sticky directory allows.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, lsetxattr, makedev, mknodat, open};

use super::raw::with_umask;
use super::xattrs::{acl, value_of};
use crate::common::as_user;
use crate::common::user::{NOBODY, OTHER};
use crate::{Tree, chmod};

const USER: u32 = 4321;
const GROUP: u32 = 4400;

/// A directory: a name, its mode, its default ACL.
type Place = (&'static str, u32, &'static [(u16, u16, u32)]);

/// Owner rwx, group r-x, others nothing; and the same with USER rw- and GROUP rwx, under a mask.
const SMALL: &[(u16, u16, u32)] = &[(1, 7, 0), (4, 5, 0), (0x20, 0, 0)];
const LARGE: &[(u16, u16, u32)] = &[
    (1, 7, 0),
    (2, 6, USER),
    (4, 5, 0),
    (8, 7, GROUP),
    (0x10, 7, 0),
    (0x20, 1, 0),
];

/// The directories belong to root and GROUP.
const PLACES: [Place; 7] = [
    ("plain", 0o777, &[]),
    ("setgid", 0o2777, &[]),
    ("sticky", 0o1777, &[]),
    ("small default ACL", 0o777, SMALL),
    ("large default ACL", 0o777, LARGE),
    ("setgid, small default ACL", 0o2777, SMALL),
    ("setgid, large default ACL", 0o3777, LARGE),
];

/// Who creates: uid, gid, supplementary groups.
const CALLERS: [(u32, u32, &[u32]); 4] = [
    (0, 0, &[]),
    (USER, GROUP, &[]),
    (USER, USER, &[7, GROUP]),
    (OTHER, NOBODY, &[8, 9]),
];

type Make = fn(&Path) -> io::Result<()>;

/// What is created.
const KINDS: [(&str, Make); 13] = [
    ("file 666", |path| create(path, 0o666)),
    ("file 2775", |path| create(path, 0o2775)),
    ("file 6711", |path| create(path, 0o6711)),
    ("directory 777", |path| mkdir(path, 0o777)),
    ("directory 1700", |path| mkdir(path, 0o1700)),
    ("directory 6755", |path| mkdir(path, 0o6755)),
    ("symlink", |path| symlink("target", path)),
    ("FIFO 666", |path| node(path, FileType::Fifo, 0o666)),
    ("FIFO 2777", |path| node(path, FileType::Fifo, 0o2777)),
    ("socket 2777", |path| node(path, FileType::Socket, 0o2777)),
    ("bound socket", |path| UnixListener::bind(path).map(drop)),
    ("device", |path| {
        node(path, FileType::CharacterDevice, 0o666)
    }),
    ("file by mknod 2777", |path| {
        node(path, FileType::RegularFile, 0o2777)
    }),
];

fn create(path: &Path, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    options.open(path).map(drop)
}

fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdir(path, Mode::from_raw_mode(mode))?)
}

fn node(path: &Path, kind: FileType, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    Ok(mknodat(CWD, path, kind, mode, makedev(1, 3))?)
}

fn place(t: &Tree, (name, mode, default): Place) -> std::path::PathBuf {
    let path = t.directory(name);
    chown(&path, Some(0), Some(GROUP)).unwrap();
    chmod(&path, mode);
    if !default.is_empty() {
        set_default(&path, default);
    }
    path
}

fn set_default(path: &Path, entries: &[(u16, u16, u32)]) {
    let name = "system.posix_acl_default";
    lsetxattr(path, name, &acl(entries), XattrFlags::empty()).unwrap();
}

/// Owner, group, mode, and both ACLs.
fn what_it_is(path: &Path) -> (u32, u32, String, [Option<Vec<u8>>; 2]) {
    let meta = fs::symlink_metadata(path).unwrap();
    let acls = ["access", "default"].map(|which| {
        let name = format!("system.posix_acl_{which}");
        value_of(path, &name).ok()
    });
    (meta.uid(), meta.gid(), format!("{:o}", meta.mode()), acls)
}

cases! {
    /// Every kind of object by every caller in every directory, with two umasks.
    fn every_kind_everywhere(t) {
        for kind in PLACES {
            let top = place(t, kind);
            for (uid, gid, groups) in CALLERS {
                for mask in [0o002, 0o077] {
                    let results = as_user(uid, gid, groups, || {
                        with_umask(mask, || KINDS.map(|(name, make)| make(&top.join(name))))
                    });
                    for ((name, _), result) in KINDS.into_iter().zip(results) {
                        let path = top.join(name);
                        let what = format!("{name} in {} by {uid}:{gid} {groups:?}, umask {mask:o}", kind.0);
                        if result.is_ok() {
                            t.see(&what, what_it_is(&path));
                        }
                        t.try_see(&what, result);
                    }
                    fs::remove_dir_all(&top).unwrap();
                    place(t, kind);
                }
            }
        }
    }

    /// Default ACLs go down as deep as directories are made.
    fn default_acls_go_all_the_way_down(t) {
        let mut path = place(t, PLACES[6]);
        for depth in 0..4 {
            path.push("sub");
            as_user(USER, USER, &[], || with_umask(0o077, || fs::create_dir(&path))).unwrap();
            t.see(&format!("{depth}"), what_it_is(&path));
        }
        path.push("file");
        File::create(&path).unwrap();
        t.see("file", what_it_is(&path));
    }

    /// O_CREAT of what is there, in sticky directories, by others than its owner: as
    /// fs.protected_regular and fs.protected_fifos of this machine have it.
    fn opening_with_o_creat_in_sticky_directories(t) {
        for (name, mode, owner) in [
            ("world", 0o1777, 0), ("group", 0o1775, 0), ("owned by another", 0o1777, OTHER), ("not sticky", 0o777, 0),
        ] {
            let top = t.directory(name);
            chown(&top, Some(owner), Some(GROUP)).unwrap();
            chmod(&top, mode);
            let file = top.join("file");
            fs::write(&file, "x").unwrap();
            let fifo = top.join("fifo");
            mknodat(CWD, &fifo, FileType::Fifo, Mode::empty(), 0).unwrap();
            for path in [&file, &fifo] {
                chown(path, Some(NOBODY), Some(GROUP)).unwrap();
                chmod(path, 0o666);
                for (uid, gid, groups) in CALLERS {
                    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
                    let mut try_with = |what: &str, flags| {
                        let result = as_user(uid, gid, groups, || open(path, flags, Mode::from_raw_mode(0o600)).map(drop));
                        t.try_see(&format!("{what} {} {uid}:{gid} {groups:?}", path.display()).replace(&*path.to_string_lossy(), ""), result);
                    };
                    try_with("O_CREAT", flags);
                    try_with("O_CREAT|O_TRUNC", flags | OFlags::TRUNC);
                    try_with("O_CREAT|O_EXCL", flags | OFlags::EXCL);
                    try_with("open", OFlags::RDWR | OFlags::NONBLOCK);
                }
            }
        }
    }

    /// Hard links and symlinks of others, as fs.protected_hardlinks and fs.protected_symlinks of this
    /// machine have it.
    fn links_to_the_files_of_others(t) {
        let top = t.directory("d");
        chmod(&top, 0o1777);
        for (name, owner, mode) in [
            ("mine", USER, 0o600), ("readable", OTHER, 0o644), ("writable", OTHER, 0o666), ("setuid", OTHER, 0o4777),
            ("setgid", OTHER, 0o2777), ("setgid alone", OTHER, 0o2767), ("secret", OTHER, 0o600),
        ] {
            let path = top.join(name);
            fs::write(&path, "x").unwrap();
            chown(&path, Some(owner), Some(owner)).unwrap();
            chmod(&path, mode);
            let link = top.join(format!("link to {name}"));
            t.try_see(name, as_user(USER, USER, &[], || fs::hard_link(&path, &link)));
            t.see("links", fs::metadata(&path).unwrap().nlink());
        }
        mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        t.try_see("a FIFO", as_user(USER, USER, &[], || fs::hard_link(top.join("fifo"), top.join("another"))));
        as_user(OTHER, OTHER, &[], || symlink("readable", top.join("symlink"))).unwrap();
        t.try_see("link to a symlink", as_user(USER, USER, &[], || fs::hard_link(top.join("symlink"), top.join("same"))));
        for (uid, gid) in [(0, 0), (USER, USER), (OTHER, OTHER)] {
            t.try_see("through a symlink", as_user(uid, gid, &[], || fs::read_to_string(top.join("symlink"))));
        }
    }

    /// A new file belongs to who made it even if the descriptor is used by somebody else afterwards, and
    /// the right to write comes with the descriptor.
    fn a_descriptor_carries_its_rights(t) {
        let top = t.directory("d");
        chmod(&top, 0o777);
        let file = as_user(USER, USER, &[], || {
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o000).open(top.join("f"))
        }).unwrap();
        let result = as_user(OTHER, OTHER, &[], || {
            std::os::unix::fs::FileExt::write_all_at(&file, b"by another", 0)?;
            file.set_len(2)?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 100)?;
            file.sync_all()
        });
        t.try_see("written", result);
        t.see("file", what_it_is(&top.join("f")));
        t.try_see("chmod", as_user(OTHER, OTHER, &[], || file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))));
        t.try_see("reopened", as_user(OTHER, OTHER, &[], || File::open(top.join("f")).map(drop)));
    }
}
