//! What is said while somebody uses a mount that is to go.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::super::holding;
use super::super::mounts::Mount;
use super::super::status::few;
use super::super::text;
use crate::exit::{ExitCode, Failure};

/// How long is spent on finding out who uses it, each time.
const LOOKING: Duration = Duration::from_secs(3);

/// Waiting for those who use a mount, and saying so: on a terminal in one line that changes, elsewhere once.
pub(super) struct Waiting<'a> {
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
    pub(super) fn new(mount: &'a Mount, begin: Instant, end: Option<Instant>) -> Self {
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

    /// Looks who uses it, for no longer than `limit`: what is read of a process that hangs may take its time.
    fn look(&mut self, limit: Duration) {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        let found = holding::find_within(self.mount, limit);
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
        self.holders = if found.unfinished {
            "somebody: who, could not be found out in time".to_owned()
        } else if names.is_empty() {
            "nobody who can be seen".to_owned()
        } else {
            few(&names)
        };
        self.looked = Some(Instant::now());
    }

    pub(super) fn tell(&mut self) {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.look(self.end.map_or(LOOKING, |end| left(end).min(LOOKING)));
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

    pub(super) fn in_use(mut self) -> Failure {
        self.looked = None;
        self.look(LOOKING);
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
