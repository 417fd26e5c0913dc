//! Attributes as large and as many as a file system takes, and larger.

use rustix::fs::{
    XattrFlags, lgetxattr, lgetxattr_query, llistxattr, llistxattr_query, lremovexattr, lsetxattr,
};

use super::image::Image;
use crate::common::tree::pattern;
use crate::{Seen, compare};

fn see_large_values(seen: &mut Seen, _: &Image) {
    let path = seen.path("f");
    std::fs::write(&path, "x").unwrap();
    for size in [0, 1, 4_000, 4_096, 16_000, 65_535, 65_536, 65_537, 100_000] {
        let value = pattern(1, size);
        seen.try_see(
            &format!("set {size}"),
            lsetxattr(&path, "user.large", &value, XattrFlags::empty()),
        );
        let mut back = vec![0; 70_000];
        let length = lgetxattr(&path, "user.large", &mut back[..]);
        seen.try_see("get", length);
        seen.try_see("probe", lgetxattr_query(&path, "user.large"));
        for room in [1, 100, 65_535, 65_536] {
            seen.try_see(
                &format!("with room for {room}"),
                lgetxattr(&path, "user.large", &mut back[..room]),
            );
        }
        if length == Ok(size) {
            assert!(back[..size] == value);
        }
    }
    seen.try_see("remove", lremovexattr(&path, "user.large"));
    // Names of which the list gets longer than any list may be.
    for number in 0..300 {
        let name = format!("user.{number:0240}");
        seen.try_see(
            "name",
            lsetxattr(&path, name.as_str(), b"", XattrFlags::empty()),
        );
    }
    seen.try_see("list probe", list_probe(&path));
    seen.try_see("list", llistxattr(&path, &mut vec![0; 100_000][..]));
    seen.try_see("short list", llistxattr(&path, &mut vec![0; 65_536][..]));
    for number in 0..60 {
        lremovexattr(&path, format!("user.{number:0240}").as_str()).ok();
    }
    seen.try_see("list probe", list_probe(&path));
    seen.try_see("list", llistxattr(&path, &mut vec![0; 65_536][..]));
}

#[test]
fn on_a_tmpfs() {
    compare(|| Image::tmpfs("size=64M"), see_large_values);
}

#[test]
fn on_ext4_with_attributes_in_inodes() {
    let make = || Image::new(64 << 20, &["mkfs.ext4", "-q", "-O", "ea_inode"], "defaults");
    compare(make, see_large_values);
}

#[test]
fn on_xfs() {
    compare(
        || Image::new(400 << 20, &["mkfs.xfs", "-q"], "defaults"),
        see_large_values,
    );
}

/// The FUSE client says no more than the longest list that there can be (fuse_listxattr), some file systems
/// say how long it is; no program can read it either way.
fn list_probe(path: &std::path::Path) -> rustix::io::Result<usize> {
    llistxattr_query(path).map(|length| length.min(65_536))
}
