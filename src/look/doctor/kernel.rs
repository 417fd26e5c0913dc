//! What this kernel has of what came after 5.10. loopfs works without; what is lost then is said.

use super::Finding;
use crate::sys::features;
use crate::sys::probe::{self, Answer};

/// The oldest kernel that loopfs runs on.
const OLDEST: (u32, u32) = (5, 10);

/// How to find out.
enum By {
    /// By trying a system call.
    Trying(fn() -> Answer),
    /// By the kernel's release: what the FUSE client can do shows when a mount is made, and not before.
    Release,
}

/// The one that can't be switched off.
const EPOCH: &str = "inc-epoch";

struct Feature {
    /// As `LOOPFS_FEATURES_OFF` calls it, if it knows it.
    name: &'static str,
    since: (u32, u32),
    by: By,
    /// Without it.
    without: &'static str,
}

const fn tried(
    name: &'static str,
    since: (u32, u32),
    probe: fn() -> Answer,
    without: &'static str,
) -> Feature {
    Feature {
        name,
        since,
        by: By::Trying(probe),
        without,
    }
}

const fn released(name: &'static str, since: (u32, u32), without: &'static str) -> Feature {
    Feature {
        name,
        since,
        by: By::Release,
        without,
    }
}

const FEATURES: &[Feature] = &[
    tried(
        "new-mount-api",
        (5, 2),
        probe::new_mount_api,
        "a mount is visible before it has been tried out",
    ),
    tried(
        "openat2",
        (5, 6),
        probe::openat2,
        "whether a name is a mount point takes another system call",
    ),
    tried(
        "private-copy",
        (5, 12),
        probe::private_copy,
        "--one-file-system can't show what mounts below SRC cover",
    ),
    tried(
        "unique-mount-id",
        (6, 8),
        probe::unique_mount_id,
        "our mount is told from others by id, device and names",
    ),
    tried(
        "statmount",
        (6, 8),
        probe::statmount,
        "the mount table is read as a whole",
    ),
    tried(
        "fanotify",
        (5, 17),
        probe::fanotify,
        "changes in SRC are seen when timeouts have passed (--cache ttl)",
    ),
    released(
        "passthrough",
        (6, 9),
        "open files are read and written through the daemon (--io cached)",
    ),
    released(
        EPOCH,
        (6, 16),
        "changes in SRC are seen when timeouts have passed (--cache ttl)",
    ),
    released(
        "prune",
        (6, 18),
        "many inodes of a SRC without file handles end in EMFILE",
    ),
];

pub(super) fn findings() -> Vec<Finding> {
    let release = probe::release();
    let mut findings = vec![if release >= OLDEST {
        Finding::ok("kernel", format!("Linux {}", shown(release)))
    } else {
        let what = format!("Linux {}; loopfs needs {}", shown(release), shown(OLDEST));
        Finding::wrong("kernel", what)
            .mended_by("apt full-upgrade    # to a release with a newer kernel")
    }];
    findings.extend(FEATURES.iter().map(|feature| finding(feature, release)));
    findings
}

fn finding(feature: &Feature, release: (u32, u32)) -> Finding {
    let Feature { name, without, .. } = *feature;
    if name != EPOCH && features::is_off(name) {
        let what = format!("switched off by {}: {without}", features::VARIABLE);
        return Finding::note(name, what).mended_by(format!("unset {}", features::VARIABLE));
    }
    let answer = match feature.by {
        By::Trying(probe) => probe(),
        By::Release if release >= feature.since => Answer::There,
        By::Release => Answer::Missing,
    };
    match answer {
        Answer::There => Finding::ok(name, "there"),
        Answer::Missing => Finding::note(
            name,
            format!("missing (Linux {} has it): {without}", shown(feature.since)),
        ),
        Answer::NotAllowed => Finding::note(
            name,
            format!("not for this user, or forbidden by a sandbox: {without}"),
        ),
    }
}

fn shown((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_a_note_with_the_one_that_has_it() {
        let feature = released("passthrough", (6, 9), "slower");
        assert_eq!(finding(&feature, (6, 9)).verdict, Verdict::Ok);
        let missing = finding(&feature, (5, 10));
        assert_eq!(
            (missing.verdict, missing.what.as_str()),
            (Verdict::Note, "missing (Linux 6.9 has it): slower")
        );
        let forbidden = tried("statmount", (6, 8), || Answer::NotAllowed, "slower");
        assert_eq!(finding(&forbidden, (6, 9)).verdict, Verdict::Note);
    }
}
