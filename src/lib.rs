//! loopfs serves a directory tree at another place through FUSE: exactly once, and with one way to
//! end, whatever asks for it.
//!
//! The program is in `main.rs`; everything else is here so that it can be tested. A newcomer who
//! reads [`mount`] (the story of one mount), `fuse/serve.rs` (what happens around every request)
//! and the list below has the design; `ARCHITECTURE.md` gives the reasons.
//!
//! From the user inward:
//!
//! - [`cli`], [`options`]: what was typed; [`config`]: what was meant; [`exit`]: what is returned;
//! - [`daemon`], [`logging`]: going to the background, and being heard from there;
//! - [`service`]: what systemd(1) is told; [`supervise`]: who goes on when the serving process dies; [`guard`]:
//!   who cuts its connection where nobody does;
//! - [`mount`]: prepare, attach, serve once, detach. The only place that knows everybody;
//! - [`look`]: the commands that look at mounts which are there;
//! - [`socket`]: where a daemon is asked how it is; [`figures`]: what it tells;
//! - [`lifecycle`]: how it ends; [`attach`]: the mount in the mount table;
//! - [`mod@fuse`]: the only place that names fuser; [`op`]: the operations;
//! - [`loopback`]: the file system, plain functions without a transport;
//! - [`survive`]: what outlives the process, for the next one to go on with;
//! - [`record`]: values as bytes, for another process; [`policy`]: rules over values; [`observe`]: counters and faults; [`error`]: errno and what was
//!   tried; [`sync`]: std's primitives or loom's; [`sys`]: system calls, the only `unsafe`.

pub mod attach;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod exit;
pub mod figures;
pub mod fuse;
pub mod guard;
pub mod lifecycle;
pub mod logging;
pub mod look;
pub mod loopback;
pub mod mount;
pub mod observe;
pub mod op;
pub mod options;
pub mod policy;
pub mod record;
pub mod service;
pub mod socket;
pub mod supervise;
pub mod survive;
pub mod sync;
pub mod sys;
