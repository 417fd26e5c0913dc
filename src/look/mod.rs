//! The commands that look at mounts which are there: `loopfs list` and its kin. None of them ever touches a mount, so
//! that they work when one is dead or stuck.
//!
//! In reading order: `mounts` (which there are), `list` (the command), `text` (how names are shown).

mod list;
mod mounts;
mod text;

use crate::config::Command;
use crate::exit::{ExitCode, Failure};

/// Does what a command asks for.
pub fn run(command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::List { json } => list::run(*json),
    }
}
