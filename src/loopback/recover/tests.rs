//! A tree that is dropped as a kill leaves it, and opened again from what was recorded.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::error::Errno;
use crate::loopback::Caller;
use crate::loopback::create::NewName;
use crate::loopback::dir::Room;
use crate::survive::Keeper;
use crate::sync::lock;
use crate::sys::fs::WriteMode;

pub(crate) const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const PLAIN: WriteMode = WriteMode {
    append: false,
    sync: false,
};
const READ_WRITE: i32 = 2; // O_RDWR, open(2)

/// A keeper as the supervisor is one.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<HashMap<u64, OwnedFd>>);

impl Keeper for Kept {
    fn keep(&self, node: u64, object: BorrowedFd<'_>) -> std::io::Result<()> {
        lock(&self.0).insert(node, object.try_clone_to_owned()?);
        Ok(())
    }

    fn give_up(&self, node: u64) {
        lock(&self.0).remove(&node);
    }
}

/// A directory, and one process after the other that serves it.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keeper: Arc<Kept>,
    state: Arc<State>,
}

impl House {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            keeper: Arc::default(),
            state: Arc::new(State::create().unwrap()),
        }
    }

    /// The next process.
    pub(crate) fn serve(&self) -> Loopback {
        let memory = self.state.as_fd().try_clone_to_owned().unwrap();
        let kept = lock(&self.keeper.0);
        let kept = kept
            .iter()
            .map(|(node, object)| (*node, object.try_clone().unwrap()));
        let survival = Survival {
            state: Arc::new(State::open(memory).unwrap()),
            keeper: Arc::clone(&self.keeper) as Arc<dyn Keeper>,
            kept: kept.collect(),
        };
        let settings = Settings {
            file_limit: 1024,
            one_file_system: false,
            noatime: false,
        };
        Loopback::open_to_survive(self.dir.path(), &settings, survival).unwrap()
    }
}

/// Gone without a word, and with everything that it has open.
pub(crate) fn kill(tree: Loopback) {
    drop(tree);
}

pub(crate) fn new(parent: NodeNo, name: &str, mode: u32) -> NewName<'_> {
    NewName {
        parent,
        name: OsStr::new(name),
        mode,
        umask: 0,
    }
}

#[test]
fn inodes_counts_and_open_files_are_there_for_the_next_process() {
    let house = House::new();
    std::fs::create_dir(house.dir.path().join("dir")).unwrap();
    std::fs::write(house.dir.path().join("dir/old"), "old").unwrap();
    let tree = house.serve();
    let dir = tree.lookup(NodeNo::ROOT, OsStr::new("dir")).unwrap();
    let dir_node = dir.attr.ino;
    dir.lookup.into_kernel();
    let file = new(dir_node, "new", 0o100_640);
    let created = tree.create(ROOT, file, READ_WRITE, true).unwrap();
    let (node, handle) = (created.entry.attr.ino, created.opened.handle);
    let generation = created.entry.lookup.inode().generation();
    created.entry.lookup.into_kernel();
    tree.write(Some(ROOT), handle, 0, b"hello", PLAIN).unwrap();
    let listing = tree.opendir(dir_node, 0).unwrap().handle;
    let lookups = tree.readdirplus(listing, 0, |_, _| Room::Taken).unwrap();
    for count in lookups {
        count.into_kernel();
    }
    kill(tree);

    let tree = house.serve();
    assert_eq!((tree.known_inodes(), tree.open_handles()), (3, 2));
    assert_eq!(tree.read(handle, 0, 100).unwrap(), b"hello");
    tree.write(Some(ROOT), handle, 5, b" again", PLAIN).unwrap();
    assert_eq!(tree.getattr(node, None).unwrap().size, 11);
    let mut names = Vec::new();
    tree.readdir(listing, 0, |listed| {
        names.push(listed.name.to_owned());
        Room::Taken
    })
    .unwrap();
    names.sort();
    assert_eq!(names, [".", "..", "new", "old"]);
    let again = tree.lookup(dir_node, OsStr::new("new")).unwrap();
    let inode = again.lookup.inode();
    assert_eq!((inode.number(), inode.generation()), (node, generation));
    drop(again);
    tree.release(handle).unwrap();
    tree.releasedir(listing).unwrap();
    tree.forget(node, 2);
    tree.forget(dir_node, 1);
    let old = std::fs::metadata(house.dir.path().join("dir/old"));
    tree.forget(NodeNo(old.unwrap().ino()), 1);
    assert_eq!((tree.known_inodes(), tree.open_handles()), (0, 0));
    kill(tree);
    let tree = house.serve();
    assert_eq!((tree.known_inodes(), tree.open_handles()), (0, 0));
    assert_eq!(tree.read(handle, 0, 1).unwrap_err().errno(), Errno::BADF);
}

/// What others do to an inode is told by its handle.
#[test]
fn what_was_known_before_is_found_by_its_handle() {
    let house = House::new();
    std::fs::write(house.dir.path().join("file"), "").unwrap();
    let tree = house.serve();
    let found = tree.lookup(NodeNo::ROOT, OsStr::new("file")).unwrap();
    let (node, inode) = (found.attr.ino, Arc::clone(found.lookup.inode()));
    found.lookup.into_kernel();
    kill(tree);
    let tree = house.serve();
    tree.table.index_by_handle();
    let handle = inode.handle().unwrap();
    assert_eq!(tree.table.by_handle(handle).unwrap().number(), node);
}

#[test]
fn another_directory_is_refused() {
    let (house, other) = (House::new(), House::new());
    kill(house.serve());
    let memory = house.state.as_fd().try_clone_to_owned().unwrap();
    let survival = Survival {
        state: Arc::new(State::open(memory).unwrap()),
        keeper: Arc::clone(&house.keeper) as Arc<dyn Keeper>,
        kept: HashMap::new(),
    };
    let settings = Settings {
        file_limit: 1024,
        one_file_system: false,
        noatime: false,
    };
    let opened = Loopback::open_to_survive(other.dir.path(), &settings, survival);
    assert!(matches!(
        opened.unwrap_err(),
        Unopened::State(Unreadable::OtherSource)
    ));
}

/// What the kernel does not know any more is dropped, and its count nevertheless taken down when that comes back later.
#[test]
fn a_count_that_was_set_aside_is_neither_lost_nor_in_the_way() {
    let house = House::new();
    for name in ["a", "b"] {
        std::fs::write(house.dir.path().join(name), "").unwrap();
    }
    let tree = house.serve();
    let look = |tree: &Loopback, name: &str| {
        let found = tree.lookup(NodeNo::ROOT, OsStr::new(name)).unwrap();
        let node = found.attr.ino;
        found.lookup.into_kernel();
        node
    };
    let (a, b) = (look(&tree, "a"), look(&tree, "b"));
    assert_eq!(tree.inherited(), [], "it has counted them itself");
    assert!(!tree.set_aside(a));
    kill(tree);

    let tree = house.serve();
    assert!(!tree.set_aside(a), "it was not asked for");
    assert_eq!(tree.inherited().len(), 2);
    look(&tree, "b");
    assert!(!tree.set_aside(b), "its count has changed");
    let in_use = tree.inode(a).unwrap();
    assert!(!tree.set_aside(a), "it is in use");
    drop(in_use);
    assert!(tree.set_aside(a) && !tree.set_aside(a));
    assert_eq!(tree.known_inodes(), 1);
    assert_eq!(tree.getattr(a, None).unwrap_err().errno(), Errno::STALE);
    kill(tree);

    // Looked up again: then the old count comes back late, and takes nothing from the new one.
    let tree = house.serve();
    assert_eq!((tree.known_inodes(), tree.inherited()), (1, vec![b]));
    look(&tree, "a");
    tree.forget(a, 1);
    assert!(tree.getattr(a, None).is_ok());
    tree.forget(a, 1);
    assert_eq!(tree.known_inodes(), 1);
    assert_eq!(tree.inherited(), [b]);
    // Not looked up again, but some of it given back, and the rest in another process.
    tree.forget(b, 1);
    assert!(!tree.set_aside(b), "its count has changed");
    kill(tree);
    let tree = house.serve();
    look(&tree, "b");
    kill(tree);
    let tree = house.serve();
    assert_eq!(tree.inherited(), [b]);
    assert!(tree.set_aside(b));
    tree.forget(b, 1);
    assert_eq!(tree.known_inodes(), 0);
    kill(tree);
    let tree = house.serve();
    tree.forget(b, 1);
    look(&tree, "b");
    tree.forget(b, 1);
    assert_eq!(tree.known_inodes(), 0, "nothing of it was left");
}

/// A FORGET that was lost is missing also where the inode is looked up again: by the next process, or after it was set aside.
#[test]
fn a_count_that_was_added_to_may_be_too_high_still() {
    let house = House::new();
    std::fs::write(house.dir.path().join("file"), "").unwrap();
    let look = |tree: &Loopback| {
        let found = tree.lookup(NodeNo::ROOT, OsStr::new("file")).unwrap();
        let node = found.attr.ino;
        found.lookup.into_kernel();
        node
    };
    let tree = house.serve();
    let node = look(&tree);
    assert!(!tree.may_inherit());
    kill(tree);

    let tree = house.serve();
    look(&tree);
    tree.forget(node, 1);
    assert_eq!(tree.inherited(), [node]);
    assert!(tree.set_aside(node));
    assert_eq!((tree.inherited(), tree.may_inherit()), (vec![], true));
    look(&tree);
    tree.forget(node, 1);
    assert_eq!(tree.inherited(), [node]);
    assert!(tree.set_aside(node));
    tree.forget(node, 1);
    assert_eq!((tree.inherited(), tree.may_inherit()), (vec![], false));
    // Now all is from this process.
    look(&tree);
    assert_eq!(tree.inherited(), []);
    tree.forget(node, 1);
    assert_eq!(tree.known_inodes(), 0);
}

/// What is kept of an inode without a name is given up with it.
#[test]
fn what_was_kept_of_it_is_given_up() {
    let house = House::new();
    let tree = house.serve();
    let file = new(NodeNo::ROOT, "file", 0o100_640);
    let created = tree.create(ROOT, file, READ_WRITE, true).unwrap();
    let (node, handle) = (created.entry.attr.ino, created.opened.handle);
    created.entry.lookup.into_kernel();
    tree.unlink(ROOT, NodeNo::ROOT, OsStr::new("file")).unwrap();
    tree.release(handle).unwrap();
    kill(tree);
    assert_eq!(lock(&house.keeper.0).len(), 1);
    let tree = house.serve();
    assert_eq!(tree.inherited(), [node]);
    assert!(tree.set_aside(node));
    assert_eq!(lock(&house.keeper.0).len(), 0);
    kill(tree);
    let tree = house.serve();
    tree.forget(node, 1);
    assert_eq!(tree.known_inodes(), 0);
}
