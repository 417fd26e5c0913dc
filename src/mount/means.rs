//! What it takes to serve a mount, and what the user insists on: looked at before anybody can see the mount.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::attach::DeviceNumber;
use crate::config::{Cache, Config, Io, Supervise};
use crate::exit::{ExitCode, Failure};
use crate::fuse::{self, Server};
use crate::loopback::recover::Unopened;
use crate::loopback::{Loopback, Settings};
use crate::observe::faults::{self, Faults};
use crate::survive::{State, Survival};
use crate::sync::Arc;
use crate::sys;

/// With fewer, this or that can't be had at a start, depending on how many: it is said once, and before anything is tried.
const FEWEST_FILES: u64 = 64;

/// Has this process have as many files open as it may, and looks whether that is enough to serve anything.
///
/// # Errors
/// One line that says which limit to raise, with [`ExitCode::System`].
pub fn check_limits() -> Result<(), Failure> {
    let limit = sys::fs::raise_file_limit();
    if limit >= FEWEST_FILES {
        return Ok(());
    }
    let text = format!(
        "this process may have {limit} files open, and {FEWEST_FILES} are the least to serve with: raise the limit on open \
         files (ulimit -n, LimitNOFILE=)"
    );
    Err(Failure::new(ExitCode::System, text))
}

/// What loopfs can't do without, and what it takes of its surroundings: no limit on the sizes of files.
pub(super) fn check_surroundings(config: &Config) -> Result<(), Failure> {
    if !sys::fs::proc_works() {
        let text =
            "/proc is not mounted, and files are opened through it: mount -t proc proc /proc";
        return Err(Failure::new(ExitCode::System, text));
    }
    sys::limits::lift_file_size_limit();
    if config.serving.low_latency {
        check_low_latency()?;
    }
    Ok(())
}

/// Says what of the surroundings is other than the user may think. Of a mount that is there: one that fails has one line.
pub(super) fn say_what_is_amiss() {
    if let Some(limit) = sys::limits::file_size_limit() {
        log::warn!(
            "no file can be written beyond {limit} bytes: this process is limited (ulimit -H -f)"
        );
    }
    for word in sys::features::unknown() {
        let variable = sys::features::VARIABLE;
        log::warn!("{variable}: '{word}' switches nothing off; loopfs(1) has the list");
    }
}

/// Whether `--low-latency` can be had.
fn check_low_latency() -> Result<(), Failure> {
    let asked = sys::cpu_latency::NoDeepSleep::request();
    asked.map(drop).map_err(|error| {
        let device = sys::cpu_latency::DEVICE;
        let text =
            format!("--low-latency: {device}: {error}; it takes root, or leave the option out");
        Failure::new(ExitCode::System, text)
    })
}

/// SRC. It takes as many open files as can be had.
pub(super) fn open_source(config: &Config) -> Result<Arc<Loopback>, Failure> {
    Loopback::open(&config.source, &settings(config))
        .map(Arc::new)
        .map_err(|error| unopened(config, &error.errno().into()))
}

/// Memory for what the next process goes on with.
pub(super) fn new_state() -> Result<Arc<State>, Failure> {
    State::create().map(Arc::new).map_err(|error| {
        let why = sys::limits::explained(&error);
        let text = format!(
            "can't make memory that outlives the process (a sparse file of {} GiB): {why}; or serve without --supervise",
            State::SIZE.div_ceil(1 << 30)
        );
        Failure::new(ExitCode::System, text)
    })
}

/// SRC, which is at `path`, with everything recorded for the next process, or as the last one has left it.
pub(super) fn open_to_survive(
    config: &Config,
    path: &Path,
    survival: Survival,
) -> Result<Arc<Loopback>, Failure> {
    Loopback::open_to_survive(path, &settings(config), survival)
        .map(Arc::new)
        .map_err(|error| match error {
            Unopened::Source(error) => unopened(config, &error.errno().into()),
            Unopened::State(error) => unopened(config, &io::Error::other(error)),
        })
}

fn settings(config: &Config) -> Settings {
    Settings {
        file_limit: sys::fs::raise_file_limit(),
        one_file_system: config.tree.one_file_system,
        noatime: config.mount.noatime,
    }
}

fn unopened(config: &Config, error: &io::Error) -> Failure {
    let next = sys::limits::remedy(error).unwrap_or("serve it as a user who may read it");
    let text = format!(
        "SRC '{}' can't be opened: {error}: {next}",
        config.source.display()
    );
    Failure::new(ExitCode::MountFailed, text)
}

/// What the mount covers, if it can be seen in SRC: that takes that it lies there. Elsewhere its descriptor would just keep a
/// file system busy.
pub(super) fn keep_covered(config: &Config, covered: Option<OwnedFd>) -> Option<OwnedFd> {
    covered.filter(|_| config.target.starts_with(&config.source))
}

/// Tells the tree where its own mount is, so that it is never entered.
pub(super) fn shield(tree: &Loopback, device: DeviceNumber, covered: Option<OwnedFd>) {
    tree.shield(sys::fs::device_number(device.major, device.minor), covered);
}

pub(super) fn options(config: &Config, restartable: bool) -> Result<fuse::Options, Failure> {
    let list = std::env::var(faults::VARIABLE).unwrap_or_default();
    let faults = Faults::parse(&list).map_err(|word| {
        let text = format!(
            "{}: '{word}' is no fault; write OPERATION=panic, =crash, =stall or =ERRNO",
            faults::VARIABLE
        );
        Failure::new(ExitCode::Usage, text)
    })?;
    Ok(fuse::Options {
        threads: config.serving.threads,
        io: config.serving.io,
        listing: config.serving.listing,
        caching: config.caching,
        kernel_checks: config.mount.default_permissions,
        root_and_owner_only: config.mount.allow_root && !config.mount.allow_other,
        forward_locks: config.tree.forward_locks,
        low_latency: config.serving.low_latency,
        restartable,
        faults,
    })
}

/// What the user insists on, and the kernel may not have agreed to.
pub(super) fn check_wishes(config: &Config, server: &Server) -> Result<(), Failure> {
    if let Some(why) = server.lacks_passthrough()
        && config.serving.io == Io::Passthrough
    {
        let text = format!("io=passthrough can't be had: {why}; or leave it to io=auto");
        return Err(Failure::new(ExitCode::MountFailed, text));
    }
    if let Some(why) = server.lacks_coherence()
        && config.caching.mode == Cache::Coherent
    {
        let text = format!("cache=coherent can't be had: {why}; or leave it to cache=auto");
        return Err(Failure::new(ExitCode::MountFailed, text));
    }
    Ok(())
}

/// Whether another process can go on if this one dies, as the user wants it to.
pub(super) fn is_restartable(
    config: &Config,
    tree: &Loopback,
    server: &Server,
) -> Result<bool, Failure> {
    let why = if let Some(why) = server.lacks_restart() {
        why
    } else if !tree.finds_inodes_again() {
        "inodes can't be found again: the source's file system has no file handles, or this user may not open them (that \
         takes root)"
    } else if config.tree.forward_locks {
        "locks that are held in the source (--forward-locks) would be lost"
    } else {
        return Ok(true);
    };
    if config.restart.supervise == Supervise::Require {
        let text = format!("supervise=require can't be had: {why}; or leave it to supervise=on");
        return Err(Failure::new(ExitCode::MountFailed, text));
    }
    log::warn!("if the serving process dies the mount is taken down: {why}");
    Ok(false)
}
