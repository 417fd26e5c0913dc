//! What differs from one file system to the next, and so must not be decided by loopfs: small cases on a
//! tmpfs, on xfs and on btrfs.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};

use rustix::fs::{XattrFlags, lremovexattr, lsetxattr};

use super::raw::truncate;
use super::xattrs::acl;
use crate::common::as_user;
use crate::common::user::{NOBODY, OTHER};
use crate::image::Image;
use crate::{Tree, chmod, compare_on};

fn tmpfs() -> Image {
    Image::tmpfs("size=64M")
}

fn xfs() -> Image {
    Image::new(400 << 20, &["mkfs.xfs", "-q"], "defaults")
}

fn btrfs() -> Image {
    Image::new(200 << 20, &["mkfs.btrfs", "-q"], "defaults")
}

/// O_TRUNC marks the times of a file that is empty already, as programs that keep a stamp file rely on.
fn emptying_what_is_empty(t: &mut Tree) {
    let path = t.file("f", "");
    let change = |act: &dyn Fn()| {
        let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(past).unwrap();
        act();
        file.metadata().unwrap().mtime() != 5
    };
    let emptied = change(&|| drop(File::create(&path).unwrap()));
    assert!(emptied);
    t.see(
        "ftruncate",
        change(&|| {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
        }),
    );
    fs::write(&path, "content").unwrap();
    t.see("truncate", change(&|| truncate(&path, 7).unwrap()));
    t.see("to nothing", change(&|| truncate(&path, 0).unwrap()));
    t.see("size", fs::metadata(&path).unwrap().len());
}

#[test]
fn emptying_an_empty_file_on_a_tmpfs() {
    compare_on(&tmpfs(), emptying_what_is_empty);
}

#[test]
fn emptying_an_empty_file_on_xfs() {
    compare_on(&xfs(), emptying_what_is_empty);
}

/// On a tmpfs removing an ACL may cost the set-group-id bit, as setting one does.
#[test]
fn removing_an_acl_on_a_tmpfs() {
    compare_on(&tmpfs(), |t| {
        for (uid, groups) in [(0, &[][..]), (NOBODY, &[]), (NOBODY, &[42])] {
            for mode in [0o2777, 0o2767, 0o6755] {
                let path = t.file("f", "x");
                let entries = [(1, 6, 0), (2, 7, 7), (4, 6, 0), (0x10, 6, 0), (0x20, 6, 0)];
                let set = || {
                    lsetxattr(
                        &path,
                        "system.posix_acl_access",
                        &acl(&entries),
                        XattrFlags::empty(),
                    )
                };
                set().unwrap();
                chown(&path, Some(NOBODY), Some(42)).unwrap();
                for what in ["removed", "set"] {
                    chmod(&path, mode);
                    let result = as_user(uid, NOBODY, groups, || match what {
                        "set" => set(),
                        _ => lremovexattr(&path, "system.posix_acl_access"),
                    });
                    t.try_see(what, result);
                    t.see(
                        &format!("{mode:o} by {uid} {groups:?}"),
                        format!("{:o}", fs::metadata(&path).unwrap().mode()),
                    );
                }
                fs::remove_file(&path).unwrap();
            }
        }
    });
}

/// Who sees the names of `trusted.` attributes: on btrfs everybody.
#[test]
fn trusted_names_on_btrfs() {
    compare_on(&btrfs(), |t| {
        let path = t.file("f", "x");
        for name in ["trusted.a", "user.b"] {
            lsetxattr(&path, name, b"x", XattrFlags::empty()).unwrap();
        }
        for uid in [0, OTHER] {
            let seen = as_user(uid, uid, &[], || {
                let mut list = vec![0; 1_000];
                let length = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
                let value = rustix::fs::lgetxattr(&path, "trusted.a", &mut [0; 10][..]);
                (String::from_utf8_lossy(&list[..length]).into_owned(), value)
            });
            t.see(&format!("{uid}"), seen);
        }
    });
}
