//! The mounting side: makes the mount, knows which one is ours, and takes down that one only.
//!
//! [`prepare`] looks at MNT, opens `/dev/fuse` and makes the mount, detached where the kernel can:
//! the caller then serves it, tries it out ([`Pending::self_test`]) and hangs it up
//! ([`Pending::publish`]). From then on [`Attachment`] stands for "we are mounted". Serving is not
//! known here.
//!
//! Parts, in reading order:
//! - `target`: MNT before the mount: `--mkdir`, dead mounts, things that can't be mounted on;
//! - `kernel`: fsopen and its kin, mount(2) where those are missing;
//! - `helper`: fusermount3, for whoever may not mount;
//! - `mountinfo`, `table`: which line of the mount table is ours;
//! - `remount`: changing the flags of one that is there;
//! - `detach`, `attachment`: taking it down, exactly;
//! - `handover`: a mount that another process takes over;
//! - `foreign`: the same for somebody else's;
//! - `abort`: ending our connection; `error`: one line for everything that goes wrong.

mod abort;
mod attachment;
mod detach;
mod error;
pub(crate) mod foreign;
mod handover;
mod helper;
mod kernel;
mod remount;
pub(crate) use crate::sys::mountinfo;
mod table;
mod target;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

pub use attachment::Attachment;
pub use detach::{Detach, Detached};
pub use error::{AttachError, AttachErrorKind};
pub use handover::Handover;
pub use mountinfo::DeviceNumber;
pub use remount::remount;

use crate::config::Config;
use crate::sys::ask::{Question, ask};
use crate::sys::limits;
use abort::AbortFile;
use error::{AttachErrorKind as Kind, explained, says, shown};
use table::{Identity, Label};
use target::{MadeDirectory, Target};

/// How the mount was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `fsopen`, `fsmount`, `move_mount`: detached until published.
    NewApi,
    /// mount(2): visible from the start.
    MountCall,
    /// fusermount3: visible from the start.
    Fusermount,
}

/// How long the daemon may take for the two requests of the self-test.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(10);

/// Where fusermount3 is, if it is installed.
#[must_use]
pub fn fusermount() -> Option<PathBuf> {
    helper::find(std::env::var_os("PATH").as_deref()).ok()
}

/// Looks at `config.target`, opens the connection and makes the mount. What is visible already in
/// the mount table when this returns depends on [`Pending::method`]; requests wait until somebody
/// serves the connection.
///
/// After an error nothing is mounted, and a directory made for `--mkdir` is gone again.
pub fn prepare(config: &Config) -> Result<Pending, AttachError> {
    let target = target::ready(config)?;
    let covered = rustix::io::fcntl_dupfd_cloexec(&target.directory, 0).ok();
    let pending = if may_mount() {
        by_kernel(config, target)
    } else {
        by_helper(config, target.made)
    }?;
    Ok(Pending { covered, ..pending })
}

/// A mount that is not yet published. Dropping it leaves nothing mounted.
#[derive(Debug)]
pub struct Pending {
    device: Option<OwnedFd>,
    covered: Option<OwnedFd>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// In no mount table; goes away when `mount` is closed.
    Detached(Hanging),
    /// In the mount table; goes away when the attachment is dropped.
    Visible(Attachment),
}

/// A detached mount and the place for it.
#[derive(Debug)]
struct Hanging {
    mount: OwnedFd,
    identity: Identity,
    directory: OwnedFd,
    path: PathBuf,
    abort: Option<AbortFile>,
    made: Option<MadeDirectory>,
}

impl Pending {
    /// The connection: an open `/dev/fuse`, to be served. There is one, so it can be taken once.
    pub fn take_device(&mut self) -> Result<OwnedFd, AttachError> {
        self.device
            .take()
            .ok_or_else(|| AttachError::new(Kind::System, "the FUSE connection was taken already"))
    }

    /// The directory that the mount covers or will cover, as it was before: an `O_PATH` descriptor,
    /// to be taken once.
    pub fn covered(&mut self) -> Option<OwnedFd> {
        self.covered.take()
    }

    /// Device number (`st_dev`) of the mount's file system. `None` is for transports without one.
    pub fn device_number(&self) -> Option<DeviceNumber> {
        Some(self.identity().device())
    }

    /// How the mount was made.
    pub fn method(&self) -> Method {
        match &self.stage {
            Stage::Detached(_) => Method::NewApi,
            Stage::Visible(attachment) => attachment.method(),
        }
    }

    fn identity(&self) -> &Identity {
        match &self.stage {
            Stage::Detached(hanging) => &hanging.identity,
            Stage::Visible(attachment) => attachment.identity(),
        }
    }

    /// Asks the daemon, which must be serving by now, for the attributes of the root and opens it.
    /// A process of its own asks, so nothing here hangs with a daemon that hangs; if time is up the
    /// connection is aborted where that can be done, and the caller must end the daemon.
    pub fn self_test(&self) -> Result<(), AttachError> {
        self.self_test_within(SELF_TEST_LIMIT)
    }

    fn self_test_within(&self, limit: Duration) -> Result<(), AttachError> {
        let root = self.root().map_err(|errno| {
            AttachError::new(
                Kind::SelfTest,
                format!("can't reach the new mount: {}", explained(errno)),
            )
        })?;
        let asked = ask(Question::Directory(root.as_fd()), limit, || self.abort());
        match asked.map_err(|errno| {
            AttachError::new(
                Kind::System,
                format!("can't run the self-test: {}", explained(errno)),
            )
        })? {
            // EACCES: SRC may be unreadable to the user who serves it; a true answer all the same.
            Some(Ok(()) | Err(Errno::ACCESS)) => Ok(()),
            Some(Err(errno)) => Err(AttachError::new(
                Kind::SelfTest,
                format!(
                    "the new mount does not work: its root answers: {}: {}",
                    says(errno),
                    limits::remedy(&errno.into()).unwrap_or("is SRC readable?")
                ),
            )),
            None => Err(AttachError::new(
                Kind::SelfTest,
                format!(
                    "the new mount did not answer within {} seconds: SRC may hang",
                    limit.as_secs_f32()
                ),
            )),
        }
    }

    fn abort(&self) {
        let aborted = match &self.stage {
            Stage::Detached(hanging) => hanging.abort.as_ref().map(AbortFile::abort),
            Stage::Visible(attachment) => Some(attachment.abort_connection()),
        };
        match aborted {
            Some(Ok(())) => {}
            Some(Err(error)) => log::warn!("the FUSE connection could not be aborted: {error}"),
            None => log::warn!("the FUSE connection can't be aborted: there is no fusectl"),
        }
    }

    /// A descriptor of the mount's root, whatever lies at its path.
    fn root(&self) -> Result<OwnedFd, Errno> {
        match &self.stage {
            Stage::Detached(hanging) => rustix::io::fcntl_dupfd_cloexec(&hanging.mount, 0),
            Stage::Visible(attachment) => {
                let root = table::open_quietly(attachment.target())?;
                let is_ours = attachment.identity().is_mount_of(&root)?;
                if is_ours { Ok(root) } else { Err(Errno::STALE) }
            }
        }
    }

    /// Makes the mount visible at MNT, if it is not so already. No descriptor in it stays open.
    pub fn publish(self) -> Result<Attachment, AttachError> {
        match self.stage {
            Stage::Visible(attachment) => Ok(attachment),
            Stage::Detached(hanging) => {
                kernel::hang_up(hanging.mount.as_fd(), hanging.directory.as_fd())
                    .map_err(|errno| refused(&hanging.path, errno, None))?;
                let Hanging {
                    identity,
                    path,
                    abort,
                    made,
                    ..
                } = hanging;
                Ok(Attachment::new(identity, path, Method::NewApi, abort, made))
            }
        }
    }
}

/// True if mounting without help is worth a try.
fn may_mount() -> bool {
    rustix::process::geteuid().is_root()
        || rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn by_kernel(config: &Config, target: Target) -> Result<Pending, AttachError> {
    let device = open_device(Path::new("/dev/fuse"))?;
    let label = Label::of(config);
    match kernel::detached(device.as_fd(), &config.mount, &label) {
        Ok(mount) => {
            let identity =
                Identity::of(&mount, &label).map_err(|errno| unidentified(config, errno))?;
            let stage = Stage::Detached(Hanging {
                abort: abort_file(&identity),
                mount,
                identity,
                directory: target.directory,
                path: config.target.clone(),
                made: target.made,
            });
            Ok(Pending {
                device: Some(device),
                covered: None,
                stage,
            })
        }
        Err(refusal) if refusal.tells_to_try_otherwise() => {
            log::debug!(
                "no mount by the new calls ({}); trying mount(2)",
                says(refusal.errno)
            );
            at_once(config, &label, device, target)
        }
        Err(refusal) => Err(refused(&config.target, refusal.errno, refusal.reason)),
    }
}

fn at_once(
    config: &Config,
    label: &Label,
    device: OwnedFd,
    target: Target,
) -> Result<Pending, AttachError> {
    let before = table::read_table().map_err(|errno| unidentified(config, errno))?;
    let directory = target.directory.as_fd();
    match kernel::mount_at_once(device.as_fd(), &config.mount, label, directory) {
        Ok(()) => visible(
            config,
            label,
            &before,
            Method::MountCall,
            device,
            target.made,
        ),
        // Root without CAP_SYS_ADMIN: the helper may still have it.
        Err(Errno::PERM) => by_helper(config, target.made).map_err(|error| match error.kind {
            Kind::NoHelper => refused(&config.target, Errno::PERM, None),
            _ => error,
        }),
        Err(errno) => Err(refused(&config.target, errno, None)),
    }
}

fn by_helper(config: &Config, made: Option<MadeDirectory>) -> Result<Pending, AttachError> {
    let label = Label::of(config);
    let before = table::read_table().map_err(|errno| unidentified(config, errno))?;
    let device = helper::mount(&config.target, &config.mount, &label)?;
    visible(config, &label, &before, Method::Fusermount, device, made)
}

/// Finds the mount that was just made by path.
fn visible(
    config: &Config,
    label: &Label,
    before: &[mountinfo::Entry],
    method: Method,
    device: OwnedFd,
    made: Option<MadeDirectory>,
) -> Result<Pending, AttachError> {
    let identity = Identity::appeared(before, &config.target, label)
        .map_err(|errno| unidentified(config, errno))?;
    let abort = abort_file(&identity);
    let attachment = Attachment::new(identity, config.target.clone(), method, abort, made);
    Ok(Pending {
        device: Some(device),
        covered: None,
        stage: Stage::Visible(attachment),
    })
}

/// The means to abort our connection, taken while it is certain which one that is.
fn abort_file(identity: &Identity) -> Option<AbortFile> {
    AbortFile::open(identity.device())
        .inspect_err(|error| log::debug!("no abort file in fusectl: {error}"))
        .ok()
}

fn open_device(path: &Path) -> Result<OwnedFd, AttachError> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let name = shown(path);
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => AttachError::new(
                Kind::NoDevice,
                format!(
                    "{name} is missing: load the module (modprobe fuse), or give the container \
                     the device (--device /dev/fuse)"
                ),
            ),
            Errno::ACCESS | Errno::PERM => AttachError::new(
                Kind::DeviceDenied,
                format!(
                    "{name} can't be opened: {}: its mode is usually 0666, and a container or \
                     service must be allowed the device",
                    says(errno)
                ),
            ),
            errno => {
                let why = explained(errno);
                let text = format!("{name} can't be opened: {why}");
                AttachError::new(Kind::System, text)
            }
        }
    })
}

fn refused(target: &Path, errno: Errno, reason: Option<String>) -> AttachError {
    let name = shown(target);
    match errno {
        Errno::PERM | Errno::ACCESS => AttachError::new(
            Kind::NotPermitted,
            format!(
                "mounting on {name} is not permitted: {}: it needs CAP_SYS_ADMIN, or the \
                 package fuse3 with a fusermount3 that is set-user-id root",
                says(errno)
            ),
        ),
        Errno::NODEV => AttachError::new(
            Kind::NoDevice,
            "this kernel has no FUSE file system: load the module (modprobe fuse)",
        ),
        errno => {
            let reason = reason.unwrap_or_else(|| says(errno));
            let next = limits::remedy(&errno.into()).unwrap_or("dmesg may say more");
            AttachError::new(
                Kind::Refused,
                format!("the kernel refused to mount on {name}: {reason}: {next}"),
            )
        }
    }
}

fn unidentified(config: &Config, errno: Errno) -> AttachError {
    let name = shown(&config.target);
    let text = format!(
        "can't find the new mount on {name} in the mount table: {}",
        explained(errno)
    );
    AttachError::new(Kind::System, text)
}
