//! `/proc/self/mountinfo`, parsed as `proc_pid_mountinfo(5)` tells. Pure; paths are bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Device number of a file system, as `st_dev` and the mount table give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The major number: 0 for file systems without a block device, FUSE among them.
    pub major: u32,
    /// The minor number; for FUSE also the name of its connection in fusectl.
    pub minor: u32,
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The mount's id: given again to a new mount as soon as this one has gone.
    pub(crate) id: u64,
    /// Id of the mount that it stands on.
    pub(crate) parent: u64,
    /// Device of the file system.
    pub(crate) device: DeviceNumber,
    /// Where it is mounted, seen from this process's root.
    pub(crate) mount_point: PathBuf,
    /// Type, with the subtype behind a dot.
    pub(crate) fs_type: OsString,
    /// Source, as the mounting program named it.
    pub(crate) source: OsString,
    /// Whether the file system is read-only, by whatever mount it is reached.
    pub(crate) read_only: bool,
    /// Options of the file system, as they are written there.
    pub(crate) options: Vec<OsString>,
    /// Who mounted it, as FUSE has it (`user_id=`).
    pub(crate) owner: Option<u32>,
}

impl Entry {
    /// True for a mount of the FUSE file system, whatever its subtype.
    pub(crate) fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.as_encoded_bytes().starts_with(b"fuse.")
    }

    /// Whether somebody may have to answer for what is in it: a FUSE daemon, a server somewhere.
    pub(crate) fn may_hang(&self) -> bool {
        const IN_MEMORY_OR_ON_A_DEVICE: [&str; 8] = [
            "tmpfs", "ramfs", "btrfs", "overlay", "zfs", "bcachefs", "rootfs", "devtmpfs",
        ];
        let is_known = || {
            IN_MEMORY_OR_ON_A_DEVICE
                .iter()
                .any(|name| self.fs_type == *name)
        };
        self.is_fuse() || self.device.major == 0 && !is_known()
    }

    /// Whether the file system has this option.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|it| it == option)
    }
}

/// The mount table as it is now.
pub(crate) fn read() -> std::io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The entries of `text`; a line that has not the documented form is left out.
pub(crate) fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// The mount on which a lookup of `path` ends, seen from this process's root. What is mounted on a directory on the way hides
/// all that was mounted below it before, under the same names.
pub(crate) fn holding<'a>(entries: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    way(entries, path).pop()
}

/// The mounts that a lookup of `path` comes through, in its order.
pub(crate) fn way<'a>(entries: &'a [Entry], path: &Path) -> Vec<&'a Entry> {
    let mut way = Vec::new();
    // Each step goes to another mount of a tree.
    while way.len() < entries.len() {
        let Some(next) = first_crossed(entries, way.last().copied(), path) else {
            break;
        };
        way.push(next);
    }
    way
}

/// The mount that a lookup of `path` comes to first from the root of `at`, or from this process's root.
fn first_crossed<'a>(entries: &'a [Entry], at: Option<&Entry>, path: &Path) -> Option<&'a Entry> {
    let is_on = |entry: &Entry, at: &Entry| entry.parent == at.id && entry.id != at.id;
    let stands_there = |entry: &Entry| match at {
        Some(at) => is_on(entry, at),
        None => !entries.iter().any(|other| is_on(entry, other)),
    };
    entries
        .iter()
        .filter(|entry| path.starts_with(&entry.mount_point) && stands_there(entry))
        .min_by_key(|entry| entry.mount_point.as_os_str().len())
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    // Fields are separated by exactly one space, and a source may be empty: no splitting at runs.
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let _root = fields.next()?;
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let _options = fields.next()?;
    fields.by_ref().find(|&field| field == b"-")?; // past any number of optional fields
    let (fs_type, source) = (unescape(fields.next()?), unescape(fields.next()?));
    let options: Vec<&[u8]> = fields.next()?.split(|&byte| byte == b',').collect();
    Some(Entry {
        id,
        parent,
        device: DeviceNumber {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        },
        mount_point,
        fs_type,
        source,
        read_only: options.first() == Some(&b"ro".as_slice()),
        owner: options
            .iter()
            .find_map(|option| number(option.strip_prefix(b"user_id=")?)?.try_into().ok()),
        options: options.into_iter().map(unescape).collect(),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes `seq_escape` in the kernel: a backslash and three octal digits stand for one byte.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    fn entry(line: &[u8]) -> Entry {
        parse_line(line).unwrap()
    }

    #[test]
    fn the_line_of_the_manual_page() {
        let line =
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(
            entry(line),
            Entry {
                id: 36,
                parent: 35,
                device: DeviceNumber {
                    major: 98,
                    minor: 0
                },
                mount_point: "/mnt2".into(),
                fs_type: "ext3".into(),
                source: "/dev/root".into(),
                read_only: false,
                options: vec!["rw".into(), "errors=continue".into()],
                owner: None,
            }
        );
    }

    #[test]
    fn the_owner_of_a_fuse_mount() {
        let owner = |line| entry(line).owner;
        let line = b"1 2 0:3 / /a rw - fuse.x t rw,user_id=1000,group_id=5";
        assert_eq!(owner(line), Some(1000));
        assert_eq!(owner(b"1 2 0:3 / /a rw - fuse.x t rw,user_id=x"), None);
    }

    #[test]
    fn read_only_is_the_file_system_not_the_mount() {
        assert!(entry(b"1 2 0:3 / /a rw - tmpfs t ro,size=1m").read_only);
        assert!(entry(b"1 2 0:3 / /a rw - tmpfs t ro").read_only);
        assert!(!entry(b"1 2 0:3 / /a ro - tmpfs t rw,ro=1").read_only);
    }

    #[test]
    fn what_may_hang() {
        let may_hang = |line| entry(line).may_hang();
        assert!(may_hang(b"1 2 0:3 / /a rw - fuse.x t rw"));
        assert!(may_hang(b"1 2 0:3 / /a rw - nfs4 t rw"));
        assert!(!may_hang(b"1 2 0:3 / /a rw - tmpfs t rw"));
        assert!(!may_hang(b"1 2 8:3 / /a rw - ext4 t rw"));
    }

    #[test]
    fn any_number_of_optional_fields() {
        let none = entry(b"1 2 0:3 / /a rw - fuse.loopfs /src rw");
        let three = entry(b"1 2 0:3 / /a rw shared:4 master:5 unbindable - fuse.loopfs /src rw");
        assert_eq!(none, three);
        assert!(none.is_fuse());
        assert!(!entry(b"1 2 0:3 / /a rw - fusectl fusectl rw").is_fuse());
    }

    #[test]
    fn escaped_bytes() {
        let line = b"1 2 0:3 / /a\\040b\\011c\\012d\\134040\\043 rw - fuse.x\\040y /s\\040\\043 rw";
        let entry = entry(line);
        assert_eq!(entry.mount_point, Path::new("/a b\tc\nd\\040#"));
        assert_eq!(entry.fs_type, "fuse.x y");
        assert_eq!(entry.source, "/s #");
    }

    #[test]
    fn a_dash_in_a_path_and_bytes_that_are_not_utf8() {
        let entry = entry(b"1 2 0:3 - /\xff- rw - tmpfs - rw");
        assert_eq!(entry.mount_point.as_os_str().as_bytes(), b"/\xff-");
        assert_eq!(entry.source, "-");
    }

    #[test]
    fn an_empty_source() {
        assert_eq!(entry(b"1 2 0:3 / /a rw - tmpfs  rw").source, "");
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        let text =
            b"\n1 2 0:3 / /a rw - tmpfs t rw\n1 2 / /a\nx 2 0:3 / /a rw - t t rw\n1 2 0:3 / /b rw";
        assert_eq!(parse(text).len(), 1);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(b"\\08\\777\\"), "\\08\\777\\");
        assert_eq!(unescape(b"\\377").as_bytes(), b"\xff");
    }

    #[test]
    fn the_longest_and_uppermost_mount_holds_a_path() {
        let table = parse(
            b"1 0 0:1 / / rw - ext4 r rw\n2 1 0:2 / /a rw - tmpfs low rw\n\
              3 2 0:3 / /a rw - tmpfs top rw\n4 1 0:4 / /ab rw - tmpfs other rw",
        );
        assert_eq!(holding(&table, Path::new("/a/x")).unwrap().source, "top");
        assert_eq!(holding(&table, Path::new("/abc")).unwrap().source, "r");
    }

    #[test]
    fn a_mount_on_the_way_hides_what_is_below_it() {
        let table = parse(
            b"1 1 0:1 / / rw - ext4 r rw\n2 1 0:2 / /a/b/c rw - tmpfs hidden rw\n\
              3 1 0:3 / /a rw - tmpfs way rw\n4 3 0:4 / /a/b/c/d rw - tmpfs seen rw",
        );
        let source = |path: &str| holding(&table, Path::new(path)).unwrap().source.clone();
        assert_eq!(source("/a/b/c"), "way");
        assert_eq!(source("/a/b/c/d"), "seen");
        let on_the_way = way(&table, Path::new("/a/b/c/d/e"));
        let on_the_way: Vec<_> = on_the_way.iter().map(|entry| &entry.source).collect();
        assert_eq!(on_the_way, ["r", "way", "seen"]);
        // Of a root that is no mount's, what is mounted below it is all that is listed.
        let chroot = parse(b"2 1 0:2 / /a rw - tmpfs low rw\n3 2 0:3 / /a/b rw - tmpfs top rw");
        assert_eq!(holding(&chroot, Path::new("/a/b/c")).unwrap().source, "top");
        assert_eq!(holding(&chroot, Path::new("/b")), None);
    }
}
