//! What the integration tests share: a temporary SRC and MNT, the real `loopfs` binary mounted
//! between them, and clean-up that happens whatever the test does.
//!
//! In reading order: [`env`] (`TestEnv`, the guard), [`mount`] (`Mount`, one running daemon),
//! [`process`] (commands with time limits), [`table`] (the mount table), [`user`] (acting as
//! another user), [`tree`] (two trees compared).
//!
//! ```ignore
//! let mount = Mount::start(&["-r"]);                      // ready when this returns
//! assert!(std::fs::write(mount.path("f"), "x").is_err());
//! mount.finish();                                         // SIGTERM, exit 0, nothing left
//! ```
//!
//! Every test needs root, `/dev/fuse` and the programs that it names; what is missing fails the
//! test, nothing is skipped. Waiting is always for a condition, with a limit.

// Each test binary compiles this module for itself and uses its own part of it.
#![allow(dead_code, unused_imports)]

pub(crate) mod connection;
pub(crate) mod env;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod table;
pub(crate) mod tree;
pub(crate) mod user;

pub(crate) use env::TestEnv;
pub(crate) use mount::Mount;
pub(crate) use process::{Finished, run, sh};
pub(crate) use rustix::process::Signal;
pub(crate) use user::as_user;

use std::time::Duration;

/// How long anything may take that normally takes milliseconds: generous, because the machine may
/// be loaded; every wait ends at once when its condition holds.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
