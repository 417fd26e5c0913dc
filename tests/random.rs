//! Random operations by several workers at the same time.
//!
//! - `apart`: each worker has a plain tree and a mounted one to itself. Every operation has the same outcome
//!   on both, and at the end both trees, and SRC behind the mount, are equal.
//! - `together`: all work in one tree with the same few names, in some tests partly in SRC, behind the
//!   back of the mount. No operation fails as none does on a plain directory, and at the end MNT shows
//!   exactly what is in SRC.
//! - `steady`: a file that all append to, and one that is replaced again and again.
//!
//! Every sequence of operations follows from a seed, which is printed. `LOOPFS_RANDOM_SEED=N` repeats it,
//! `N/ROUND` begins with that round: all of `apart` is exactly the same then, and in the others what each
//! worker does, not who is first. `LOOPFS_RANDOM_SECONDS` says how long each test goes on (2 if unset);
//! `scripts/soak` runs them for long.
//!
//! In reading order: `operation` (what can be done), `draw` (how it is drawn), `world` with `contents`,
//! `attributes` and `looking` (doing it), `run` (seed, time, mount), and the three kinds of test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod random {
    pub(crate) mod apart;
    pub(crate) mod attributes;
    pub(crate) mod contents;
    pub(crate) mod draw;
    pub(crate) mod looking;
    pub(crate) mod operation;
    pub(crate) mod raw;
    pub(crate) mod run;
    pub(crate) mod steady;
    pub(crate) mod together;
    pub(crate) mod world;
}

use random::run::Setup;
use random::together::Workers;
use random::{apart, steady, together};

const ON_MOUNT: Workers = Workers {
    on_mount: 6,
    in_source: 0,
};
const ON_BOTH: Workers = Workers {
    on_mount: 4,
    in_source: 2,
};

const NOTHING_REMEMBERED: &str = "attr_timeout=0,entry_timeout=0,negative_timeout=0";
const MUCH_REMEMBERED: &str = "attr_timeout=600,entry_timeout=600,negative_timeout=600";

/// A test: its name, what runs, and on what.
macro_rules! tests {
    ($($(#[$doc:meta])+ $name:ident: $kind:ident($workers:expr) { $($field:ident: $value:expr),* })+) => { $(
        $(#[$doc])+
        #[test]
        fn $name() {
            let setup = Setup { name: stringify!($name), ..Setup::default() };
            $kind::run($workers, Setup { $($field: $value,)* ..setup });
        }
    )+ };
}

tests! {
    /// With the default options.
    apart_with_defaults: apart(3) {}

    /// One event loop, and the kernel asks again each time.
    apart_with_nothing_remembered: apart(2) { options: &["--threads", "1", "-o", NOTHING_REMEMBERED] }

    /// The kernel asks as seldom as it can: what one operation changes, others must not get to see as it was.
    apart_with_much_remembered: apart(2) { options: &["-o", MUCH_REMEMBERED] }

    /// Every inode by a descriptor that stays open.
    apart_without_file_handles: apart(2) { features_off: "file-handles" }

    /// By file handles, with far fewer descriptors than inodes.
    apart_with_few_descriptors: apart(2) { open_files: Some(80) }

    /// Every read and write a request, with the kernel's page cache.
    apart_with_the_page_cache: apart(2) { options: &["--io", "cached"] }

    /// The same where the kernel says which files it opens and closes.
    apart_with_the_page_cache_and_opens: apart(2) { options: &["--io", "cached"], features_off: "no-opens" }

    /// Every read and write a request, without it.
    apart_without_a_page_cache: apart(2) { options: &["--io", "direct"] }

    /// In one tree.
    together_with_defaults: together(ON_MOUNT) {}

    /// In one tree, every read and write a request.
    together_with_the_page_cache: together(ON_MOUNT) { options: &["--io", "cached"] }

    /// In one tree, the kernel asks again each time.
    together_with_nothing_remembered: together(ON_MOUNT) { options: &["-o", NOTHING_REMEMBERED] }

    /// In one tree, the kernel asks as seldom as it can.
    together_with_much_remembered: together(ON_MOUNT) { options: &["-o", MUCH_REMEMBERED] }

    /// In one tree, inodes by descriptors.
    together_without_file_handles: together(ON_MOUNT) { features_off: "file-handles" }

    /// In one tree, far fewer descriptors than inodes.
    together_with_few_descriptors: together(ON_MOUNT) { open_files: Some(96) }

    /// Some in SRC: the mount shows it when a second has passed.
    together_with_changes_in_src: together(ON_BOTH) {}

    /// Some in SRC, and the kernel asks again each time.
    together_with_changes_in_src_and_nothing_remembered: together(ON_BOTH) { options: &["-o", NOTHING_REMEMBERED] }

    /// Some in SRC, inodes by descriptors.
    together_with_changes_in_src_without_file_handles: together(ON_BOTH) { features_off: "file-handles" }

    /// Appending and replacing.
    steady_with_defaults: steady(ON_MOUNT) {}

    /// Appending and replacing, on both sides.
    steady_with_changes_in_src: steady(ON_BOTH) {}
}
