//! `loopfs list`: the loopfs mounts of this machine.

use std::fmt::Write as _;

use serde::Serialize;

use super::mounts::{self, HANGS, Known, Mount};
use super::text::{self, Table};
use crate::exit::{ExitCode, Failure};

/// A mount as `--json` tells it. The names are a promise, as those of [`crate::figures`].
#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    known: Known<'a>,
    /// When it began to serve: seconds since 1970.
    since: Option<u64>,
    open_files: Option<u64>,
    /// Why nothing is known of the last two.
    why: Option<String>,
}

impl<'a> Listed<'a> {
    fn of(mount: &'a Mount) -> Self {
        let figures = mount.figures.as_ref();
        Self {
            known: Known::of(mount),
            since: figures.map(|figures| figures.since),
            open_files: figures.map(|figures| figures.open_files),
            why: mount.state.why_no_figures(),
        }
    }
}

pub(super) fn run(json: bool) -> Result<ExitCode, Failure> {
    let mounts = mounts::all()?;
    if json {
        let listed: Vec<Listed<'_>> = mounts.iter().map(Listed::of).collect();
        return super::print(&text::json(&listed));
    }
    if mounts.is_empty() {
        return super::print("no loopfs mount\n");
    }
    super::print(&(table(&mounts).render() + &remarks(&mounts)))
}

/// The mounts for people.
pub(super) fn table(mounts: &[Mount]) -> Table {
    let mut table = Table::new(["SOURCE", "TARGET", "PID", "STATE", "SINCE", "OPEN"]);
    table.right(&[2, 5]);
    for mount in mounts {
        let figures = mount.figures.as_ref();
        let unknown = || "-".to_owned();
        table.row([
            text::name(&mount.source.0),
            text::name(&mount.target.0),
            mount.pid.map_or_else(unknown, |pid| pid.to_string()),
            state(mount),
            figures.map_or_else(unknown, |figures| text::ago(figures.uptime_seconds)),
            figures.map_or_else(unknown, |figures| figures.open_files.to_string()),
        ]);
    }
    table
}

/// Its state, and what is odd about it.
pub(super) fn state(mount: &Mount) -> String {
    let mut state = mount.state.word().to_owned();
    let oldest = mount
        .figures
        .as_ref()
        .and_then(|figures| figures.oldest_request.as_ref());
    if let Some(oldest) = oldest.filter(|oldest| oldest.seconds >= HANGS) {
        let _ = write!(state, ", {} hangs", oldest.operation);
    }
    if !mount.covered_by.is_empty() {
        state.push_str(", covered");
    }
    state
}

/// Why some figures are missing, each reason once.
fn remarks(mounts: &[Mount]) -> String {
    let mut remarks: Vec<(String, Vec<String>)> = Vec::new();
    for mount in mounts {
        if let Some(why) = mount.state.why_no_figures() {
            let target = text::name(&mount.target.0);
            match remarks.iter_mut().find(|(known, _)| *known == why) {
                Some((_, targets)) => targets.push(target),
                None => remarks.push((why, vec![target])),
            }
        }
    }
    let lines = remarks
        .iter()
        .map(|(why, targets)| format!("{}: {why}\n", super::status::few(targets)));
    lines.collect()
}
