//! Many inodes and few descriptors: the daemon may have fewer files open than the kernel remembers
//! inodes. Where SRC gives file handles nobody notices; where it gives none the kernel is asked to
//! forget, and where that can't be done programs get EMFILE, and the daemon lives on.
//!
//! `scripts/measure-inodes` does the first of these with a million inodes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod scale {
    pub(crate) mod crowd;
    pub(crate) mod handles;
    pub(crate) mod limited;
    pub(crate) mod memory;
    pub(crate) mod without;
}
