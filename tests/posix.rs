//! POSIX, case by case: each runs on a plain directory and on a loopfs mount, and what it saw must
//! be the same. The plain directory is the oracle; where a case also knows the right answer it
//! asserts it, so that both can't be wrong together.
//!
//! A case is a function that takes a [`Tree`] and calls [`Tree::see`] for every result that must
//! agree. The cases are in `posix/`, a file for each topic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Each function is a case; each becomes a test of the same name, run by [`compare`].
macro_rules! cases {
    ($( $(#[$doc:meta])* fn $name:ident($tree:ident) $body:block )*) => {
        $( $(#[$doc])* #[test] fn $name() {
            #[allow(clippy::too_many_lines)]
            fn case($tree: &mut $crate::Tree) $body
            $crate::compare(case);
        } )*
    };
}

mod common;
#[path = "errors/image.rs"]
mod image;
mod posix {
    pub(crate) mod access;
    pub(crate) mod acls;
    pub(crate) mod attributes;
    pub(crate) mod content;
    pub(crate) mod creation;
    pub(crate) mod elsewhere;
    pub(crate) mod large;
    pub(crate) mod links;
    pub(crate) mod listing;
    pub(crate) mod locks;
    pub(crate) mod moving;
    pub(crate) mod names;
    pub(crate) mod opening;
    pub(crate) mod raw;
    pub(crate) mod setid;
    pub(crate) mod sparse;
    pub(crate) mod special;
    pub(crate) mod stamps;
    pub(crate) mod together;
    pub(crate) mod visible;
    pub(crate) mod xattrs;
}

use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::{Mount, TestEnv};
use image::Image;

/// The directory that a case works in, and what it saw there.
pub(crate) struct Tree {
    top: PathBuf,
    seen: Vec<String>,
}

impl Tree {
    fn new(top: PathBuf) -> Self {
        fs::create_dir(&top).expect("the case's directory");
        Self {
            top,
            seen: Vec::new(),
        }
    }

    pub(crate) fn top(&self) -> &Path {
        &self.top
    }

    /// The path of `name` in the case's directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.top.join(name)
    }

    /// Records a value that must be the same on both trees.
    pub(crate) fn see(&mut self, what: &str, value: impl Debug) {
        self.seen.push(format!("{what}: {value:?}"));
    }

    /// Records a result: its value, or the error by name.
    pub(crate) fn try_see<T: Debug, E: Into<io::Error>>(
        &mut self,
        what: &str,
        result: Result<T, E>,
    ) {
        self.seen.push(match result {
            Ok(value) => format!("{what}: {value:?}"),
            Err(error) => format!("{what}: {}", error.into()),
        });
    }

    /// Creates a file with `content`, mode 0644 whatever the umask.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("write a file");
        chmod(&path, 0o644);
        path
    }

    /// Creates a directory, mode 0755 whatever the umask.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("create a directory");
        chmod(&path, 0o755);
        path
    }
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// The errno of a failure; fails the test on success.
#[track_caller]
pub(crate) fn errno<T: Debug, E: Into<io::Error>>(result: Result<T, E>) -> i32 {
    match result {
        Ok(value) => panic!("succeeded with {value:?}"),
        Err(error) => error.into().raw_os_error().expect("an error of the system"),
    }
}

/// Runs `case` on a plain directory and on a mount, compares, and checks the end of the daemon.
#[track_caller]
pub(crate) fn compare(case: fn(&mut Tree)) {
    let mount = Mount::start_in(TestEnv::new(), &[]);
    let plain = mount.root().join("plain");
    let source = mount.source("case");
    compare_trees(mount, plain, &source, case);
}

/// The same on a file system of its own, of which `image` is the guard.
#[track_caller]
pub(crate) fn compare_on(image: &Image, case: fn(&mut Tree)) {
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command.arg(image.top()).arg(env.mnt());
    let mount = Mount::start_command(env, command);
    let (plain, source) = (image.top().join("plain"), image.top().join("case"));
    compare_trees(mount, plain, &source, case);
}

#[track_caller]
fn compare_trees(mount: Mount, plain: PathBuf, source: &Path, case: fn(&mut Tree)) {
    let mut plain = Tree::new(plain);
    let mut mounted = Tree::new(mount.path("case"));
    case(&mut plain);
    case(&mut mounted);
    let differences: Vec<_> = plain
        .seen
        .iter()
        .zip(&mounted.seen)
        .filter(|(expected, found)| expected != found)
        .map(|(expected, found)| format!("plain: {expected}\n  mount: {found}"))
        .collect();
    assert!(
        differences.is_empty(),
        "the mount differs from a plain directory:\n  {}",
        differences.join("\n  ")
    );
    assert_eq!(
        mounted.seen.len(),
        plain.seen.len(),
        "one of the trees saw more than the other"
    );
    // Whatever the case left behind, SRC has it exactly as the mount shows it.
    let through = common::tree::snapshot(&mounted.top, common::tree::Times::All);
    let behind = common::tree::snapshot(source, common::tree::Times::All);
    common::tree::assert_same(&behind, &through, "MNT (found) against SRC (expected)");
    mount.finish();
}
