//! The loopfs mounts that there are, from the mount table.

use crate::attach::mountinfo;
use crate::exit::{ExitCode, Failure};

/// The type of a loopfs mount, unless `subtype=` says otherwise.
const TYPE: &str = "fuse.loopfs";

/// All of them, in the order of the table.
pub(super) fn all() -> Result<Vec<mountinfo::Entry>, Failure> {
    let table = mountinfo::read().map_err(|error| {
        let text = format!("can't read the mount table (/proc/self/mountinfo): {error}");
        Failure::new(ExitCode::System, text)
    })?;
    let ours = table.into_iter().filter(|entry| entry.fs_type == TYPE);
    Ok(ours.collect())
}
