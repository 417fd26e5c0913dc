//! `loopfs unmount MNT`: takes a mount away, when nobody uses it any more or in spite of those who do.
//!
//! Its own daemon does it where it can be asked, so that everything ends as the daemon ends it. A mount whose daemon is
//! dead or silent is taken down from here, by its exact line in the mount table. Nothing else that is mounted at MNT is
//! ever touched, and what is gone already is no error.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use super::holding;
use super::mounts::{self, Mount, State};
use super::status::few;
use super::text;
use crate::attach::foreign::Foreign;
use crate::attach::{Detach, Detached as Taken};
use crate::config::{Limit, Unmount};
use crate::exit::{ExitCode, Failure};
use crate::socket::client::{self, Silence};
use crate::socket::protocol::{Answer, Detached, Question};

/// How long a mount in use is waited for, unless it is said or something is to be done about it.
const WAIT: Duration = Duration::from_secs(10);
/// How often it is tried; a change of the mount table comes before.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a daemon may take to take its mount down.
const DETACHING: Duration = Duration::from_secs(10);
/// How long one may take to end after its mount has gone: what was cut off has two seconds to return.
const ENDING: Duration = Duration::from_secs(10);
/// How long it may take to be seen whether anybody serves a mount: whoever is about to go on with it has as long.
const DECIDED: Duration = Duration::from_secs(10);

/// What came of a try.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    Gone,
    Busy,
    Covered,
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
    // Without a server, whoever waits for an answer waits for ever, and may hold what unmounting takes: a dying daemon's
    // own thread does, if it was just telling the kernel to forget something.
    if how.force && mount.pid.is_none() {
        return cut_off(&mount, waiting);
    }
    loop {
        // Opened before the try: a change after that wakes the poll.
        let table = File::open("/proc/self/mountinfo").ok();
        match tried(&mount, false)? {
            Tried::Gone => return Ok(gone(&mount, waiting)),
            Tried::Covered => return Err(covered(&mount)),
            // Nobody can go on using it.
            Tried::Busy if mount.state == State::Dead => return lazily(&mount, waiting),
            Tried::Busy => {}
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            return if how.force {
                cut_off(&mount, waiting)
            } else if how.lazy {
                lazily(&mount, waiting)
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
        let waiting = Waiting::new(&mount, begin, None);
        if begin.elapsed() >= DECIDED {
            return cut_off(&mount, waiting);
        }
        drop(waiting);
        match mounts::again(&mount.key()).filter(|mount| mount.entry.is_some()) {
            Some(again) => mount = again,
            None => return Ok(ExitCode::Success),
        }
    }
    if mount.state == State::Dead {
        return lazily(&mount, Waiting::new(&mount, begin, None));
    }
    say(&stays(target));
    Ok(ExitCode::Success)
}

fn stays(target: &Path) -> String {
    format!("{} is served, and stays", text::name(target))
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

/// One try to take it down, lazily or only if nobody uses it.
fn tried(mount: &Mount, lazily: bool) -> Result<Tried, Failure> {
    if matches!(mount.state, State::Told(_)) {
        let question = Question::Detach { lazily };
        match client::ask(mount.device, mount.owner, question, DETACHING) {
            Ok((Answer::Detached(detached), _)) => {
                return Ok(match detached {
                    Detached::Done | Detached::AlreadyGone => Tried::Gone,
                    Detached::Busy => Tried::Busy,
                    Detached::Covered => Tried::Covered,
                });
            }
            // It has ended, or hangs, or can't: then by our own hands.
            Ok(_) | Err(Silence::Nobody | Silence::NoAnswer | Silence::NotAllowed) => {}
            Err(Silence::Refused(why)) => log::debug!("its daemon says: {why}"),
        }
    }
    let Some(foreign) = reached(mount)? else {
        return Ok(if is_in_table(mount) {
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

/// The mount itself, unless something else covers it or it has gone.
fn reached(mount: &Mount) -> Result<Option<Foreign>, Failure> {
    let foreign = mount.entry.as_ref().map(Foreign::of);
    Ok(foreign.transpose()?.flatten())
}

fn is_in_table(mount: &Mount) -> bool {
    let table = crate::attach::mountinfo::read().unwrap_or_default();
    mount.entry.as_ref().is_some_and(|ours| {
        table
            .iter()
            .any(|entry| (entry.id, entry.device) == (ours.id, ours.device))
    })
}

fn lazily(mount: &Mount, waiting: Waiting<'_>) -> Result<ExitCode, Failure> {
    match tried(mount, true)? {
        Tried::Covered => Err(covered(mount)),
        Tried::Busy => Err(waiting.in_use()),
        Tried::Gone => {
            drop(waiting);
            // The daemon of a mount that nobody used ends at once.
            if let Some(pid) = mount.pid.filter(|&pid| !ends(pid, AGAIN)) {
                say(&serves_on(mount, pid));
            }
            Ok(ExitCode::Success)
        }
    }
}

fn serves_on(mount: &Mount, pid: u32) -> String {
    let target = text::name(&mount.target.0);
    match mount.state {
        State::Silent => {
            format!("{target} is unmounted; its daemon (pid {pid}) still does not answer")
        }
        _ => format!("{target} is unmounted; pid {pid} serves what is open until it is closed"),
    }
}

fn cut_off(mount: &Mount, waiting: Waiting<'_>) -> Result<ExitCode, Failure> {
    if mount.entry.is_some() && !mount.covered_by.is_empty() {
        return Err(covered(mount));
    }
    if matches!(mount.state, State::Told(_))
        && let Ok((Answer::CuttingOff, pid)) =
            client::ask(mount.device, mount.owner, Question::CutOff, DETACHING)
    {
        // What was open is cut off, and the mount with it; both are the daemon's last steps.
        let _ = ends(pid, ENDING);
        if !is_in_table(mount) {
            return Ok(gone(mount, waiting));
        }
    }
    if let Some(foreign) = reached(mount)? {
        foreign.abort().map_err(|error| {
            let text = format!(
                "the connection of {} can't be cut: {error}",
                text::name(&mount.target.0)
            );
            Failure::new(ExitCode::System, text)
        })?;
    }
    lazily(mount, waiting)
}

/// It has left the mount table. What is left is the daemon's end, in which it gives back what it has.
fn gone(mount: &Mount, waiting: Waiting<'_>) -> ExitCode {
    drop(waiting);
    // A silent daemon can't end before it goes on.
    let alive = mount.pid.filter(|_| mount.state != State::Silent);
    if let Some(pid) = alive.filter(|&pid| !ends(pid, ENDING)) {
        let target = text::name(&mount.target.0);
        say(&format!(
            "{target} is unmounted, but its daemon (pid {pid}) has not ended yet: SRC may hang"
        ));
    }
    ExitCode::Success
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

fn covered(mount: &Mount) -> Failure {
    let names: Vec<String> = mount.covered_by.iter().map(text::name).collect();
    let what = if names.is_empty() {
        "something".to_owned()
    } else {
        few(&names)
    };
    let text = format!(
        "{what} is mounted on {}: unmount that first, it is never taken along",
        text::name(&mount.target.0)
    );
    Failure::new(ExitCode::MountFailed, text)
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

/// Waiting for those who use a mount, and saying so: on a terminal in one line that changes, elsewhere once.
struct Waiting<'a> {
    mount: &'a Mount,
    begin: Instant,
    end: Option<Instant>,
    on_terminal: bool,
    /// Who uses it, as last seen.
    holders: String,
    looked: Option<Instant>,
    told: bool,
}

impl<'a> Waiting<'a> {
    fn new(mount: &'a Mount, begin: Instant, end: Option<Instant>) -> Self {
        Self {
            mount,
            begin,
            end,
            on_terminal: io::stderr().is_terminal(),
            holders: String::new(),
            looked: None,
            told: false,
        }
    }

    fn look(&mut self) {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        let found = holding::find(self.mount);
        let names: Vec<String> = found
            .holders
            .iter()
            .map(|holder| {
                let uses: Vec<String> = holder.uses.iter().map(|it| text::name(&it.0)).collect();
                format!(
                    "pid {} ({}): {}",
                    holder.pid,
                    text::name(&holder.command.0),
                    few(&uses)
                )
            })
            .collect();
        self.holders = if names.is_empty() {
            "nobody who can be seen".to_owned()
        } else {
            few(&names)
        };
        self.looked = Some(Instant::now());
    }

    fn tell(&mut self) {
        self.look();
        let target = text::name(&self.mount.target.0);
        let waited = self.begin.elapsed().as_secs();
        let limit = self.end.map(|end| (end - self.begin).as_secs_f32());
        let of = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
        let line = format!("{target} is in use by {}", self.holders);
        let mut stderr = io::stderr();
        let _ = if self.on_terminal {
            write!(
                stderr,
                "\r\x1b[K{}",
                cut(&line, &format!("; waiting, {waited}{of} s"))
            )
        } else if self.told {
            Ok(())
        } else {
            writeln!(
                stderr,
                "{line}; waiting{}",
                limit.map_or_else(String::new, |limit| format!(" for {limit} s"))
            )
        };
        let _ = stderr.flush();
        self.told = true;
    }

    fn in_use(mut self) -> Failure {
        self.looked = None;
        self.look();
        let text = format!(
            "{} is still in use by {}; --lazy lets them finish, --force cuts them off",
            text::name(&self.mount.target.0),
            self.holders
        );
        Failure::new(ExitCode::MountFailed, text)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.told && self.on_terminal {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// `line` and `tail` in the width of the terminal, so that it is one line and can be written over.
fn cut(line: &str, tail: &str) -> String {
    let width =
        rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col));
    let room = width.saturating_sub(tail.chars().count() + 1);
    let shown: String = if line.chars().count() > room {
        line.chars()
            .take(room.saturating_sub(3))
            .chain("...".chars())
            .collect()
    } else {
        line.to_owned()
    };
    shown + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_is_one_line() {
        let line = cut(&"x".repeat(500), "; waiting, 3 of 10 s");
        assert!(
            line.chars().count() < 200 && line.ends_with("xxx...; waiting, 3 of 10 s"),
            "{line}"
        );
    }
}
