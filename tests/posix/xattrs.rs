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

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
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

fn all(path: &Path) -> BTreeMap<String, Vec<u8>> {
    tree::xattrs(path).unwrap()
}

cases! {
    /// Set, get, list and remove, in user., trusted. and security., on files and directories.
    fn every_namespace(t) {
        for place in [t.file("f", "x"), t.directory("d")] {
            for name in ["user.one", "trusted.two", "security.three", "user.empty", "user.\u{e9}"] {
                t.try_see(name, set(&place, name, if name == "user.empty" { b"" } else { b"va\0lue" }));
                t.try_see(name, get(&place, name));
            }
            t.see("all", all(&place));
            t.try_see("remove", lremovexattr(&place, "user.one"));
            t.try_see("removed", get(&place, "user.one"));
            t.try_see("again", lremovexattr(&place, "user.one"));
            t.see("left", all(&place));
            for name in ["nonsense", "nonsense.x", "user.", "system.nonsense", "user"] {
                t.try_see(name, set(&place, name, b"x"));
                t.try_see(name, get(&place, name));
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
            t.try_see(name, get(&t.path("l"), name));
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
                get(&path, "user.open").ok(),
                get(&path, "trusted.secret").ok(),
                errno(set(&path, "user.open", b"z")),
                errno(set(&path, "trusted.new", b"z")),
                errno(set(&path, "security.new", b"z")),
                names(&path),
            )
        });
        t.see("a stranger", user);
        crate::chmod(&path, 0o600);
        t.see("without the right to read", as_user(NOBODY, NOBODY, &[], || errno(get(&path, "user.open"))));
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
        assert_eq!(get(&path, "user.a").unwrap(), b"1");
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
            t.try_see("get", get(&path, "security.capability"));
            if change {
                fs::OpenOptions::new().append(true).open(&path).and_then(|mut f| std::io::Write::write_all(&mut f, b"y")).unwrap();
            } else {
                std::os::unix::fs::chown(&path, Some(5), Some(5)).unwrap();
            }
            assert_eq!(errno(get(&path, "security.capability")), libc::ENODATA, "{name}");
        }
    }
}
