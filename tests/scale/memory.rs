//! What the table of inodes costs in memory, without a mount: measured in this process, many at a time.
//! `scripts/measure-inodes` measures a whole daemon.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use loopfs::loopback::inode::{Inode, NodeNo, Release};
use loopfs::loopback::table::Table;
use loopfs::loopback::tally::Counting;
use loopfs::sys::fs::{open_root, stat};
use loopfs::sys::handle::Handle;

/// The memory of this process without what it maps of files, in bytes.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    1024 * kib.parse::<usize>().unwrap()
}

/// An inode of the directory `/` under any number, with its descriptor closed or kept.
fn inode(number: u64, with_handle: bool) -> Inode {
    let object = open_root(Path::new("/")).unwrap();
    let stat = stat(object.as_fd()).unwrap();
    let handle = Handle::of(object.as_fd()).unwrap();
    let inode = Inode::new(NodeNo(number), &stat, object, with_handle.then_some(handle));
    if with_handle {
        assert!(matches!(inode.release(), Release::Free(Some(_))));
    }
    inode
}

/// Less than 180 bytes for an inode that is known, and none when it is forgotten.
#[test]
fn an_inode_costs_little_memory_and_none_when_it_is_forgotten() {
    const MANY: u64 = 300_000;
    let table = Arc::new(Table::new(Arc::new(inode(1, false)), Counting::Here));
    let before = memory();
    for number in 2..MANY {
        table.take(inode(number, true)).0.into_kernel();
    }
    let known = memory() - before;
    let each = known as u64 / MANY;
    assert!((50..180).contains(&each), "{each} bytes");
    for number in 2..MANY {
        table.give_back(NodeNo(number), 1);
    }
    assert!(table.is_empty());
    let rest = memory().saturating_sub(before);
    assert!(rest < known / 4, "{rest} of {known} bytes are left");
}
