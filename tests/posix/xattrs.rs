//! Extended attributes in every namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{
    XattrFlags, lgetxattr, lgetxattr_query, llistxattr, llistxattr_query, lremovexattr, lsetxattr,
};

use crate::common::user::NOBODY;
use crate::common::{as_user, sh, tree};
use crate::errno;

pub(crate) fn value_of(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 65_536];
    let length = lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn set(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    lsetxattr(path, name, value, XattrFlags::empty())
}

/// The names alone: a user may see that there is an attribute and not be allowed its value.
fn names(path: &Path) -> BTreeSet<String> {
    let mut list = vec![0; 65_536];
    let length = llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// The value of `system.posix_acl_access` or `_default` with these (tag, permissions, id), as
/// linux/posix_acl_xattr.h has it. Tags: 1 owner, 2 user, 4 owning group, 8 group, 0x10 mask, 0x20 others.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let id = if matches!(tag, 2 | 8) { *id } else { u32::MAX };
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn all(path: &Path) -> BTreeMap<String, Vec<u8>> {
    tree::xattrs(path).unwrap()
}

cases! {
    /// Set, get, list and remove, in user., trusted. and security., on files and directories.
    fn every_namespace(t) {
        for place in [t.file("f", "x"), t.directory("d")] {
            for name in ["user.one", "trusted.two", "security.three", "user.empty", "user.\u{e9}"] {
                t.try_see(name, set(&place, name, if name == "user.empty" { b"" } else { b"va\0lue" }));
                t.try_see(name, value_of(&place, name));
            }
            t.see("all", all(&place));
            t.try_see("remove", lremovexattr(&place, "user.one"));
            t.try_see("removed", value_of(&place, "user.one"));
            t.try_see("again", lremovexattr(&place, "user.one"));
            t.see("left", all(&place));
            for name in ["nonsense", "nonsense.x", "user.", "system.nonsense", "user"] {
                t.try_see(name, set(&place, name, b"x"));
                t.try_see(name, value_of(&place, name));
            }
        }
    }

    /// Size probes, buffers that are too small, values of every size up to too large.
    fn sizes(t) {
        let path = t.file("f", "x");
        set(&path, "user.a", &[7; 100]).unwrap();
        t.try_see("probe", lgetxattr_query(&path, "user.a"));
        t.try_see("list probe", llistxattr_query(&path));
        let mut small = [0; 99];
        assert_eq!(errno(lgetxattr(&path, "user.a", &mut small[..])), libc::ERANGE);
        assert_eq!(errno(llistxattr(&path, &mut small[..3])), libc::ERANGE);
        let mut exact = [0; 100];
        t.try_see("exact", lgetxattr(&path, "user.a", &mut exact[..]));
        assert_eq!(errno(lgetxattr_query(&path, "user.absent")), libc::ENODATA);
        for size in [0, 1, 255, 1_000, 3_000, 5_000, 65_536, 65_537] {
            t.try_see("set", set(&path, "user.b", &vec![1; size]));
            t.try_see("probe", lgetxattr_query(&path, "user.b"));
        }
        t.try_see("longest name", set(&path, &format!("user.{}", "n".repeat(250)), b"x"));
        t.try_see("too long a name", set(&path, &format!("user.{}", "n".repeat(251)), b"x"));
    }

    /// XATTR_CREATE and XATTR_REPLACE.
    fn create_and_replace(t) {
        let path = t.file("f", "x");
        assert_eq!(errno(lsetxattr(&path, "user.a", b"1", XattrFlags::REPLACE)), libc::ENODATA);
        t.try_see("create", lsetxattr(&path, "user.a", b"1", XattrFlags::CREATE));
        assert_eq!(errno(lsetxattr(&path, "user.a", b"2", XattrFlags::CREATE)), libc::EEXIST);
        t.try_see("replace", lsetxattr(&path, "user.a", b"3", XattrFlags::REPLACE));
        t.see("all", all(&path));
    }

    /// Symlinks have trusted. and security. attributes, not user. ones.
    fn on_symlinks(t) {
        t.file("f", "x");
        symlink("f", t.path("l")).unwrap();
        for name in ["trusted.a", "security.b", "user.c"] {
            t.try_see(name, set(&t.path("l"), name, b"on the link"));
            t.try_see(name, value_of(&t.path("l"), name));
        }
        t.see("the link's", all(&t.path("l")));
        t.see("the target's", all(&t.path("f")));
        assert!(all(&t.path("f")).is_empty());
    }

    /// Special files have no user. attributes; users see and set only what is theirs.
    fn who_and_where(t) {
        sh(t.top(), "mkfifo p");
        t.try_see("on a FIFO", set(&t.path("p"), "user.a", b"x"));
        t.try_see("trusted on a FIFO", set(&t.path("p"), "trusted.a", b"x"));
        let path = t.file("f", "x");
        set(&path, "trusted.secret", b"x").unwrap();
        set(&path, "user.open", b"y").unwrap();
        let user = as_user(NOBODY, NOBODY, &[], || {
            (
                value_of(&path, "user.open").ok(),
                value_of(&path, "trusted.secret").ok(),
                errno(set(&path, "user.open", b"z")),
                errno(set(&path, "trusted.new", b"z")),
                errno(set(&path, "security.new", b"z")),
                names(&path),
            )
        });
        t.see("a stranger", user);
        crate::chmod(&path, 0o600);
        t.see("without the right to read", as_user(NOBODY, NOBODY, &[], || errno(value_of(&path, "user.open"))));
        std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
        t.try_see("the owner", as_user(NOBODY, NOBODY, &[], || set(&path, "user.open", b"z")));
    }

    /// Many attributes of one file.
    fn many(t) {
        let path = t.file("f", "x");
        for number in 0..60 {
            t.try_see("set", set(&path, &format!("user.attribute-{number}"), format!("{number}").as_bytes()));
        }
        t.see("all", all(&path));
    }

    /// An attribute set through one name or descriptor is seen through the others.
    fn shared_by_all_names(t) {
        let path = t.file("f", "x");
        fs::hard_link(&path, t.path("g")).unwrap();
        let file = fs::File::open(t.path("g")).unwrap();
        fs::remove_file(t.path("g")).unwrap();
        rustix::fs::fsetxattr(&file, "user.a", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(value_of(&path, "user.a").unwrap(), b"1");
        fs::remove_file(&path).unwrap();
        let mut value = [0; 10];
        t.try_see("without a name", rustix::fs::fgetxattr(&file, "user.a", &mut value[..]));
        t.try_see("set without a name", rustix::fs::fsetxattr(&file, "user.b", b"2", XattrFlags::empty()));
    }

    /// File capabilities are kept, and lost when the content changes.
    fn file_capabilities(t) {
        // Version 2, effective, CAP_NET_RAW permitted.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (name, change) in [("write", true), ("chown", false)] {
            let path = t.file(name, "x");
            t.try_see("set", set(&path, "security.capability", &capability));
            t.try_see("get", value_of(&path, "security.capability"));
            if change {
                fs::OpenOptions::new().append(true).open(&path).and_then(|mut f| std::io::Write::write_all(&mut f, b"y")).unwrap();
            } else {
                std::os::unix::fs::chown(&path, Some(5), Some(5)).unwrap();
            }
            assert_eq!(errno(value_of(&path, "security.capability")), libc::ENODATA, "{name}");
        }
    }

    /// Names up to the limit and beyond it, values up to what the file has room for, flags that there are not.
    fn names_values_and_flags(t) {
        let path = t.file("f", "x");
        for length in [0, 1, 249, 250, 251, 300] {
            for space in ["user.", "trusted.", "security."] {
                let name = format!("{space}{}", "n".repeat(length));
                t.try_see(&format!("{space} {length}"), set(&path, &name, b"x"));
                t.try_see("value", value_of(&path, &name));
                t.try_see("remove", lremovexattr(&path, &name));
            }
        }
        for name in ["", ".", "user", "USER.a", "system.", "system.a", "system.posix_acl", "trusted", "os2.a", "btrfs.a"] {
            t.try_see(&format!("set {name:?}"), set(&path, name, b"x"));
            t.try_see("get", value_of(&path, name));
            t.try_see("remove", lremovexattr(&path, name));
        }
        for flags in [XattrFlags::CREATE | XattrFlags::REPLACE, XattrFlags::from_bits_retain(4), XattrFlags::from_bits_retain(0x100)] {
            t.try_see("absent", lsetxattr(&path, "user.absent", b"x", flags));
            set(&path, "user.there", b"x").unwrap();
            t.try_see("there", lsetxattr(&path, "user.there", b"x", flags));
        }
        // The last attribute that has room, and the first one that has not.
        let full = (0..200).find(|number| set(&path, &format!("user.{number}"), &[1; 100]).is_err());
        t.see("room for", full);
        t.see("all", all(&path).len());
        t.try_see("a larger value", set(&path, "user.0", &[1; 1_000]));
        t.try_see("the old one", value_of(&path, "user.0"));
    }

    /// The room that is asked for is the room that is needed, for those too who don't see every name.
    fn probes_tell_what_is_needed(t) {
        crate::chmod(t.top(), 0o777);
        let path = t.file("f", "x");
        for name in ["user.a", "user.bb", "trusted.c", "trusted.dd", "security.e"] {
            set(&path, name, name.as_bytes()).unwrap();
        }
        sh(t.top(), "setfacl -m u:1:r f");
        for uid in [0, NOBODY] {
            let seen = as_user(uid, uid, &[], || {
                let needed = llistxattr_query(&path).unwrap();
                let exact = llistxattr(&path, &mut vec![0; needed][..]).unwrap();
                assert_eq!(exact, needed);
                let short = errno(llistxattr(&path, &mut vec![0; needed - 1][..]));
                let value = lgetxattr_query(&path, "user.bb").unwrap();
                let room = lgetxattr(&path, "user.bb", &mut vec![0; value][..]).unwrap();
                (needed, short, value, room, errno(lgetxattr(&path, "user.bb", &mut vec![0; value - 1][..])), names(&path))
            });
            assert_eq!((seen.1, seen.4), (libc::ERANGE, libc::ERANGE));
            assert_eq!(seen.5.contains("trusted.c"), uid == 0);
            t.see(&format!("{uid}"), seen);
        }
    }

    /// user. attributes are for files and directories; in a sticky directory's case, for its owner.
    fn user_attributes_by_kind_and_owner(t) {
        sh(t.top(), "mkfifo fifo; mknod device c 1 3; ln -s nowhere symlink; mkdir sticky directory; touch file");
        std::os::unix::net::UnixListener::bind(t.path("socket")).unwrap();
        crate::chmod(&t.path("sticky"), 0o1777);
        for name in ["fifo", "device", "socket", "file", "directory"] {
            crate::chmod(&t.path(name), 0o666);
        }
        for name in ["fifo", "device", "socket", "symlink", "file", "directory", "sticky"] {
            for (owner, uid) in [(0, 0), (0, NOBODY), (NOBODY, NOBODY), (NOBODY, 0)] {
                std::os::unix::fs::lchown(t.path(name), Some(owner), None).unwrap();
                let path = t.path(name);
                let seen = as_user(uid, uid, &[], || {
                    ["user.a", "trusted.b", "security.c"].map(|attribute| (
                        set(&path, attribute, b"x"), value_of(&path, attribute), lremovexattr(&path, attribute),
                    ))
                });
                t.see(&format!("{name} of {owner} by {uid}"), seen);
                t.see("names", names(&path));
            }
        }
    }

    /// Through descriptors: any that reads or writes will do, one of O_PATH will not.
    fn through_descriptors(t) {
        use rustix::fs::{Mode, OFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, open};
        let path = t.file("f", "x");
        set(&path, "user.a", b"1").unwrap();
        for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::PATH] {
            let file = open(&path, flags, Mode::empty()).unwrap();
            t.try_see("set", fsetxattr(&file, "user.b", b"2", XattrFlags::empty()));
            t.try_see("get", fgetxattr(&file, "user.a", &mut [0; 10][..]));
            t.try_see("list", flistxattr(&file, &mut [0; 100][..]));
            t.try_see("remove", fremovexattr(&file, "user.b"));
        }
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fs::File::open(&path).unwrap()));
        t.try_see("closed", rustix::fs::getxattr(link, "user.a", &mut [0; 10][..]));
        let folder = fs::File::open(t.directory("d")).unwrap();
        t.try_see("directory", fsetxattr(&folder, "user.a", b"x", XattrFlags::empty()));
        t.try_see("directory", fgetxattr(&folder, "user.a", &mut [0; 10][..]));
    }
}
