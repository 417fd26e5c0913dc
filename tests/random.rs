//! Random sequences of operations on two trees, one plain and one mounted: every operation has the
//! same outcome on both, and at the end both trees, and SRC behind the mount, are equal.
//!
//! `PROPTEST_CASES` sets how many sequences are tried (256 if unset), of up to 60 operations each;
//! a sequence that failed is kept in `tests/random.regressions` and tried first ever after.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod random {
    pub(crate) mod operation;
    pub(crate) mod world;
}

use std::fs;

use common::tree::{Times, difference, snapshot};
use common::{Mount, TestEnv};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use random::operation::{Operation, operation};
use random::world::World;

fn config() -> Config {
    let regressions = FileFailurePersistence::Direct("tests/random.regressions");
    Config {
        failure_persistence: Some(Box::new(regressions)),
        // Each step of shrinking replays a sequence on real trees: enough to be small, not minimal.
        max_shrink_iters: 2_000,
        ..Config::default()
    }
}

/// One sequence in directories of its own below the plain and the mounted tree.
fn same_on_both(mount: &Mount, number: u32, operations: &[Operation]) -> Result<(), TestCaseError> {
    let name = format!("case-{number}");
    let (plain, mounted) = (mount.root().join("plain").join(&name), mount.path(&name));
    fs::create_dir(&plain).unwrap();
    fs::create_dir(&mounted).unwrap();
    {
        let (mut plain, mut mounted) = (World::new(&plain), World::new(&mounted));
        for (step, operation) in operations.iter().enumerate() {
            let (expected, found) = (plain.apply(operation), mounted.apply(operation));
            prop_assert_eq!(
                &found,
                &expected,
                "step {} ({:?}): mount (left), plain (right)",
                step,
                operation
            );
        }
    }
    let expected = snapshot(&plain, Times::Ignored);
    let found = snapshot(&mounted, Times::Ignored);
    prop_assert!(
        expected == found,
        "mounted differs from plain:\n{}",
        difference(&expected, &found)
    );
    let (behind, through) = (
        snapshot(&mount.source(&name), Times::All),
        snapshot(&mounted, Times::All),
    );
    prop_assert!(
        behind == through,
        "MNT differs from SRC:\n{}",
        difference(&behind, &through)
    );
    // Removed at once: hundreds of cases should not make the trees grow.
    fs::remove_dir_all(&plain).unwrap();
    fs::remove_dir_all(&mounted).unwrap();
    Ok(())
}

fn sequences(options: &[&str]) {
    let mount = Mount::start_in(TestEnv::new(), options);
    fs::create_dir(mount.root().join("plain")).unwrap();
    let mut number = 0;
    let counter = std::cell::RefCell::new(&mut number);
    let mut runner = TestRunner::new(config());
    let result = runner.run(&vec(operation(), 1..60), |operations| {
        let number = {
            let mut counter = counter.borrow_mut();
            **counter += 1;
            **counter
        };
        same_on_both(&mount, number, &operations)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    mount.finish();
}

/// With the default options.
#[test]
fn random_operations_have_the_same_outcome() {
    sequences(&[]);
}

/// With one event loop and nothing remembered by the kernel.
#[test]
fn random_operations_without_caching() {
    sequences(&[
        "--threads",
        "1",
        "-o",
        "attr_timeout=0,entry_timeout=0,negative_timeout=0",
    ]);
}
