//! `loopfs upgrade MNT`: the program that lies on the disk by now goes on with a mount, unnoticed by those who use it.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};

use super::mounts::{self, State};
use super::text;
use crate::exit::{ExitCode, Failure};
use crate::figures::Figures;
use crate::socket::client::{self, Silence};
use crate::socket::protocol::Question;

/// How long it may take: the new program gets ready, the old one answers what it has taken up.
const LIMIT: Duration = Duration::from_secs(70);
/// How long the new one may take to be heard once the old one has ended.
const APPEARS: Duration = Duration::from_secs(15);

fn served_by(target: &Path, figures: &Figures) -> String {
    format!(
        "{} is served by process {}, loopfs {}\n",
        text::name(target),
        figures.pid,
        figures.version
    )
}

pub(super) fn run(target: &Path) -> Result<ExitCode, Failure> {
    let mount = mounts::must_be_at(target)?;
    let not_upgraded = |why: &str| {
        let text = format!("{} is not upgraded: {why}", text::name(target));
        Failure::new(ExitCode::System, text)
    };
    if !matches!(mount.state, State::Told(_)) {
        return Err(not_upgraded(
            "its daemon can't be asked; 'loopfs status' says more",
        ));
    }
    let before = match client::ask_to_end(mount.device, mount.owner, Question::Upgrade, LIMIT) {
        Ok(pid) => pid,
        Err(Silence::Refused(why)) => return Err(not_upgraded(&why)),
        Err(_) => return Err(not_upgraded("its daemon does not answer")),
    };
    let end = Instant::now() + APPEARS;
    while Instant::now() < end {
        match client::figures(mount.device, mount.owner) {
            Ok(figures) if figures.pid != before => {
                return super::print(&served_by(target, &figures));
            }
            _ => {
                let moment = Timespec {
                    tv_sec: 0,
                    tv_nsec: 20_000_000,
                };
                let _ = poll(&mut [], Some(&moment));
            }
        }
    }
    Err(not_upgraded(
        "the process that served it has ended, and no other one is heard",
    ))
}
