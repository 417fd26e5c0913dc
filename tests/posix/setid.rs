//! Set-user-ID, set-group-ID and file capabilities: who loses them by doing what, as one table. Every
//! kind of file, changed by every kind of caller in every way that changes a file: the mode and the
//! capabilities afterwards are those of a plain directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Timespec, Timestamps, UTIME_NOW, XattrFlags, copy_file_range,
    fallocate, lgetxattr, lremovexattr, lsetxattr, sendfile, utimensat,
};

use super::raw::{Mapping, aligned, truncate};
use super::special::on_mount;
use super::xattrs::{acl, value_of};
use crate::common::tree::pattern;
use crate::common::{LIMIT, as_user, run};
use crate::{Tree, chmod};

const OWNER: u32 = 4321;
const STRANGER: u32 = 4322;
/// The group of the file, and another one that a caller may be in.
const GROUP: u32 = 4400;
const OTHER_GROUP: u32 = 4500;

/// Bytes in the file before it is changed.
const SIZE: usize = 16_384;

/// Version 2, effective, CAP_NET_RAW permitted.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// What may be lost: a name, the mode, whether there are file capabilities. Everybody may write, so
/// that the outcome is not decided by a permission.
const FILES: [(&str, u32, bool); 5] = [
    ("setuid", 0o4777, false),
    ("setgid and group execution", 0o2777, false),
    ("setgid alone", 0o2767, false),
    ("both without execution", 0o6666, false),
    ("capable", 0o777, true),
];

type Caller = (&'static str, u32, u32, &'static [u32]);

/// Who changes it: a name, uid, gid, supplementary groups.
const CALLERS: [Caller; 6] = [
    ("root", 0, 0, &[]),
    ("the owner", OWNER, OWNER, &[OTHER_GROUP]),
    (
        "the owner in the group",
        OWNER,
        OWNER,
        &[GROUP, OTHER_GROUP],
    ),
    ("a member", STRANGER, GROUP, &[]),
    (
        "a member by supplementary group",
        STRANGER,
        STRANGER,
        &[OTHER_GROUP, GROUP],
    ),
    ("a stranger", STRANGER, STRANGER, &[OTHER_GROUP]),
];

type Change = fn(&Path) -> io::Result<()>;

/// How it is changed.
const CHANGES: [(&str, Change); 38] = [
    ("write", |path| open(path)?.write_all(b"y")),
    ("write of nothing", |path| open(path)?.write(b"").map(drop)),
    ("append", |path| {
        OpenOptions::new().append(true).open(path)?.write_all(b"y")
    }),
    ("pwritev", |path| {
        rustix::io::pwritev(open(path)?, &[IoSlice::new(b"a"), IoSlice::new(b"b")], 5)?;
        Ok(())
    }),
    ("two writes", |path| {
        let file = open(path)?;
        file.write_all_at(b"y", 0)?;
        file.write_all_at(b"y", 9_000)
    }),
    ("a direct write", |path| {
        let file = options().custom_flags(libc::O_DIRECT).open(path)?;
        file.write_all_at(aligned(&mut vec![b'd'; 3 * 4_096], 4_096), 4_096)
    }),
    ("a synchronous write", |path| {
        options()
            .custom_flags(libc::O_SYNC)
            .open(path)?
            .write_all(b"y")
    }),
    ("sendfile", |path| {
        sendfile(
            open(path)?,
            File::open("/proc/self/exe")?,
            Some(&mut 0),
            100,
        )?;
        Ok(())
    }),
    ("copy_file_range", |path| copy(path, 100)),
    ("copy_file_range of nothing", |path| copy(path, 0)),
    ("truncate", |path| truncate(path, 10)),
    ("truncate to the same size", |path| {
        truncate(path, SIZE as u64)
    }),
    ("truncate to more", |path| truncate(path, 2 * SIZE as u64)),
    ("ftruncate", |path| open(path)?.set_len(10)),
    ("ftruncate to the same size", |path| {
        open(path)?.set_len(SIZE as u64)
    }),
    ("ftruncate to more", |path| {
        open(path)?.set_len(2 * SIZE as u64)
    }),
    ("O_TRUNC", |path| {
        options().truncate(true).open(path).map(drop)
    }),
    ("O_TRUNC for reading", |path| {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_TRUNC)
            .open(path)
            .map(drop)
    }),
    ("creat", |path| File::create(path).map(drop)),
    ("fallocate", |path| allocate(path, FallocateFlags::empty())),
    ("fallocate, keep size", |path| {
        allocate(path, FallocateFlags::KEEP_SIZE)
    }),
    ("punch a hole", |path| {
        allocate(path, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)
    }),
    ("zero a range", |path| {
        allocate(path, FallocateFlags::ZERO_RANGE)
    }),
    ("zero a range, keep size", |path| {
        allocate(path, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)
    }),
    ("chown to the owner", |path| chown(path, Some(OWNER), None)),
    ("chown to the owner and group", |path| {
        chown(path, Some(OWNER), Some(GROUP))
    }),
    ("chown to somebody else", |path| {
        chown(path, Some(STRANGER), None)
    }),
    ("chgrp to the group", |path| chown(path, None, Some(GROUP))),
    ("chgrp to another group", |path| {
        chown(path, None, Some(OTHER_GROUP))
    }),
    ("chmod to the same mode", |path| {
        let mode = fs::metadata(path)?.mode();
        Ok(rustix::fs::chmod(
            path,
            rustix::fs::Mode::from_raw_mode(mode),
        )?)
    }),
    ("chmod to 6777", |path| {
        Ok(rustix::fs::chmod(
            path,
            rustix::fs::Mode::from_raw_mode(0o6777),
        )?)
    }),
    ("fchmod to 2767", |path| {
        Ok(rustix::fs::fchmod(
            open(path)?,
            rustix::fs::Mode::from_raw_mode(0o2767),
        )?)
    }),
    ("an access ACL", |path| {
        let entries = [(1, 7, 0), (2, 7, 1), (4, 7, 0), (0x10, 7, 0), (0x20, 7, 0)];
        Ok(lsetxattr(
            path,
            "system.posix_acl_access",
            &acl(&entries),
            XattrFlags::empty(),
        )?)
    }),
    ("an access ACL that is the mode", |path| {
        let entries = [(1, 6, 0), (4, 6, 0), (0x20, 6, 0)];
        Ok(lsetxattr(
            path,
            "system.posix_acl_access",
            &acl(&entries),
            XattrFlags::empty(),
        )?)
    }),
    ("no ACL", |path| {
        Ok(lremovexattr(path, "system.posix_acl_access")?)
    }),
    ("setxattr", |path| {
        Ok(lsetxattr(path, "user.new", b"x", XattrFlags::empty())?)
    }),
    ("removexattr", |path| Ok(lremovexattr(path, "user.old")?)),
    ("utimensat", |path| {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW as _,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
    }),
];

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

fn open(path: &Path) -> io::Result<File> {
    options().open(path)
}

fn allocate(path: &Path, flags: FallocateFlags) -> io::Result<()> {
    Ok(fallocate(open(path)?, flags, 4_096, SIZE as u64)?)
}

fn copy(path: &Path, length: usize) -> io::Result<()> {
    let file = open(path)?;
    copy_file_range(&file, Some(&mut 0), &file, Some(&mut 8_192), length)?;
    Ok(())
}

/// The mode and whether it has capabilities.
fn left(path: &Path) -> String {
    let mode = fs::metadata(path).unwrap().mode() & 0o7777;
    match lgetxattr(path, "security.capability", &mut [0; 100][..]) {
        Ok(_) => format!("{mode:o}, capable"),
        Err(errno) => {
            assert_eq!(errno, rustix::io::Errno::NODATA);
            format!("{mode:o}")
        }
    }
}

/// `act` on a new file of that kind by one caller, and what is left of what may be lost.
fn changed(t: &Tree, file: (&str, u32, bool), caller: Caller, act: Change) -> (String, String) {
    let ((_, mode, capable), (_, uid, gid, groups)) = (file, caller);
    let path = t.file("f", pattern(1, SIZE));
    lsetxattr(&path, "user.old", b"x", XattrFlags::empty()).unwrap();
    chown(&path, Some(OWNER), Some(GROUP)).unwrap();
    chmod(&path, mode);
    if capable {
        let flags = XattrFlags::empty();
        lsetxattr(&path, "security.capability", &CAPABILITY, flags).unwrap();
    }
    let result = as_user(uid, gid, groups, || act(&path));
    let left = left(&path);
    fs::remove_file(&path).unwrap();
    let result = result.map_or_else(|error| error.to_string(), |()| "done".to_owned());
    (result, left)
}

/// Every change of one kind of file by every caller.
fn table(t: &mut Tree, file: &str) {
    let file = FILES.into_iter().find(|(name, ..)| *name == file).unwrap();
    chmod(t.top(), 0o777);
    for caller in CALLERS {
        for (change, act) in CHANGES {
            let what = format!("{change} by {}", caller.0);
            let seen = changed(t, file, caller, act);
            t.see(&what, seen);
        }
    }
}

/// A chown(2) that names neither owner nor group still clears set-id bits.
fn chown_of_nothing(path: &Path) -> io::Result<()> {
    chown(path, None, None)
}

fn mapped_write(path: &Path) -> io::Result<()> {
    let mut map = Mapping::new(&open(path)?, SIZE, true)?;
    map.bytes()[5_000] = b'm';
    map.sync()
}

cases! {
    fn setuid_files(t) { table(t, "setuid"); }

    fn setgid_files_with_group_execution(t) { table(t, "setgid and group execution"); }

    fn setgid_files_without_group_execution(t) { table(t, "setgid alone"); }

    fn set_id_files_without_execution(t) { table(t, "both without execution"); }

    fn files_with_capabilities(t) { table(t, "capable"); }

    /// Root keeps set-id bits when it writes, and still loses the capabilities. Where both are at stake FUSE
    /// can't tell that from a chown, which costs both (SEMANTICS.md).
    fn a_setuid_file_of_root_with_capabilities(t) {
        let path = t.file("f", "x");
        chmod(&path, 0o6755);
        lsetxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
        open(&path).unwrap().write_all(b"y").unwrap();
        assert_eq!(left(&path), if on_mount(t) { "755" } else { "6755" });
        chmod(&path, 0o6755);
        open(&path).unwrap().write_all(b"z").unwrap();
        t.see("without capabilities", left(&path));
    }

    /// Capabilities that the root of a user namespace gives to a file belong to that namespace.
    fn capabilities_of_a_user_namespace(t) {
        chmod(t.top(), 0o777);
        let script = "cp /bin/true t; setcap cap_net_raw+ep t; getcap -n t; getfattr -n security.capability -e hex t; touch f; stat -c %u:%g t f";
        let mut namespace = Command::new("setpriv");
        namespace.args(["--reuid", "4321", "--regid", "4321", "--clear-groups", "unshare", "-Ur", "sh", "-euc", script]);
        t.see("inside", run(namespace.current_dir(t.top()), LIMIT).success());
        t.try_see("outside", value_of(&t.path("t"), "security.capability"));
        t.see("owner", (fs::metadata(t.path("t")).unwrap().uid(), fs::metadata(t.path("f")).unwrap().uid()));
    }

    /// A chown(2) of nothing (-1, -1). Where set-id bits are at stake FUSE can't tell it from the beginning of
    /// a write: a stranger is not refused, and nothing happens (SEMANTICS.md).
    fn chown_of_neither_owner_nor_group(t) {
        chmod(t.top(), 0o777);
        for file in FILES {
            for caller in CALLERS {
                let seen = changed(t, file, caller, chown_of_nothing);
                let is_limit = file.1 & 0o6000 != 0 && caller.1 == STRANGER;
                if is_limit && on_mount(t) {
                    assert_eq!(seen, ("done".to_owned(), format!("{:o}", file.1)));
                } else if is_limit {
                    assert_eq!(seen.1, format!("{:o}", file.1));
                } else {
                    t.see(&format!("{} by {}", file.0, caller.0), seen);
                }
            }
        }
    }

    /// What is written through a shared mapping costs no set-id bit and no capabilities.
    fn a_write_through_a_mapping(t) {
        chmod(t.top(), 0o777);
        for file in FILES {
            for caller in CALLERS {
                t.see(&format!("{} by {}", file.0, caller.0), changed(t, file, caller, mapped_write));
            }
        }
    }
}
