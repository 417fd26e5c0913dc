//! The real binary from start to end: how it starts, what the mount table shows, each way of
//! ending it, and one clear line for everything that can't be mounted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod mount {
    pub(crate) mod doctor;
    pub(crate) mod ending;
    pub(crate) mod fallbacks;
    pub(crate) mod faults;
    pub(crate) mod helper;
    pub(crate) mod io;
    pub(crate) mod refusals;
    pub(crate) mod rights;
    pub(crate) mod service;
    pub(crate) mod starting;
    pub(crate) mod unprivileged;
}
