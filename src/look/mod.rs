//! The commands that look at mounts which are there and end them: `loopfs list` and its kin. None of them ever goes
//! through a mount, so that they work when one is dead or stuck.
//!
//! In reading order: `mounts` (which there are, and how), `holding` (who uses one), `list`, `status`, `prometheus`,
//! `unmount`, `top`, `doctor` (the commands), `text` (how things are shown).

mod doctor;
mod holding;
mod list;
mod mounts;
mod prometheus;
mod status;
mod text;
mod top;
mod unmount;
mod upgrade;

use std::io::{self, Write as _};

use crate::config::Command;
use crate::exit::{ExitCode, Failure};

/// Does what a command asks for.
pub fn run(command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::List { json } => list::run(*json),
        Command::Status { target, shape } => status::run(target, *shape),
        Command::Unmount { target, how } => unmount::run(target, how),
        Command::Upgrade { target } => upgrade::run(target),
        Command::Top { target } => top::run(target.as_deref()),
        Command::Doctor { target, json } => doctor::run(target.as_deref(), *json),
    }
}

/// Prints what was asked for. A reader that has seen enough (`loopfs list | head -1`) is no failure.
fn print(text: &str) -> Result<ExitCode, Failure> {
    match io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| io::stdout().flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            ExitCode::System,
            format!("can't write to stdout: {error}"),
        )),
        _ => Ok(ExitCode::Success),
    }
}
