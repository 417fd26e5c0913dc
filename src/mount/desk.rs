//! What the socket of this mount tells and does: the figures, gathered from everybody who has some, and the two ways
//! of ending the mount. Nothing here waits for SRC.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::attach::{self, Attachment};
use crate::config::{Cache, Choice as _, Config, Io};
use crate::figures::{BusyFile, BusyProcess, Figures, Mode, Name, Oldest, Operation};
use crate::fuse::Server;
use crate::lifecycle::{Cause, Gate, Shutdown, State};
use crate::loopback::Loopback;
use crate::loopback::inode::NodeNo;
use crate::observe::{Counters, Outcome};
use crate::op::Op;
use crate::socket::protocol::{Detached, MountId};
use crate::socket::server::Answering;
use crate::supervise::Supervisor;
use crate::sync::Arc;
use crate::sys;

/// As many of the busiest are told.
const BUSIEST: usize = 20;

/// What is known from the start.
#[derive(Debug)]
pub(super) struct Card {
    source: PathBuf,
    target: PathBuf,
    io: Mode,
    cache: Mode,
}

impl Card {
    pub(super) fn of(config: &Config, server: &Server) -> Self {
        let passes = server.lacks_passthrough();
        let io = match (config.serving.io, passes) {
            (Io::Auto | Io::Passthrough, None) => Mode {
                mode: Io::Passthrough.name().to_owned(),
                why: None,
            },
            (Io::Auto, why) => Mode {
                mode: Io::Cached.name().to_owned(),
                why: why.map(str::to_owned),
            },
            (way, _) => Mode {
                mode: way.name().to_owned(),
                why: None,
            },
        };
        let cache = match (config.caching.mode, server.lacks_coherence()) {
            (Cache::Off | Cache::Timed, _) => Mode {
                mode: config.caching.mode.name().to_owned(),
                why: None,
            },
            (Cache::Auto | Cache::Coherent, None) => Mode {
                mode: Cache::Coherent.name().to_owned(),
                why: None,
            },
            (Cache::Auto | Cache::Coherent, why) => Mode {
                mode: Cache::Timed.name().to_owned(),
                why,
            },
        };
        Self {
            source: config.source.clone(),
            target: config.target.clone(),
            io,
            cache,
        }
    }
}

/// Everybody who has figures.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) card: Card,
    pub(super) tree: Arc<Loopback>,
    pub(super) gate: Arc<Gate>,
    pub(super) counters: Arc<Counters>,
    pub(super) shutdown: Shutdown,
    pub(super) attachment: Arc<Attachment>,
    pub(super) supervisor: Option<Supervisor>,
}

impl Answering for Desk {
    fn figures(&self) -> Figures {
        let state = self.shutdown.state();
        let device = self.attachment.device_number();
        let uptime = self.counters.age();
        let own = sys::process::own_usage();
        let limit = sys::process::file_limit();
        let total = |outcome| self.counters.total(outcome);
        Figures {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: Name::of(&self.card.source),
            target: Name::of(&self.card.target),
            device: format!("{}:{}", device.major, device.minor),
            mount_id: self.attachment.mount_id(),
            unique_mount_id: self.attachment.unique_mount_id(),
            pid: std::process::id(),
            program_replaced: sys::process::is_replaced(),
            state: word(state).to_owned(),
            cause: state.cause().map(|cause| cause.to_string()),
            since: began(uptime),
            uptime_seconds: uptime.as_secs_f64(),
            io: self.card.io.clone(),
            cache: self.card.cache.clone(),
            in_flight: self.gate.in_flight() as u64,
            oldest_request: self.counters.oldest().map(|oldest| Oldest {
                operation: oldest.op.name().to_owned(),
                seconds: oldest.age.as_secs_f64(),
            }),
            open_files: self.tree.open_handles() as u64,
            inodes: self.tree.known_inodes() as u64,
            memory_bytes: own.memory_bytes,
            descriptors: own.descriptors,
            descriptor_limit: limit,
            threads: own.threads,
            requests: self.counters.answered(),
            errors: total(Outcome::Failed) + total(Outcome::Panicked),
            operations: self.operations(),
            busiest_files: self.busiest_files(),
            busiest_processes: self.busiest_processes(),
        }
    }

    fn mount(&self) -> MountId {
        MountId {
            recycled: self.attachment.mount_id(),
            unique: self.attachment.unique_mount_id(),
        }
    }

    fn detach(&self, lazily: bool) -> Result<Detached, String> {
        let how = if lazily {
            attach::Detach::Lazy
        } else {
            attach::Detach::Polite
        };
        match self.attachment.detach(how) {
            Ok(attach::Detached::Done) => Ok(Detached::Done),
            Ok(attach::Detached::AlreadyGone) => Ok(Detached::AlreadyGone),
            Ok(attach::Detached::Busy) => Ok(Detached::Busy),
            Ok(attach::Detached::Covered) => Ok(Detached::Covered),
            Err(error) => Err(error.to_string()),
        }
    }

    fn cut_off(&self) {
        self.shutdown.cut_off(Cause::Unmounted);
    }

    fn upgrade(&self) -> String {
        match &self.supervisor {
            Some(supervisor) => supervisor.upgrade(),
            None => "it is served without --supervise: unmount it, and mount it anew".to_owned(),
        }
    }
}

impl Desk {
    fn operations(&self) -> Vec<Operation> {
        let operation = |&op: &Op| {
            let errors =
                self.counters.get(op, Outcome::Failed) + self.counters.get(op, Outcome::Panicked);
            let requests = self.counters.get(op, Outcome::Served) + errors;
            let times = self.counters.times(op);
            let share = |share| times.quantile(share).unwrap_or_default().as_secs_f64();
            (requests > 0).then(|| Operation {
                name: op.name().to_owned(),
                requests,
                errors,
                total_seconds: times.sum.as_secs_f64(),
                p50_seconds: share(0.5),
                p90_seconds: share(0.9),
                p99_seconds: share(0.99),
                max_seconds: times.longest.as_secs_f64(),
                buckets: times.counts.clone(),
            })
        };
        Op::ALL.iter().filter_map(operation).collect()
    }

    fn busiest_files(&self) -> Vec<BusyFile> {
        let nodes = self.counters.busiest().nodes;
        let told = nodes.into_iter().take(BUSIEST);
        told.map(|(node, requests_per_second)| BusyFile {
            inode: node,
            path: self.tree.path_at_hand(NodeNo(node)).map(Name::of),
            requests_per_second,
        })
        .collect()
    }

    fn busiest_processes(&self) -> Vec<BusyProcess> {
        let mut processes: Vec<BusyProcess> = Vec::new();
        for (thread, rate) in self.counters.busiest().callers {
            // 0 is what the kernel asks for by itself, and whoever lives in a pid namespace that is not ours.
            let Some(thread) = u32::try_from(thread).ok().filter(|&thread| thread != 0) else {
                continue;
            };
            let (pid, command) = match sys::process::process_of(thread) {
                Some((pid, command)) => (pid, Some(Name::of(command))),
                None => (thread, None),
            };
            match processes.iter_mut().find(|it| it.pid == u64::from(pid)) {
                Some(known) => known.requests_per_second += rate,
                None => processes.push(BusyProcess {
                    pid: u64::from(pid),
                    command,
                    requests_per_second: rate,
                }),
            }
        }
        processes.sort_by(|one, other| {
            other
                .requests_per_second
                .total_cmp(&one.requests_per_second)
        });
        processes.truncate(BUSIEST);
        processes
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Starting | State::Serving => "serving",
        State::Draining { .. } => "draining",
        State::Aborting { .. } => "aborting",
        State::Stopped { .. } => "stopped",
    }
}

/// When that was, in seconds since 1970.
fn began(uptime: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().saturating_sub(uptime).as_secs()
}
