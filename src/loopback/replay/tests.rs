//! Each operation is killed at every point (before and after each store, so that its system call was made or was not),
//! not answered, asked for again of the next process, and must come out as if it had been asked for once.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::*;
use crate::loopback::attr::Changes;
use crate::loopback::dir::Room;
use crate::loopback::inode::NodeNo;
use crate::loopback::lookup::Entry;
use crate::loopback::recover::tests::{House, ROOT, kill, new};
use crate::survive::kill::killed_after;
use crate::sys::fs::WriteMode;

const USER: Caller = Caller {
    uid: 4321,
    gid: 4322,
    pid: 0,
};
const READ_WRITE: i32 = 2; // O_RDWR, open(2)
const PLAIN: WriteMode = WriteMode {
    append: false,
    sync: false,
};
const APPENDING: WriteMode = WriteMode {
    append: true,
    sync: false,
};
const FIRST: u64 = 10;
const AGAIN: u64 = FIRST | 1 << 63;

/// Everything in a directory: path to type and permissions, links, owner, size and contents.
type Picture = BTreeMap<String, (u32, u64, u32, Vec<u8>)>;

fn picture(dir: &Path) -> Picture {
    let mut found = Picture::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            let contents = if stat.is_symlink() {
                path.read_link()
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if stat.is_file() {
                std::fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if stat.is_dir() {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            // How many links a directory has is the file system's affair.
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            found.insert(name, (stat.mode(), links, stat.uid(), contents));
        }
    }
    found
}

/// How often each operation is killed where it has not been answered.
#[derive(Debug, Default)]
struct Seen {
    killed: u64,
    unanswered: u64,
}

/// Asks for something with a kill at every point. `prepare` makes what is there before; what `ask` answers is compared
/// with an answer that nobody cut short.
fn exactly_once<P, T: PartialEq + Debug>(
    prepare: impl Fn(&Loopback, &Path) -> P,
    ask: impl Fn(&Loopback, &P) -> Result<T>,
) {
    let (answer, after, held) = {
        let house = House::new();
        let tree = house.serve();
        let prepared = prepare(&tree, house.dir.path());
        let answer = ask(&tree, &prepared).unwrap();
        let held = (tree.known_inodes(), tree.open_handles());
        (answer, picture(house.dir.path()), held)
    };
    let mut seen = Seen::default();
    for points in 0.. {
        let house = House::new();
        let tree = house.serve();
        let prepared = prepare(&tree, house.dir.path());
        let done = killed_after(points, || {
            let (slot, _) = tree.begin(FIRST).unwrap();
            let in_hand = slot.enter();
            let answer = ask(&tree, &prepared);
            drop(in_hand);
            // Not answered: it stays as it is.
            std::mem::forget(slot);
            answer.map(drop)
        });
        kill(tree);
        // The next process may be killed as well, before it has done more than read the request.
        kill(house.serve());

        let tree = house.serve();
        let (slot, closed) = tree.begin(AGAIN).unwrap();
        assert!(closed.is_none(), "taken back before");
        let in_hand = slot.enter();
        let again = ask(&tree, &prepared);
        drop(in_hand);
        slot.sending();
        drop(slot);
        assert_eq!(again.unwrap(), answer, "killed after {points}");
        assert_eq!(picture(house.dir.path()), after, "killed after {points}");
        let now = (tree.known_inodes(), tree.open_handles());
        assert_eq!(now, held, "killed after {points}");
        kill(tree);
        let tree = house.serve();
        let now = (tree.known_inodes(), tree.open_handles());
        assert_eq!(now, held, "in the process after, killed after {points}");
        match done {
            None => seen.killed += 1,
            Some(done) => {
                done.unwrap();
                seen.unanswered += 1;
                break;
            }
        }
    }
    assert!(seen.killed > 1 && seen.unanswered == 1, "{seen:?}");
}

/// As fuse/reply.rs does it: the count is the kernel's.
fn answered(entry: Entry) -> (NodeNo, u32) {
    let attr = entry.attr;
    entry.lookup.into_kernel();
    let here = attr.ino;
    // Numbers are other ones in each directory that a test makes.
    (NodeNo(u64::from(here == NodeNo::ROOT)), attr.nlink)
}

fn node(tree: &Loopback, name: &str) -> NodeNo {
    let entry = tree.lookup(NodeNo::ROOT, OsStr::new(name)).unwrap();
    entry.lookup.into_kernel();
    entry.attr.ino
}

fn nothing(_: &Loopback, dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777)).unwrap();
}

#[test]
fn lookup_gives_one_count() {
    exactly_once(
        |_, dir| std::fs::write(dir.join("file"), "").unwrap(),
        |tree, ()| tree.lookup(NodeNo::ROOT, OsStr::new("file")).map(answered),
    );
}

#[test]
fn readdirplus_gives_one_count_for_each() {
    exactly_once(
        |tree, dir| {
            for number in 0..20 {
                std::fs::write(dir.join(format!("file{number}")), "").unwrap();
            }
            tree.opendir(NodeNo::ROOT, 0).unwrap().handle
        },
        |tree, handle| {
            let lookups = tree.readdirplus(*handle, 0, |_, _| Room::Taken)?;
            let count = lookups.len();
            for lookup in lookups {
                lookup.into_kernel();
            }
            Ok(count)
        },
    );
}

#[test]
fn readdirplus_that_was_full_gives_no_count_for_what_had_no_room() {
    exactly_once(
        |tree, dir| {
            for number in 0..9 {
                std::fs::write(dir.join(format!("file{number}")), "").unwrap();
            }
            tree.opendir(NodeNo::ROOT, 0).unwrap().handle
        },
        |tree, handle| {
            let mut room = 6;
            let lookups = tree.readdirplus(*handle, 0, |_, _| {
                room -= 1;
                if room < 0 { Room::Full } else { Room::Taken }
            })?;
            for lookup in lookups {
                lookup.into_kernel();
            }
            Ok(())
        },
    );
}

#[test]
fn open_and_opendir_make_one_handle() {
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("file"), "").unwrap();
            node(tree, "file")
        },
        |tree, file| tree.open_file(*file, READ_WRITE, false).map(drop),
    );
    exactly_once(nothing, |tree, ()| tree.opendir(NodeNo::ROOT, 0).map(drop));
}

#[test]
fn create_makes_one_file_and_one_handle() {
    for (exclusive, mode) in [(true, 0o100_444), (false, 0o100_600)] {
        exactly_once(nothing, |tree, ()| {
            let created =
                tree.create(USER, new(NodeNo::ROOT, "file", mode), READ_WRITE, exclusive)?;
            let written = tree.write(Some(USER), created.opened.handle, 0, b"x", PLAIN);
            assert!(written.is_ok());
            Ok(answered(created.entry))
        });
    }
}

#[test]
fn mkdir_mknod_and_symlink_make_one_name() {
    exactly_once(nothing, |tree, ()| {
        let made = tree.mkdir(USER, new(NodeNo::ROOT, "dir", 0o40_755));
        made.map(|entry| answered(entry).0)
    });
    exactly_once(nothing, |tree, ()| {
        tree.mknod(USER, new(NodeNo::ROOT, "fifo", 0o10_644), (0, 0))
            .map(answered)
    });
    exactly_once(nothing, |tree, ()| {
        let (name, target) = (OsStr::new("link"), OsStr::new("to"));
        tree.symlink(USER, NodeNo::ROOT, name, target).map(answered)
    });
}

#[test]
fn link_makes_one_name() {
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("one"), "").unwrap();
            node(tree, "one")
        },
        |tree, one| {
            tree.link(ROOT, *one, NodeNo::ROOT, OsStr::new("two"))
                .map(answered)
        },
    );
}

#[test]
fn unlink_and_rmdir_succeed_once() {
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("file"), "").unwrap();
            node(tree, "file");
        },
        |tree, ()| tree.unlink(ROOT, NodeNo::ROOT, OsStr::new("file")),
    );
    exactly_once(
        |tree, dir| {
            std::fs::create_dir(dir.join("dir")).unwrap();
            node(tree, "dir");
        },
        |tree, ()| tree.rmdir(ROOT, NodeNo::ROOT, OsStr::new("dir")),
    );
}

#[test]
fn an_open_file_whose_last_name_goes_is_read_by_the_next_process() {
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("file"), "contents").unwrap();
            std::fs::write(dir.join("other"), "other").unwrap();
            let file = node(tree, "file");
            (
                file,
                tree.open_file(file, READ_WRITE, false).unwrap().handle,
            )
        },
        |tree, (file, handle)| {
            let name = OsStr::new("file");
            tree.unlink(ROOT, NodeNo::ROOT, name)?;
            let links = tree.getattr(*file, None)?.nlink;
            Ok((tree.read(*handle, 0, 99)?, links))
        },
    );
}

/// Where the kernel opens files without a word, any that it remembers may be open.
#[test]
fn a_file_that_may_be_open_is_found_by_the_next_process_when_its_last_name_has_gone() {
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("file"), "contents").unwrap();
            node(tree, "file")
        },
        |tree, file| {
            tree.opens_are_unheard();
            tree.unlink(ROOT, NodeNo::ROOT, OsStr::new("file"))?;
            let open = tree.open_for_now(*file, READ_WRITE)?;
            tree.read(open.handle(), 0, 99)
        },
    );
}

fn two_files(tree: &Loopback, dir: &Path) {
    std::fs::write(dir.join("one"), "1").unwrap();
    std::fs::write(dir.join("two"), "2").unwrap();
    node(tree, "one");
    node(tree, "two");
}

fn rename(tree: &Loopback, (from, to): (&str, &str), flags: RenameFlags) -> Result<()> {
    let name = |name| (NodeNo::ROOT, OsStr::new(name));
    tree.rename(ROOT, name(from), name(to), flags.bits())
}

#[test]
fn rename_moves_once() {
    exactly_once(two_files, |tree, ()| {
        rename(tree, ("one", "two"), RenameFlags::empty())
    });
    exactly_once(two_files, |tree, ()| {
        rename(tree, ("one", "three"), RenameFlags::NOREPLACE)
    });
    exactly_once(two_files, |tree, ()| {
        rename(tree, ("one", "two"), RenameFlags::EXCHANGE)
    });
    exactly_once(two_files, |tree, ()| {
        rename(tree, ("one", "three"), RenameFlags::WHITEOUT)
    });
    // Two names of one file stay.
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("one"), "1").unwrap();
            std::fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
            node(tree, "one");
        },
        |tree, ()| rename(tree, ("one", "two"), RenameFlags::empty()),
    );
}

#[test]
fn an_append_is_written_once() {
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("file"), "before ").unwrap();
            let file = node(tree, "file");
            let write_only = 1; // O_WRONLY, open(2)
            tree.open_file(file, write_only, false).unwrap().handle
        },
        |tree, handle| tree.write(Some(USER), *handle, 0, b"appended", APPENDING),
    );
}

/// A kill may cut a long write short.
#[test]
fn the_rest_of_an_append_is_written() {
    let house = House::new();
    let path = house.dir.path().join("file");
    std::fs::write(&path, "before ").unwrap();
    let tree = house.serve();
    let handle = tree
        .open_file(node(&tree, "file"), READ_WRITE, false)
        .unwrap()
        .handle;
    let (slot, _) = tree.begin(FIRST).unwrap();
    let in_hand = slot.enter();
    let file = tree.file(handle).unwrap();
    assert_eq!(tree.appended(file.file(), b"appended"), Ok(Appended(0)));
    std::fs::write(&path, "before app").unwrap();
    drop((in_hand, file));
    std::mem::forget(slot);
    kill(tree);
    let tree = house.serve();
    let (slot, _) = tree.begin(AGAIN).unwrap();
    let in_hand = slot.enter();
    let written = tree.write(Some(ROOT), handle, 0, b"appended", APPENDING);
    assert_eq!(written, Ok(8));
    assert_eq!(std::fs::read(&path).unwrap(), b"before appended");
    // Somebody else's data is no reason not to write ours.
    drop((in_hand, slot));
    let (slot, _) = tree.begin(FIRST + 2).unwrap();
    let in_hand = slot.enter();
    let file = tree.file(handle).unwrap();
    assert_eq!(tree.appended(file.file(), b"more"), Ok(Appended(0)));
    std::fs::write(&path, "before appended by others").unwrap();
    drop((in_hand, file));
    std::mem::forget(slot);
    kill(tree);
    let tree = house.serve();
    let (slot, _) = tree.begin((FIRST + 2) | 1 << 63).unwrap();
    let in_hand = slot.enter();
    let written = tree.write(Some(ROOT), handle, 0, b"more", APPENDING);
    assert_eq!(written, Ok(4));
    drop((in_hand, slot));
    assert_eq!(
        std::fs::read(&path).unwrap(),
        b"before appended by othersmore"
    );
}

fn is_on_ext4_or_xfs(dir: &Path) -> bool {
    let root = fs::open_root(dir).unwrap();
    [0xef53, 0x5846_5342].contains(&fs::filesystem_type(root.as_fd()).unwrap())
}

#[test]
fn a_range_is_cut_out_once() {
    const BLOCK: u64 = 4096;
    const BYTES: usize = 4096;
    let collapse = 8; // FALLOC_FL_COLLAPSE_RANGE, fallocate(2)
    let house = House::new();
    std::fs::write(house.dir.path().join("file"), [0; 3 * BYTES]).unwrap();
    let tree = house.serve();
    let handle = tree
        .open_file(node(&tree, "file"), READ_WRITE, false)
        .unwrap()
        .handle;
    if tree.fallocate(ROOT, handle, collapse, 0, BLOCK).is_err() {
        // Of the file systems that a temporary directory may be on, tmpfs and btrfs have no such thing.
        assert!(!is_on_ext4_or_xfs(house.dir.path()));
        return;
    }
    let prepare = |tree: &Loopback, dir: &Path| {
        let blocks = (1..=4).flat_map(|number| [number; BYTES]);
        std::fs::write(dir.join("file"), blocks.collect::<Vec<u8>>()).unwrap();
        tree.open_file(node(tree, "file"), READ_WRITE, false)
            .unwrap()
            .handle
    };
    exactly_once(prepare, |tree, handle| {
        tree.fallocate(ROOT, *handle, collapse, BLOCK, BLOCK)
    });
    let insert = 32; // FALLOC_FL_INSERT_RANGE
    exactly_once(prepare, |tree, handle| {
        tree.fallocate(ROOT, *handle, insert, BLOCK, BLOCK)
    });
}

#[test]
fn an_attribute_is_made_and_removed_once() {
    let name = OsStr::new("user.test");
    let create = 1; // XATTR_CREATE, setxattr(2)
    let prepare = |tree: &Loopback, dir: &Path| {
        std::fs::write(dir.join("file"), "").unwrap();
        node(tree, "file")
    };
    for value in [&b"value"[..], b""] {
        exactly_once(prepare, |tree, file| {
            tree.setxattr(ROOT, *file, name, value, create)?;
            tree.getxattr(*file, name, 100)
        });
    }
    let prepare = |tree: &Loopback, dir: &Path| {
        let file = prepare(tree, dir);
        tree.setxattr(ROOT, file, name, b"value", create).unwrap();
        file
    };
    exactly_once(prepare, |tree, file| {
        tree.removexattr(ROOT, *file, name)?;
        tree.listxattr(ROOT, *file, 100)
    });
    let replace = 2; // XATTR_REPLACE
    exactly_once(prepare, |tree, file| {
        tree.setxattr(ROOT, *file, name, b"new", replace)?;
        tree.getxattr(*file, name, 100)
    });
}

#[test]
fn attributes_are_the_same_when_they_are_set_twice() {
    let changes = Changes {
        mode: Some(0o640),
        uid: Some(77),
        size: Some(3),
        ..Changes::default()
    };
    exactly_once(
        |tree, dir| {
            std::fs::write(dir.join("file"), "contents").unwrap();
            node(tree, "file")
        },
        |tree, file| {
            let attr = tree.setattr(ROOT, *file, &changes, None)?;
            Ok((attr.perm, attr.uid, attr.size))
        },
    );
}

/// What was not done by this very request is an error, as it would have been.
#[test]
fn what_others_made_is_not_taken_for_ours() {
    let house = House::new();
    let tree = house.serve();
    nothing(&tree, house.dir.path());
    let (slot, _) = tree.begin(FIRST).unwrap();
    let in_hand = slot.enter();
    tree.making();
    drop(in_hand);
    std::mem::forget(slot);
    kill(tree);
    // Another user's, a second name of an older one, and something of another type.
    let path = |name| house.dir.path().join(name);
    std::fs::write(path("theirs"), "secret").unwrap();
    std::fs::create_dir(path("dir")).unwrap();
    std::fs::write(path("one"), "").unwrap();
    std::os::unix::fs::chown(path("one"), Some(USER.uid), None).unwrap();
    std::fs::hard_link(path("one"), path("two")).unwrap();
    let tree = house.serve();
    let (slot, _) = tree.begin(AGAIN).unwrap();
    let in_hand = slot.enter();
    for name in ["theirs", "dir", "two"] {
        let file = new(NodeNo::ROOT, name, 0o100_600);
        let error = tree.create(USER, file, READ_WRITE, true).unwrap_err();
        assert_eq!(error.errno(), Errno::EXIST, "{name}");
    }
    let (name, target) = (OsStr::new("theirs"), OsStr::new("to"));
    let error = tree.symlink(USER, NodeNo::ROOT, name, target);
    assert_eq!(error.unwrap_err().errno(), Errno::EXIST);
    // A name that was not there in the first place.
    drop((in_hand, slot));
    let ask = |tree: &Loopback| tree.unlink(ROOT, NodeNo::ROOT, OsStr::new("none"));
    let (slot, _) = tree.begin(FIRST + 4).unwrap();
    let in_hand = slot.enter();
    assert_eq!(ask(&tree).unwrap_err().errno(), Errno::NOENT);
    drop(in_hand);
    std::mem::forget(slot);
    kill(tree);
    let tree = house.serve();
    let (slot, _) = tree.begin((FIRST + 4) | 1 << 63).unwrap();
    let _in_hand = slot.enter();
    assert_eq!(ask(&tree).unwrap_err().errno(), Errno::NOENT);
}
