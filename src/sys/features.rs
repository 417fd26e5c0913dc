//! `LOOPFS_FEATURES_OFF`: newer kernel features, switched off by name.
//!
//! Every newer system call has a way round it for kernels and sandboxes that lack it. A comma list
//! in this environment variable makes the program take that way on a kernel that has the call, so
//! that the tests reach it and a user can rule a feature out. A word that nobody asks for has no
//! effect.
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

/// True if the feature called `word` is switched off. The variable is read once.
#[must_use]
pub fn is_off(word: &str) -> bool {
    static LIST: OnceLock<OsString> = OnceLock::new();
    lists(
        LIST.get_or_init(|| std::env::var_os(VARIABLE).unwrap_or_default()),
        word,
    )
}

fn lists(list: &OsStr, word: &str) -> bool {
    list.as_bytes()
        .split(|&byte| byte == b',')
        .any(|item| item.trim_ascii() == word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_of_a_comma_list() {
        let list = OsStr::new("statmount, unique-mount-id,");
        assert!(lists(list, "statmount"));
        assert!(lists(list, "unique-mount-id"));
        assert!(!lists(list, "mount"));
        assert!(!lists(OsStr::new(""), "statmount"));
    }
}
