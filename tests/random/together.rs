//! Workers at the same time in one tree, with the same names, some of them on the mount and some, where
//! a test says so, in SRC behind its back. Nobody can say what a step should have given. But no step
//! may fail in a way in which none fails on a plain directory, and what is left has to be a sound tree
//! that looks the same from both sides.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use proptest::strategy::ValueTree;
use rustix::fs::Mode;

use super::attributes::unflag;
use super::draw::sequence;
use super::looking::{Subject, subjects};
use super::operation::{NAMES, Operation};
use super::raw::part_from_other_threads;
use super::run::{Failure, Run, Setup};
use super::world::{NOTHING_OPEN, Outcome, World};
use crate::common::Mount;
use crate::common::mount::assert_log_is_clean;
use crate::common::tree::{View, difference};

/// How long a sequence may be.
const LONGEST: usize = 300;

/// How long a change made in SRC may take to be seen, beyond the second that `attr_timeout` and
/// `entry_timeout` are by default: the machine may be loaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How many work where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workers {
    pub(crate) on_mount: usize,
    pub(crate) in_source: usize,
}

/// What fails on a plain directory, too, whether by itself or because of what somebody else does. Every
/// one of these was seen there; each round runs on one first.
const ORDINARY: [i32; 18] = [
    libc::EPERM,
    libc::ENOENT,
    libc::ENXIO,
    libc::EBADF,
    libc::EAGAIN,
    libc::EACCES,
    libc::EFAULT,
    libc::EEXIST,
    libc::ENODEV,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::EINVAL,
    libc::ENOTTY,
    libc::ESPIPE,
    libc::ERANGE,
    libc::ENOTEMPTY,
    libc::ELOOP,
    libc::ENODATA,
];

/// These, too, but only as an answer about extended attributes or to fallocate.
const UNSUPPORTED: [i32; 2] = [libc::EOPNOTSUPP, libc::ENOSPC];

/// Where somebody works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a tree that was never mounted.
    Plain,
    /// On the mount; `alone` if nobody works in SRC.
    Mount { alone: bool },
    /// In SRC.
    Source,
}

/// Whether an operation on the mount may find that what it names has been replaced in SRC, again, after
/// the kernel was told so and has looked the name up anew. Of what is open it may not, with one
/// exception: for the ioctl of file flags the kernel opens the file once more.
fn may_be_stale(operation: &Operation) -> bool {
    let is_slot = |subject: &Subject| matches!(subject, Subject::Slot(_));
    let is_flags = matches!(operation.itself(), Operation::SetFlags { .. });
    is_flags || !subjects(operation).iter().all(is_slot)
}

/// How often which operation failed with what: on the plain tree, on the mount, in SRC.
type Failures = Mutex<BTreeMap<(String, i32), [u64; 3]>>;

/// The whole test.
pub(crate) fn run(workers: Workers, setup: Setup) {
    let mount = setup.start();
    let run = Run::new(setup);
    let failures = Failures::default();
    run.watched(&mount, || {
        for round in run.first.. {
            if run.is_over() {
                break;
            }
            if let Err(what) = one_round(&run, setup, &mount, workers, round, &failures) {
                run.fail(Failure {
                    worker: 0,
                    round,
                    what,
                });
            }
        }
    });
    for ((operation, errno), [plain, through, behind]) in failures.into_inner().unwrap() {
        if plain == 0 && run.is_long() {
            let error = io::Error::from_raw_os_error(errno);
            eprintln!(
                "random: not on the plain tree: {operation}: {error}: {through} on MNT, {behind} in SRC"
            );
        }
    }
    if let Some(Failure { round, what, .. }) = run.failure() {
        panic!("round {round}: {what}\nagain: {}", run.again(round));
    }
    mount.finish();
}

fn one_round(
    run: &Run,
    setup: Setup,
    mount: &Mount,
    workers: Workers,
    round: u64,
    failures: &Failures,
) -> Result<(), String> {
    let name = format!("round-{round}");
    let streams: Vec<_> = (0..workers.on_mount + workers.in_source)
        .map(|worker| {
            let place = [setup.number(), worker as u64, round];
            sequence(run.seed, place, LONGEST).current()
        })
        .collect();

    let plain = mount.root().join("plain").join(&name);
    drop(World::new(&plain));
    let tops = vec![(plain.as_path(), Place::Plain); streams.len()];
    drop(at_once(run, &streams, &tops, failures)?);
    remove(&plain)?;

    let (mounted, source) = (mount.path(&name), mount.source(&name));
    drop(World::new(&mounted));
    let alone = workers.in_source == 0;
    let mut tops = vec![(mounted.as_path(), Place::Mount { alone }); workers.on_mount];
    tops.resize(streams.len(), (source.as_path(), Place::Source));
    let mut worlds = at_once(run, &streams, &tops, failures)?;
    for world in &worlds {
        // A mapping of what has been truncated since has nothing to write.
        world.settle().map_err(|error| format!("msync: {error}"))?;
    }
    if !alone {
        // A directory that was replaced in SRC while its name was removed on MNT is dead to the kernel for as
        // long as somebody has it open (SEMANTICS.md).
        worlds.clear();
    }
    let begin = Instant::now();
    loop {
        match unlike(&source, &mounted) {
            Ok(unlike) if unlike.is_empty() => break,
            // Nothing was changed but through the mount, so nothing may be out of date.
            found if alone || begin.elapsed() > PATIENCE => {
                let what = found.unwrap_or_else(|error| error.to_string());
                return Err(format!("MNT is not like SRC:\n{what}"));
            }
            _ => thread::yield_now(),
        }
    }
    // SRC's file system may change these by itself, when it writes back.
    while unlike_blocks(&source, &mounted).as_deref() != Ok("") {
        if begin.elapsed() > PATIENCE {
            let what = unlike_blocks(&source, &mounted).unwrap_or_else(|error| error);
            return Err(format!("allocated blocks:\n{what}"));
        }
        thread::yield_now();
    }
    drop(worlds);
    remove(&mounted)?;
    if source.symlink_metadata().is_ok() {
        return Err(format!(
            "{name} is still in SRC after it was removed on MNT"
        ));
    }
    assert_log_is_clean(&mount.log());
    Ok(())
}

/// Every stream at once, each on a tree of `tops`; what is open there stays so in what is returned.
fn at_once(
    run: &Run,
    streams: &[Vec<Operation>],
    tops: &[(&Path, Place)],
    failures: &Failures,
) -> Result<Vec<World>, String> {
    let work = |worker: usize| {
        let (top, place) = tops[worker];
        part_from_other_threads();
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let mut world = match place {
            Place::Mount { alone: false } => World::shared_with_source(top),
            _ => World::shared(top),
        };
        for (step, operation) in streams[worker].iter().enumerate() {
            run.step(worker, operation);
            let outcome = world.apply(operation);
            check(operation, &outcome, place, failures)
                .map_err(|what| format!("worker {worker}, step {step}, {operation:?}: {what}"))?;
        }
        Ok(world)
    };
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..streams.len())
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        let worlds = workers.into_iter().map(|worker| worker.join().unwrap());
        worlds.collect()
    })
}

fn check(
    operation: &Operation,
    outcome: &Outcome,
    place: Place,
    failures: &Failures,
) -> Result<(), String> {
    let Err(error) = outcome else { return Ok(()) };
    let Some(errno) = error.raw_os_error() else {
        let is_expected = error.to_string() == NOTHING_OPEN;
        return if is_expected {
            Ok(())
        } else {
            Err(error.to_string())
        };
    };
    let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = failures.entry((operation.kind(), errno)).or_default();
    match place {
        Place::Plain => counts[0] += 1,
        Place::Mount { .. } => counts[1] += 1,
        Place::Source => counts[2] += 1,
    }
    let is_ordinary = ORDINARY.contains(&errno)
        || (operation.may_be_unsupported() && UNSUPPORTED.contains(&errno))
        || (errno == libc::ESTALE
            && place == Place::Mount { alone: false }
            && may_be_stale(operation));
    if is_ordinary {
        Ok(())
    } else {
        Err(error.to_string())
    }
}

/// What SRC and MNT don't agree on, or what neither may be like.
fn unlike(source: &Path, mounted: &Path) -> io::Result<String> {
    // SRC first: the mount has to show what is in SRC, not what looking at it has made of that.
    let (behind, through) = (View::of(source)?, View::of(mounted)?);
    let mut unlike = difference(&behind.describe()?, &through.describe()?);
    for (place, view) in [("SRC", &behind), ("MNT", &through)] {
        for fault in view.faults() {
            writeln!(unlike, "{place}: {fault}").expect("a string");
        }
    }
    // Names that are not there: the kernel may remember otherwise.
    for (directory, _) in through.seen().iter().filter(|(_, meta)| meta.is_dir()) {
        for name in NAMES {
            let path = directory.join(char::from(name).to_string());
            let there = mounted.join(&path).symlink_metadata();
            if there.is_ok() != behind.seen().contains_key(&path) {
                writeln!(
                    unlike,
                    "{}: {there:?} on MNT, otherwise in SRC",
                    path.display()
                )
                .expect("a string");
            }
        }
    }
    Ok(unlike)
}

/// The same for allocated blocks.
fn unlike_blocks(source: &Path, mounted: &Path) -> Result<String, String> {
    let blocks = |top| View::of(top).map(|view| view.blocks());
    let behind = blocks(source).map_err(|error| error.to_string())?;
    let through = blocks(mounted).map_err(|error| error.to_string())?;
    Ok(difference(&behind, &through))
}

/// Takes a tree away, whatever is in it.
fn remove(top: &Path) -> Result<(), String> {
    unflag(top)
        .and_then(|()| fs::remove_dir_all(top))
        .map_err(|error| format!("removing {}: {error}", top.display()))
}
