//! open(2) and what leads to an open file: flags in every combination that differs, `O_PATH`, reopening
//! through /proc, linking what has no name, running what is open.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, linkat, mknodat, open, openat, readlinkat, statat,
};
use rustix::io::Errno;

use super::raw::{Mapping, truncate};
use crate::common::user::{NOBODY, OTHER};
use crate::common::{LIMIT, as_user, process::wait_child};
use crate::{Tree, chmod, errno};

/// One name of each kind.
fn one_of_each(t: &Tree) -> Vec<PathBuf> {
    t.file("file", "content");
    t.directory("directory");
    for (name, target) in [
        ("to file", "file"),
        ("to directory", "directory"),
        ("to nothing", "nothing"),
    ] {
        symlink(target, t.path(name)).unwrap();
    }
    mknodat(
        CWD,
        t.path("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    mknodat(
        CWD,
        t.path("socket"),
        FileType::Socket,
        Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    let null = rustix::fs::makedev(1, 3);
    mknodat(
        CWD,
        t.path("device"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o644),
        null,
    )
    .unwrap();
    [
        "file",
        "directory",
        "to file",
        "to directory",
        "to nothing",
        "fifo",
        "socket",
        "device",
        "absent",
        "file/below",
        "directory/",
    ]
    .map(|name| t.path(name))
    .into()
}

fn proc_path(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn named_by(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open(path, flags, Mode::from_raw_mode(0o600))
}

cases! {
    /// Every flag that decides what is opened, on every kind of object.
    fn every_flag_on_every_kind(t) {
        let paths = one_of_each(t);
        let some = [
            OFlags::empty(), OFlags::NOFOLLOW, OFlags::DIRECTORY, OFlags::NOFOLLOW | OFlags::DIRECTORY, OFlags::PATH,
            OFlags::PATH | OFlags::NOFOLLOW, OFlags::PATH | OFlags::DIRECTORY, OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY,
            OFlags::EXCL, OFlags::CREATE | OFlags::EXCL, OFlags::CREATE | OFlags::DIRECTORY, OFlags::CREATE | OFlags::NOFOLLOW,
            OFlags::TRUNC, OFlags::TRUNC | OFlags::NOFOLLOW, OFlags::TRUNC | OFlags::DIRECTORY, OFlags::APPEND, OFlags::APPEND | OFlags::TRUNC,
            OFlags::NOATIME, OFlags::DIRECT, OFlags::SYNC, OFlags::DSYNC, OFlags::NOCTTY,
        ];
        for flags in some {
            for access in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::from_bits_retain(3)] {
                for path in &paths {
                    let name = path.strip_prefix(t.top()).unwrap().display().to_string();
                    let opened = named_by(path, flags | access | OFlags::NONBLOCK).map(|fd| {
                        let meta = File::from(fd.try_clone().unwrap()).metadata().unwrap();
                        let kept = rustix::fs::fcntl_getfl(&fd).unwrap();
                        (meta.mode(), meta.len() * u64::from(meta.is_file()), kept)
                    });
                    t.try_see(&format!("{flags:?} {access:?} {name}"), opened);
                    if name == "to nothing" {
                        let _ = fs::remove_file(t.path("nothing"));
                    }
                }
                fs::write(t.path("file"), "content").unwrap();
                let _ = fs::remove_file(t.path("absent"));
            }
        }
    }

    /// O_TRUNC truncates for who may write, however the file is opened, and for nobody else.
    fn o_trunc_needs_the_right_to_write(t) {
        for (mode, uid) in [(0o644, NOBODY), (0o666, NOBODY), (0o444, OTHER), (0o644, OTHER), (0o222, NOBODY), (0o000, 0)] {
            for access in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
                let path = t.file("f", "content");
                chown(&path, Some(OTHER), None).unwrap();
                chmod(&path, mode);
                t.try_see(&format!("{mode:o} {uid} {access:?}"), as_user(uid, uid, &[], || named_by(&path, access | OFlags::TRUNC).map(drop)));
                t.see("length", fs::metadata(&path).unwrap().len());
            }
        }
    }

    /// What a descriptor of O_PATH is good for, and what it is not.
    fn descriptors_of_o_path(t) {
        for path in one_of_each(t) {
            let Ok(fd) = named_by(&path, OFlags::PATH | OFlags::NOFOLLOW) else { continue };
            let name = path.strip_prefix(t.top()).unwrap().display().to_string();
            t.try_see(&name, statat(&fd, "", AtFlags::EMPTY_PATH).map(|stat| (stat.st_mode, stat.st_nlink)));
            t.try_see("read", rustix::io::read(&fd, &mut [0; 5][..]).map(drop));
            t.try_see("fchmod", rustix::fs::fchmod(&fd, Mode::RUSR));
            t.try_see("fchown", rustix::fs::fchown(&fd, None, None));
            t.try_see("fsync", rustix::fs::fsync(&fd));
            t.try_see("ftruncate", rustix::fs::ftruncate(&fd, 0));
            t.try_see("getdents", rustix::fs::Dir::read_from(&fd).map(|_| ()));
            t.try_see("chown", rustix::fs::chownat(&fd, "", None, None, AtFlags::EMPTY_PATH));
            t.try_see("readlink", readlinkat(&fd, "", Vec::new()));
            t.try_see("reopen", open(proc_path(&fd), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).map(drop));
            t.try_see("chmod", rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(0o640)));
            t.try_see("mode", fs::symlink_metadata(&path).map(|meta| meta.mode()));
            t.try_see("truncate", truncate(&proc_path(&fd), 3));
            t.try_see("openat", openat(&fd, "x", OFlags::RDONLY, Mode::empty()).map(drop));
            t.try_see("as an execution", Command::new(proc_path(&fd)).spawn().map(drop));
            t.try_see("statfs", rustix::fs::fstatfs(&fd).map(drop));
        }
    }

    /// A file that has no name any more, opened anew through /proc: to read, to write, to truncate.
    fn unlinked_files_are_reopened(t) {
        let path = t.file("f", "content");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let link = proc_path(&file);
        t.try_see("read", fs::read_to_string(&link));
        t.try_see("append", OpenOptions::new().append(true).open(&link).and_then(|mut f| f.write_all(b" and more")));
        t.try_see("read", fs::read_to_string(&link));
        t.try_see("O_DIRECT", OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&link).map(drop));
        t.try_see("truncate", truncate(&link, 4));
        t.try_see("attributes", fs::metadata(&link).map(|meta| (meta.len(), meta.nlink(), meta.mode())));
        t.try_see("O_TRUNC", File::create(&link).map(drop));
        t.try_see("length", fs::metadata(&link).map(|meta| meta.len()));
        t.try_see("chmod", fs::set_permissions(&link, std::os::unix::fs::PermissionsExt::from_mode(0o400)));
        t.try_see("as another", as_user(NOBODY, NOBODY, &[], || File::open(&link).map(drop)));
        t.try_see("O_PATH", named_by(&link, OFlags::PATH).map(drop));
        let only_path = named_by(&link, OFlags::PATH).unwrap();
        drop(file);
        t.try_see("from O_PATH alone", fs::read_to_string(proc_path(&only_path)));
        t.try_see("links", statat(&only_path, "", AtFlags::EMPTY_PATH).map(|stat| stat.st_nlink));
        let folder = File::open(t.directory("d")).unwrap();
        fs::remove_dir(t.path("d")).unwrap();
        t.try_see("a removed directory", fs::read_dir(proc_path(&folder)).map(Iterator::count));
        t.try_see("a name in it", File::create(proc_path(&folder).join("f")).map(drop));
        t.try_see("its links", folder.metadata().map(|meta| meta.nlink()));
    }

    /// linkat(2) of what is open: by AT_EMPTY_PATH and through /proc, with a name and without one.
    fn open_files_are_linked(t) {
        let path = t.file("f", "content");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let only_path = named_by(&path, OFlags::PATH).unwrap();
        let folder = File::open(t.directory("d")).unwrap();
        symlink("f", t.path("l")).unwrap();
        let link = named_by(&t.path("l"), OFlags::PATH | OFlags::NOFOLLOW).unwrap();
        let mut number = 0;
        let mut name = || { number += 1; t.path(format!("new {number}")) };
        let results = [
            linkat(&file, "", CWD, name(), AtFlags::EMPTY_PATH),
            linkat(CWD, proc_path(&file), CWD, name(), AtFlags::SYMLINK_FOLLOW),
            linkat(&only_path, "", CWD, name(), AtFlags::EMPTY_PATH),
            linkat(&link, "", CWD, name(), AtFlags::EMPTY_PATH),
            linkat(&folder, "", CWD, name(), AtFlags::EMPTY_PATH),
            linkat(&file, "", CWD, name(), AtFlags::empty()),
            linkat(CWD, proc_path(&file), CWD, name(), AtFlags::empty()),
            as_user(NOBODY, NOBODY, &[], || linkat(&file, "", CWD, t.path("by another"), AtFlags::EMPTY_PATH)),
        ];
        t.see("with a name", results);
        t.see("links", file.metadata().unwrap().nlink());
        t.try_see("a link to the symlink", fs::read_link(t.path("new 4")));
        for name in ["f", "new 1", "new 2", "new 3"] {
            fs::remove_file(t.path(name)).unwrap();
        }
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let results = [
            linkat(&file, "", CWD, t.path("back"), AtFlags::EMPTY_PATH),
            linkat(CWD, proc_path(&file), CWD, t.path("back"), AtFlags::SYMLINK_FOLLOW),
            linkat(&only_path, "", CWD, t.path("back"), AtFlags::EMPTY_PATH),
        ];
        assert_eq!(results, [Err(Errno::NOENT); 3]);
        t.see("without a name", results);
    }

    /// What is being executed can't be written, nor emptied; what is open for writing can't be executed.
    fn running_programs_are_busy(t) {
        let path = t.path("sleep");
        fs::copy("/bin/sleep", &path).unwrap();
        chmod(&path, 0o755);
        let mut sleeper = Command::new(&path).arg("60").stdin(Stdio::null()).spawn().unwrap();
        for (what, flags) in [
            ("write", OFlags::WRONLY), ("both", OFlags::RDWR), ("append", OFlags::WRONLY | OFlags::APPEND), ("read", OFlags::RDONLY),
            ("O_TRUNC", OFlags::WRONLY | OFlags::TRUNC), ("O_TRUNC to read", OFlags::RDONLY | OFlags::TRUNC), ("O_PATH", OFlags::PATH),
        ] {
            t.try_see(what, named_by(&path, flags).map(drop));
        }
        t.try_see("truncate", truncate(&path, 0));
        t.see("whole", fs::metadata(&path).unwrap().len() == fs::metadata("/bin/sleep").unwrap().len());
        t.try_see("rename", fs::rename(&path, t.path("renamed")));
        t.try_see("unlink", fs::remove_file(t.path("renamed")));
        sleeper.kill().unwrap();
        wait_child(&mut sleeper, LIMIT).expect("killed");
        fs::copy("/bin/true", &path).unwrap();
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        t.try_see("open for writing", Command::new(&path).status().map(|status| status.success()));
        assert_eq!(errno(Command::new(&path).status()), libc::ETXTBSY);
        drop(writer);
        t.try_see("closed", Command::new(&path).status().map(|status| status.success()));
    }

    /// Code is run from a mapping, if it may be executed or not: that is asked of mounts alone.
    fn code_is_mapped(t) {
        let path = t.file("f", vec![0xc3; 4_096]);
        for mode in [0o644, 0o755] {
            chmod(&path, mode);
            t.try_see("mapped", Mapping::executable(&File::open(&path).unwrap(), 4_096).map(|mut map| map.bytes()[0]));
        }
    }

    /// A name that came and went between two opens, as with O_CREAT.
    fn o_creat_again_and_again(t) {
        let path = t.path("f");
        for round in 0..50 {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            file.write_all_at(format!("{round}").as_bytes(), 0).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{round}"));
            fs::remove_file(&path).unwrap();
            assert_eq!(errno(File::open(&path)), libc::ENOENT);
            assert_eq!(file.metadata().unwrap().nlink(), 0);
        }
        t.try_see("gone", fs::metadata(&path).map(drop));
    }
}
