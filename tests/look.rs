//! The commands that look at mounts and end them, on real mounts, whatever state these are in: idle, busy, stuck,
//! draining, dead, covered.
//!
//! - [`look::looking`]: how a command is run, and what it says as JSON;
//! - [`look::states`]: `list`, `status` and `unmount` in each state;
//! - [`look::stuck`]: names in a mount whose daemon is stopped;
//! - [`look::unmounting`]: waiting for those who use it, and not;
//! - [`look::numbers`]: a device number that is given to another mount, and copies of a mount;
//! - [`look::sockets`]: who may ask, and what is left of a killed daemon;
//! - [`look::users`]: mounts of users without privilege;
//! - [`look::top`]: on a terminal, and without one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod look {
    pub(crate) mod looking;
    pub(crate) mod numbers;
    pub(crate) mod sockets;
    pub(crate) mod states;
    pub(crate) mod stuck;
    pub(crate) mod top;
    pub(crate) mod unmounting;
    pub(crate) mod users;
}
