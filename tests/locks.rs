//! Locks between programs on MNT, and with `--forward-locks` between them and programs on SRC.
//!
//! The oracle is two programs on SRC: whichever side each of them works on, they must see the same.
//!
//! - [`locks::agent`]: a program that takes locks as it is told;
//! - [`locks::exclusion`]: who keeps whom out, and what ends a lock;
//! - [`locks::waiting`]: waiting for a lock, and how a wait ends;
//! - [`locks::contents`]: what a lock protects is seen as it is;
//! - [`locks::local`]: without the option;
//! - [`locks::leases`]: leases that programs on SRC have.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod locks {
    pub(crate) mod agent;
    pub(crate) mod contents;
    pub(crate) mod exclusion;
    pub(crate) mod leases;
    pub(crate) mod local;
    pub(crate) mod waiting;
}

use std::path::PathBuf;

use common::{Mount, TestEnv};

/// A side of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Mnt,
    Src,
}

use Side::{Mnt, Src};

/// A mount that forwards locks.
struct Forwarding(Mount);

impl Forwarding {
    #[track_caller]
    fn start(options: &[&str]) -> Self {
        let options = [&["--forward-locks"], options].concat();
        Self(Mount::start_in(TestEnv::new(), &options))
    }

    fn path(&self, side: Side, name: &str) -> PathBuf {
        match side {
            Mnt => self.0.path(name),
            Src => self.0.source(name),
        }
    }
}
