//! `loopfs upgrade MNT`: the program that lies on the disk by now goes on with a mount, unnoticed by those who use it.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};

use super::mounts::{self, Key, State, Unasked};
use super::text;
use crate::exit::{ExitCode, Failure};
use crate::figures::Figures;
use crate::socket::client::{self, Silence};
use crate::socket::protocol::{MountId, Question};

/// How long it may take: the new program gets ready, the old one answers what it has taken up.
const LIMIT: Duration = Duration::from_secs(70);
/// How long the new one may take to be heard once the old one has ended.
const APPEARS: Duration = Duration::from_secs(15);
/// The same before anything was asked: one may have died a moment ago, and is being followed.
const IS_FOLLOWED: Duration = Duration::from_secs(2);

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
    let key = mount.key();
    let Some(told) = heard(&key, IS_FOLLOWED, |_| true) else {
        return Err(not_upgraded(
            "its daemon can't be asked; 'loopfs status' says more",
        ));
    };
    let id = MountId::told(&told);
    let question = Question::Upgrade { mount: id };
    let end = Instant::now() + LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let before = match client::ask_to_end(mount.device, mount.owner, question, left) {
            Ok(pid) => Some(pid),
            // It has died since, and not of this.
            Err(Silence::Nobody) => None,
            Err(Silence::Refused(why)) => return Err(not_upgraded(&why)),
            Err(Silence::AnotherMount) => return Err(not_upgraded("it has just been unmounted")),
            Err(_) => return Err(not_upgraded("its daemon does not answer")),
        };
        let follows =
            |figures: &Figures| Some(figures.pid) != before && MountId::told(figures).is(id);
        let Some(figures) = heard(&key, APPEARS, follows) else {
            return Err(not_upgraded(
                "the process that served it has ended, and no other one is heard",
            ));
        };
        // If it is not the program on the disk, somebody was killed before it came to that: the one that was asked, or the new one.
        if !figures.program_replaced {
            return super::print(&served_by(target, &figures));
        }
    }
}

/// What the daemon tells, when it tells what is `wanted`. `None` if it does not within `patience`, or can't any more.
fn heard(key: &Key, patience: Duration, wanted: impl Fn(&Figures) -> bool) -> Option<Figures> {
    const MOMENT: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let end = Instant::now() + patience;
    loop {
        let mount = mounts::again(key)?;
        if let Some(figures) = mount.figures.filter(&wanted) {
            return Some(figures);
        }
        let may_come = matches!(
            mount.state,
            State::Told(_) | State::Silent | State::Served(Unasked::NoSocket)
        );
        if !may_come || Instant::now() >= end {
            return None;
        }
        let _ = poll(&mut [], Some(&MOMENT));
    }
}
