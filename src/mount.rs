//! The story of one mount: prepare, attach, serve once, detach. The only place that knows everybody.
//!
//! The order is what makes it safe. Signals are recorded before there is anything to take down.
//! The mount is served and tried out while nobody can see it, and published last: a start-up that
//! fails has touched nothing. From then on the control thread alone decides when it is over.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::attach::{self, Attachment, DeviceNumber, Pending};
use crate::config::{Cache, Config, Io};
use crate::daemon::Ready;
use crate::exit::{ExitCode, Failure};
use crate::fuse::{self, Ended, Server};
use crate::lifecycle::{
    self, Cause, Detach, Detached, Ending, Gate, Identity, Limits, Mounted, Served, Shutdown,
    Signals,
};
use crate::loopback::{Loopback, Settings};
use crate::observe::faults::{self, Faults};
use crate::observe::{Counters, Outcome};
use crate::service::{Service, View};
use crate::sync::{Arc, OnceLock};
use crate::sys;

/// How long a mount may take to leave the table after its connection has ended. `umount -f` and
/// `umount -l -f` cut the connection first: a dead mount that is taken away at once would be taken
/// from under them, and they would say "not mounted".
const FORCED_UNMOUNT: Duration = Duration::from_millis(100);

/// Mounts, serves until the end, and takes everything down again. `ready` is told once the mount
/// can be used; an error before that leaves nothing behind.
pub fn serve(config: &Config, ready: Ready) -> Result<ExitCode, Failure> {
    let signals = Signals::install().map_err(|error| system("can't take over signals", &error))?;
    let file_limit = check_surroundings()?;
    if config.serving.low_latency {
        check_low_latency()?;
    }
    let tree = open_source(config, file_limit)?;
    stop_if_asked(&signals)?;
    let mut pending = attach::prepare(config)?;
    let covered = pending.covered();
    if let Some(device) = pending.device_number() {
        shield(&tree, config, device, covered);
    }
    let gate = Arc::new(Gate::new());
    let counters = Arc::new(Counters::new());
    let device = pending.take_device()?;
    let server = handshake(config, &tree, device, &gate, &counters)?;
    log::info!("{}; {}", server.negotiated(), tree.describe());
    let shutdown = Shutdown::new().map_err(|error| system("can't make an eventfd", &error))?;
    let lost = shutdown.clone();
    Server::on_lost_loop(move || lost.request(Cause::ServingFailed));
    let mounted = Arc::new(OnceLock::new());
    let serving = start_serving(server, shutdown.clone(), Arc::clone(&mounted))?;
    // Said before it is true: whoever unmounts in the very moment of the publishing ends a mount
    // that was there, not a start-up. Nothing acts on it before the control thread runs.
    shutdown.started();
    // A failure takes the mount with it. The serving thread is not waited for: somebody may be in
    // a mount that was visible already, and this process ends now anyway.
    let attachment = Arc::new(publish(pending, &signals)?);
    // A program in the background has told its caller already, and is nobody's service.
    let service =
        Service::of_this_process(&config.source, &config.target).filter(|_| config.foreground);
    if let Some(service) = &service {
        let device = attachment.device_number();
        service.check_visible((device.major, device.minor))?;
    }
    let _ = mounted.set(Arc::clone(&attachment));
    let limits = Limits {
        drain: config.drain_timeout,
        lazy: config.lazy_timeout,
        ..Limits::default()
    };
    let ours: Arc<dyn Mounted> = Arc::new(Ours(Arc::clone(&attachment)));
    let control =
        lifecycle::spawn_control(signals, shutdown.clone(), ours, Arc::clone(&gate), limits)
            .map_err(|error| system("can't start the control thread", &error))?;
    log::info!(
        "serving {} at {}",
        config.source.display(),
        config.target.display()
    );
    let unheard = ready.tell().err();
    if unheard.is_some() {
        // Whoever asked for the mount believes that it failed: then it must not be there.
        shutdown.request(Cause::StartupFailed(ExitCode::System));
    }

    let telling = service.and_then(|service| {
        let look = looking(&shutdown, &tree, &counters, &gate);
        service
            .ready(look)
            .inspect_err(|error| log::warn!("can't start the thread that tells systemd: {error}"))
            .ok()
    });
    let ending = joined(control);
    drop(telling);
    if let Ending::Finished(_) = ending {
        // Serving has ended: this waits for nothing but the thread's last steps.
        let _ = serving.join();
    }
    attachment.remove_made_target();
    say_what_was(&tree, &counters);
    match unheard {
        None => Ok(ending.exit_code()),
        Some(error) => Err(system("can't say that the mount is ready", &error)),
    }
}

/// What loopfs can't do without, and what it takes of its surroundings: the number of files that it
/// may have open, and no limit on their sizes.
fn check_surroundings() -> Result<u64, Failure> {
    if !sys::fs::proc_works() {
        let text =
            "/proc is not mounted, and files are opened through it: mount -t proc proc /proc";
        return Err(Failure::new(ExitCode::System, text));
    }
    if let Some(limit) = sys::limits::lift_file_size_limit() {
        log::warn!(
            "no file can be written beyond {limit} bytes: this process is limited (ulimit -H -f)"
        );
    }
    Ok(sys::fs::raise_file_limit())
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

fn open_source(config: &Config, file_limit: u64) -> Result<Arc<Loopback>, Failure> {
    let settings = Settings {
        file_limit,
        one_file_system: config.tree.one_file_system,
        noatime: config.mount.noatime,
    };
    Loopback::open(&config.source, &settings)
        .map(Arc::new)
        .map_err(|error| {
            let text = format!(
                "SRC '{}' can't be opened: {}: serve it as a user who may read it",
                config.source.display(),
                error.errno()
            );
            Failure::new(ExitCode::MountFailed, text)
        })
}

/// Tells the tree where its own mount is, so that it is never entered. What it covers can only be
/// seen below SRC if it lies there; elsewhere its descriptor would just keep a file system busy.
fn shield(tree: &Loopback, config: &Config, device: DeviceNumber, covered: Option<OwnedFd>) {
    let covered = covered.filter(|_| config.target.starts_with(&config.source));
    tree.shield(sys::fs::device_number(device.major, device.minor), covered);
}

fn handshake(
    config: &Config,
    tree: &Arc<Loopback>,
    device: OwnedFd,
    gate: &Arc<Gate>,
    counters: &Arc<Counters>,
) -> Result<Server, Failure> {
    let list = std::env::var(faults::VARIABLE).unwrap_or_default();
    let faults = Faults::parse(&list).map_err(|word| {
        let text = format!(
            "{}: '{word}' is no fault; write OPERATION=panic or =ERRNO",
            faults::VARIABLE
        );
        Failure::new(ExitCode::Usage, text)
    })?;
    let options = fuse::Options {
        threads: config.serving.threads,
        io: config.serving.io,
        listing: config.serving.listing,
        caching: config.caching,
        kernel_checks: config.mount.default_permissions,
        root_and_owner_only: config.mount.allow_root && !config.mount.allow_other,
        forward_locks: config.tree.forward_locks,
        low_latency: config.serving.low_latency,
        faults,
    };
    let server = Server::handshake(
        Arc::clone(tree),
        device,
        &options,
        Arc::clone(gate),
        Arc::clone(counters),
    )
    .map_err(|error| {
        system(
            "the handshake with the kernel failed, which takes Linux 5.10 or later",
            &error,
        )
    })?;
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
    Ok(server)
}

/// Serves on a thread of its own, and tells `shutdown` when that is over.
fn start_serving(
    server: Server,
    shutdown: Shutdown,
    mounted: Arc<OnceLock<Arc<Attachment>>>,
) -> Result<JoinHandle<()>, Failure> {
    let serve = move || {
        if let Err(error) = sys::process::leave_signals_to_others() {
            log::warn!("signals may interrupt requests: {error}");
        }
        let how = how_it_ended(server.run());
        let present = mounted
            .get()
            .is_some_and(|mount| mount.stays(FORCED_UNMOUNT));
        shutdown.serving_ended(how, present);
    };
    let builder = thread::Builder::new().name("loopfs-serve".to_owned());
    builder
        .spawn(serve)
        .map_err(|error| system("can't start the serving thread", &error))
}

fn how_it_ended(ended: Ended) -> Served {
    match ended.result {
        Ok(()) => Served::Closed,
        // The kernel's answer to a worker that was just taking up a request when the connection
        // ended (`fuse_dev_do_read`). A worker a moment earlier or later gets ENODEV.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Served::Closed,
        Err(error) => {
            log::error!("serving failed: {error}");
            Served::Failed
        }
    }
}

/// Tries the mount out and makes it visible.
fn publish(pending: Pending, signals: &Signals) -> Result<Attachment, Failure> {
    pending.self_test()?;
    stop_if_asked(signals)?;
    Ok(pending.publish()?)
}

fn stop_if_asked(signals: &Signals) -> Result<(), Failure> {
    match signals.pending_stop() {
        None => Ok(()),
        Some(signal) => {
            let text = format!(
                "{signal} came before the mount was ready; nothing is mounted: start it again"
            );
            Err(Failure::new(ExitCode::Interrupted, text))
        }
    }
}

/// A look at how the daemon is doing, whenever it is wanted.
fn looking(
    shutdown: &Shutdown,
    tree: &Arc<Loopback>,
    counters: &Arc<Counters>,
    gate: &Arc<Gate>,
) -> impl Fn() -> View + Send + 'static {
    let (shutdown, tree) = (shutdown.clone(), Arc::clone(tree));
    let (counters, gate) = (Arc::clone(counters), Arc::clone(gate));
    move || View {
        state: shutdown.state(),
        open: tree.open_handles(),
        in_flight: gate.in_flight(),
        answered: counters.answered(),
        left: shutdown.time_left(),
    }
}

fn joined(control: JoinHandle<Ending>) -> Ending {
    // A panic of the control thread is a bug that must not pass for an orderly end. Unwinding from
    // here drops the attachment, which detaches the mount.
    control.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn say_what_was(tree: &Loopback, counters: &Counters) {
    log::debug!(
        "answered {} requests, {} with an error, {} after a panic; {} inodes and {} handles left",
        counters.total(Outcome::Served),
        counters.total(Outcome::Failed),
        counters.total(Outcome::Panicked),
        tree.known_inodes(),
        tree.open_handles(),
    );
}

fn system(what: &str, error: &io::Error) -> Failure {
    Failure::new(ExitCode::System, format!("{what}: {error}"))
}

/// The attachment as the way out sees it.
struct Ours(Arc<Attachment>);

impl Mounted for Ours {
    fn is_present(&self) -> bool {
        self.0.is_present()
    }

    fn is_covered(&self) -> bool {
        self.0.is_covered()
    }

    fn detach(&self, how: Detach) -> io::Result<Detached> {
        let how = match how {
            Detach::Polite => attach::Detach::Polite,
            Detach::Lazy => attach::Detach::Lazy,
        };
        match self.0.detach(how) {
            Ok(attach::Detached::Done) => Ok(Detached::Done),
            Ok(attach::Detached::AlreadyGone) => Ok(Detached::AlreadyGone),
            Ok(attach::Detached::Busy) => Ok(Detached::Busy),
            Ok(attach::Detached::Covered) => Ok(Detached::Covered),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }

    fn abort_connection(&self) -> io::Result<()> {
        self.0.abort_connection()
    }

    fn identity(&self) -> Identity {
        let device = self.0.device_number();
        Identity {
            target: self.0.target().to_owned(),
            device: Some((device.major, device.minor)),
            mount_id: u32::try_from(self.0.mount_id()).ok(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_request_taken_up_while_the_connection_ends_is_no_failure() {
        let how = |result| how_it_ended(Ended { result });
        assert_eq!(how(Ok(())), Served::Closed);
        assert_eq!(how(Err(Errno::CONNABORTED.into())), Served::Closed);
        assert_eq!(how(Err(Errno::IO.into())), Served::Failed);
        assert_eq!(how(Err(io::Error::other("a panic"))), Served::Failed);
    }
}
