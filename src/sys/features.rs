//! `LOOPFS_FEATURES_OFF`: newer kernel features, switched off by name.
//!
//! Every newer system call has a way round it for kernels and sandboxes that lack it. A comma list
//! in this environment variable makes the program take that way on a kernel that has the call, so
//! that the tests reach it and a user can rule a feature out. A word that nobody asks for has no
//! effect but a warning: a unit may name what a newer version does not use any more.
//!
//! Words that `attach/` asks for: `new-mount-api` (fsopen and its kin; then mount(2)), `statmount`
//! (statmount and listmount; then /proc/self/mountinfo), `unique-mount-id` (the 64-bit id of
//! statx; then the recycled 32-bit one together with device, type and source). In `sys/fs.rs`:
//! `openat2`. In `sys/mount.rs`: `private-copy` (of SRC's mount, for `--one-file-system`). In
//! `loopback/`: `file-handles`, `fanotify`, `backing-by-path` (`O_PATH` descriptors as backing files). In `fuse/`: `passthrough`, `prune`,
//! `no-opens` (files opened without a request, `--io cached`), `another-device` (of the connection, for who tells the kernel of
//! changes; then one is shared). In `guard.rs`: `guard` (a process that cuts the connection when a daemon is killed).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use crate::sync::OnceLock;

/// The environment variable.
pub const VARIABLE: &str = "LOOPFS_FEATURES_OFF";

/// Every word that something asks for; `tests/generated.rs` looks.
pub const WORDS: [&str; 13] = [
    "new-mount-api",
    "statmount",
    "unique-mount-id",
    "openat2",
    "file-handles",
    "private-copy",
    "fanotify",
    "passthrough",
    "backing-by-path",
    "no-opens",
    "another-device",
    "guard",
    "prune",
];

/// True if the feature called `word` is switched off. The variable is read once.
#[must_use]
pub fn is_off(word: &str) -> bool {
    words(list()).any(|item| item == word.as_bytes())
}

/// What is listed and switches nothing off, in one line each.
#[must_use]
pub fn unknown() -> Vec<String> {
    unknown_of(list())
}

fn list() -> &'static OsStr {
    static LIST: OnceLock<OsString> = OnceLock::new();
    LIST.get_or_init(|| std::env::var_os(VARIABLE).unwrap_or_default())
}

fn words(list: &OsStr) -> impl Iterator<Item = &[u8]> {
    list.as_bytes()
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
}

fn unknown_of(list: &OsStr) -> Vec<String> {
    words(list)
        .filter(|item| !item.is_empty() && !WORDS.iter().any(|word| word.as_bytes() == *item))
        .map(|item| item.escape_ascii().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_of_a_comma_list() {
        let items = |list| words(OsStr::new(list)).collect::<Vec<_>>();
        assert_eq!(
            items("statmount, no-opens"),
            [&b"statmount"[..], b"no-opens"]
        );
        assert!(!items("statmount").contains(&&b"mount"[..]));
    }

    #[test]
    fn what_switches_nothing_off_is_named() {
        let unknown = |list| unknown_of(OsStr::new(list));
        assert_eq!(
            unknown("statmount, mount,pass\nthrough,"),
            ["mount", "pass\\nthrough"]
        );
        assert_eq!(unknown(""), [""; 0]);
        assert_eq!(unknown(&WORDS.join(",")), [""; 0]);
    }
}
