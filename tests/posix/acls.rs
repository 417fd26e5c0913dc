//! POSIX ACLs: who gets what by them, what chmod(2) makes of them, and what is no ACL.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, XattrFlags, accessat, lgetxattr, lgetxattr_query,
    lremovexattr, lsetxattr, mknodat,
};

use super::special::on_mount;
use super::xattrs::{acl, value_of};
use crate::common::as_user;
use crate::{Tree, chmod, errno};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// The file's owner and group; a user and a group with an entry; somebody with none.
const OWNER: u32 = 4321;
const GROUP: u32 = 4400;
const NAMED: u32 = 4322;
const NAMED_GROUP: u32 = 4500;
const STRANGER: u32 = 4323;

type Entries<'a> = &'a [(u16, u16, u32)];

fn set(path: &Path, name: &str, entries: Entries<'_>) -> rustix::io::Result<()> {
    lsetxattr(path, name, &acl(entries), XattrFlags::empty())
}

/// An ACL with an entry of every kind; the permissions are given in the order of the tags.
fn full(permissions: [u16; 6]) -> [(u16, u16, u32); 6] {
    let tags = [
        (1, 0),
        (2, NAMED),
        (4, 0),
        (8, NAMED_GROUP),
        (0x10, 0),
        (0x20, 0),
    ];
    let mut entries = [(0, 0, 0); 6];
    for ((entry, (tag, id)), permission) in entries.iter_mut().zip(tags).zip(permissions) {
        *entry = (tag, permission, id);
    }
    entries
}

/// Who asks: uid, gid, supplementary groups.
const CALLERS: [(u32, u32, &[u32]); 7] = [
    (OWNER, 1, &[]),
    (NAMED, 1, &[]),
    (NAMED, GROUP, &[]),
    (STRANGER, GROUP, &[]),
    (STRANGER, 1, &[7, NAMED_GROUP]),
    (STRANGER, GROUP, &[NAMED_GROUP]),
    (STRANGER, 1, &[]),
];

/// What each caller may do with a file: by access(2), and by opening it.
fn see_rights(t: &mut Tree, what: &str, path: &Path) {
    for (uid, gid, groups) in CALLERS {
        let rights = as_user(uid, gid, groups, || {
            let may = |right| accessat(CWD, path, right, AtFlags::empty()).is_ok();
            (
                [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK].map(may),
                File::open(path).is_ok(),
                OpenOptions::new().write(true).open(path).is_ok(),
            )
        });
        t.see(&format!("{what}: {uid}:{gid} {groups:?}"), rights);
    }
}

fn see_acl(t: &mut Tree, what: &str, path: &Path) {
    t.try_see(what, value_of(path, ACCESS));
    t.see("mode", format!("{:o}", fs::metadata(path).unwrap().mode()));
}

fn file(t: &Tree, name: &str) -> std::path::PathBuf {
    let path = t.file(name, "content");
    chown(&path, Some(OWNER), Some(GROUP)).unwrap();
    path
}

cases! {
    /// Owner, named user, owning and named group, others: each gets its entry, under the mask.
    fn each_entry_counts(t) {
        for permissions in [
            [6, 4, 0, 2, 7, 0], [0, 7, 7, 7, 7, 7], [7, 0, 4, 2, 7, 7], [6, 6, 6, 6, 4, 0], [6, 7, 7, 7, 0, 4], [1, 1, 2, 4, 7, 1],
        ] {
            let path = file(t, "f");
            set(&path, ACCESS, &full(permissions)).unwrap();
            see_acl(t, "ACL", &path);
            see_rights(t, &format!("{permissions:?}"), &path);
            fs::remove_file(&path).unwrap();
        }
    }

    /// chmod(2) of a file with an ACL changes the owner's entry, the mask and the others' one.
    fn chmod_changes_the_mask(t) {
        let path = file(t, "f");
        for mode in [0o000, 0o640, 0o604, 0o770, 0o2755, 0o4711, 0o666] {
            set(&path, ACCESS, &full([6, 7, 5, 7, 7, 1])).unwrap();
            t.try_see("chmod", as_user(OWNER, GROUP, &[], || fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))));
            see_acl(t, &format!("{mode:o}"), &path);
            see_rights(t, &format!("{mode:o}"), &path);
        }
        // The owning group's entry is not the group bits any more.
        set(&path, ACCESS, &full([6, 0, 4, 0, 6, 0])).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        chmod(&path, 0o600);
        chmod(&path, 0o660);
        t.see("group", as_user(STRANGER, GROUP, &[], || OpenOptions::new().write(true).open(&path).is_ok()));
        see_acl(t, "at last", &path);
    }

    /// chown(2) leaves the ACL, and its entries for the owner and group mean the new ones.
    fn chown_leaves_the_acl(t) {
        let path = file(t, "f");
        set(&path, ACCESS, &full([6, 0, 4, 0, 6, 0])).unwrap();
        chown(&path, Some(STRANGER), Some(1)).unwrap();
        see_acl(t, "ACL", &path);
        see_rights(t, "rights", &path);
    }

    /// An ACL without named entries is the mode; removing one leaves the mode.
    fn small_acls_are_the_mode(t) {
        let path = file(t, "f");
        t.try_see("small", set(&path, ACCESS, &[(1, 6, 0), (4, 4, 0), (0x20, 4, 0)]));
        see_acl(t, "none", &path);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        t.try_see("large", set(&path, ACCESS, &full([6, 7, 4, 0, 7, 0])));
        see_acl(t, "there", &path);
        t.try_see("small again", set(&path, ACCESS, &[(1, 7, 0), (4, 5, 0), (0x20, 0, 0)]));
        see_acl(t, "gone", &path);
        t.try_see("with a mask", set(&path, ACCESS, &[(1, 6, 0), (4, 7, 0), (0x10, 4, 0), (0x20, 0, 0)]));
        see_acl(t, "mask", &path);
        t.try_see("remove", lremovexattr(&path, ACCESS));
        see_acl(t, "removed", &path);
        t.try_see("remove again", lremovexattr(&path, ACCESS));
        t.try_see("remove the default", lremovexattr(&path, DEFAULT));
        t.try_see("empty", lsetxattr(&path, ACCESS, b"", XattrFlags::empty()));
        let folder = t.directory("d");
        set(&folder, DEFAULT, &full([6, 7, 4, 0, 7, 0])).unwrap();
        t.try_see("empty default", lsetxattr(&folder, DEFAULT, &acl(&[]), XattrFlags::empty()));
        t.try_see("no default", value_of(&folder, DEFAULT));
        set(&folder, DEFAULT, &full([6, 7, 4, 0, 7, 0])).unwrap();
        t.try_see("removed default", lremovexattr(&folder, DEFAULT));
        fs::write(folder.join("f"), "").unwrap();
        see_acl(t, "nothing inherited", &folder.join("f"));
    }

    /// Whose ACL is whose to set, to remove, and to read.
    fn only_the_owner_sets_acls(t) {
        let path = file(t, "f");
        let folder = t.directory("d");
        chown(&folder, Some(OWNER), Some(GROUP)).unwrap();
        chmod(&folder, 0o777);
        set(&path, ACCESS, &full([6, 7, 7, 7, 7, 7])).unwrap();
        for (uid, gid, groups) in CALLERS {
            let results = as_user(uid, gid, groups, || [
                set(&path, ACCESS, &full([7, 7, 7, 7, 7, 7])),
                set(&folder, DEFAULT, &full([7, 7, 7, 7, 7, 7])),
                set(&folder, ACCESS, &full([7, 7, 7, 7, 7, 7])),
                lremovexattr(&folder, DEFAULT),
                value_of(&path, ACCESS).map(drop),
                value_of(&folder, DEFAULT).map(drop),
            ]);
            t.see(&format!("{uid}:{gid}"), results);
        }
        chmod(&path, 0);
        t.try_see("read without any right", as_user(STRANGER, 1, &[], || value_of(&path, ACCESS)));
    }

    /// Where there are none, and what is none.
    fn what_is_refused(t) {
        let path = file(t, "f");
        t.try_see("a default of a file", set(&path, DEFAULT, &full([7; 6])));
        symlink("f", t.path("l")).unwrap();
        mknodat(CWD, t.path("p"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for name in ["l", "p"] {
            t.try_see(name, set(&t.path(name), ACCESS, &full([7; 6])));
            t.try_see(name, value_of(&t.path(name), ACCESS));
            t.try_see(name, set(&t.path(name), DEFAULT, &full([7; 6])));
        }
        let large = full([7; 6]);
        let wrong: [(&str, Vec<u8>); 9] = [
            ("no owner", acl(&large[1..])),
            ("no others", acl(&large[..5])),
            ("a name without a mask", acl(&[large[0], large[1], large[2], large[5]])),
            ("the wrong order", acl(&[large[2], large[0], large[1], large[3], large[4], large[5]])),
            ("an unknown tag", acl(&[(0x40, 7, 0)])),
            ("too many permissions", acl(&[(1, 0o17, 0), (4, 7, 0), (0x20, 7, 0)])),
            ("the same user twice", acl(&[large[0], large[1], large[1], large[2], large[4], large[5]])),
            ("half an entry", acl(&large)[..50].to_vec()),
            ("another version", vec![1, 0, 0, 0]),
        ];
        for (what, value) in wrong {
            t.try_see(what, lsetxattr(&path, ACCESS, &value, XattrFlags::empty()));
        }
        t.try_see("create", lsetxattr(&path, ACCESS, &acl(&large), XattrFlags::CREATE));
        t.try_see("create again", lsetxattr(&path, ACCESS, &acl(&large), XattrFlags::CREATE));
        t.try_see("replace", lsetxattr(&path, ACCESS, &acl(&large), XattrFlags::REPLACE));
        t.try_see("size", lgetxattr_query(&path, ACCESS));
        assert_eq!(errno(lgetxattr(&path, ACCESS, &mut [0; 51][..])), libc::ERANGE);
        see_acl(t, "at last", &path);
    }

    /// An ACL of hundreds of entries. One of more than a page is not for FUSE: the kernel says E2BIG before
    /// any daemon is asked (fuse_set_acl; SEMANTICS.md), where ext4 has no room for it either.
    fn acls_with_many_entries(t) {
        let path = file(t, "f");
        for (count, limit) in [(300, false), (600, true)] {
            let users: Vec<_> = (0..count).map(|id| (2, 7, id)).collect();
            let all = [&[(1, 7, 0)], &users[..], &[(4, 7, 0), (0x10, 7, 0), (0x20, 7, 0)]].concat();
            let result = set(&path, ACCESS, &all);
            if limit && on_mount(t) {
                assert_eq!(errno(result), libc::E2BIG);
            } else if limit {
                assert_eq!(errno(result), libc::ENOSPC);
            } else {
                t.try_see("set", result);
            }
            see_acl(t, "ACL", &path);
        }
    }

    /// In directories: entries decide who lists, who makes, who goes through.
    fn acls_of_directories(t) {
        for permissions in [[7, 7, 0, 5, 7, 0], [7, 1, 3, 4, 7, 0], [7, 7, 7, 7, 1, 0]] {
            let folder = t.directory("d");
            chown(&folder, Some(OWNER), Some(GROUP)).unwrap();
            fs::write(folder.join("f"), "x").unwrap();
            set(&folder, ACCESS, &full(permissions)).unwrap();
            for (uid, gid, groups) in CALLERS {
                let can = as_user(uid, gid, groups, || [
                    fs::read_dir(&folder).is_ok(),
                    fs::metadata(folder.join("f")).is_ok(),
                    fs::create_dir(folder.join(format!("{uid} {gid} {groups:?}"))).is_ok(),
                    fs::rename(folder.join("f"), folder.join("g")).and_then(|()| fs::rename(folder.join("g"), folder.join("f"))).is_ok(),
                ]);
                t.see(&format!("{permissions:?} {uid}:{gid} {groups:?}"), can);
            }
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}
