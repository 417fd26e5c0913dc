//! `loopfs status MNT`: everything about one mount.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::holding::{self, Found};
use super::mounts::{self, HANGS, Known, Mount};
use super::text::{self, Table};
use super::{list, prometheus};
use crate::config::Shape;
use crate::exit::{ExitCode, Failure};
use crate::figures::{Figures, Holder};

/// As many of the busiest are shown to people.
const BUSIEST: usize = 5;

/// The mount as `--json` tells it. The names are a promise, as those of [`crate::figures`].
#[derive(Debug, Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    known: Known<'a>,
    /// What the daemon tells; `null` if it can't be asked.
    figures: Option<&'a Figures>,
    /// Why it can't.
    why: Option<String>,
    /// The processes that use the mount.
    holders: &'a [Holder],
    /// Nobody was left out because the search took too long.
    search_finished: bool,
    /// How many processes could not be looked into.
    hidden_processes: usize,
}

pub(super) fn run(target: &Path, shape: Shape) -> Result<ExitCode, Failure> {
    let mut mount = mounts::must_be_at(target)?;
    if shape == Shape::Prometheus {
        return super::print(&prometheus::text(&mount));
    }
    let found = holding::find(&mount);
    if shape == Shape::People {
        return super::print(&for_people(&mount, &found));
    }
    if let Some(figures) = &mut mount.figures {
        for operation in &mut figures.operations {
            operation.buckets.clear();
        }
    }
    super::print(&text::json(&Status {
        known: Known::of(&mount),
        figures: mount.figures.as_ref(),
        why: mount.state.why_no_figures(),
        holders: &found.holders,
        search_finished: !found.unfinished,
        hidden_processes: found.hidden,
    }))
}

fn for_people(mount: &Mount, found: &Found) -> String {
    let mut text = format!(
        "{} at {}\n",
        text::name(&mount.source.0),
        text::name(&mount.target.0)
    );
    let mut facts = Table::without_heading();
    for (name, fact) in facts_of(mount) {
        facts.row([format!("  {name}"), fact]);
    }
    text.push_str(&facts.render());
    if let Some(figures) = &mount.figures {
        text.push_str(&operations(figures));
        text.push_str(&busiest(figures));
    }
    text.push_str(&held(found));
    text
}

fn facts_of(mount: &Mount) -> Vec<(&'static str, String)> {
    let pid = mount
        .pid
        .map(|pid| format!(", pid {pid}"))
        .unwrap_or_default();
    let Some(figures) = &mount.figures else {
        let why = mount.state.why_no_figures().unwrap_or_default();
        return vec![
            ("state", format!("{}{pid}", list::state(mount))),
            ("figures", format!("none: {why}")),
        ];
    };
    let cause = figures
        .cause
        .as_ref()
        .map(|cause| format!(" ({cause})"))
        .unwrap_or_default();
    let state = format!(
        "{}{cause} for {}{pid}",
        list::state(mount),
        text::ago(figures.uptime_seconds)
    );
    let with_why = |mode: &crate::figures::Mode| match &mode.why {
        None => mode.mode.clone(),
        Some(why) => format!("{} ({why})", mode.mode),
    };
    let mut requests = format!(
        "{} answered, {} with an error; {} in flight",
        figures.requests, figures.errors, figures.in_flight
    );
    if let Some(oldest) = figures
        .oldest_request
        .as_ref()
        .filter(|oldest| oldest.seconds >= 1.0)
    {
        let _ = write!(
            requests,
            ", {} since {}",
            oldest.operation,
            text::time(oldest.seconds)
        );
        if oldest.seconds >= HANGS {
            requests.push_str(": SRC hangs, or what it does is slow");
        }
    }
    let mut facts = vec![
        ("state", state),
        ("requests", requests),
        (
            "files",
            format!(
                "{} open, {} inodes known",
                figures.open_files, figures.inodes
            ),
        ),
        ("reads, writes", with_why(&figures.io)),
        ("cache", with_why(&figures.cache)),
        (
            "daemon",
            format!(
                "{} of memory, {} of {} descriptors, {} threads, version {}",
                text::size(figures.memory_bytes),
                figures.descriptors,
                figures.descriptor_limit,
                figures.threads,
                text::name(&figures.version)
            ),
        ),
    ];
    if !mount.covered_by.is_empty() {
        let names: Vec<String> = mount.covered_by.iter().map(text::name).collect();
        facts.push(("covered by", names.join(", ")));
    }
    facts
}

/// Requests by operation, the most frequent first.
pub(super) fn operations(figures: &Figures) -> String {
    if figures.operations.is_empty() {
        return "\nno requests yet\n".to_owned();
    }
    let mut table = Table::new([
        "OPERATION",
        "REQUESTS",
        "ERRORS",
        "P50",
        "P90",
        "P99",
        "MAX",
    ]);
    table.right(&[1, 2, 3, 4, 5, 6]);
    let mut operations: Vec<_> = figures.operations.iter().collect();
    operations.sort_by_key(|operation| std::cmp::Reverse(operation.requests));
    for operation in operations {
        table.row([
            text::name(&operation.name),
            operation.requests.to_string(),
            operation.errors.to_string(),
            text::time(operation.p50_seconds),
            text::time(operation.p90_seconds),
            text::time(operation.p99_seconds),
            text::time(operation.max_seconds),
        ]);
    }
    format!("\n{}", table.render())
}

fn busiest(figures: &Figures) -> String {
    let mut text = String::new();
    if !figures.busiest_files.is_empty() {
        let mut table = Table::new(["REQUESTS/S", "FILE"]);
        table.right(&[0]);
        for file in figures.busiest_files.iter().take(BUSIEST) {
            let name = file.path.as_ref().map(|path| text::name(&path.0));
            table.row([
                text::rate(file.requests_per_second),
                name.unwrap_or_else(|| format!("inode {}", file.inode)),
            ]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    if !figures.busiest_processes.is_empty() {
        let mut table = Table::new(["REQUESTS/S", "PID", "COMMAND"]);
        table.right(&[0, 1]);
        for process in figures.busiest_processes.iter().take(BUSIEST) {
            let command = process
                .command
                .as_ref()
                .map(|command| text::name(&command.0));
            table.row([
                text::rate(process.requests_per_second),
                process.pid.to_string(),
                command.unwrap_or_else(|| "(ended)".to_owned()),
            ]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    text
}

/// Who uses it.
pub(super) fn held(found: &Found) -> String {
    let mut text = String::new();
    if !found.holders.is_empty() {
        let mut table = Table::new(["PID", "COMMAND", "USES"]);
        table.right(&[0]);
        for holder in &found.holders {
            let uses: Vec<String> = holder.uses.iter().map(|it| text::name(&it.0)).collect();
            table.row([
                holder.pid.to_string(),
                text::name(&holder.command.0),
                few(&uses),
            ]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    if found.unfinished {
        text.push_str(
            "\nwho uses it could not be found out in time: a process that hangs is in the way\n",
        );
    } else if found.holders.is_empty() {
        text.push_str("\nno process is seen to use it\n");
    }
    if found.hidden > 0 && !mounts::is_root() {
        let _ = writeln!(
            text,
            "{} processes of other users can\'t be looked into",
            found.hidden
        );
    }
    text
}

/// The first few, and how many more there are.
pub(super) fn few(list: &[String]) -> String {
    const FEW: usize = 3;
    let shown = list
        .iter()
        .take(FEW)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match list.len().checked_sub(FEW) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
