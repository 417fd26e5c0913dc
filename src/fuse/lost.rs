//! Forgets what the kernel has forgotten, and an earlier process was told and did not get to do: a FORGET that was read and
//! not carried out dies with its process, and the kernel does not say it again.
//!
//! Some seconds after a process has begun to go on with another one's mount, the kernel is asked of each inode of whose count something
//! is from an earlier process whether it knows it (`FUSE_NOTIFY_INVAL_INODE` of the attributes: `ENOENT` if not). One that it does not
//! know twice, seconds apart, is dropped, if its count was the same all the time. It need not be from the earlier process alone: looked up
//! again, an inode has what was lost in its count still, and stays when the kernel forgets it for the second time.
//!
//! For the same reason one that the kernel knows may turn out to be counted too high when it is forgotten. So the search comes again,
//! with pauses that grow, until no such inode is left. What could be wrong with dropping one:
//!
//! - this process gives it to the kernel meanwhile: it is counted before the answer is sent, and in use until it is; so either its count
//!   has changed, or it is in use, and it stays;
//! - an answer was sent before the first question, by this process or the one before, and the program that it is for was woken and has
//!   not come to take it up for seconds. It gets `ESTALE` for what it does with the inode next, and looks the name up anew;
//! - a FORGET is on its way: if it is carried out between the questions the count has changed, and the next search sees to what is
//!   left. If it comes later, or the kernel has the inode still where it is not found, because its number was another one's since: the
//!   count is kept, and taken down when that comes ([`Loopback::set_aside`]);
//! - the inode is looked up again after it was dropped: what was counted before is counted together with that. So a FORGET that comes late
//!   takes nothing from what was counted since. If none comes that count is too high, so the inode is one that is searched for again;
//! - it is open, or being worked on: then it is in use, and stays until a later search.
//!
//! An inode that the kernel knows has its attributes asked for anew after each question: the pauses grow so that this costs nothing.
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

/// How long answers may be on their way, and FORGETs: then is the first search.
const SETTLES: Duration = Duration::from_secs(3);
/// The pause before each further one is so many times the one before, up to the longest.
const GROWS: u32 = 4;
const LONGEST: Duration = Duration::from_secs(60 * 60);
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
                    let told = line.tell(|device| notify::forget_inode(device, node.0, false));
                    told == Err(Errno::NOENT)
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
                let _ = searcher.search_again_and_again();
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
    /// Until there is nothing to be found any more; `None` if it is over before.
    fn search_again_and_again(&self) -> Option<()> {
        let mut pause = SETTLES;
        loop {
            self.pause(pause)?;
            let left = self.search()?;
            if left == 0 && !self.tree.may_inherit() {
                return Some(());
            }
            pause = (pause * GROWS).min(LONGEST);
        }
    }

    /// How many inodes are left that an earlier process has counted.
    fn search(&self) -> Option<usize> {
        let inherited = self.tree.inherited();
        let unknown = self.unknown_of(&inherited)?;
        let mut dropped = 0;
        if !unknown.is_empty() {
            self.pause(APART)?;
            for node in self.unknown_of(&unknown)? {
                dropped += usize::from(self.tree.set_aside(node));
            }
        }
        let left = inherited.len() - dropped;
        log::debug!(
            "the kernel had forgotten {dropped} inodes, which an earlier process did not get to note; {left} others are from before"
        );
        Some(left)
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
