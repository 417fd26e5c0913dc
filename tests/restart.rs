//! `--supervise`: the serving process dies, and nobody notices; and every end is an end all the same.
//!
//! In reading order: `supervised` (a mount and its two processes), `deaths` (killed at rest), `ends` (who may end it, and how),
//! `upgrade` (another program goes on), `stored` (systemd keeps it meanwhile), `telling` (the kernel was being told of a change),
//! `forgotten` (it has forgotten something), `limits` (where it can't be had).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod restart {
    pub(crate) mod deaths;
    pub(crate) mod ends;
    pub(crate) mod forgotten;
    pub(crate) mod limits;
    pub(crate) mod stored;
    pub(crate) mod supervised;
    pub(crate) mod telling;
    pub(crate) mod upgrade;
}
