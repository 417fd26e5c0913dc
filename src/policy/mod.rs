//! What callers see and may do, as pure functions over values: no I/O, no state.
//!
//! The kernel checks permissions itself (`default_permissions`); what stands here are the few rules
//! whose outcome SRC decides by looking at the identity of the thread that asks.

/// The set-group-id bit of a mode.
const S_ISGID: u32 = 0o2000;

/// Both set-id bits.
const SET_ID: u32 = 0o6000;

/// Whether a mode has the set-group-id bit, on which groups may have a say.
#[must_use]
pub fn is_set_group_id(mode: u32) -> bool {
    mode & S_ISGID != 0
}

/// Whether a mode has set-id bits, which a change may clear (`setattr_should_drop_suidgid` and others in the kernel) unless
/// who makes it has `CAP_FSETID`.
#[must_use]
pub fn may_lose_set_id(mode: u32) -> bool {
    mode & SET_ID != 0
}

/// Whether creating something with `mode` in a directory depends on the caller's supplementary
/// groups: a new non-directory keeps its set-group-id bit in a set-group-id directory only if its
/// creator is in the directory's group (`mode_strip_sgid` in the kernel).
#[must_use]
pub fn creation_depends_on_groups(mode: u32, dir_mode: u32, dir_gid: u32, caller_gid: u32) -> bool {
    is_set_group_id(mode) && is_set_group_id(dir_mode) && dir_gid != caller_gid
}

/// Whether changing a file's contents, mode or ACL depends on the caller's supplementary groups: its
/// set-group-id bit may be cleared unless the caller is in its group (`setattr_should_drop_sgid`,
/// `posix_acl_update_mode` in the kernel).
#[must_use]
pub fn change_depends_on_groups(mode: u32, gid: u32, caller_gid: u32) -> bool {
    is_set_group_id(mode) && gid != caller_gid
}

/// A point in time: seconds since 1970 and nanoseconds on top.
pub type Stamp = (i64, u32);

/// A day, in seconds.
const DAY: i64 = 24 * 60 * 60;

/// Whether reading sets an access time where `relatime` rules (`relatime_need_update` in the kernel): if it is not
/// later than the other times, to the nanosecond, or a day old, in whole seconds.
#[must_use]
pub fn relatime_sets(atime: Stamp, mtime: Stamp, ctime: Stamp, now: i64) -> bool {
    atime <= mtime || atime <= ctime || now.saturating_sub(atime.0) >= DAY
}

/// Whether setting the mode `wanted` on a file of `mode` clears set-id bits and does nothing else, as the
/// kernel asks for with another user's write.
#[must_use]
pub fn only_clears_set_id(mode: u32, wanted: u32) -> bool {
    (mode ^ wanted) & 0o7777 & !SET_ID == 0 && wanted & !mode & SET_ID == 0
}

/// The mode to set after a change of owner: `wanted` without the set-id bits that this change has
/// cleared. The kernel worked `wanted` out before, from the old owner and without knowing groups.
#[must_use]
pub fn without_cleared(wanted: u32, before: u32, after: u32) -> u32 {
    wanted & !(before & !after & SET_ID)
}

/// Whether a mode is that of a program which runs with somebody else's rights.
#[must_use]
pub fn has_set_id(mode: u32) -> bool {
    mode & 0o170_000 == 0o100_000 && mode & SET_ID != 0
}

/// Permission bits as they take effect on a mount with `nosuid`.
#[must_use]
pub fn without_set_id(perm: u16) -> u16 {
    perm & !0o6000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatime_spares_what_was_read_since_it_changed() {
        assert!(!relatime_sets((11, 0), (10, 0), (10, 0), 12));
        assert!(!relatime_sets((10, 3), (10, 2), (10, 2), 12));
        assert!(relatime_sets((10, 2), (10, 2), (9, 9), 12));
        assert!(relatime_sets((10, 2), (9, 9), (10, 2), 12));
        assert!(relatime_sets((10, 2), (10, 3), (9, 9), 12));
        assert!(!relatime_sets((11, 9), (10, 0), (10, 0), 11 + DAY - 1));
        assert!(relatime_sets((11, 9), (10, 0), (10, 0), 11 + DAY));
    }

    #[test]
    fn groups_are_asked_for_only_where_a_set_group_id_bit_is_at_stake() {
        assert!(creation_depends_on_groups(0o2755, 0o42775, 50, 100));
        assert!(!creation_depends_on_groups(0o2755, 0o42775, 100, 100));
        assert!(!creation_depends_on_groups(0o755, 0o42775, 50, 100));
        assert!(!creation_depends_on_groups(0o2755, 0o40775, 50, 100));
        assert!(change_depends_on_groups(0o102_755, 50, 100));
        assert!(!change_depends_on_groups(0o102_755, 100, 100));
        assert!(!change_depends_on_groups(0o100_755, 50, 100));
    }

    #[test]
    fn clearing_set_id_bits_is_told_from_other_changes() {
        for (mode, wanted, only) in [
            (0o106_755, 0o755, true),
            (0o106_755, 0o100_755, true),
            (0o106_755, 0o2755, true),
            (0o100_755, 0o755, true),
            (0o106_755, 0o6755, true),
            (0o100_755, 0o4755, false),
            (0o106_755, 0o754, false),
            (0o104_755, 0o2755, false),
            (0o101_777, 0o777, false),
        ] {
            assert_eq!(
                only_clears_set_id(mode, wanted),
                only,
                "{mode:o} {wanted:o}"
            );
        }
    }

    #[test]
    fn set_id_bits_that_a_change_of_owner_cleared_stay_cleared() {
        assert_eq!(without_cleared(0o2666, 0o106_666, 0o100_666), 0o666);
        assert_eq!(without_cleared(0o2666, 0o106_666, 0o102_666), 0o2666);
        assert_eq!(without_cleared(0o644, 0o106_666, 0o100_666), 0o644);
        assert_eq!(
            without_cleared(0o4755, 0o100_644, 0o100_644),
            0o4755,
            "asked for"
        );
    }
}
