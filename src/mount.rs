//! The story of one mount: prepare, attach, serve once, detach. The only place that knows everybody.
//!
//! The order is what makes it safe. Signals are recorded before there is anything to take down.
//! The mount is served and tried out while nobody can see it, and published last: a start-up that
//! fails has touched nothing. From then on the control thread alone decides when it is over.
//!
//! Under a supervisor the same is done by a process that others may follow, each of which goes on where the last one was killed
//! ([`serve_under`]). `means` is what all of them need before they serve.

mod desk;
mod means;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::attach::{self, Attachment, Pending};
use crate::cli::{Cli, Environment};
use crate::config::Config;
use crate::daemon::Ready;
use crate::exit::{ExitCode, Failure};
use crate::fuse::{Ended, Server};
use crate::guard::Guard;
use crate::lifecycle::{
    self, Cause, Detach, Detached, Ending, Gate, Identity, Limits, Mounted, Past, Served, Shutdown,
    Signals,
};
use crate::loopback::Loopback;
use crate::observe::{Counters, Outcome};
use crate::service::{Service, View};
use crate::socket;
use crate::supervise::{self, Duty, Estate, Inheritance, Legacy, Supervisor};
use crate::survive::{State, Survival, Unreadable};
use crate::sync::{Arc, OnceLock};
use crate::sys;
pub use means::check_limits;

use desk::{Card, Desk};
use means::{
    check_surroundings, check_wishes, is_restartable, keep_covered, new_state, open_source,
    open_to_survive, options, say_what_is_amiss, shield,
};

/// How long a mount may take to leave the table after its connection has ended. `umount -f` and
/// `umount -l -f` cut the connection first: a dead mount that is taken away at once would be taken
/// from under them, and they would say "not mounted".
const FORCED_UNMOUNT: Duration = Duration::from_millis(100);

/// Mounts, serves until the end, and takes everything down again. `ready` is told once the mount
/// can be used; an error before that leaves nothing behind.
pub fn serve(config: &Config, ready: Ready) -> Result<ExitCode, Failure> {
    let signals = install_signals()?;
    check_surroundings(config)?;
    let running = make(config, &signals, None)?;
    running.until_the_end(config, signals, ready, None)
}

/// The same for the process that serves under a supervisor: it makes the mount, or goes on with the one that another process
/// has served, which is dead.
pub fn serve_under(cli: Cli, supervisor: &Supervisor) -> Result<ExitCode, Failure> {
    let signals = install_signals()?;
    sys::buffers::have_ready();
    // What the supervisor holds back for itself its child inherits.
    sys::process::let_signals_in().map_err(|error| system("can't take over signals", &error))?;
    let Duty {
        paths,
        root,
        inheritance,
    } = supervisor.duty()?;
    let inherited = inheritance.is_some();
    let result = cli
        .resolve_again(&Environment::current(), paths)
        .and_then(|config| {
            let told = supervisor.clone();
            // Before any thread: one with descriptors of its own would keep the caller's streams, and whoever waits for
            // their end would wait as long as the mount lives.
            let ready = Ready::under_supervisor(&config, move || told.ready());
            check_surroundings(&config)?;
            let running = match inheritance {
                None => make(&config, &signals, Some(supervisor)),
                Some(inheritance) => go_on(&config, supervisor, &root, inheritance),
            }?;
            running.until_the_end(&config, signals, ready, Some(supervisor))
        });
    supervisor.ended(&result, inherited);
    result
}

fn install_signals() -> Result<Signals, Failure> {
    Signals::install().map_err(|error| system("can't take over signals", &error))
}

/// A mount that is served.
struct Running {
    card: Card,
    tree: Arc<Loopback>,
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
    attachment: Arc<Attachment>,
    /// Whoever cuts the connection if this process is killed, where no supervisor would.
    guard: Option<Guard>,
    /// Another process can go on with it.
    restartable: bool,
    /// For how long the process before this one had been on its way out.
    draining_for: Duration,
}

/// Makes the mount, serves it, tries it out and makes it visible.
fn make(
    config: &Config,
    signals: &Signals,
    supervisor: Option<&Supervisor>,
) -> Result<Running, Failure> {
    let state = supervisor.map(|_| new_state()).transpose()?;
    let tree = match (supervisor, &state) {
        (Some(supervisor), Some(state)) => {
            let survival = Survival {
                state: Arc::clone(state),
                keeper: Arc::new(supervisor.clone()),
                kept: HashMap::new(),
            };
            open_to_survive(config, &config.source, survival)?
        }
        _ => open_source(config)?,
    };
    stop_if_asked(signals)?;
    let mut pending = attach::prepare(config)?;
    let covered = keep_covered(config, pending.covered());
    let heir = covered.as_ref().and_then(|it| it.try_clone().ok());
    if let Some(device) = pending.device_number() {
        shield(&tree, device, covered);
    }
    let gate = Arc::new(Gate::new());
    let counters = Arc::new(Counters::new());
    let device = pending.take_device()?;
    let heirloom = supervisor.map(|_| device.try_clone()).transpose();
    let heirloom = heirloom.map_err(|error| system("can't share the connection", &error))?;
    let options = options(config, supervisor.is_some())?;
    let server = Server::handshake(
        Arc::clone(&tree),
        device,
        &options,
        Arc::clone(&gate),
        Arc::clone(&counters),
    )
    .map_err(|error| {
        system(
            "the handshake with the kernel failed, which takes Linux 5.10 or later",
            &error,
        )
    })?;
    check_wishes(config, &server)?;
    log::info!("{}", server.negotiated());
    log::info!("{}", tree.describe());
    if !tree.acts_as_callers() {
        log::info!(
            "what is made through the mount belongs to the user who mounted, and is done with that user's rights, \
             whoever does it: to act as others takes root"
        );
    }
    let card = Card::of(config, &server);
    let mut restartable = false;
    if let (Some(supervisor), Some(device)) = (supervisor, heirloom) {
        restartable = is_restartable(config, &tree, &server)?;
        let attachment = pending.handover().map_err(|errno| {
            let what = "can't hand the mount over to the supervisor";
            system(what, &errno.into())
        })?;
        supervisor.hand_over(Estate {
            restartable,
            terms: server.terms(),
            attachment,
            device,
            covered: heir.as_ref().map(AsFd::as_fd),
            memory: state.as_ref().map(|state| state.as_fd()),
        })?;
    }
    let guard = Guard::unless(supervisor.is_some(), || pending.handover().ok()?.abort);
    let shutdown = new_shutdown()?;
    let mounted = Arc::new(OnceLock::new());
    let broken = broken(restartable, &shutdown);
    let serving = start_serving(server, shutdown.clone(), Arc::clone(&mounted), broken)?;
    // Said before it is true: whoever unmounts in the very moment of the publishing ends a mount
    // that was there, not a start-up. Nothing acts on it before the control thread runs.
    shutdown.started();
    // A failure takes the mount with it. The serving thread is not waited for: somebody may be in
    // a mount that was visible already, and this process ends now anyway.
    let attachment = Arc::new(publish(pending, signals)?);
    if let Some(service) = service(config) {
        let device = attachment.device_number();
        service.check_visible((device.major, device.minor))?;
    }
    let _ = mounted.set(Arc::clone(&attachment));
    Ok(Running {
        card,
        tree,
        gate,
        counters,
        shutdown,
        serving,
        attachment,
        guard,
        restartable,
        draining_for: Duration::ZERO,
    })
}

/// Goes on serving a mount that is there, as soon as the process is dead that has served it. `root` is SRC.
fn go_on(
    config: &Config,
    supervisor: &Supervisor,
    root: &OwnedFd,
    inheritance: Inheritance,
) -> Result<Running, Failure> {
    if let Some(record) = &inheritance.succession {
        supervise::could_go_on_with(record)?;
    }
    let attachment = Attachment::take_over(inheritance.attachment)
        .ok_or_else(|| Failure::new(ExitCode::Internal, "can't tell which mount it is"))?;
    let attachment = Arc::new(attachment);
    resume(config, supervisor, root, &attachment, inheritance.legacy)
        // Whoever has served it until now may serve it on, and the supervisor takes it down if nobody can.
        .inspect_err(|_| attachment.leave())
}

fn resume(
    config: &Config,
    supervisor: &Supervisor,
    root: &OwnedFd,
    attachment: &Arc<Attachment>,
    legacy: Legacy,
) -> Result<Running, Failure> {
    let mut options = options(config, true)?;
    options.faults = options.faults.of_a_successor();
    let state = legacy
        .memory
        .ok_or(Unreadable::NotOurs)
        .and_then(State::open)
        .map_err(|error| Failure::new(ExitCode::Internal, error.to_string()))?;
    let turn = supervisor.wait_for_turn()?;
    let survival = Survival {
        state: Arc::new(state),
        keeper: Arc::new(supervisor.clone()),
        kept: turn.kept,
    };
    let path = sys::fs::ProcPath::of(root.as_fd()).to_path();
    let tree = open_to_survive(config, &path, survival)?;
    let device = attachment.device_number();
    shield(&tree, device, legacy.covered);
    let gate = Arc::new(Gate::new());
    let counters = Arc::new(Counters::new());
    let server = Server::resume(
        Arc::clone(&tree),
        legacy.device,
        legacy.terms,
        &options,
        Arc::clone(&gate),
        Arc::clone(&counters),
    )
    .map_err(|error| system("can't go on with the connection", &error))?;
    log::debug!("{}; {}", server.negotiated(), tree.describe());
    let card = Card::of(config, &server);
    let shutdown = new_shutdown()?;
    if !shutdown.resumed(turn.state) {
        let text = "the connection was being cut";
        return Err(Failure::new(ExitCode::Internal, text));
    }
    let mounted = Arc::new(OnceLock::from(Arc::clone(attachment)));
    let broken = broken(true, &shutdown);
    let serving = start_serving(server, shutdown.clone(), mounted, broken)?;
    Ok(Running {
        card,
        tree,
        gate,
        counters,
        shutdown,
        serving,
        attachment: Arc::clone(attachment),
        guard: None,
        restartable: true,
        draining_for: turn.draining_for,
    })
}

impl Running {
    /// Says that it can be used, and sees it to its end.
    fn until_the_end(
        self,
        config: &Config,
        signals: Signals,
        ready: Ready,
        supervisor: Option<&Supervisor>,
    ) -> Result<ExitCode, Failure> {
        let Self {
            card,
            tree,
            gate,
            counters,
            shutdown,
            serving,
            attachment,
            guard: _guard,
            restartable,
            draining_for,
        } = self;
        let limits = Limits {
            drain: config.drain_timeout,
            lazy: config.lazy_timeout,
            ..Limits::default()
        };
        let ours: Arc<dyn Mounted> = Arc::new(Ours(Arc::clone(&attachment)));
        let past = match supervisor.cloned() {
            None => Past::default(),
            Some(supervisor) => Past {
                told: Box::new(move |state| supervisor.stands(state)),
                draining_for,
            },
        };
        // The thread that serves has the mount, too: it does not go by itself.
        let failed = |failure: Failure| {
            take_down(&attachment, restartable);
            failure
        };
        let control = lifecycle::spawn_control(
            signals,
            shutdown.clone(),
            ours,
            Arc::clone(&gate),
            limits,
            past,
        )
        .map_err(|error| failed(system("can't start the control thread", &error)))?;
        if let Some(supervisor) = supervisor {
            supervisor
                .obey(shutdown.clone(), Arc::clone(&gate))
                .map_err(|error| failed(system("can't start a thread", &error)))?;
        }
        let socket = listen(Desk {
            card,
            tree: Arc::clone(&tree),
            gate: Arc::clone(&gate),
            counters: Arc::clone(&counters),
            shutdown: shutdown.clone(),
            attachment: Arc::clone(&attachment),
            supervisor: supervisor.cloned(),
        });
        log::info!(
            "serving {} at {}",
            config.source.display(),
            config.target.display()
        );
        say_what_is_amiss();
        let unheard = ready.tell().err();
        if unheard.is_some() {
            // Whoever asked for the mount believes that it failed: then it must not be there.
            shutdown.request(Cause::StartupFailed(ExitCode::System));
        }

        let telling = service(config).and_then(|service| {
            let look = looking(&shutdown, &tree, &counters, &gate);
            service
                .ready(look)
                .inspect_err(|error| {
                    log::warn!("can't start the thread that tells systemd: {error}");
                })
                .ok()
        });
        let ending = joined(control, &attachment, restartable);
        drop(telling);
        drop(socket);
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
}

/// Whoever started this process as a service. A program in the background has told its caller already, and is nobody's.
fn service(config: &Config) -> Option<Service> {
    Service::of_this_process(&config.source, &config.target).filter(|_| config.foreground)
}

fn new_shutdown() -> Result<Shutdown, Failure> {
    Shutdown::new().map_err(|error| system("can't make an eventfd", &error))
}

/// What is done when serving has failed, or an event loop is lost: the mount goes, or this process alone, if another one can
/// do better.
fn broken(restartable: bool, shutdown: &Shutdown) -> Arc<dyn Fn() + Send + Sync> {
    if restartable {
        return Arc::new(|| leave_it_to_the_next());
    }
    let lost = shutdown.clone();
    Arc::new(move || lost.request(Cause::ServingFailed))
}

/// Ends this process, and no more: the mount stays for the next one.
fn leave_it_to_the_next() -> ! {
    log::logger().flush();
    std::process::exit(i32::from(ExitCode::Internal as u8))
}

/// Serves on a thread of its own, and tells `shutdown` when that is over.
fn start_serving(
    server: Server,
    shutdown: Shutdown,
    mounted: Arc<OnceLock<Arc<Attachment>>>,
    broken: Arc<dyn Fn() + Send + Sync>,
) -> Result<JoinHandle<()>, Failure> {
    let lost = Arc::clone(&broken);
    Server::on_lost_loop(move || lost());
    let serve = move || {
        if let Err(error) = sys::process::leave_signals_to_others() {
            log::warn!("signals may interrupt requests: {error}");
        }
        let how = how_it_ended(server.run());
        if how == Served::Failed {
            broken();
        }
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

/// Has questions about this mount answered. A mount that can't be asked is a mount all the same.
fn listen(desk: Desk) -> Option<socket::server::Server> {
    let device = desk.attachment.device_number();
    match socket::server::Server::start(device, Arc::new(desk)) {
        Ok(server) => {
            log::debug!("listening for questions at {}", server.path().display());
            Some(server)
        }
        Err(error) => {
            log::warn!(
                "this mount can't be asked how it is, 'loopfs status' shows little of it: {error}"
            );
            None
        }
    }
}

fn joined(control: JoinHandle<Ending>, attachment: &Attachment, restartable: bool) -> Ending {
    // A panic of the control thread is a bug that must not pass for an orderly end.
    control.join().unwrap_or_else(|panic| {
        if restartable {
            leave_it_to_the_next()
        }
        take_down(attachment, restartable);
        resume_unwind(panic)
    })
}

/// Takes the mount down because this process can't go on; if another one can, it is left to that.
fn take_down(attachment: &Attachment, restartable: bool) {
    if !restartable && let Err(error) = attachment.detach(attach::Detach::Lazy) {
        log::error!("{error}");
    }
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
    let why = sys::limits::explained(error);
    Failure::new(ExitCode::System, format!("{what}: {why}"))
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
