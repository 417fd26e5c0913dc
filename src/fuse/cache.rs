//! What the kernel remembers of inodes, where it is to forget that: notifications that any thread may send.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use fuser::{INodeNo, Notifier};

use super::line::Line;
use crate::loopback::inode::NodeNo;
use crate::sync::{Arc, OnceLock, Weak};
use crate::sys::notify;

/// The kernel's cache, once there is a connection.
#[derive(Debug, Default)]
pub(super) struct KernelCache {
    notifier: OnceLock<Notifier>,
    /// What it goes through, while it is served.
    device: OnceLock<Weak<OwnedFd>>,
}

impl KernelCache {
    /// This is how the kernel is told.
    pub(super) fn connected(&self, notifier: Notifier, device: &Arc<OwnedFd>) {
        // There is one connection: a second call could only come from a bug in this module's owner.
        let _ = self.notifier.set(notifier);
        let _ = self.device.set(Arc::downgrade(device));
    }

    /// Has it ask anew for the attributes of an inode. It waits for nobody (`fuse_reverse_inval_inode` with
    /// a negative offset), so a request that has one of its own under way may do it. If it fails there is no
    /// connection any more.
    pub(super) fn drop_attributes(&self, node: NodeNo) {
        let told = match self.notifier.get() {
            Some(notifier) => notifier.inval_inode(INodeNo(node.0), -1, 0),
            None => Err(not_connected()),
        };
        // ENOENT: it remembers nothing of it.
        if let Err(error) = told
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("the kernel's attributes of node {}: {error}", node.0);
        }
    }

    /// Has it throw away contents as well, after writing them back: not from an event loop, which that
    /// may need. What is told on a line of its own does not keep this process from ending; the wait for that does not either.
    pub(super) fn drop_contents(&self, node: NodeNo) -> io::Result<()> {
        let device = self.device.get().and_then(Weak::upgrade);
        let device = device.ok_or_else(not_connected)?;
        let (tell, told) = mpsc::channel();
        Line::start("loopfs-drop", &device, move |line| {
            // Whoever waits for it waits to the end.
            let _ = tell.send(line.tell(|device| notify::forget_inode(device, node.0, true)));
        })?;
        told.recv()
            .map_err(|_| not_connected())?
            .map_err(io::Error::from)
    }
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}
