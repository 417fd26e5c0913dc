//! `loopfs top [MNT]`: what is done with a mount, live.
//!
//! - `rates`: two samples of the figures, and what came in between;
//! - `screen`: how that looks on a terminal;
//! - `plain`: a line every two seconds, where there is no terminal to draw on.
//!
//! The figures are fetched by a thread of their own, so that a daemon that does not answer keeps nobody from leaving.
//! Whatever ends it (a key, a signal, a panic), the terminal is as it was before.

mod plain;
mod rates;
mod screen;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::mounts::{self, Mount};
use crate::exit::{ExitCode, Failure};
use crate::sys::process::SignalQueue;
use rates::Watched;

/// How often the figures are fetched.
const PERIOD: Duration = Duration::from_secs(1);
/// How long keys are waited for before signals and figures are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Signals that end it, with the terminal as it was.
const ENDING: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

pub(super) fn run(target: Option<&Path>) -> Result<ExitCode, Failure> {
    let mounts = match target {
        Some(target) => vec![mounts::must_be_at(target)?],
        None => mounts::all()?,
    };
    if mounts.is_empty() {
        let text = "no loopfs mount to look at";
        return Err(Failure::new(ExitCode::MountFailed, text));
    }
    if !has_screen() {
        return without_screen(mounts);
    }
    // Before there is a thread, so that all have the signals blocked.
    let signals = SignalQueue::open(&ENDING).map_err(|error| no_terminal(&error))?;
    let fetcher = Fetcher::start().map_err(|error| no_terminal(&error))?;
    end_with_the_terminal().map_err(|error| no_terminal(&error))?;
    on_terminal(|terminal| watch(terminal, &signals, &fetcher, Page::first(mounts)))
        .map(|()| ExitCode::Success)
        .map_err(|error| no_terminal(&error))
}

/// Does `what` with a terminal that is given back afterwards, and before a panic is told of.
fn on_terminal(
    what: impl FnOnce(&mut ratatui::DefaultTerminal) -> io::Result<()>,
) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = what(&mut terminal);
    ratatui::restore();
    result
}

/// Has a thread end the process when the terminal goes, as when its window is closed: crossterm reads from such a one again
/// and again, and comes back no more. There is nothing to give back.
fn end_with_the_terminal() -> io::Result<()> {
    let gone = || {
        let stdin = io::stdin();
        loop {
            // Nothing is asked for: what is told of unasked is the end.
            let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) if fds[0].revents().contains(PollFlags::HUP) => {
                    std::process::exit(ExitCode::Success as i32)
                }
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    let builder = thread::Builder::new().name("loopfs-hangup".to_owned());
    builder.spawn(gone).map(drop)
}

/// Whether there is a terminal on which one can draw.
fn has_screen() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|name| name.is_empty() || name == "dumb");
    io::stdout().is_terminal() && io::stdin().is_terminal() && !is_dumb
}

fn without_screen(mut mounts: Vec<Mount>) -> Result<ExitCode, Failure> {
    let (Some(mount), true) = (mounts.pop(), mounts.is_empty()) else {
        let text = "there are several mounts, and no terminal to choose on: loopfs top MNT";
        return Err(Failure::new(ExitCode::Usage, text));
    };
    match plain::run(mount) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(no_terminal(&error)),
        _ => Ok(ExitCode::Success),
    }
}

fn no_terminal(error: &io::Error) -> Failure {
    let text = format!("can't use the terminal: {error}; in a pipe 'loopfs top MNT' prints lines");
    Failure::new(ExitCode::System, text)
}

/// What is on the screen.
#[derive(Debug)]
enum Page {
    /// Several mounts, one of which is marked.
    Choice { mounts: Vec<Mount>, marked: usize },
    /// One of them, and the number of lines that its table is scrolled by.
    One {
        watched: Box<Watched>,
        scrolled: usize,
        /// The list that it was chosen from.
        others: bool,
    },
}

impl Page {
    fn first(mut mounts: Vec<Mount>) -> Self {
        match mounts.pop() {
            Some(mount) if mounts.is_empty() => Self::one(mount, false),
            Some(last) => {
                mounts.push(last);
                Self::Choice { mounts, marked: 0 }
            }
            None => Self::Choice { mounts, marked: 0 },
        }
    }

    fn one(mount: Mount, others: bool) -> Self {
        Self::One {
            watched: Box::new(Watched::new(mount)),
            scrolled: 0,
            others,
        }
    }

    /// What the fetcher has to look for.
    fn wanted(&self) -> Wanted {
        match self {
            Self::Choice { .. } => Wanted::All,
            Self::One { watched, .. } => Wanted::One(watched.mount().key()),
        }
    }

    fn fetched(&mut self, fetched: Fetched) {
        match (self, fetched) {
            (Self::Choice { mounts, marked }, Fetched::All(all)) => {
                *marked = (*marked).min(all.len().saturating_sub(1));
                *mounts = all;
            }
            (Self::One { watched, .. }, Fetched::One(key, mount))
                if watched.mount().key() == key =>
            {
                watched.update(mount.map(|mount| *mount));
            }
            // Of the page before.
            _ => {}
        }
    }

    /// The page after a key; `None` to leave.
    fn after(self, key: KeyEvent) -> Option<Self> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (key.code, self) {
            (KeyCode::Char('c'), _) if control => None,
            (KeyCode::Char('q'), _)
            | (KeyCode::Esc, Self::Choice { .. } | Self::One { others: false, .. }) => None,
            (KeyCode::Esc | KeyCode::Left | KeyCode::Backspace, Self::One { others: true, .. }) => {
                Some(Self::Choice {
                    mounts: mounts::all().unwrap_or_default(),
                    marked: 0,
                })
            }
            (KeyCode::Enter | KeyCode::Right, Self::Choice { mut mounts, marked }) => {
                if marked < mounts.len() {
                    Some(Self::one(mounts.swap_remove(marked), true))
                } else {
                    Some(Self::Choice { mounts, marked })
                }
            }
            (code, Self::Choice { mounts, marked }) => {
                let last = mounts.len().saturating_sub(1);
                let marked = moved(code, marked).min(last);
                Some(Self::Choice { mounts, marked })
            }
            (
                code,
                Self::One {
                    watched,
                    scrolled,
                    others,
                },
            ) => {
                let scrolled = moved(code, scrolled).min(watched.rows().len().saturating_sub(1));
                Some(Self::One {
                    watched,
                    scrolled,
                    others,
                })
            }
        }
    }
}

/// Where an arrow leads from `at`.
fn moved(code: KeyCode, at: usize) -> usize {
    match code {
        KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => at + 1,
        KeyCode::PageUp => at.saturating_sub(10),
        KeyCode::PageDown => at + 10,
        KeyCode::Home => 0,
        KeyCode::End => usize::MAX,
        _ => at,
    }
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    signals: &SignalQueue,
    fetcher: &Fetcher,
    mut page: Page,
) -> io::Result<()> {
    fetcher.want(page.wanted());
    loop {
        terminal.draw(|frame| screen::draw(frame, &page))?;
        if event::poll(TICK)? {
            // A resize needs nothing but the drawing above.
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                match page.after(key) {
                    Some(next) => page = next,
                    None => return Ok(()),
                }
                fetcher.want(page.wanted());
            }
        }
        if signals.next()?.is_some() {
            return Ok(());
        }
        loop {
            match fetcher.told.try_recv() {
                Ok(fetched) => page.fetched(fetched),
                Err(TryRecvError::Empty) => break,
                // It panicked, which has given the terminal back.
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other(
                        "the thread that asks the daemons has ended",
                    ));
                }
            }
        }
    }
}

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    All,
    One(mounts::Key),
}

#[derive(Debug)]
enum Fetched {
    All(Vec<Mount>),
    /// Nothing: it has ended.
    One(mounts::Key, Option<Box<Mount>>),
}

/// The thread that asks the daemons.
#[derive(Debug)]
struct Fetcher {
    want: Sender<Wanted>,
    told: Receiver<Fetched>,
}

impl Fetcher {
    fn start() -> io::Result<Self> {
        let (want, wanted) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        thread::Builder::new()
            .name("loopfs-fetch".to_owned())
            .spawn(move || fetch(&wanted, &tell))?;
        Ok(Self { want, told })
    }

    fn want(&self, wanted: Wanted) {
        // The thread ends only when this is dropped.
        let _ = self.want.send(wanted);
    }
}

/// Fetches what was wanted last, once in a period and as soon as something else is wanted.
fn fetch(wanted: &Receiver<Wanted>, tell: &Sender<Fetched>) {
    let Ok(mut now) = wanted.recv() else { return };
    loop {
        let fetched = match &now {
            Wanted::All => mounts::all().map(Fetched::All).ok(),
            Wanted::One(key) => {
                let mount = mounts::again(key);
                Some(Fetched::One(key.clone(), mount.map(Box::new)))
            }
        };
        if let Some(fetched) = fetched
            && tell.send(fetched).is_err()
        {
            return;
        }
        let end = std::time::Instant::now() + PERIOD;
        loop {
            match wanted.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
                Ok(next) if next == now => {}
                Ok(next) => {
                    now = next;
                    break;
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::process::{Command, Stdio};

    use super::*;

    /// Set in the process that is to panic: this test, on a terminal of its own.
    const PANICS: &str = "LOOPFS_TEST_PANICS_ON_A_TERMINAL";

    #[test]
    fn a_panic_gives_the_terminal_back() {
        if let Some(who) = std::env::var_os(PANICS) {
            let panics = || panic!("on purpose");
            on_terminal(|terminal| {
                terminal.draw(|_| ())?;
                if who == "thread" {
                    thread::spawn(panics).join().unwrap_err();
                    Ok(())
                } else {
                    panics()
                }
            })
            .unwrap();
            return;
        }
        let program = std::env::current_exe().unwrap();
        let name = "look::top::tests::a_panic_gives_the_terminal_back";
        for who in ["main", "thread"] {
            let line = format!(
                "stty -a; {} --exact {name} --nocapture; stty -a",
                program.display()
            );
            let child = Command::new("script")
                .args(["-q", "-c", &line, "/dev/null"])
                .env("TERM", "xterm")
                .env(PANICS, who)
                .stdin(Stdio::null())
                .output();
            let said = String::from_utf8_lossy(&child.unwrap().stdout).into_owned();
            let (before, rest) = said.split_once("\u{1b}[?1049h").unwrap();
            let (_, after) = rest.split_once("\u{1b}[?1049l").unwrap();
            assert!(after.contains("on purpose"), "{who}: {said:?}");
            // What stty says, from the first line of settings on.
            let settings = |text: &str| {
                let lines = text.lines().skip_while(|line| !line.starts_with("intr ="));
                let lines = lines.map(|line| line.trim().to_owned());
                lines.take(6).collect::<Vec<_>>()
            };
            assert_eq!(settings(before).len(), 6, "{who}: {said:?}");
            assert_eq!(settings(before), settings(after), "{who}: {said:?}");
        }
    }
}
