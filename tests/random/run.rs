//! What all runs have in common: the seed, the time, the mount, and somebody who watches over them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Mount, Signal, TestEnv};

/// How long a test goes on starting new rounds if `LOOPFS_RANDOM_SECONDS` says nothing.
const SECONDS: u64 = 2;

/// How long it may be without a step before the daemon is taken to hang.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How often a long run says how far it is.
const REPORT: Duration = Duration::from_secs(30);

/// What a test is run on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Setup {
    /// The test's name, for messages; it also makes its sequences its own.
    pub(crate) name: &'static str,
    /// Options of loopfs.
    pub(crate) options: &'static [&'static str],
    /// `LOOPFS_FEATURES_OFF`.
    pub(crate) features_off: &'static str,
    /// `ulimit -n` of the daemon.
    pub(crate) open_files: Option<usize>,
}

impl Setup {
    /// The mount, with a directory `plain` beside SRC, on the same file system.
    pub(crate) fn start(&self) -> Mount {
        let env = TestEnv::new();
        std::fs::create_dir(env.root().join("plain")).expect("create");
        let mut command = match self.open_files {
            None => env.loopfs(["-f"]),
            Some(limit) => env.loopfs_limited(limit, ["-f"]),
        };
        if !self.features_off.is_empty() {
            command.env("LOOPFS_FEATURES_OFF", self.features_off);
        }
        command.args(self.options).arg(env.src()).arg(env.mnt());
        Mount::start_command(env, command)
    }

    /// Whether it makes no difference that a file gets set-id bits while it is open. Where the kernel writes it
    /// by itself root's writes clear them, too (SEMANTICS.md).
    pub(crate) fn grants_set_id(&self) -> bool {
        self.options.contains(&"--io")
    }

    /// A number of its own for the test.
    pub(crate) fn number(&self) -> u64 {
        crate::common::tree::checksum(self.name.as_bytes())
    }
}

/// A failure: which worker's sequence, in which round, and what it was.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) worker: usize,
    pub(crate) round: u64,
    pub(crate) what: String,
}

/// One test under way.
pub(crate) struct Run {
    pub(super) setup: Setup,
    /// Sequences are made from this.
    pub(crate) seed: u64,
    /// The round to start with.
    pub(crate) first: u64,
    begin: Instant,
    time: Duration,
    steps: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Failure>>,
    doing: Mutex<BTreeMap<usize, String>>,
}

impl Run {
    /// Reads the environment and tells the seed.
    pub(crate) fn new(setup: Setup) -> Self {
        let given = std::env::var("LOOPFS_RANDOM_SEED").unwrap_or_default();
        let (seed, first) = match given.split_once('/') {
            Some((seed, first)) => (seed, first),
            None => (given.as_str(), "0"),
        };
        let number = |text: &str| {
            text.parse().unwrap_or_else(|_| {
                panic!("LOOPFS_RANDOM_SEED={given} is no NUMBER or NUMBER/ROUND")
            })
        };
        let seed = if seed.is_empty() {
            RandomState::new().build_hasher().finish() % 1_000_000_000
        } else {
            number(seed)
        };
        let run = Self {
            setup,
            seed,
            first: number(first),
            begin: Instant::now(),
            time: time(),
            steps: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            doing: Mutex::default(),
        };
        run.say(&format!("seed {seed}, {} s", run.time.as_secs()));
        run
    }

    fn say(&self, what: &str) {
        eprintln!("random: {}: {what}", self.setup.name);
    }

    /// Whether no more rounds are to be begun.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.begin.elapsed() >= self.time
    }

    /// A worker begins with a step.
    pub(crate) fn step(&self, worker: usize, step: &dyn Debug) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let step = format!("{step:?}");
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        doing.insert(worker, step);
    }

    /// The first failure counts.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(failure);
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }

    /// Runs `act` while somebody watches: says how far it is, and kills a daemon that hangs, because
    /// those who wait for it can't be.
    pub(crate) fn watched(&self, mount: &Mount, act: impl FnOnce()) {
        let (ended, end) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut steps, mut moved, mut told) = (0, Instant::now(), Instant::now());
                while end.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                    let now = self.steps.load(Ordering::Relaxed);
                    if now != steps {
                        (steps, moved) = (now, Instant::now());
                    } else if moved.elapsed() > STANDSTILL {
                        let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
                        self.say(&format!(
                            "no step for {STANDSTILL:?}; the daemon is killed: {doing:#?}"
                        ));
                        mount.signal(Signal::KILL);
                        break;
                    }
                    if told.elapsed() >= REPORT {
                        told = Instant::now();
                        let time = self.begin.elapsed().as_secs();
                        self.say(&format!("{time} s, {steps} steps; {}", state(mount)));
                    }
                }
            });
            act();
            drop(ended);
        });
        let steps = self.steps.load(Ordering::Relaxed);
        self.say(&format!(
            "{steps} steps with seed {}; {}",
            self.seed,
            state(mount)
        ));
    }

    /// Whether there was time for what is rare.
    pub(crate) fn is_long(&self) -> bool {
        self.time >= REPORT
    }

    /// How a round is repeated.
    pub(crate) fn again(&self, round: u64) -> String {
        format!(
            "LOOPFS_RANDOM_SEED={}/{round} cargo test --test random {}",
            self.seed, self.setup.name
        )
    }
}

/// `LOOPFS_RANDOM_SECONDS`.
fn time() -> Duration {
    let seconds = std::env::var("LOOPFS_RANDOM_SECONDS").map_or(SECONDS, |seconds| {
        let seconds = seconds.parse();
        seconds.expect("LOOPFS_RANDOM_SECONDS is a number")
    });
    Duration::from_secs(seconds)
}

/// What the daemon costs at the moment.
fn state(mount: &Mount) -> String {
    let process = format!("/proc/{}", mount.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let files = std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
    let resident = resident.unwrap_or("unknown").trim();
    format!("the daemon has {resident} of memory and {files} files open")
}
