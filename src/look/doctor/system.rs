//! What FUSE needs of the system: the device, the helper for users and what that allows, /proc, limits.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::super::mounts::is_root;
use super::{Finding, word};
use crate::attach::{self, mountinfo};
use crate::sys;

const DEVICE: &str = "/dev/fuse";
const CONF: &str = "/etc/fuse.conf";
const CONTROL: &str = "/sys/fs/fuse/connections";

/// Fewer files than that are soon open where an inode costs one.
const FEW_FILES: u64 = 4096;

/// How many mounts fusermount3 allows all users together, if its file does not say.
const MOST_MOUNTS: usize = 1000;

/// What is wrong for a user may not matter to root, who mounts without help.
fn wrong_for_users(about: &str, what: impl Into<String>) -> Finding {
    if is_root() {
        Finding::note(about, what)
    } else {
        Finding::wrong(about, what)
    }
}

pub(super) fn findings() -> Vec<Finding> {
    let conf = fs::read_to_string(CONF).unwrap_or_default();
    vec![
        device(),
        helper(),
        others(&conf),
        number_of_mounts(&conf),
        proc(),
        control(),
        files(),
    ]
}

fn device() -> Finding {
    let mode = match fs::metadata(DEVICE) {
        Ok(found) => found.permissions().mode() & 0o777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::wrong(
                DEVICE,
                "missing: the module is not loaded, or the container lacks the device",
            )
            .mended_by("modprobe fuse");
        }
        Err(error) => return Finding::wrong(DEVICE, error.to_string()),
    };
    // Opened it is no connection yet, and closed again at once.
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        let finding = Finding::wrong(DEVICE, format!("can't be opened: {error}"));
        return match error.kind() {
            io::ErrorKind::PermissionDenied if is_root() => Finding {
                what: format!("{}; the container or service must be allowed the device", finding.what),
                mend: Some("systemctl edit SERVICE    # [Service] DeviceAllow=/dev/fuse rw; of a container: --device /dev/fuse".into()),
                ..finding
            },
            io::ErrorKind::PermissionDenied => finding.mended_by("sudo chmod 666 /dev/fuse"),
            _ => finding.mended_by("modprobe fuse"),
        };
    }
    if mode & 0o666 == 0o666 {
        Finding::ok(DEVICE, "every user may open it")
    } else {
        Finding::note(
            DEVICE,
            format!(
                "not every user may open it (its mode is {mode:04o}), so other users can't mount"
            ),
        )
        .mended_by("chmod 666 /dev/fuse")
    }
}

fn helper() -> Finding {
    const ABOUT: &str = "fusermount3";
    let Some(program) = attach::fusermount() else {
        return wrong_for_users(ABOUT, "not installed: only root can mount")
            .mended_by("apt install fuse3");
    };
    let shown = program.display();
    match fs::metadata(&program) {
        Ok(found) if found.uid() == 0 && found.permissions().mode() & 0o4000 != 0 => {
            Finding::ok(ABOUT, format!("{shown} is set-user-ID root"))
        }
        Ok(_) => wrong_for_users(
            ABOUT,
            format!("{shown} is not set-user-ID root: it can't mount for users"),
        )
        .mended_by(format!(
            "sudo sh -c 'chown root {0} && chmod u+s {0}'",
            word(&program)
        )),
        Err(error) => wrong_for_users(ABOUT, format!("{shown}: {error}")),
    }
}

fn others(conf: &str) -> Finding {
    const ABOUT: &str = "user_allow_other";
    if conf.lines().any(|line| line.trim() == ABOUT) {
        return Finding::ok(ABOUT, format!("users may mount with allow_other ({CONF})"));
    }
    Finding::note(
        ABOUT,
        format!("not in {CONF}: a user's mount is for that user only, allow_other is refused"),
    )
    .mended_by(format!("echo user_allow_other | sudo tee -a {CONF}"))
}

fn number_of_mounts(conf: &str) -> Finding {
    const ABOUT: &str = "mount_max";
    let most = most_mounts(conf);
    let table = mountinfo::read().unwrap_or_default();
    // fusermount3 counts so (`count_fuse_fs`), root excepted.
    let mounted = table.iter().filter(|entry| entry.is_fuse()).count();
    let what =
        format!("{mounted} FUSE mounts, of {most} up to which users may make new ones ({CONF})");
    if mounted < most {
        return Finding::ok(ABOUT, what);
    }
    wrong_for_users(ABOUT, what).mended_by(format!(
        "echo 'mount_max = {}' | sudo tee -a {CONF}",
        most.max(MOST_MOUNTS) * 2
    ))
}

/// A later line wins.
fn most_mounts(conf: &str) -> usize {
    let lines = conf.lines().rev();
    let mut said = lines.filter_map(|line| {
        line.trim()
            .strip_prefix("mount_max = ")?
            .trim()
            .parse()
            .ok()
    });
    said.next().unwrap_or(MOST_MOUNTS)
}

fn proc() -> Finding {
    if sys::fs::proc_works() {
        Finding::ok("/proc", "mounted")
    } else {
        Finding::wrong("/proc", "not mounted, and files are opened through it")
            .mended_by("mount -t proc proc /proc")
    }
}

fn control() -> Finding {
    let table = mountinfo::read().unwrap_or_default();
    let there = table
        .iter()
        .any(|entry| entry.fs_type == "fusectl" && entry.mount_point == Path::new(CONTROL));
    if there {
        return Finding::ok(CONTROL, "mounted");
    }
    Finding::note(
        CONTROL,
        "not mounted: the connection of a mount that hangs can't be cut from outside",
    )
    .mended_by(format!("sudo mount -t fusectl fusectl {CONTROL}"))
}

fn files() -> Finding {
    const ABOUT: &str = "open files";
    let most = sys::limits::most_files();
    if most == u64::MAX {
        return Finding::ok(ABOUT, "any number");
    }
    let what = format!("a daemon that is started from here may have {most} open");
    if most >= FEW_FILES {
        return Finding::ok(ABOUT, what);
    }
    let what = format!(
        "{what}: programs get EMFILE (Too many open files) soon where SRC gives no file handles"
    );
    Finding::wrong(ABOUT, what).mended_by(
        "sudo prlimit --pid $$ --nofile=1048576    # or, in a unit: LimitNOFILE=infinity",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_fusermount3() {
        assert_eq!(most_mounts("#mount_max = 3\n"), MOST_MOUNTS);
        assert_eq!(most_mounts("mount_max = 3\n mount_max = 7\n"), 7);
    }
}
