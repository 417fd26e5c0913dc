//! The supervisor as the process sees it that serves under it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::link::Link;
use super::message::{Mounted, Order, Place, Report, VERSION};
use super::store::Store;
use crate::attach::Handover;
use crate::daemon;
use crate::exit::{ExitCode, Failure};
use crate::fuse::Terms;
use crate::lifecycle::{Cause, Gate, Shutdown, State};
use crate::survive;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, OnceLock, lock};

/// Set for a process that serves under a supervisor: the version of what the two say to each other. The socket is its standard input.
pub(crate) const VARIABLE: &str = "LOOPFS_SUPERVISED";

/// How long requests in flight may take to be answered before an upgrade.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long an upgrade may take before who asked for it is told that nothing came of it.
const UPGRADE: Duration = Duration::from_secs(60);

/// Whoever starts this process again if it dies.
#[derive(Debug, Clone)]
pub struct Supervisor {
    link: Arc<Link>,
    /// It has been told that this process serves.
    ready: Arc<AtomicBool>,
    /// Where systemd keeps what the supervisor keeps; should that be killed, another one goes on.
    store: Arc<OnceLock<Store>>,
    /// All who wait to hear why there is no upgrade.
    upgrading: Arc<Mutex<Vec<mpsc::Sender<String>>>>,
}

/// What this process is for.
#[derive(Debug)]
pub struct Duty {
    /// SRC and MNT.
    pub paths: (PathBuf, PathBuf),
    /// SRC itself.
    pub root: OwnedFd,
    /// The mount that is there; none if it is to be made.
    pub inheritance: Option<Inheritance>,
}

/// A mount that another process served.
#[derive(Debug)]
pub struct Inheritance {
    /// Which mount it is.
    pub attachment: Handover,
    /// What it is served by.
    pub legacy: Legacy,
    /// What this program has to understand as well, if the supervisor is to become the same: see [`super::could_go_on_with`].
    pub succession: Option<OwnedFd>,
}

/// What a mount is served by, whoever does it.
#[derive(Debug)]
pub struct Legacy {
    /// What was agreed with the kernel.
    pub terms: Terms,
    /// The connection.
    pub device: OwnedFd,
    /// The directory below the mount, if it can be seen in SRC.
    pub covered: Option<OwnedFd>,
    /// The memory that survives.
    pub memory: Option<OwnedFd>,
}

/// What is known of it when it is over with the process that served it.
#[derive(Debug)]
pub struct Turn {
    /// Where its life stood.
    pub state: State,
    /// For how long it had been on its way out.
    pub draining_for: Duration,
    /// Descriptors that were kept, by number.
    pub kept: HashMap<u64, OwnedFd>,
}

/// What the supervisor gets, to hand it on.
#[derive(Debug)]
pub struct Estate<'a> {
    /// Whether somebody could take over.
    pub restartable: bool,
    /// What was agreed with the kernel.
    pub terms: Terms,
    /// Which mount it is.
    pub attachment: Handover,
    /// The connection.
    pub device: OwnedFd,
    /// The directory below the mount, if it can be seen in SRC.
    pub covered: Option<BorrowedFd<'a>>,
    /// The memory that survives.
    pub memory: Option<BorrowedFd<'a>>,
}

impl Supervisor {
    /// The one that has started this process, if one has.
    ///
    /// # Errors
    /// One line: it speaks another language.
    pub fn of_this_process() -> Result<Option<Self>, Failure> {
        let Some(version) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        if version != VERSION {
            let text = format!(
                "{VARIABLE} is set, to {}: unset it, only loopfs itself sets it for a process of its own version",
                version.display()
            );
            return Err(Failure::new(ExitCode::System, text));
        }
        let socket = take_standard_input()
            .and_then(|socket| daemon::leave_terminal().map(|()| socket))
            .map_err(|error| lost(&error))?;
        let link = Arc::new(Link::of(socket));
        // Never closed but by the end of this process: the supervisor takes it for that.
        std::mem::forget(Arc::clone(&link));
        // It was started as /proc/self/exe, which is what the kernel calls it. A name is a help, no more.
        let _ = rustix::thread::set_name(c"loopfs");
        Ok(Some(Self {
            link,
            ready: Arc::default(),
            store: Arc::default(),
            upgrading: Arc::default(),
        }))
    }

    /// Says that signals are heard from now on, and hears what is to be done.
    pub fn duty(&self) -> Result<Duty, Failure> {
        self.say(&Report::Up).map_err(|error| lost(&error))?;
        self.hear_duty().map_err(|error| lost(&error))
    }

    fn hear_duty(&self) -> io::Result<Duty> {
        match self.hear()? {
            Order::Begin(place) => Ok(duty(place, None)),
            Order::Resume {
                place,
                mounted,
                succession,
            } => {
                let terms = Terms::from_record(&mounted.terms).ok_or_else(garbled)?;
                let inheritance = Inheritance {
                    attachment: Handover {
                        record: mounted.attachment,
                        abort: mounted.abort,
                    },
                    legacy: Legacy {
                        terms,
                        device: mounted.device,
                        covered: mounted.covered,
                        memory: mounted.memory,
                    },
                    succession,
                };
                Ok(duty(place, Some(inheritance)))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Hands everything over that it takes to serve the mount that was made.
    pub fn hand_over(&self, estate: Estate<'_>) -> Result<(), Failure> {
        let send = || {
            let again =
                |it: Option<BorrowedFd<'_>>| it.map(|it| it.try_clone_to_owned()).transpose();
            self.say(&Report::Made(Mounted {
                restartable: estate.restartable,
                terms: estate.terms.to_record(),
                attachment: estate.attachment.record,
                device: estate.device,
                abort: estate.attachment.abort,
                covered: again(estate.covered)?,
                memory: again(estate.memory)?,
            }))
        };
        send().map_err(|error| lost(&error))
    }

    /// Says that this process can take over what it was handed, and waits for the word to do so.
    pub fn wait_for_turn(&self) -> Result<Turn, Failure> {
        let wait = || {
            self.say(&Report::Prepared)?;
            match self.hear()? {
                Order::Go {
                    state,
                    draining_for,
                    stored,
                    kept,
                } => {
                    let kept = (0..kept).map(|_| match self.hear()? {
                        Order::Kept(number, descriptor) => Ok((number, descriptor)),
                        other => Err(unexpected(&other)),
                    });
                    let kept: HashMap<_, _> = kept.collect::<io::Result<_>>()?;
                    if stored {
                        self.is_stored(kept.keys().copied());
                    }
                    Ok(Turn {
                        state,
                        draining_for,
                        kept,
                    })
                }
                other => Err(unexpected(&other)),
            }
        };
        wait().map_err(|error| lost(&error))
    }

    /// Has the program that lies on the disk by now go on with the mount. That ends this process, so what it returns is why
    /// it did not come to that.
    #[must_use]
    pub fn upgrade(&self) -> String {
        let (tell, told) = mpsc::channel();
        lock(&self.upgrading).push(tell);
        match self.say(&Report::Upgrade) {
            Ok(()) => {
                log::debug!("the supervisor is asked for an upgrade");
                told.recv_timeout(UPGRADE)
                    .unwrap_or_else(|_| "the supervisor does not answer".to_owned())
            }
            Err(error) => format!("the supervisor is gone: {error}"),
        }
    }

    /// Says that the mount can be used.
    pub fn ready(&self) -> io::Result<()> {
        self.say(&Report::Ready)?;
        self.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Says where this life stands. That nobody hears it any more another thread notices.
    pub fn stands(&self, state: State) {
        let _ = self.say(&Report::Stands(state));
    }

    /// Starts a thread, "loopfs-orders", that does what the supervisor says, and ends the daemon when it is gone.
    pub fn obey(&self, shutdown: Shutdown, gate: Arc<Gate>) -> io::Result<()> {
        let it = self.clone();
        thread::Builder::new()
            .name("loopfs-orders".to_owned())
            .spawn(move || {
                while let Ok(order) = it.hear() {
                    match order {
                        Order::Pause => {
                            let drained = gate.hold_up(LAST_ANSWERS);
                            if it.say(&Report::Paused(drained)).is_err() {
                                break;
                            }
                        }
                        Order::Stored => it.is_stored([]),
                        Order::GoOn(why) => {
                            gate.let_go();
                            for waits in lock(&it.upgrading).drain(..) {
                                // It may have lost its patience.
                                let _ = waits.send(why.clone());
                            }
                        }
                        other => log::error!("{}", unexpected(&other)),
                    }
                }
                if it.store.get().is_some() {
                    log::warn!("the supervisor is gone: the mount is left to the next one");
                    log::logger().flush();
                    std::process::exit(i32::from(ExitCode::Again as u8));
                }
                log::error!("the supervisor is gone: nobody could take over any more");
                gate.let_go();
                shutdown.request(Cause::SupervisorLost);
            })
            .map(drop)
    }

    /// Says how it ended, which the supervisor makes its own end; before that there is nothing to be said on stderr.
    pub fn ended(&self, result: &Result<ExitCode, Failure>, inherited: bool) {
        let report = match result {
            Err(failure) if inherited && !self.ready.load(Ordering::Relaxed) => {
                Report::Refused(failure.message.clone())
            }
            Err(failure) => Report::Ended {
                code: failure.code,
                message: failure.message.clone(),
            },
            Ok(code) => Report::Ended {
                code: *code,
                message: String::new(),
            },
        };
        // It may be gone, and has its successor then, or nobody to tell.
        let _ = self.say(&report);
    }

    /// systemd keeps what the supervisor keeps, of these nodes among others.
    fn is_stored(&self, nodes: impl IntoIterator<Item = u64>) {
        if self.store.get().is_none()
            && let Some(store) = Store::offered()
        {
            store.has(nodes);
            // Nobody else comes here at the same time.
            let _ = self.store.set(store);
        }
    }

    fn say(&self, report: &Report) -> io::Result<()> {
        let (bytes, descriptors) = report.parcel();
        let descriptors: Vec<_> = descriptors.into_iter().map(AsFd::as_fd).collect();
        self.link.send(&bytes, &descriptors)
    }

    fn hear(&self) -> io::Result<Order> {
        let parcel = self.link.receive()?;
        let parcel = parcel.ok_or(io::ErrorKind::UnexpectedEof)?;
        Order::of(parcel).ok_or_else(garbled)
    }
}

impl survive::Keeper for Supervisor {
    fn keep(&self, node: u64, object: BorrowedFd<'_>) -> io::Result<()> {
        // systemd first, and by this process itself: a descriptor on its way to a supervisor that is killed would be lost.
        let store = self.store.get();
        let is_stored = store.is_some_and(|store| {
            let kept = store.keep(node, object);
            kept.inspect_err(|error| store.say_lost(error)).is_ok()
        });
        self.say(&Report::Keep {
            node,
            descriptor: object.try_clone_to_owned()?,
            is_stored,
        })
    }

    fn give_up(&self, node: u64) {
        let store = self.store.get();
        store.inspect(|store| store.give_up(node));
        // If it is gone nobody keeps anything.
        let _ = self.say(&Report::Drop {
            node,
            is_taken_out: store.is_some(),
        });
    }
}

fn duty(place: Place, inheritance: Option<Inheritance>) -> Duty {
    Duty {
        paths: (place.source, place.target),
        root: place.root,
        inheritance,
    }
}

/// The socket that is this process's standard input, which becomes /dev/null.
fn take_standard_input() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

fn unexpected(order: &Order) -> io::Error {
    io::Error::other(format!(
        "the supervisor says {order:?}, which makes no sense now"
    ))
}

fn garbled() -> io::Error {
    io::Error::other("the supervisor can't be understood")
}

fn lost(error: &io::Error) -> Failure {
    let text = format!("lost the supervisor: {error}");
    Failure::new(ExitCode::System, text)
}
