//! The loopfs mounts that there are: what the mount table shows, what their daemons tell, and those that are no longer
//! in the table but still serve open files. No mount is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use serde::Serialize;

use crate::attach::DeviceNumber;
use crate::attach::foreign;
use crate::attach::mountinfo::{self, Entry};
use crate::exit::{ExitCode, Failure};
use crate::figures::{Figures, Name};
use crate::lifecycle::Identity;
use crate::socket::client::{self, Silence};
use crate::sys::descriptor::fuse_connection;

/// The type of a loopfs mount, unless `subtype=` says otherwise.
const TYPE: &str = "fuse.loopfs";

/// How long a mount whose daemon is not found may take to say whether it is dead: it does at once.
const DEAD_OR_NOT: Duration = Duration::from_millis(500);

/// A request that has been under way for so long hangs, most likely.
pub(super) const HANGS: f64 = 5.0;

/// A mount, as far as it can be seen.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) source: Name,
    pub(super) target: Name,
    pub(super) device: DeviceNumber,
    pub(super) owner: u32,
    /// Its line in the mount table; nothing once it has left that.
    pub(super) entry: Option<Entry>,
    /// What is mounted over it, or in it.
    pub(super) covered_by: Vec<PathBuf>,
    pub(super) pid: Option<u32>,
    pub(super) state: State,
    pub(super) figures: Option<Figures>,
}

/// What `--json` tells of every mount. The names are a promise, as those of [`crate::figures`].
#[derive(Debug, Serialize)]
pub(super) struct Known<'a> {
    source: &'a Name,
    target: &'a Name,
    device: String,
    owner: u32,
    /// It is in the mount table.
    mounted: bool,
    /// What is mounted on it or in it.
    covered_by: Vec<Name>,
    pid: Option<u32>,
    /// `serving`, `draining`, `aborting`, `stopped`; `silent`, `dead`, `unknown`.
    state: &'a str,
}

impl<'a> Known<'a> {
    pub(super) fn of(mount: &'a Mount) -> Self {
        Self {
            source: &mount.source,
            target: &mount.target,
            device: format!("{}:{}", mount.device.major, mount.device.minor),
            owner: mount.owner,
            mounted: mount.entry.is_some(),
            covered_by: mount.covered_by.iter().map(Name::of).collect(),
            pid: mount.pid,
            state: mount.state.word(),
        }
    }
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// What its daemon says.
    Told(String),
    /// It answers, or its daemon is there, and that is all that is known.
    Served(Unasked),
    /// The daemon is there and does not answer.
    Silent,
    /// Nobody serves it: every access fails.
    Dead,
    /// It is somebody else's.
    NotOurs,
}

/// Why a daemon that is there could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unasked {
    /// It has no socket.
    NoSocket,
    /// It said why.
    Refused(String),
}

impl State {
    /// In a word, the one of `--json`.
    pub(super) fn word(&self) -> &str {
        match self {
            Self::Told(word) => word,
            Self::Served(_) => "serving",
            Self::Silent => "silent",
            Self::Dead => "dead",
            Self::NotOurs => "unknown",
        }
    }

    /// Why there are no figures.
    pub(super) fn why_no_figures(&self) -> Option<String> {
        Some(match self {
            Self::Told(_) => return None,
            Self::Served(Unasked::NoSocket) => {
                "its daemon has no socket: it could not make one, and has warned of that, or its \
                 XDG_RUNTIME_DIR is not known here"
                    .to_owned()
            }
            Self::Served(Unasked::Refused(why)) => why.clone(),
            Self::Silent => {
                "its daemon does not answer: it is stopped (a signal, a debugger), or waits for a \
                 processor or memory"
                    .to_owned()
            }
            Self::Dead => {
                "its daemon has ended without unmounting it; 'loopfs unmount' mends that".to_owned()
            }
            Self::NotOurs => "only root and the user who mounted it may ask its daemon".to_owned(),
        })
    }
}

impl Mount {
    /// The one in that line of the table, which may be somebody else's FUSE mount.
    fn of(entry: &Entry, table: &[Entry]) -> Option<Self> {
        let owner = entry.owner.unwrap_or(0);
        let told = client::figures(entry.device, owner);
        if entry.fs_type != TYPE && told.is_err() {
            return None;
        }
        // Since the table was read this one may have gone, and its device number have become another's.
        let is_it = |it: &Entry| (it.id, it.device) == (entry.id, entry.device);
        if told.as_ref().is_ok_and(|told| told.mount_id != entry.id)
            && !mountinfo::read().is_ok_and(|now| now.iter().any(is_it))
        {
            return None;
        }
        let covering = table.iter().filter(|other| other.parent == entry.id);
        let mount = Self {
            source: Name::of(&entry.source),
            target: Name::of(&entry.mount_point),
            device: entry.device,
            owner,
            entry: Some(entry.clone()),
            covered_by: covering.map(|other| other.mount_point.clone()).collect(),
            pid: None,
            state: State::Dead,
            figures: None,
        };
        Some(match told {
            Ok(figures) => Self {
                pid: Some(figures.pid),
                state: State::Told(figures.state.clone()),
                figures: Some(figures),
                ..mount
            },
            Err(silence) => mount.unasked(silence),
        })
    }

    /// With what can be found out without the daemon's help.
    fn unasked(self, silence: Silence) -> Self {
        let server = server_of(self.device);
        let state = match (silence, server) {
            (Silence::Refused(why), _) => State::Served(Unasked::Refused(why)),
            (Silence::NotAllowed, _) => State::NotOurs,
            (Silence::NoAnswer, _) => State::Silent,
            (Silence::Nobody | Silence::AnotherMount, Some(_)) => State::Served(Unasked::NoSocket),
            (Silence::Nobody | Silence::AnotherMount, None) => match self
                .entry
                .as_ref()
                .and_then(|it| foreign::answers(it, DEAD_OR_NOT))
            {
                Some(Err(Errno::NOTCONN | Errno::CONNABORTED)) => State::Dead,
                // What covers it hides whether it answers; whose processes we see all has no server.
                None if self.entry.is_some() && is_root() && !self.covered_by.is_empty() => {
                    State::Dead
                }
                None => State::Silent,
                Some(Err(Errno::ACCESS)) => State::NotOurs,
                Some(_) if !is_root() && self.owner != own_user() => State::NotOurs,
                Some(_) => State::Served(Unasked::NoSocket),
            },
        };
        Self {
            pid: server,
            state,
            ..self
        }
    }

    /// One that has left the table, as its daemon tells.
    fn detached(device: DeviceNumber, owner: u32) -> Option<Self> {
        let figures = client::figures(device, owner).ok()?;
        Some(Self {
            source: figures.source.clone(),
            target: figures.target.clone(),
            device,
            owner,
            entry: None,
            covered_by: Vec::new(),
            pid: Some(figures.pid),
            state: State::Told(figures.state.clone()),
            figures: Some(figures),
        })
    }

    /// What to look for in /proc to find who uses it.
    pub(super) fn identity(&self) -> Identity {
        let told = self.figures.as_ref().map(|figures| figures.mount_id);
        let id = self.entry.as_ref().map(|entry| entry.id).or(told);
        Identity {
            target: self.target.path().to_owned(),
            device: Some((self.device.major, self.device.minor)),
            mount_id: id.and_then(|id| u32::try_from(id).ok()),
        }
    }

    /// What to look it up by.
    pub(super) fn key(&self) -> Key {
        let told = self.figures.as_ref().map(|figures| figures.mount_id);
        Key {
            device: self.device,
            owner: self.owner,
            id: self.entry.as_ref().map(|entry| entry.id).or(told),
        }
    }

    /// Whether the `other`, which has its numbers, is it as well: as their daemons tell, or else if it is not another one by name.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        let unique = |it: &Self| it.figures.as_ref()?.unique_mount_id;
        match (unique(self), unique(other)) {
            (Some(one), Some(other)) => one == other,
            _ => self.source == other.source || self.target == other.target,
        }
    }

    /// Whether this process may look at it and take it down.
    pub(super) fn is_ours(&self) -> bool {
        is_root() || self.owner == own_user()
    }
}

/// What tells a mount from all others that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    device: DeviceNumber,
    owner: u32,
    /// Its id in the mount table, if it is there.
    id: Option<u64>,
}

/// How a mount is by now; nothing if it has ended. It may be another one with the same numbers.
pub(super) fn again(key: &Key) -> Option<Mount> {
    let table = mountinfo::read().ok()?;
    let same = |entry: &&Entry| entry.device == key.device && Some(entry.id) == key.id;
    match table.iter().find(same) {
        Some(entry) => Mount::of(entry, &table),
        None => Mount::detached(key.device, key.owner),
    }
}

/// All of them: those in the mount table in its order, then those that have left it.
pub(super) fn all() -> Result<Vec<Mount>, Failure> {
    let table = table()?;
    let mut mounts = in_table(&table, |_| true);
    mounts.extend(detached(&table));
    Ok(mounts)
}

/// The one at `target`: the uppermost of loopfs there, or else one that was there and still serves open files. Of others
/// nothing is asked, so that none that hangs is waited for.
pub(super) fn at(target: &Path) -> Result<Option<Mount>, Failure> {
    let table = table()?;
    let uppermost = in_table(&table, |entry| entry.mount_point == target).pop();
    Ok(uppermost.or_else(|| {
        let mut detached = detached(&table).into_iter();
        detached.rfind(|mount| mount.target.path() == target)
    }))
}

/// Those that a lookup of `target` comes through.
pub(super) fn on_the_way_to(target: &Path) -> Result<Vec<Mount>, Failure> {
    let table = table()?;
    let way: Vec<u64> = mountinfo::way(&table, target)
        .iter()
        .map(|entry| entry.id)
        .collect();
    Ok(in_table(&table, |entry| way.contains(&entry.id)))
}

fn table() -> Result<Vec<Entry>, Failure> {
    mountinfo::read().map_err(|error| {
        let text = format!("can't read the mount table (/proc/self/mountinfo): {error}");
        Failure::new(ExitCode::System, text)
    })
}

/// Those that are in the table and `wanted`, side by side: each that does not answer takes seconds.
fn in_table(table: &[Entry], wanted: impl Fn(&Entry) -> bool) -> Vec<Mount> {
    let fuse = table
        .iter()
        .filter(|entry| entry.is_fuse() && wanted(entry));
    together(fuse.collect(), |entry| Mount::of(entry, table))
}

/// Those that have left the table and still serve open files.
fn detached(table: &[Entry]) -> Vec<Mount> {
    let known: Vec<DeviceNumber> = table.iter().map(|entry| entry.device).collect();
    let owners = owners().into_iter();
    let gone = owners.flat_map(|owner| {
        let devices = client::devices(owner, &known).into_iter();
        devices.map(move |device| (device, owner))
    });
    together(gone.collect(), |(device, owner)| {
        Mount::detached(device, owner)
    })
}

/// The same where there has to be one.
pub(super) fn must_be_at(target: &Path) -> Result<Mount, Failure> {
    at(target)?.ok_or_else(|| {
        let text = format!(
            "nothing of loopfs is mounted at {}; 'loopfs list' shows what is",
            super::text::name(target)
        );
        Failure::new(ExitCode::MountFailed, text)
    })
}

/// Does `look` for each, at the same time; what it finds, in order.
fn together<T: Send, M: Send>(of: Vec<T>, look: impl Fn(T) -> Option<M> + Sync) -> Vec<M> {
    const AT_ONCE: usize = 16;
    let mut found = Vec::new();
    let mut left = of.into_iter();
    loop {
        let part: Vec<T> = left.by_ref().take(AT_ONCE).collect();
        if part.is_empty() {
            return found;
        }
        thread::scope(|scope| {
            let looks: Vec<_> = part
                .into_iter()
                .map(|it| scope.spawn(|| look(it)))
                .collect();
            // A look that panicked has been told on stderr.
            found.extend(
                looks
                    .into_iter()
                    .filter_map(|look| look.join().ok().flatten()),
            );
        });
    }
}

/// Whose sockets may be there for us to ask: our own, and as root everybody's.
fn owners() -> BTreeSet<u32> {
    let mut owners = BTreeSet::from([own_user()]);
    if is_root() {
        let names = |directory| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok())
        };
        owners.extend(names("/run/user").filter_map(|name| name.parse::<u32>().ok()));
        let temporary =
            names("/tmp").filter_map(|name| name.strip_prefix("loopfs-")?.parse::<u32>().ok());
        owners.extend(temporary);
    }
    owners
}

/// The process that has the connection of the mount with `device` open, as far as we may look: /proc tells of each open
/// /dev/fuse which connection it is (`fuse_dev_show_fdinfo`). Not systemd, which keeps connections for services and serves none.
fn server_of(device: DeviceNumber) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        if fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"systemd\n") {
            return false;
        }
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        descriptors
            .filter_map(|entry| entry.file_name().into_string().ok())
            .any(|name| {
                let leads_to = fs::read_link(format!("/proc/{pid}/fd/{name}"));
                leads_to.is_ok_and(|path| path == Path::new("/dev/fuse"))
                    && fs::read_to_string(format!("/proc/{pid}/fdinfo/{name}"))
                        .is_ok_and(|info| fuse_connection(&info) == Some(device.minor))
            })
    })
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One that is served if it has figures, and dead otherwise.
    pub(in super::super) fn mount(target: &str, figures: Option<Figures>) -> Mount {
        Mount {
            source: Name::of("/src"),
            target: Name::of(target),
            device: DeviceNumber { major: 0, minor: 9 },
            owner: 0,
            entry: None,
            covered_by: Vec::new(),
            pid: figures.as_ref().map(|_| 1),
            state: match figures {
                Some(_) => State::Told("serving".to_owned()),
                None => State::Dead,
            },
            figures,
        }
    }

    #[test]
    fn many_looks_come_back_in_order() {
        let found = together((0..100).collect(), |number: u32| {
            number.is_multiple_of(3).then_some(number)
        });
        assert_eq!(
            found,
            (0..100)
                .filter(|number| number % 3 == 0)
                .collect::<Vec<_>>()
        );
    }
}
