//! Every way of ending the mount, in every state of it, on real mounts with the real binary.
//!
//! In each case: the exit status is that of an orderly end, the daemon ended promptly once nothing
//! held its mount, its log tells of no panic, no mount, process or connection is left, what was
//! closed or fsynced is in SRC, and MNT is a plain directory again. In reading order:
//!
//! - [`lifecycle::subject`]: a daemon under observation, and these checks;
//! - [`lifecycle::start`]: one that need not get as far as being mounted;
//! - [`lifecycle::load`]: programs that keep a mount busy;
//! - [`lifecycle::matrix`]: trigger x state, a line each;
//! - [`lifecycle::early`]: the first 20 ms; [`lifecycle::races`]: several at once;
//! - [`lifecycle::draining`]: open files after the end was asked for;
//! - [`lifecycle::neighbours`]: other mounts on MNT, which are never taken;
//! - [`lifecycle::source`]: SRC hangs, goes away, or is full;
//! - [`lifecycle::crash`]: SIGKILL, and serving that fails;
//! - [`lifecycle::cycles`]: hundreds of mounts in one go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod lifecycle {
    pub(crate) mod crash;
    pub(crate) mod cycles;
    pub(crate) mod draining;
    pub(crate) mod early;
    pub(crate) mod load;
    pub(crate) mod matrix;
    pub(crate) mod neighbours;
    pub(crate) mod races;
    pub(crate) mod source;
    pub(crate) mod start;
    pub(crate) mod subject;
}
