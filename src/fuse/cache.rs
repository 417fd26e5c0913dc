//! What the kernel remembers of inodes, where it is to forget that: notifications that any thread may send.

use std::io;

use fuser::{INodeNo, Notifier};

use crate::loopback::inode::NodeNo;
use crate::sync::OnceLock;

/// The kernel's cache, once there is a connection.
#[derive(Debug, Default)]
pub(super) struct KernelCache {
    notifier: OnceLock<Notifier>,
}

impl KernelCache {
    /// This is how the kernel is told.
    pub(super) fn connected(&self, notifier: Notifier) {
        // There is one connection: a second call could only come from a bug in this module's owner.
        let _ = self.notifier.set(notifier);
    }

    /// Has it ask anew for the attributes of an inode. It waits for nobody (`fuse_reverse_inval_inode` with
    /// a negative offset), so a request that has one of its own under way may do it. If it fails there is no
    /// connection any more.
    pub(super) fn drop_attributes(&self, node: NodeNo) {
        // ENOENT: it remembers nothing of it.
        if let Err(error) = self.tell(node, -1)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("the kernel's attributes of node {}: {error}", node.0);
        }
    }

    /// Has it throw away contents as well, after writing them back: not from an event loop, which that
    /// may need.
    pub(super) fn drop_contents(&self, node: NodeNo) -> io::Result<()> {
        self.tell(node, 0)
    }

    fn tell(&self, node: NodeNo, offset: i64) -> io::Result<()> {
        match self.notifier.get() {
            Some(notifier) => notifier.inval_inode(INodeNo(node.0), offset, 0),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}
