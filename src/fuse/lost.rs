//! Forgets what the kernel has forgotten, and an earlier process was told and did not get to do: a FORGET that was read and
//! not carried out dies with its process, and the kernel does not say it again.
//!
//! Some seconds after a process has begun to go on with another one's mount, the kernel is asked of each inode that this one has not
//! counted itself whether it knows it (`FUSE_NOTIFY_INVAL_INODE` of the attributes: `ENOENT` if not). One that it does not know twice,
//! seconds apart, is dropped, if nothing was counted of it until then. What could be wrong with that:
//!
//! - an answer of this process gives it to the kernel meanwhile: then it was counted, by this process, and stays;
//! - an answer of the earlier process is on its way still: the program that it is for was woken before this process began, and has not
//!   come to take it up for seconds. It gets `ESTALE` for what it does with the inode next, and looks the name up anew;
//! - a FORGET is on its way, or the kernel has the inode still where it is not found, because its number was another one's since:
//!   the count is kept, and taken down when that comes ([`Loopback::set_aside`]);
//! - the inode is looked up again: what was counted before is counted together with that. So a FORGET that comes late takes
//!   nothing from what was counted since.
//!
//! The kernel may have to wait for an inode that it is about to forget, so it is asked on a line of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::line::Line;
use crate::error::Errno;
use crate::loopback::Loopback;
use crate::loopback::inode::NodeNo;
use crate::sync::Arc;
use crate::sys::notify;

/// How long answers may be on their way, and FORGETs.
const SETTLES: Duration = Duration::from_secs(3);
/// How long it is from the first question to the second.
const APART: Duration = Duration::from_secs(2);
/// So many are asked for at a time, with a pause after them: others want to be answered.
const AT_A_TIME: usize = 256;
const PAUSE: Duration = Duration::from_millis(5);

/// The threads while they run.
#[derive(Debug)]
pub(super) struct Search {
    over: mpsc::Sender<()>,
    threads: [JoinHandle<()>; 2],
}

/// What it takes to ask.
struct Searcher {
    tree: Arc<Loopback>,
    ask: mpsc::Sender<Vec<NodeNo>>,
    unknown: mpsc::Receiver<Vec<NodeNo>>,
    over: mpsc::Receiver<()>,
}

impl Search {
    /// For a tree that an earlier process has served.
    pub(super) fn start(tree: &Arc<Loopback>, device: &Arc<OwnedFd>) -> io::Result<Self> {
        let (ask, asked) = mpsc::channel::<Vec<NodeNo>>();
        let (answer, unknown) = mpsc::channel();
        let asks = Line::start("loopfs-ask", device, move |line| {
            for mut nodes in asked {
                nodes.retain(|node| {
                    notify::forget_inode(line.device(), node.0, false) == Err(Errno::NOENT)
                });
                if answer.send(nodes).is_err() {
                    return;
                }
            }
        })?;
        let (end, over) = mpsc::channel();
        let searcher = Searcher {
            tree: Arc::clone(tree),
            ask,
            unknown,
            over,
        };
        let search = thread::Builder::new()
            .name("loopfs-lost".to_owned())
            .spawn(move || {
                let _ = searcher.search();
            })?;
        Ok(Self {
            over: end,
            threads: [search, asks],
        })
    }

    /// Ends it. The connection must have ended: the kernel waits for nothing then, so this does not.
    pub(super) fn end(self) {
        drop(self.over);
        for thread in self.threads {
            // It ends by a panic only if this program has a bug, which the hook has told of.
            let _ = thread.join();
        }
    }
}

impl Searcher {
    /// `None` if it is over before.
    fn search(&self) -> Option<()> {
        self.pause(SETTLES)?;
        let unknown = self.unknown_of(&self.tree.inherited())?;
        let mut dropped = 0;
        if !unknown.is_empty() {
            self.pause(APART)?;
            for node in self.unknown_of(&unknown)? {
                dropped += usize::from(self.tree.set_aside(node));
            }
        }
        log::debug!(
            "the kernel had forgotten {dropped} inodes, which an earlier process did not get to note"
        );
        Some(())
    }

    fn unknown_of(&self, nodes: &[NodeNo]) -> Option<Vec<NodeNo>> {
        let mut unknown = Vec::new();
        for some in nodes.chunks(AT_A_TIME) {
            self.ask.send(some.to_vec()).ok()?;
            unknown.extend(self.unknown.recv().ok()?);
            self.pause(PAUSE)?;
        }
        Some(unknown)
    }

    fn pause(&self, time: Duration) -> Option<()> {
        let over = self.over.recv_timeout(time);
        (over == Err(mpsc::RecvTimeoutError::Timeout)).then_some(())
    }
}
