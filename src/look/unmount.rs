//! `loopfs unmount MNT`: takes a mount away, when nobody uses it any more or in spite of those who do.
//!
//! Its own daemon does it where it can be asked, so that everything ends as the daemon ends it. A mount whose daemon is
//! dead or silent is taken down from here. Either way it is the mount that was at MNT when the command began, known by the id
//! that the kernel gives once: whatever comes to be mounted there meanwhile, or gets its numbers, is never touched. What is
//! gone already is no error.

mod waiting;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use super::mounts::{self, Mount, State};
use super::status::few;
use super::text;
use crate::attach::foreign::Foreign;
use crate::attach::{AttachError, Detach, Detached as Taken};
use crate::config::{Limit, Unmount};
use crate::exit::{ExitCode, Failure};
use crate::socket::client::{self, Silence};
use crate::socket::protocol::{Answer, Detached, MountId, Question, Unmount as Way};
use waiting::Waiting;

/// How long a mount in use is waited for, unless it is said or something is to be done about it.
const WAIT: Duration = Duration::from_secs(10);
/// How often it is tried; a change of the mount table comes before.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a daemon may take to take its mount down.
const DETACHING: Duration = Duration::from_secs(10);
/// And how long where nobody is to be spared anyway.
const DETACHING_BY_FORCE: Duration = Duration::from_secs(4);
/// How long one may take to end after its mount has gone: what was cut off has two seconds to return.
const ENDING: Duration = Duration::from_secs(10);
/// How long one may take to end by itself after its mount has gone, before who still uses it from elsewhere is cut off.
const ENDING_BY_ITSELF: Duration = Duration::from_secs(1);
/// How long it may take to be seen whether anybody serves a mount: whoever is about to go on with it has as long.
const DECIDED: Duration = Duration::from_secs(10);

/// What came of a try.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    Gone,
    Busy,
    Covered,
    /// Nobody answers those who use it, and they are to be cut off: that comes before anything else then.
    Unserved,
}

/// Who answers questions about the mount that is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Answers,
    /// It is there, and can't be asked.
    Silent,
    /// It answers, for a mount in another place of the same file system: this one is a copy, in a mount namespace of its own.
    Elsewhere,
    Gone,
}

pub(super) fn run(target: &Path, how: &Unmount) -> Result<ExitCode, Failure> {
    let mount = match mounts::at(target)? {
        Some(mount) if mount.entry.is_some() => mount,
        // What is gone already is what was wanted.
        found => {
            say(&gone_already(target, found.and_then(|mount| mount.pid)));
            return Ok(ExitCode::Success);
        }
    };
    if !mount.is_ours() {
        let text = format!(
            "{} was mounted by user {}: only they and root may unmount it",
            text::name(target),
            mount.owner
        );
        return Err(Failure::new(ExitCode::System, text));
    }
    if how.if_dead {
        return if_dead(target, mount);
    }
    let begin = Instant::now();
    let end = match (how.timeout, how.lazy || how.force) {
        (Some(Limit::Never), _) => None,
        (Some(Limit::After(time)), _) => begin.checked_add(time),
        (None, true) => Some(begin),
        (None, false) => Some(begin + WAIT),
    };
    let mut waiting = Waiting::new(&mount, begin, end);
    let mut leaving = Leaving::new(&mount, how.force);
    loop {
        // Opened before the try: a change after that wakes the poll.
        let table = File::open("/proc/self/mountinfo").ok();
        match leaving.tried(false)? {
            Tried::Gone => return Ok(leaving.gone(waiting)),
            Tried::Covered => return Err(leaving.covered()),
            Tried::Unserved => return leaving.cut_off(waiting),
            // Nobody can go on using it.
            Tried::Busy if mount.state == State::Dead => return leaving.lazily(waiting),
            Tried::Busy => {}
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            return if how.force {
                leaving.cut_off(waiting)
            } else if how.lazy {
                leaving.lazily(waiting)
            } else {
                Err(waiting.in_use())
            };
        }
        waiting.tell();
        wait(table.as_ref(), end);
    }
}

/// Takes it away if nobody serves it, and nobody is about to: whoever keeps a connection without serving it lets go of it, or starts
/// somebody who does.
fn if_dead(target: &Path, mut mount: Mount) -> Result<ExitCode, Failure> {
    let begin = Instant::now();
    while mount.state == State::Silent && mount.pid.is_none() {
        if begin.elapsed() >= DECIDED {
            return Leaving::new(&mount, true).cut_off(Waiting::new(&mount, begin, None));
        }
        match mounts::at(target)?.filter(|mount| mount.entry.is_some()) {
            Some(again) => mount = again,
            None => return Ok(ExitCode::Success),
        }
    }
    if mount.state == State::Dead {
        return Leaving::new(&mount, false).lazily(Waiting::new(&mount, begin, None));
    }
    say(&stays(target));
    Ok(ExitCode::Success)
}

fn stays(target: &Path) -> String {
    format!("{} is served, and stays", text::name(target))
}

fn cut_off_and_there(target: &str) -> String {
    format!("who used {target} is cut off, but it stays")
}

fn gone_already(target: &Path, pid: Option<u32>) -> String {
    let target = text::name(target);
    match pid {
        Some(pid) => format!(
            "{target} is unmounted already; its daemon (pid {pid}) still serves what is open, 'loopfs status' shows what"
        ),
        None => format!("nothing of loopfs is mounted at {target}"),
    }
}

/// A remark beside the result. Nobody is left to be told that stderr can't be written.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The mount that is to go, and no other that gets its place or its numbers while this lasts.
struct Leaving<'a> {
    mount: &'a Mount,
    force: bool,
    /// The mount, as far as our own hands reach it.
    foreign: Result<Option<Foreign>, AttachError>,
    /// What its daemon knows it by.
    id: MountId,
    daemon: Daemon,
}

impl<'a> Leaving<'a> {
    fn new(mount: &'a Mount, force: bool) -> Self {
        let foreign = mount.entry.as_ref().map(Foreign::of).transpose();
        let foreign = foreign.map(Option::flatten);
        let unique = |it: &Foreign| it.unique_id();
        let id = MountId {
            recycled: mount.entry.as_ref().map_or(0, |entry| entry.id),
            unique: foreign
                .as_ref()
                .ok()
                .and_then(|it| it.as_ref().and_then(unique)),
        };
        let daemon = match (&mount.figures, &mount.state, mount.pid) {
            (Some(told), ..) if MountId::told(told).is(id) => Daemon::Answers,
            (Some(_), ..) => Daemon::Elsewhere,
            (None, State::Dead, _) | (None, _, None) => Daemon::Gone,
            (None, _, Some(_)) => Daemon::Silent,
        };
        Self {
            mount,
            force,
            foreign,
            id,
            daemon,
        }
    }

    fn asked(&mut self, how: Way, limit: Duration) -> Option<(Answer, u32)> {
        if self.daemon != Daemon::Answers {
            return None;
        }
        let question = Question::Unmount {
            mount: self.id,
            how,
        };
        match client::ask(self.mount.device, self.mount.owner, question, limit) {
            Ok(answer) => return Some(answer),
            Err(Silence::NoAnswer) => self.daemon = Daemon::Silent,
            // As long as it is there nobody else has its number.
            Err(Silence::AnotherMount) if self.is_present() => self.daemon = Daemon::Elsewhere,
            Err(Silence::Nobody | Silence::AnotherMount) => self.daemon = Daemon::Gone,
            Err(Silence::NotAllowed) => {}
            Err(Silence::Refused(why)) => log::debug!("its daemon says: {why}"),
        }
        None
    }

    /// One try to take it down, lazily or only if nobody uses it.
    fn tried(&mut self, lazily: bool) -> Result<Tried, Failure> {
        let way = if lazily { Way::Lazily } else { Way::Politely };
        let limit = if self.force {
            DETACHING_BY_FORCE
        } else {
            DETACHING
        };
        if let Some((Answer::Detached(detached), _)) = self.asked(way, limit) {
            return Ok(match detached {
                Detached::Done | Detached::AlreadyGone => Tried::Gone,
                Detached::Busy => Tried::Busy,
                Detached::Covered => Tried::Covered,
            });
        }
        // Who waits for an answer may hold what unmounting takes, as a daemon's own thread does that is just telling the kernel
        // to forget something; and once the unmount itself waits in the kernel, nothing can end that. So by force the
        // connection is cut before: at once where nobody is there to answer, when the time is up otherwise.
        if self.force && !lazily && self.daemon != Daemon::Elsewhere && self.is_present() {
            return Ok(match self.daemon {
                Daemon::Gone => Tried::Unserved,
                _ => Tried::Busy,
            });
        }
        let Some(foreign) = self.reached()? else {
            return Ok(if self.is_present() {
                Tried::Covered
            } else {
                Tried::Gone
            });
        };
        let how = if lazily { Detach::Lazy } else { Detach::Polite };
        Ok(match foreign.detach(how)? {
            Taken::Done | Taken::AlreadyGone => Tried::Gone,
            Taken::Busy => Tried::Busy,
            Taken::Covered => Tried::Covered,
        })
    }

    /// The mount itself, unless something else covers it or it had gone when it was looked for.
    fn reached(&self) -> Result<Option<&Foreign>, Failure> {
        self.foreign
            .as_ref()
            .map(Option::as_ref)
            .map_err(|error| error.clone().into())
    }

    fn is_present(&self) -> bool {
        if let Ok(Some(foreign)) = &self.foreign {
            return foreign.is_present();
        }
        let table = crate::attach::mountinfo::read().unwrap_or_default();
        self.mount
            .entry
            .as_ref()
            .is_some_and(|ours| table.contains(ours))
    }

    fn lazily(mut self, waiting: Waiting<'_>) -> Result<ExitCode, Failure> {
        match self.tried(true)? {
            Tried::Covered => Err(self.covered()),
            Tried::Busy | Tried::Unserved => Err(waiting.in_use()),
            Tried::Gone => {
                drop(waiting);
                // The daemon of a mount that nobody used ends at once.
                if let Some(pid) = self.server().filter(|&pid| !ends(pid, AGAIN)) {
                    say(&self.serves_on(pid));
                }
                Ok(ExitCode::Success)
            }
        }
    }

    /// Who serves this mount and nothing else, as far as is known.
    fn server(&self) -> Option<u32> {
        self.mount.pid.filter(|_| self.daemon != Daemon::Elsewhere)
    }

    fn serves_on(&self, pid: u32) -> String {
        let target = text::name(&self.mount.target.0);
        match self.daemon {
            Daemon::Silent => {
                format!("{target} is unmounted; its daemon (pid {pid}) still does not answer")
            }
            _ => format!("{target} is unmounted; pid {pid} serves what is open until it is closed"),
        }
    }

    fn cut_off(mut self, waiting: Waiting<'_>) -> Result<ExitCode, Failure> {
        if !self.upper().is_empty() {
            return Err(self.covered());
        }
        // Elsewhere somebody may use what this is a copy of.
        if self.daemon == Daemon::Elsewhere {
            return self.lazily(waiting);
        }
        if let Some((Answer::CuttingOff, pid)) = self.asked(Way::ByForce, DETACHING_BY_FORCE) {
            // What was open is cut off, and the mount with it; both are the daemon's last steps.
            let _ = ends(pid, ENDING);
            if !self.is_present() {
                return Ok(self.gone(waiting));
            }
        }
        if let Some(foreign) = self.reached()? {
            foreign.abort().map_err(|error| {
                let text = format!(
                    "the connection of {} can't be cut: {error}",
                    text::name(&self.mount.target.0)
                );
                Failure::new(ExitCode::System, text)
            })?;
        }
        let target = text::name(&self.mount.target.0);
        let ended = self.lazily(waiting);
        if ended.is_err() {
            say(&cut_off_and_there(&target));
        }
        ended
    }

    /// It has left the mount table. What is left is the daemon's end, in which it gives back what it has.
    fn gone(mut self, waiting: Waiting<'_>) -> ExitCode {
        drop(waiting);
        // A silent daemon can't end before it goes on.
        let alive = self.server().filter(|_| self.daemon != Daemon::Silent);
        let Some(pid) = alive else {
            return ExitCode::Success;
        };
        if self.force && !ends(pid, ENDING_BY_ITSELF) {
            let _ = self.asked(Way::ByForce, DETACHING_BY_FORCE);
        }
        if !ends(pid, ENDING) {
            let target = text::name(&self.mount.target.0);
            say(&format!(
                "{target} is unmounted, but its daemon (pid {pid}) has not ended yet: SRC may hang, or another mount namespace \
                 has it mounted still; 'loopfs status {target}' shows which"
            ));
        }
        ExitCode::Success
    }

    /// What is mounted on it or in it by now.
    fn upper(&self) -> Vec<PathBuf> {
        match &self.foreign {
            Ok(Some(foreign)) => foreign.upper(),
            _ => self.mount.covered_by.clone(),
        }
    }

    fn covered(&self) -> Failure {
        let names: Vec<String> = self.upper().iter().map(text::name).collect();
        let what = if names.is_empty() {
            "something".to_owned()
        } else {
            few(&names)
        };
        let text = format!(
            "{what} is mounted on {}: unmount that first, it is never taken along",
            text::name(&self.mount.target.0)
        );
        Failure::new(ExitCode::MountFailed, text)
    }
}

/// Whether the process ends within `limit`.
fn ends(pid: u32, limit: Duration) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return true;
    };
    let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let mut end = [PollFd::new(&handle, PollFlags::IN)];
    let limit = Timespec::try_from(limit).ok();
    poll(&mut end, limit.as_ref()).is_ok_and(|ready| ready > 0)
}

/// Until the mount table changes, or it is time for another try.
fn wait(table: Option<&File>, end: Option<Instant>) {
    let left = end.map_or(AGAIN, |end| {
        end.saturating_duration_since(Instant::now()).min(AGAIN)
    });
    let mut fds: Vec<PollFd<'_>> = table
        .map(|table| PollFd::new(table, PollFlags::PRI))
        .into_iter()
        .collect();
    let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
}
