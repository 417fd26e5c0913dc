//! The core without a mount: what its functions promise to the layer above.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::attr::{Changes, SetTime, Time};
use super::create::NewName;
use super::dir::Room;
use super::name::Name;
use super::*;
use crate::error::Errno;
use crate::sys::fs::{RenameFlags, WriteMode};
use crate::sys::xattr::Answer;

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const USER: Caller = Caller {
    uid: 4321,
    gid: 4322,
    pid: 0,
};
const PLAIN: WriteMode = WriteMode {
    append: false,
    sync: false,
};
const READ_WRITE: i32 = 2; // O_RDWR, open(2)

fn settings(file_limit: u64) -> Settings {
    Settings {
        file_limit,
        one_file_system: false,
        noatime: false,
    }
}

fn tree() -> (tempfile::TempDir, Loopback) {
    let dir = tempfile::tempdir().unwrap();
    let tree = Loopback::open(dir.path(), &settings(1024)).unwrap();
    (dir, tree)
}

fn new(name: &str, mode: u32) -> NewName<'_> {
    NewName {
        parent: NodeNo::ROOT,
        name: OsStr::new(name),
        mode,
        umask: 0,
    }
}

/// The node with that name, counted for the kernel.
fn node(tree: &Loopback, name: &str) -> NodeNo {
    let entry = tree.lookup(NodeNo::ROOT, OsStr::new(name)).unwrap();
    entry.lookup.into_kernel();
    entry.attr.ino
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}

fn everything(_: &dir::Listed<'_>) -> Room {
    Room::Taken
}

#[test]
fn a_node_has_the_sources_own_number_and_attributes() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("file"), "hello").unwrap();
    let real = std::fs::metadata(dir.path().join("file")).unwrap();
    let attr = tree.getattr(node(&tree, "file"), None).unwrap();
    assert_eq!((attr.ino.0, attr.size, attr.nlink), (real.ino(), 5, 1));
    assert_eq!(
        (attr.mtime.secs, i64::from(attr.mtime.nanos)),
        (real.mtime(), real.mtime_nsec())
    );
    let root = tree.getattr(NodeNo::ROOT, None).unwrap();
    assert_eq!(root.ino.0, std::fs::metadata(dir.path()).unwrap().ino());
}

#[test]
fn counts_and_handles_are_zero_when_everything_was_given_back() {
    let (dir, tree) = tree();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    let created = tree
        .create(ROOT, new("file", 0o100_644), READ_WRITE, true)
        .unwrap();
    created.entry.lookup.into_kernel();
    let listing = tree.opendir(NodeNo::ROOT, 0).unwrap().handle;
    let lookups = tree.readdirplus(listing, 0, |_, _| Room::Taken).unwrap();
    assert_eq!(lookups.len(), 2, "`.` and `..` are not counted");
    drop(lookups);
    assert_eq!((tree.known_inodes(), tree.open_handles()), (1, 2));
    tree.forget(created.entry.attr.ino, 1);
    assert_eq!(
        tree.write(Some(ROOT), created.opened.handle, 0, b"still open", PLAIN),
        Ok(10)
    );
    tree.release(created.opened.handle).unwrap();
    tree.releasedir(listing).unwrap();
    assert_eq!((tree.known_inodes(), tree.open_handles()), (0, 0));
    assert_eq!(errno(tree.release(created.opened.handle)), Errno::BADF);
    assert_eq!(
        errno(tree.getattr(created.entry.attr.ino, None)),
        Errno::STALE
    );
}

#[test]
fn hard_links_are_one_node() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("one"), "").unwrap();
    let one = node(&tree, "one");
    let two = tree
        .link(ROOT, one, NodeNo::ROOT, OsStr::new("two"))
        .unwrap();
    assert_eq!((two.attr.ino, two.attr.nlink), (one, 2));
    drop(two);
    assert_eq!(node(&tree, "two"), one);
    assert_eq!(tree.known_inodes(), 1);
}

#[test]
fn what_is_created_belongs_to_the_caller_and_has_the_callers_umask() {
    let (dir, tree) = tree();
    let umask = |new| NewName {
        umask: 0o027,
        ..new
    };
    let created = tree
        .create(USER, umask(new("file", 0o100_666)), READ_WRITE, true)
        .unwrap();
    let made = tree.mkdir(USER, umask(new("dir", 0o40_777))).unwrap();
    let fifo = tree
        .mknod(USER, umask(new("fifo", 0o10_666)), (0, 0))
        .unwrap();
    let link = tree
        .symlink(USER, NodeNo::ROOT, OsStr::new("link"), OsStr::new("x"))
        .unwrap();
    for attr in [created.entry.attr, made.attr, fifo.attr, link.attr] {
        assert_eq!((attr.uid, attr.gid), (4321, 4322));
    }
    assert_eq!(
        (created.entry.attr.perm, made.attr.perm, fifo.attr.perm),
        (0o640, 0o750, 0o640)
    );
    let ours = std::fs::metadata(dir.path()).unwrap();
    assert_eq!(ours.uid(), 0, "and the daemon is itself again");
}

#[test]
fn a_set_group_id_directory_gives_its_group_and_takes_the_bit_from_strangers() {
    let (dir, tree) = tree();
    std::os::unix::fs::chown(dir.path(), None, Some(777)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2777)).unwrap();
    let file = tree
        .create(USER, new("file", 0o102_755), READ_WRITE, true)
        .unwrap();
    assert_eq!((file.entry.attr.gid, file.entry.attr.perm), (777, 0o755));
    let member = Caller { gid: 777, ..USER };
    let file = tree
        .create(member, new("theirs", 0o102_755), READ_WRITE, true)
        .unwrap();
    assert_eq!((file.entry.attr.gid, file.entry.attr.perm), (777, 0o2755));
}

#[test]
fn a_name_that_appeared_meanwhile_is_not_opened_unchecked() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("theirs"), "secret").unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    for name in ["theirs", "link"] {
        let file = new(name, 0o100_644);
        assert_eq!(
            errno(tree.create(USER, file, READ_WRITE, false)),
            Errno::STALE
        );
        assert_eq!(
            errno(tree.create(USER, file, READ_WRITE, true)),
            Errno::EXIST
        );
    }
    assert_eq!(std::fs::read(dir.path().join("theirs")).unwrap(), b"secret");
}

#[test]
fn a_symlink_of_the_source_is_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("victim"), "untouched").unwrap();
    let (dir, tree) = tree();
    symlink(outside.path(), dir.path().join("to-dir")).unwrap();
    symlink(outside.path().join("victim"), dir.path().join("to-file")).unwrap();
    let (to_dir, to_file) = (node(&tree, "to-dir"), node(&tree, "to-file"));
    assert_eq!(
        tree.readlink(to_dir).unwrap(),
        outside.path().as_os_str().as_encoded_bytes()
    );
    assert_eq!(
        errno(tree.lookup(to_dir, OsStr::new("victim"))),
        Errno::NOTDIR
    );
    assert_eq!(errno(tree.opendir(to_dir, 0)), Errno::NOTDIR);
    assert_eq!(
        errno(tree.open_file(to_file, READ_WRITE, false)),
        Errno::INVAL
    );
    let size = Changes {
        size: Some(0),
        ..Changes::default()
    };
    assert_eq!(
        errno(tree.setattr(ROOT, to_file, &size, None)),
        Errno::INVAL
    );
    let owner = Changes {
        uid: Some(1),
        ..Changes::default()
    };
    assert_eq!(
        tree.setattr(ROOT, to_file, &owner, None).unwrap().uid,
        1,
        "the link itself"
    );
    let victim = outside.path().join("victim");
    assert_eq!(std::fs::metadata(&victim).unwrap().uid(), 0);
    assert_eq!(std::fs::read(victim).unwrap(), b"untouched");
}

#[test]
fn a_renamed_and_an_unlinked_file_are_still_themselves() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("a"), "A").unwrap();
    std::fs::write(dir.path().join("b"), "B").unwrap();
    let a = node(&tree, "a");
    let handle = tree.open_file(a, READ_WRITE, false).unwrap().handle;
    let name = OsStr::new;
    let (from, to) = ((NodeNo::ROOT, name("a")), (NodeNo::ROOT, name("b")));
    let refused = tree.rename(ROOT, from, to, RenameFlags::NOREPLACE.bits());
    assert_eq!(errno(refused), Errno::EXIST);
    tree.rename(ROOT, from, to, 0).unwrap();
    tree.unlink(ROOT, NodeNo::ROOT, name("b")).unwrap();
    assert_eq!(tree.read(handle, 0, 10).unwrap(), b"A");
    assert_eq!(tree.getattr(a, None).unwrap().nlink, 0);
    let mode = Changes {
        mode: Some(0o600),
        ..Changes::default()
    };
    assert_eq!(tree.setattr(ROOT, a, &mode, None).unwrap().perm, 0o600);
}

#[test]
fn times_are_set_to_the_nanosecond_left_alone_or_now() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let file = node(&tree, "file");
    let time = Time {
        secs: -5,
        nanos: 123_456_789,
    };
    let both = Changes {
        atime: Some(SetTime::At(time)),
        mtime: Some(SetTime::At(time)),
        ..Changes::default()
    };
    let attr = tree.setattr(ROOT, file, &both, None).unwrap();
    assert_eq!((attr.atime, attr.mtime), (time, time));
    let one = Changes {
        mtime: Some(SetTime::Now),
        ..Changes::default()
    };
    let attr = tree.setattr(ROOT, file, &one, None).unwrap();
    assert_eq!(attr.atime, time);
    assert!(attr.mtime.secs > 1_600_000_000);
}

#[test]
fn sizes_and_offsets_from_outside_are_not_believed() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("file"), "data").unwrap();
    let handle = tree
        .open_file(node(&tree, "file"), READ_WRITE, false)
        .unwrap()
        .handle;
    assert_eq!(errno(tree.read(handle, u64::MAX, 16)), Errno::INVAL);
    assert_eq!(
        errno(tree.write(Some(ROOT), handle, u64::MAX - 1, b"x", PLAIN)),
        Errno::INVAL
    );
    assert_eq!(
        errno(tree.fallocate(ROOT, handle, 0, u64::MAX, u64::MAX)),
        Errno::INVAL
    );
    assert_eq!(errno(tree.lseek(handle, -1, 0)), Errno::INVAL);
    assert_eq!(
        errno(tree.copy_range(ROOT, (handle, u64::MAX), (handle, 0), 1)),
        Errno::INVAL
    );
    assert_eq!(errno(tree.read(handle + 1, 0, 1)), Errno::BADF);
    assert_eq!(errno(tree.lookup(NodeNo(0), OsStr::new("x"))), Errno::STALE);
    assert_eq!(
        errno(tree.lookup(NodeNo::ROOT, OsStr::new("../x"))),
        Errno::INVAL
    );
    let above = tree.lookup(NodeNo::ROOT, OsStr::new("..")).unwrap();
    assert_eq!(above.attr.ino, NodeNo::ROOT, "nothing is above the root");
    assert_eq!(errno(tree.mkdir(ROOT, new("..", 0o755))), Errno::INVAL);
    assert_eq!(tree.read(handle, 0, u32::MAX).unwrap(), b"data");
    let answer = tree.getxattr(NodeNo::ROOT, OsStr::new("user.none"), u32::MAX);
    assert_eq!(errno(answer), Errno::NODATA);
    let value = vec![0; 64 * 1024 + 1];
    let set = tree.setxattr(ROOT, NodeNo::ROOT, OsStr::new("user.big"), &value, 0);
    assert_eq!(errno(set), Errno::INVAL);
}

#[test]
fn a_listing_stops_where_the_reply_is_full_and_goes_on_from_there() {
    let (dir, tree) = tree();
    for number in 0..100 {
        std::fs::write(dir.path().join(format!("{number}")), "").unwrap();
    }
    let handle = tree.opendir(NodeNo::ROOT, 0).unwrap().handle;
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let mut room = 7;
        let before = names.len();
        tree.readdir(handle, cookie, |listed| {
            if room == 0 {
                return Room::Full;
            }
            room -= 1;
            cookie = listed.next;
            names.push(listed.name.to_owned());
            Room::Taken
        })
        .unwrap();
        if names.len() == before {
            break;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 102);
    assert_eq!(
        errno(tree.readdir(handle, u64::MAX, everything)),
        Errno::INVAL
    );
}

#[test]
fn a_listed_name_has_the_number_that_stat_gives() {
    let (dir, tree) = tree();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    let handle = tree.opendir(NodeNo::ROOT, 0).unwrap().handle;
    let mut seen = None;
    tree.readdir(handle, 0, |listed| {
        if listed.name == "dir" {
            seen = Some((listed.ino, listed.kind));
        }
        Room::Taken
    })
    .unwrap();
    assert_eq!(
        seen,
        Some((node(&tree, "dir"), Some(fs::FileType::Directory)))
    );
}

/// A tmpfs below a directory for as long as it lives.
struct Submount(std::path::PathBuf);

impl Submount {
    fn new(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("loopfs-test", at, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Submount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn inodes_of_a_mount_below_never_share_a_number_with_ours() {
    let (dir, tree) = tree();
    let below = Submount::new(&dir.path().join("below"));
    let real = std::fs::metadata(&below.0).unwrap();
    let below_node = node(&tree, "below");
    assert_ne!(
        below_node.0,
        real.ino(),
        "its own number belongs to SRC's device"
    );
    std::fs::write(below.0.join("file"), "there").unwrap();
    let file = tree.lookup(below_node, OsStr::new("file")).unwrap();
    assert_eq!(file.attr.size, 5);
    assert_eq!(node(&tree, "below"), below_node, "and keeps the one it got");
}

#[test]
fn our_own_mount_below_the_source_is_shown_as_what_it_covers() {
    let (dir, tree) = tree();
    let covered_ino = {
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        std::fs::metadata(dir.path().join("mnt")).unwrap().ino()
    };
    let covered = fs::open_root(&dir.path().join("mnt")).unwrap();
    std::fs::remove_dir(dir.path().join("mnt")).unwrap();
    // A tmpfs stands in for the FUSE mount: the shield goes by device number alone.
    let own = Submount::new(&dir.path().join("mnt"));
    let root = fs::open_root(&own.0).unwrap();
    tree.shield(fs::mount_of(root.as_fd()).unwrap().1, Some(covered));
    let entry = tree.lookup(NodeNo::ROOT, OsStr::new("mnt")).unwrap();
    assert_eq!(entry.attr.ino.0, covered_ino);
}

#[test]
fn attributes_of_every_namespace_come_and_go() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let file = node(&tree, "file");
    for name in ["user.a", "trusted.b", "security.c"] {
        let name = OsStr::new(name);
        tree.setxattr(ROOT, file, name, b"value", 0).unwrap();
        assert_eq!(
            errno(tree.setxattr(ROOT, file, name, b"", 1)),
            Errno::EXIST,
            "XATTR_CREATE"
        );
        assert_eq!(
            tree.getxattr(file, name, 64),
            Ok(Answer::Data(b"value".to_vec()))
        );
        tree.removexattr(ROOT, file, name).unwrap();
        assert_eq!(errno(tree.removexattr(ROOT, file, name)), Errno::NODATA);
    }
}

/// How many descriptors of this process lead below `dir`.
fn open_below(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(dir)))
        .count()
}

#[test]
fn many_known_inodes_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Loopback::open(dir.path(), &settings(64)).unwrap();
    let names: Vec<String> = (0..2000).map(|number| format!("file-{number}")).collect();
    for name in &names {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    let nodes: Vec<NodeNo> = names.iter().map(|name| node(&tree, name)).collect();
    assert_eq!(tree.known_inodes(), 2000);
    let open = open_below(dir.path());
    assert!(
        (1..=34).contains(&open),
        "{open} descriptors for 2,000 inodes"
    );
    for (node, name) in nodes.iter().zip(&names) {
        let handle = tree.open_file(*node, READ_WRITE, false).unwrap().handle;
        assert_eq!(tree.read(handle, 0, 64).unwrap(), name.as_bytes());
        tree.release(handle).unwrap();
        assert_eq!(tree.getattr(*node, None).unwrap().size, name.len() as u64);
    }
    for node in nodes {
        tree.forget(node, 1);
    }
    assert_eq!(tree.known_inodes(), 0);
}

/// Makes the tree close the descriptors of everything that it was asked for before.
fn use_others(dir: &Path, tree: &Loopback) {
    for number in 0..100 {
        let name = format!("other-{number}");
        std::fs::write(dir.join(&name), "").unwrap();
        node(tree, &name);
    }
}

#[test]
fn what_loses_its_last_name_stays_reachable_while_the_kernel_remembers_it() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Loopback::open(dir.path(), &settings(32)).unwrap();
    for name in ["unlinked", "replaced", "new", "linked"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    std::fs::create_dir(dir.path().join("removed")).unwrap();
    let gone = ["unlinked", "replaced", "removed"].map(|name| node(&tree, name));
    let linked = node(&tree, "linked");
    tree.link(ROOT, linked, NodeNo::ROOT, OsStr::new("again"))
        .unwrap()
        .lookup
        .into_kernel();
    use_others(dir.path(), &tree);
    tree.unlink(ROOT, NodeNo::ROOT, OsStr::new("unlinked"))
        .unwrap();
    tree.unlink(ROOT, NodeNo::ROOT, OsStr::new("linked"))
        .unwrap();
    tree.rmdir(ROOT, NodeNo::ROOT, OsStr::new("removed"))
        .unwrap();
    let (from, to) = (OsStr::new("new"), OsStr::new("replaced"));
    tree.rename(ROOT, (NodeNo::ROOT, from), (NodeNo::ROOT, to), 0)
        .unwrap();
    use_others(dir.path(), &tree);
    for node in gone {
        assert_eq!(tree.getattr(node, None).unwrap().nlink, 0);
    }
    assert_eq!(tree.getattr(linked, None).unwrap().nlink, 1);
}

/// Two names that go at once: neither removal can see that its own is the last.
#[test]
fn the_last_name_is_noticed_by_whoever_removes_it() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("a"), "").unwrap();
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    let inode = tree.table.get(node(&tree, "a")).unwrap();
    let going = [c"a", c"b"].map(|name| tree.going(&tree.root, name).unwrap().unwrap());
    std::fs::remove_file(dir.path().join("a")).unwrap();
    std::fs::remove_file(dir.path().join("b")).unwrap();
    assert!(!inode.is_kept());
    for going in going {
        going.gone().unwrap();
    }
    assert!(inode.is_kept());
}

/// A directory that is replaced in SRC at the last moment is not said to be removed: the kernel would never let
/// anybody into it again, wherever it is.
#[test]
fn a_directory_that_is_not_the_one_which_went_is_stale() {
    let (dir, tree) = tree();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("d")).unwrap();
    node(&tree, "d");
    let going = || tree.going(&tree.root, c"d");
    let first = going().unwrap().unwrap();
    std::fs::rename(path("d"), path("moved")).unwrap();
    std::fs::create_dir(path("d")).unwrap();
    assert_eq!(errno(going()), Errno::STALE, "the kernel has another one");
    std::fs::remove_dir(path("d")).unwrap();
    assert_eq!(errno(first.gone()), Errno::STALE);
    std::fs::create_dir(path("d")).unwrap();
    node(&tree, "d");
    let second = going().unwrap().unwrap();
    std::fs::remove_dir(path("d")).unwrap();
    second.gone().unwrap();
}

/// A name whose maker never sees it again has been somebody else's each time: that is no `ESTALE`.
#[test]
fn what_is_removed_each_time_it_is_made_exists() {
    let (dir, tree) = tree();
    let root = tree.inode(NodeNo::ROOT).unwrap();
    let (path, times) = (dir.path().join("name"), std::cell::Cell::new(0));
    let name = Name::new(OsStr::new("name")).unwrap();
    let make = |last: u32| {
        times.set(times.get() + 1);
        std::fs::create_dir(&path).unwrap();
        if times.get() < last {
            std::fs::remove_dir(&path).unwrap();
        }
        Ok(())
    };
    let made = tree.made(&root, &name, || make(u32::MAX), |_| true);
    assert_eq!(errno(made), Errno::EXIST);
    times.set(0);
    let made = tree.made(&root, &name, || make(20), |_| true).unwrap();
    assert_eq!(times.get(), 20);
    drop(made);
}

/// What is told of all that has happened, which is something.
fn told(changes: &mut watch::Changes<'_>) -> Vec<watch::Change> {
    let mut told = Vec::new();
    let _ = changes.next(|change| told.push(change));
    told
}

/// The kernel would believe an answer about its times that was given before.
#[test]
fn that_pages_were_written_back_is_told_like_what_others_do() {
    let (dir, tree) = tree();
    std::fs::write(dir.path().join("file"), "hello").unwrap();
    tree.watch().unwrap();
    let mut changes = tree.changes().unwrap();
    let file = node(&tree, "file");
    let open = tree.open_for_now(file, READ_WRITE).unwrap();
    let write = || tree.write(None, open.handle(), 0, b"HELLO", PLAIN).unwrap();
    write();
    assert_eq!(told(&mut changes), []);
    tree.writes_back(file);
    write();
    assert_eq!(told(&mut changes), [watch::Change::Attributes(file)]);
}

/// The kernel has the inode there that it knew by the first name.
#[test]
fn a_name_that_is_moved_where_others_were_is_told() {
    let (dir, tree) = tree();
    for name in ["a", "b", "c"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    tree.watch().unwrap();
    let mut changes = tree.changes().unwrap();
    let nodes = ["a", "b", "c"].map(|name| node(&tree, name));
    let rename = |from: &str, to: &str| {
        let [from, to] = [from, to].map(|name| (NodeNo::ROOT, OsStr::new(name)));
        tree.rename(ROOT, from, to, 0).unwrap();
    };
    rename("c", "d");
    assert_eq!(told(&mut changes), []);
    let status = std::process::Command::new("mv")
        .args(["b", "a"])
        .current_dir(dir.path())
        .status();
    assert!(status.unwrap().success());
    assert!(!told(&mut changes).is_empty());
    rename("a", "e");
    let told = told(&mut changes);
    let moved_to = watch::Change::Name(NodeNo::ROOT, "e".into());
    assert!(told.contains(&moved_to), "{told:?}");
    assert!(
        told.contains(&watch::Change::Attributes(nodes[1])),
        "{told:?}"
    );
}
