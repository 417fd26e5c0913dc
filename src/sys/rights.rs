//! What a caller may do that its uid does not tell: its capabilities, from `/proc`.
//!
//! The caller waits for our answer meanwhile, so its thread id is still its own. Nothing is granted where
//! nothing can be read (another pid namespace, no `/proc`), or what is read is somebody else's.

use std::fs;

use super::caller::proc_counts_as_we_do;

/// Capabilities by their numbers (linux/capability.h): to change owners; to do what takes the owner of a file; to keep set-id
/// bits; to set the flags `immutable` and `append only`.
const CHOWN: u32 = 0;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const LINUX_IMMUTABLE: u32 = 9;

/// Whether `thread` may act for the owner of any file that belongs to `uid` and `gid`: `CAP_FOWNER` in a
/// user namespace in which both have a name (`capable_wrt_inode_uidgid` in the kernel).
#[must_use]
pub fn acts_for_owner(thread: u32, uid: u32, gid: u32) -> bool {
    has_over(thread, FOWNER, uid, gid)
}

/// Whether `thread` may give away any file that belongs to `uid` and `gid`: `CAP_CHOWN`, likewise.
#[must_use]
pub fn gives_away(thread: u32, uid: u32, gid: u32) -> bool {
    has_over(thread, CHOWN, uid, gid)
}

/// Whether what `thread` does to files leaves their set-id bits: `CAP_FSETID` where all ids have names. Less would do for
/// some of it, but not for a write (`setattr_should_drop_suidgid` in the kernel).
#[must_use]
pub fn keeps_set_id(thread: u32) -> bool {
    has_over_all(thread, FSETID)
}

/// Whether `thread` may make files immutable: `CAP_LINUX_IMMUTABLE` where all ids have names.
#[must_use]
pub fn makes_immutable(thread: u32) -> bool {
    has_over_all(thread, LINUX_IMMUTABLE)
}

/// Whether `thread` may act for the owner of every file: `CAP_FOWNER` where all ids have names.
#[must_use]
pub fn acts_for_every_owner(thread: u32) -> bool {
    has_over_all(thread, FOWNER)
}

fn has_over(thread: u32, capability: u32, uid: u32, gid: u32) -> bool {
    has_capability(thread, capability)
        && covers(thread, "uid_map", uid)
        && covers(thread, "gid_map", gid)
}

fn has_over_all(thread: u32, capability: u32) -> bool {
    let everybody = |map| read(thread, map).is_some_and(|text| is_whole(&text));
    has_capability(thread, capability) && everybody("uid_map") && everybody("gid_map")
}

fn read(thread: u32, file: &str) -> Option<Vec<u8>> {
    let path = format!("/proc/{thread}/{file}");
    proc_counts_as_we_do().then(|| fs::read(path).ok())?
}

fn has_capability(thread: u32, number: u32) -> bool {
    read(thread, "status")
        .and_then(|status| effective(&status))
        .is_some_and(|set| set & 1 << number != 0)
}

fn covers(thread: u32, map: &str, id: u32) -> bool {
    read(thread, map).is_some_and(|text| is_in(&text, id))
}

/// The effective capabilities in `/proc/TID/status`. The command's name in it may be no text.
fn effective(status: &[u8]) -> Option<u64> {
    let value = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"CapEff:"))?;
    u64::from_str_radix(std::str::from_utf8(value).ok()?.trim(), 16).ok()
}

/// The ranges of a uid_map or gid_map as seen from here (user_namespaces(7)): first id and how many.
fn ranges(map: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    map.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut numbers = std::str::from_utf8(line)
            .ok()?
            .split_whitespace()
            .map(str::parse);
        let _inside: u64 = numbers.next()?.ok()?;
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

fn is_in(map: &[u8], id: u32) -> bool {
    ranges(map).any(|(first, count)| (first..first.saturating_add(count)).contains(&u64::from(id)))
}

fn is_whole(map: &[u8]) -> bool {
    ranges(map).any(|(first, count)| first == 0 && count >= u64::from(u32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_whatever_the_program_is_called() {
        let status =
            b"Name:\t\xffCapEff: 1\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000008\n";
        assert_eq!(effective(status), Some(1 << FOWNER));
        assert_eq!(effective(b"Name:\tx\n"), None);
    }

    #[test]
    fn ids_without_a_name_are_not_covered() {
        let container = b"         0     100000      65536\n     65536       1000          1\n";
        for (id, inside) in [
            (0, false),
            (100_000, true),
            (165_535, true),
            (165_536, false),
            (1000, true),
        ] {
            assert_eq!(is_in(container, id), inside, "{id}");
        }
        assert!(!is_whole(container));
        assert!(is_whole(b"         0          0 4294967295\n"));
        assert!(!is_in(b"", 0));
    }

    #[test]
    fn a_thread_that_can_not_be_seen_may_nothing() {
        assert!(!acts_for_owner(0, 0, 0) && !acts_for_every_owner(0));
    }
}
