//! The only place that names fuser: a core of plain functions, served through its session API.
//!
//! In reading order: [`serve`] (what happens around every operation, once), [`adapter`] (one short
//! method an operation), [`reply`] (a value into fuser's reply), [`opening`], [`backing`] and [`wrap`]
//! (files, and those that the kernel reads and writes by itself), [`convert`] (our types and
//! fuser's), [`cache`] (what the kernel is to forget), [`lock`] (locks that reach SRC), on threads of their own ([`workers`]) under watch
//! ([`waiters`]), [`spare`] (what waits for a disk, on an event loop), [`follow`] (what others change in SRC, the kernel is told), [`awake`] (`--low-latency`), [`prune`] (asking the kernel to forget), [`journal`] (what a killed process leaves half-done), [`line`] (telling what may keep the teller waiting), [`lack`] (too few descriptors, told), [`resume`] (a connection that another process has begun), [`lost`] (what that one did not get to forget). fuser's
//! own mounting and unmounting are never used: `attach` does that, exactly.

mod adapter;
mod awake;
mod backing;
mod cache;
mod convert;
mod follow;
mod journal;
mod lack;
mod line;
mod lock;
mod lost;
mod opening;
mod prune;
mod reply;
mod resume;
mod serve;
mod spare;
mod waiters;
mod workers;
mod wrap;

use std::fmt::Write as _;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::config::{Cache, Caching, Io, Listing};
use crate::lifecycle::gate::Gate;
use crate::loopback::Loopback;
use crate::observe::Counters;
use crate::observe::faults::Faults;
use crate::sync::{Arc, OnceLock};
use crate::sys::passthrough;

use adapter::{Adapter, Negotiation};
use awake::Awake;
use backing::{Backings, Lack};
use cache::KernelCache;
use follow::{Follower, Following};
use journal::Journal;
use lock::Forward;
use lost::Search;
use opening::Opener;
use prune::Pruner;
use resume::Rehearsal;
pub use resume::Terms;
use serve::Service;

/// How a tree is to be served.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // they have nothing to do with each other
pub struct Options {
    /// Number of event loops.
    pub threads: NonZeroUsize,
    /// How open files are read and written.
    pub io: Io,
    /// Whether a listing brings attributes along.
    pub listing: Listing,
    /// What the kernel may remember, and for how long.
    pub caching: Caching,
    /// The kernel checks permissions, POSIX ACLs included.
    pub kernel_checks: bool,
    /// Root and the mount's owner only (`allow_root`): the kernel has no such mode, fuser has.
    pub root_and_owner_only: bool,
    /// Locks taken through the mount are taken in the tree too.
    pub forward_locks: bool,
    /// CPUs are kept from sleeping deeply while requests come.
    pub low_latency: bool,
    /// Another process is to be able to go on if this one dies.
    pub restartable: bool,
    /// Operations that are to fail, for tests.
    pub faults: Faults,
}

/// A connection on which the handshake is done and requests wait.
#[derive(Debug)]
pub struct Server {
    session: fuser::Session<Adapter>,
    tree: Arc<Loopback>,
    pruner: Pruner,
    backings: Arc<Backings>,
    /// For giving up backing files, as long as there is a connection.
    connection: Arc<OwnedFd>,
    follower: Result<Follower, follow::Lack>,
    awake: Option<(Arc<Awake>, Arc<Counters>)>,
    agreed: Agreed,
    /// Of a connection that another process has begun: what is left to be done before it is served.
    resumes: Option<Rehearsal>,
}

/// What came of the handshake.
#[derive(Debug, Clone)]
struct Agreed {
    /// In a line for the log.
    line: String,
    terms: Terms,
}

/// Serving has ended: the connection is gone, or broke. Whether the mount is gone too only the
/// mount table tells: an unmount, an abort and `umount -f` look alike here.
#[derive(Debug)]
#[must_use]
pub struct Ended {
    /// The error that stopped an event loop, if it was not the end of the connection.
    pub result: io::Result<()>,
}

impl Server {
    /// Answers the kernel's INIT on a connection to /dev/fuse. It waits for the request, so the
    /// mount must have been made, published or not.
    pub fn handshake(
        tree: Arc<Loopback>,
        device: OwnedFd,
        options: &Options,
        gate: Arc<Gate>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        Self::begin(tree, device, None, options, gate, counters)
    }

    /// Takes over the connection `device` that another process has begun on these `terms`. The connection is not touched before
    /// [`run`](Self::run), when the other one must have ended.
    pub fn resume(
        tree: Arc<Loopback>,
        device: OwnedFd,
        terms: Terms,
        options: &Options,
        gate: Arc<Gate>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let server = Self::begin(tree, device, Some(terms), options, gate, counters)?;
        if server.agreed.terms == terms {
            Ok(server)
        } else {
            let text = "this program would serve it otherwise than was agreed with the kernel";
            Err(io::Error::other(format!(
                "{text}: {terms:?}, now {:?}",
                server.agreed.terms
            )))
        }
    }

    fn begin(
        tree: Arc<Loopback>,
        device: OwnedFd,
        begun_on: Option<Terms>,
        options: &Options,
        gate: Arc<Gate>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let acl = if options.root_and_owner_only {
            fuser::SessionACL::RootAndOwner
        } else {
            fuser::SessionACL::All // the kernel itself enforces `allow_other` and its absence
        };
        // Not a literal: fuser may add fields.
        #[allow(clippy::field_reassign_with_default)]
        let mut config = fuser::Config::default();
        config.n_threads = Some(options.threads.get());
        let cache = Arc::new(KernelCache::default());
        let forward = options
            .forward_locks
            .then(|| Forward::new(&tree, &gate, &cache).map(Arc::new))
            .transpose()?;
        let awake = options.low_latency.then(|| Arc::new(Awake::default()));
        let connection = Arc::new(device.try_clone()?);
        let pruner = Pruner::new(&tree, &connection);
        let backings = Arc::new(Backings::new(options.io, tree.noatime(), &connection));
        backings.go_on(&tree);
        let service = Service::new(
            gate,
            Arc::clone(&counters),
            awake.clone(),
            Journal::new(&tree, &backings),
            options.faults.clone(),
        );
        let followed = match options.caching.mode {
            Cache::Auto | Cache::Coherent => match begun_on {
                None => follow::prepare(&tree, &device),
                Some(terms) => follow::prepare_again(&tree, terms.coherent),
            },
            Cache::Timed | Cache::Off => Err(follow::Lack::NotWanted),
        };
        let follower = followed.map(|()| {
            let follower = Follower::new(&tree, &backings, &connection);
            // Nobody has heard what happened since the other process ended, and who knows what that one has told.
            follower.with_everything_changed(begun_on.is_some())
        });
        let agreed = Arc::new(OnceLock::new());
        let opener = Opener {
            cache: Arc::clone(&cache),
            backings: Arc::clone(&backings),
            hears_closes: forward.is_some(),
            is_not_asked: options.io == Io::Cached && follower.is_ok(),
        };
        let negotiation = Negotiation {
            begun_on,
            coherent: follower.is_ok(),
            agreed: Arc::clone(&agreed),
        };
        let served = Arc::clone(&tree);
        let adapter = Adapter::new(served, service, forward, opener, options, negotiation);
        let (resumes, device) = match begun_on {
            None => (None, device),
            Some(terms) => Rehearsal::begin(&terms).map(|(it, end)| (Some(it), end))?,
        };
        let session = fuser::Session::from_fd(adapter, device, acl, config)?;
        cache.connected(session.notifier(), &connection);
        if backings.lack().is_none() && passthrough::permitted(connection.as_fd()).is_err() {
            backings.lacks(Lack::NotPermitted);
        }
        let mut agreed = agreed
            .get()
            .cloned()
            .ok_or_else(|| io::Error::other("there was no handshake"))?;
        let negotiated = &mut agreed.line;
        match backings.lack() {
            None => negotiated.push_str("; files are read and written by the kernel (passthrough)"),
            Some(lack) => {
                let text = "; files are read and written through this process";
                let _ = write!(negotiated, "{text}: no passthrough, {}", lack.text());
            }
        }
        match &follower {
            Ok(follower) => {
                let text = "; what the kernel remembers is true to the source";
                let _ = write!(negotiated, "{text} ({})", follower.means());
            }
            Err(lack) => {
                let text = "; the kernel remembers names and attributes for a time";
                let _ = write!(negotiated, "{text}: not until they change, {}", lack.text());
            }
        }
        Ok(Self {
            session,
            tree,
            pruner,
            backings,
            connection,
            follower,
            awake: awake.map(|awake| (awake, counters)),
            agreed,
            resumes,
        })
    }

    /// What was agreed with the kernel, for whoever takes over.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.agreed.terms
    }

    /// Why no other process could go on if this one died; `None` if one could.
    #[must_use]
    pub fn lacks_restart(&self) -> Option<&'static str> {
        let can = self.agreed.terms.used & fuser::InitFlags::FUSE_HAS_RESEND.bits() != 0;
        (!can).then_some("the kernel can't give out a request twice (Linux 6.9)")
    }

    /// Why the kernel does not read and write files by itself, and what to do about it; `None` if it does.
    #[must_use]
    pub fn lacks_passthrough(&self) -> Option<&'static str> {
        self.backings.lack().map(Lack::text)
    }

    /// Why what the kernel remembers is not true to SRC at any time; `None` if it is.
    #[must_use]
    pub fn lacks_coherence(&self) -> Option<String> {
        self.follower.as_ref().err().map(|lack| lack.text())
    }

    /// What was agreed with the kernel, in a line for the log.
    #[must_use]
    pub fn negotiated(&self) -> &str {
        &self.agreed.line
    }

    /// Has `lost` called when an event loop is lost to a panic outside any operation. For the whole
    /// process, like the panic hook that it is.
    pub fn on_lost_loop(lost: impl Fn() + Send + Sync + 'static) {
        serve::on_lost_loop(lost);
    }

    /// Serves until the connection ends, on as many event loops as asked for, all of which have
    /// ended when this returns. It takes the server with it: serving a second time, which made
    /// go-fuse's counters go below zero, does not compile.
    ///
    /// ```compile_fail,E0382
    /// fn twice(server: loopfs::fuse::Server) {
    ///     let _ = server.run();
    ///     let _ = server.run();
    /// }
    /// ```
    ///
    /// ```
    /// fn once(server: loopfs::fuse::Server) {
    ///     let _ = server.run();
    /// }
    /// ```
    pub fn run(self) -> Ended {
        let goes_on = self.resumes.is_some();
        if let Some(rehearsal) = self.resumes
            && let Err(error) = rehearsal.take_over(self.session.as_fd(), self.connection.as_fd())
        {
            return Ended { result: Err(error) };
        }
        let following = match self.follower.map(Follower::start) {
            Ok(Ok(following)) => Some(following),
            Ok(Err(error)) => return Ended { result: Err(error) },
            Err(_) => None,
        };
        let pruning = self.pruner.start();
        let search = goes_on.then(|| Search::start(&self.tree, &self.connection));
        let search = search.transpose().unwrap_or_else(|error| {
            log::warn!("what the last process did not get to forget stays in memory: {error}");
            None
        });
        let waking = self
            .awake
            .and_then(|(awake, counters)| awake.start(counters));
        let result = self.session.run();
        if let Some(waking) = waking {
            waking.end();
        }
        if let Some(pruning) = pruning {
            pruning.end();
        }
        search.into_iter().for_each(Search::end);
        following.into_iter().for_each(Following::end);
        drop(self.connection);
        Ended { result }
    }
}
