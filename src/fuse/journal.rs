//! What requests leave half-done if this process is killed, noted for the next one (`--supervise`).

use super::backing::Backings;
use crate::loopback::Loopback;
use crate::loopback::inode::NodeNo;
use crate::op::Op;
use crate::survive::Slot;
use crate::sync::Arc;
use crate::sys::fs::open_flags;

/// Where it is noted.
#[derive(Debug)]
pub(super) struct Journal {
    tree: Arc<Loopback>,
    backings: Arc<Backings>,
}

impl Journal {
    /// For a tree that is to survive this process; `None` for any other.
    pub(super) fn new(tree: &Arc<Loopback>, backings: &Arc<Backings>) -> Option<Self> {
        tree.survives().then(|| Self {
            tree: Arc::clone(tree),
            backings: Arc::clone(backings),
        })
    }

    /// A request is taken up, perhaps for a second time: then what its answer had given is taken back first. `None`
    /// if it leaves nothing half-done.
    pub(super) fn begin(&self, unique: u64, op: Op) -> Option<Slot> {
        if !leaves_traces(op) {
            return None;
        }
        let (slot, closed) = self.tree.begin(unique)?;
        if let Some(file) = closed.filter(|open| !open.directory) {
            let writes = open_flags::writes(file.flags);
            drop(self.backings.released(NodeNo(file.node), writes, || {}));
            self.tree.let_go(file.number);
        }
        Some(slot)
    }
}

/// Whether an operation gives something with its answer, or must not be done twice.
fn leaves_traces(op: Op) -> bool {
    match op {
        Op::Lookup
        | Op::Readdirplus
        | Op::Open
        | Op::Opendir
        | Op::Create
        | Op::Mkdir
        | Op::Mknod
        | Op::Symlink
        | Op::Link
        | Op::Unlink
        | Op::Rmdir
        | Op::Rename
        | Op::Setxattr
        | Op::Removexattr
        | Op::Write
        | Op::Fallocate => true,
        Op::Forget
        | Op::BatchForget
        | Op::Getattr
        | Op::Setattr
        | Op::Readlink
        | Op::Read
        | Op::Flush
        | Op::Release
        | Op::Fsync
        | Op::Readdir
        | Op::Releasedir
        | Op::Fsyncdir
        | Op::Statfs
        | Op::Getxattr
        | Op::Listxattr
        | Op::Access
        | Op::Lseek
        | Op::CopyFileRange
        | Op::Ioctl
        | Op::Getlk
        | Op::Setlk
        | Op::Setlkw => false,
    }
}
