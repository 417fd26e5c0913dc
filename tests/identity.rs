//! Which file is which: file handles (NFS-style use), mounts below SRC, changes made in SRC itself, and
//! listings, on real file systems of every kind.
//!
//! Most tests mount something besides loopfs. Each of them runs in a process and a mount namespace of its
//! own, so that nothing of it is seen outside and nothing can be left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Each function is a test that runs in a mount namespace of its own.
macro_rules! isolated {
    ($( $(#[$doc:meta])* fn $name:ident() $body:block )*) => {
        $( $(#[$doc])* #[test] fn $name() {
            #[allow(clippy::too_many_lines)]
            fn test() $body
            $crate::in_a_namespace(concat!(module_path!(), "::", stringify!($name)), test);
        } )*
    };
}

mod common;
mod identity {
    pub(crate) mod changes;
    pub(crate) mod coherent;
    pub(crate) mod crossing;
    pub(crate) mod disk;
    pub(crate) mod handles;
    pub(crate) mod listing;
    pub(crate) mod mounts;
    pub(crate) mod own;
}

use std::process::Command;
use std::time::Duration;

/// Set in the process that runs one test in its own namespace.
const INSIDE: &str = "LOOPFS_TEST_INSIDE";

/// Runs `test`, which is called `name` (with the crate's name in front), in a mount namespace of its own:
/// this program once more, for that test only.
#[track_caller]
pub(crate) fn in_a_namespace(name: &str, test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        test();
        return;
    }
    let (_, name) = name.split_once("::").expect("the crate's name");
    let mut command = Command::new("setpriv");
    command
        // If this process is killed, so is the one inside, and its daemons end as if told to.
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1");
    let finished = common::run(&mut command, Duration::from_secs(90));
    assert!(
        finished.status.success() && finished.stdout.contains("1 passed"),
        "{}\n{}",
        finished.stdout,
        finished.stderr
    );
}
