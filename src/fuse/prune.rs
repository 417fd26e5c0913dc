//! Asks the kernel to forget inodes when descriptors run short, and those of which nothing can be remembered, on a
//! thread of its own: the kernel may need other requests answered before it has forgotten, so no event loop may wait for it.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use super::line::Line;
use crate::error::Errno;
use crate::loopback::Loopback;
use crate::sync::Arc;
use crate::sys::{features, notify};

/// What it takes: the tree, and the connection.
#[derive(Debug)]
pub(super) struct Pruner {
    tree: Arc<Loopback>,
    device: Arc<OwnedFd>,
}

/// The thread while it runs.
#[derive(Debug)]
pub(super) struct Pruning {
    tree: Arc<Loopback>,
    thread: JoinHandle<()>,
}

impl Pruner {
    /// For a connection that is about to be handed to fuser, whose own notifications have no such one.
    pub(super) fn new(tree: &Arc<Loopback>, device: &Arc<OwnedFd>) -> Self {
        Self {
            tree: Arc::clone(tree),
            device: Arc::clone(device),
        }
    }

    /// Starts the thread. Without it programs get EMFILE sooner: nothing to fail for.
    pub(super) fn start(self) -> Option<Pruning> {
        if features::is_off("prune") {
            return None;
        }
        let Self { tree, device } = self;
        let its = Arc::clone(&tree);
        match Line::start("loopfs-prune", &device, move |line| serve(&its, &line)) {
            Ok(thread) => Some(Pruning { tree, thread }),
            Err(error) => {
                log::warn!("can't start the thread that asks the kernel to forget: {error}");
                None
            }
        }
    }
}

/// Of the tree it takes numbers, and no more: see [`Line`].
fn serve(tree: &Loopback, line: &Line) {
    while let Some(nodes) = tree.next_to_forget() {
        let numbers: Vec<u64> = nodes.iter().map(|node| node.0).collect();
        log::debug!(
            "asking the kernel to forget what it can of {} inodes",
            numbers.len()
        );
        match line.tell(|device| notify::forget_unused(device, &numbers)) {
            Ok(()) => {}
            Err(Errno::INVAL) => {
                log::debug!("this kernel can't be asked to forget: that takes Linux 6.18");
                break;
            }
            // The connection has ended, or is about to.
            Err(errno) => {
                log::debug!("asking the kernel to forget: {errno}");
                break;
            }
        }
    }
    tree.end_of_shortages();
}

impl Pruning {
    /// Ends it. The connection must have ended: the kernel waits for nothing then, so this does not.
    pub(super) fn end(self) {
        self.tree.end_of_shortages();
        // It ends by a panic only if this program has a bug, which the hook has told of.
        let _ = self.thread.join();
    }
}
