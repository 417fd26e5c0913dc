//! The supervisor of a mount that had another one.

use std::path::Path;
use std::time::Instant;

use super::message::Mounted;
use super::pace::Pace;
use super::process::Program;
use super::succession::Succession;
use super::{Keeper, Mount, OURSELVES, begin, cant_start};
use crate::attach::{Attachment, Handover};
use crate::config::Config;
use crate::exit::{ExitCode, Failure};

/// Goes on with a mount that had another supervisor.
pub fn go_on(config: &Config, succession: Succession) -> Result<ExitCode, Failure> {
    let signals = begin()?;
    // What the kernel calls it is a descriptor's number.
    let _ = rustix::thread::set_name(c"loopfs");
    let Succession {
        place,
        mounted,
        state,
        drains_since,
        deaths,
        kept,
        child,
        record,
        ..
    } = succession;
    let attachment = taken_over(&mounted)
        .ok_or_else(|| Failure::new(ExitCode::Internal, "can't tell which mount it is"))?;
    let mount = Mount {
        mounted,
        attachment,
    };
    let program = Program::at(Path::new(OURSELVES)).map_err(|error| cant_start(&error))?;
    let died = child.is_none().then(Instant::now);
    let process = child
        .map_or_else(|| program.start(), Ok)
        .map_err(|error| cant_start(&error))?;
    log::info!(
        "{} is kept by {}, version {}, from now on",
        place.target.display(),
        program.path().display(),
        env!("CARGO_PKG_VERSION")
    );
    let keeper = Keeper {
        mount: Some(mount),
        kept,
        state,
        drains_since,
        pace: Pace::after(config.restart.limit, deaths),
        died,
        ..Keeper::of(config, signals, place, process, program, record)
    };
    keeper.until_the_end()
}

/// The mount that it is.
pub(super) fn taken_over(mounted: &Mounted) -> Option<Attachment> {
    Attachment::take_over(Handover {
        record: mounted.attachment.clone(),
        abort: mounted.abort.as_ref().and_then(|it| it.try_clone().ok()),
    })
}
