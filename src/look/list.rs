//! `loopfs list`: the loopfs mounts of this machine.

use std::io::{self, Write as _};

use serde::Serialize;

use super::mounts;
use super::text::{self, Table};
use crate::exit::{ExitCode, Failure};

/// A mount as `--json` tells it.
#[derive(Debug, Serialize)]
struct Listed {
    source: String,
    target: String,
    device: String,
}

pub(super) fn run(json: bool) -> Result<ExitCode, Failure> {
    let listed: Vec<Listed> = mounts::all()?
        .iter()
        .map(|mount| Listed {
            source: text::name(&mount.source),
            target: text::name(&mount.mount_point),
            device: format!("{}:{}", mount.device.major, mount.device.minor),
        })
        .collect();
    let mut output = String::new();
    if json {
        output = serde_json::to_string_pretty(&listed).unwrap_or_default() + "\n";
    } else if listed.is_empty() {
        output.push_str("no loopfs mount\n");
    } else {
        let mut table = Table::new(["SOURCE", "TARGET"]);
        for mount in listed {
            table.row([mount.source, mount.target]);
        }
        output.push_str(&table.render());
    }
    // A reader that has seen enough is no failure.
    let _ = io::stdout().write_all(output.as_bytes());
    Ok(ExitCode::Success)
}
