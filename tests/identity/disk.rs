//! File systems for the tests: images in a temporary directory, and tmpfs. And file handles, which the C
//! library has and no crate in use here wraps.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::mount::assert_log_is_clean;
use crate::common::{LIMIT, Mount, Signal, TestEnv, run};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

impl Kind {
    /// Mounts a new one at `place`, which is made if it is not there. The image lies in `env`.
    #[track_caller]
    pub(crate) fn mount(self, env: &TestEnv, place: &Path) {
        if !place.exists() {
            fs::create_dir(place).unwrap();
        }
        // The smallest that the programs make, with room; the images are sparse.
        let (program, size) = match self {
            Self::Ext4 => ("mkfs.ext4", 2 << 30),
            Self::Xfs => ("mkfs.xfs", 320 << 20),
            Self::Btrfs => ("mkfs.btrfs", 256 << 20),
            Self::Tmpfs => {
                sys("mount", &["-t", "tmpfs", "none"], place);
                return;
            }
        };
        let number = fs::read_dir(env.root()).unwrap().count();
        let image = env.root().join(format!("image-{number}"));
        File::create(&image).unwrap().set_len(size).unwrap();
        sys(program, &["-q"], &image);
        let image = image.to_str().unwrap();
        sys("mount", &["-o", "loop", image], place);
    }
}

/// `program ARGUMENTS PATH`; the test fails if it fails.
#[track_caller]
pub(crate) fn sys(program: &str, arguments: &[&str], path: &Path) {
    run(Command::new(program).args(arguments).arg(path), LIMIT).success();
}

/// Options for a mount that sees every change at once.
pub(crate) const AT_ONCE: &[&str] = &["-o", "entry_timeout=0,attr_timeout=0"];

/// `loopfs -f OPTIONS SOURCE MNT` with a source of the test's own.
#[track_caller]
pub(crate) fn serve(env: TestEnv, source: &Path, options: &[&str]) -> Mount {
    let mut command = env.loopfs(["-f"]);
    command.args(options).arg(source).arg(env.mnt());
    Mount::start_command(env, command)
}

/// Ends a daemon as [`Mount::finish`] does, where the test's own mounts stay.
#[track_caller]
pub(crate) fn finish(mount: Mount) -> TestEnv {
    mount.signal(Signal::TERM);
    let (env, status, log) = mount.ended_somehow();
    assert_eq!(
        status.and_then(|status| status.code()),
        Some(0),
        "{status:?}"
    );
    assert_log_is_clean(&log);
    env
}

/// A file handle, as name_to_handle_at(2) gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Handle {
    pub(crate) kind: i32,
    pub(crate) bytes: Vec<u8>,
}

#[repr(C)]
struct Raw {
    size: u32,
    kind: i32,
    bytes: [u8; 128],
}

impl Handle {
    /// Of what a path names; symlinks are not followed.
    pub(crate) fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes()).unwrap();
        let mut raw = Raw {
            size: 128,
            kind: 0,
            bytes: [0; 128],
        };
        let mut mount = 0_i32;
        let (call, raw_at) = (libc::SYS_name_to_handle_at, &raw mut raw);
        // SAFETY: `raw` is a struct file_handle with room for as many bytes as it says.
        let result = unsafe {
            libc::syscall(
                call,
                libc::AT_FDCWD,
                path.as_ptr(),
                raw_at,
                &raw mut mount,
                0,
            )
        };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            kind: raw.kind,
            bytes: raw.bytes[..raw.size as usize].to_vec(),
        })
    }

    /// What FUSE makes of a node number and a generation, of which it takes the lower half.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn forged(node: u64, generation: u64) -> Self {
        let halves = [(node >> 32) as u32, node as u32, generation as u32];
        let bytes = halves.iter().flat_map(|half| half.to_ne_bytes()).collect();
        Self { kind: 0x81, bytes }
    }

    /// Opens it; `mount` is an open file of the file system.
    pub(crate) fn open(&self, mount: &File, flags: i32) -> io::Result<File> {
        let mut raw = Raw {
            size: u32::try_from(self.bytes.len()).unwrap(),
            kind: self.kind,
            bytes: [0; 128],
        };
        raw.bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        let flags = flags | libc::O_CLOEXEC;
        let call = libc::SYS_open_by_handle_at;
        // SAFETY: `raw` is a struct file_handle, and is only read.
        let fd = unsafe { libc::syscall(call, mount.as_raw_fd(), &raw const raw, flags) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(unsafe { File::from_raw_fd(i32::try_from(fd).unwrap()) })
    }
}

/// The path by which the kernel knows an open file.
pub(crate) fn path_of(file: &File) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}
