//! Workers at the same time, each in trees of its own, a plain one and a mounted one: every step has
//! the same outcome on both, and at the end of each sequence both trees, and SRC behind the mount, are
//! equal.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::thread;

use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use rustix::fs::Mode;

use super::attributes::unflag;
use super::draw::sequence;
use super::operation::Operation;
use super::raw::part_from_other_threads;
use super::run::{Failure, Run, Setup};
use super::world::{Outcome, World};
use crate::common::Mount;
use crate::common::tree::{Snapshot, Times, View, difference, snapshot};

/// How long a sequence may be.
const LONGEST: usize = 250;

/// How long is tried to make a failing sequence short, in milliseconds.
const SHORTENING: u32 = 60_000;

/// The whole test.
pub(crate) fn run(workers: usize, setup: Setup) {
    let mount = setup.start();
    let run = Run::new(setup);
    run.watched(&mount, || {
        thread::scope(|scope| {
            for worker in 0..workers {
                let (run, mount) = (&run, &mount);
                scope.spawn(move || {
                    part_from_other_threads();
                    for round in run.first.. {
                        if run.is_over() {
                            break;
                        }
                        let operations = drawn(run, setup, worker, round).current();
                        let name = format!("worker-{worker}-round-{round}");
                        if let Err(what) = case(run, mount, worker, &name, &operations) {
                            run.fail(Failure {
                                worker,
                                round,
                                what,
                            });
                        }
                    }
                });
            }
        });
    });
    if let Some(failure) = run.failure() {
        report(&run, setup, &mount, &failure);
    }
    mount.finish();
}

fn drawn(
    run: &Run,
    setup: Setup,
    worker: usize,
    round: u64,
) -> impl ValueTree<Value = Vec<Operation>> + use<> {
    sequence(run.seed, [setup.number(), worker as u64, round], LONGEST)
}

/// Tries the sequence that failed by itself, and makes it short if it fails so, too.
fn report(run: &Run, setup: Setup, mount: &Mount, failure: &Failure) -> ! {
    let Failure {
        worker,
        round,
        what,
    } = failure;
    eprintln!("random: worker {worker}, round {round}: {what}\ntrying that sequence by itself");
    part_from_other_threads();
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: u32::MAX,
        max_shrink_time: SHORTENING,
        ..Config::default()
    };
    let tries = Cell::new(0);
    let tree = drawn(run, setup, *worker, *round);
    let all = tree.current();
    let shortest = TestRunner::new(config).run_one(tree, |operations| {
        tries.set(tries.get() + 1);
        let name = format!("again-{}", tries.get());
        case(run, mount, *worker, &name, &operations).map_err(TestCaseError::fail)
    });
    let again = run.again(*round);
    match shortest {
        Err(TestError::Fail(what, shortest)) => {
            panic!("{what}\nshortest sequence: {shortest:#?}\nagain: {again}")
        }
        _ => panic!("{what}\nthat sequence does not fail by itself: {all:#?}\nagain: {again}"),
    }
}

/// One sequence in directories of its own below the plain and the mounted tree, both removed afterwards,
/// so that thousands don't make them grow.
fn case(
    run: &Run,
    mount: &Mount,
    worker: usize,
    name: &str,
    operations: &[Operation],
) -> Result<(), String> {
    let (plain, mounted) = (mount.root().join("plain").join(name), mount.path(name));
    let source = mount.source(name);
    let mut worlds = (World::new(&plain), World::mounted(&mounted, &source));
    worlds.0.grants_set_id = run.setup.grants_set_id();
    worlds.1.grants_set_id = worlds.0.grants_set_id;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for (step, operation) in operations.iter().enumerate() {
        run.step(worker, operation);
        let (expected, found) = (worlds.0.apply(operation), worlds.1.apply(operation));
        let (expected, found) = (text(expected), text(found));
        if expected != found {
            return Err(format!(
                "step {step}, {operation:?}:\n  plain: {expected}\n  mount: {found}"
            ));
        }
    }
    worlds
        .0
        .settle()
        .map_err(|error| format!("msync on the plain tree: {error}"))?;
    worlds
        .1
        .settle()
        .map_err(|error| format!("msync on the mount: {error}"))?;
    let unlike = difference(
        &snapshot(&plain, Times::Ignored),
        &snapshot(&mounted, Times::Ignored),
    );
    if !unlike.is_empty() {
        return Err(format!(
            "the mounted tree is not like the plain one:\n{unlike}"
        ));
    }
    // SRC first: the mount has to show what is in SRC, not what looking at it has made of that.
    let (behind, through) = (view(&source)?, view(&mounted)?);
    let unlike = difference(&described(&behind)?, &described(&through)?);
    if !unlike.is_empty() {
        return Err(format!("MNT is not like SRC:\n{unlike}"));
    }
    let flagged = worlds.1.is_flagged();
    drop(worlds);
    for directory in [&plain, &mounted] {
        let cleared = if flagged { unflag(directory) } else { Ok(()) };
        cleared
            .and_then(|()| fs::remove_dir_all(directory))
            .map_err(|error| format!("removing {}: {error}", directory.display()))?;
    }
    Ok(())
}

fn text(outcome: Outcome) -> String {
    outcome.unwrap_or_else(|error| error.to_string())
}

fn view(top: &Path) -> Result<View, String> {
    View::of(top).map_err(|error| error.to_string())
}

fn described(view: &View) -> Result<Snapshot, String> {
    view.describe().map_err(|error| error.to_string())
}
