//! Where the sockets lie: in a directory of the mount's owner, each named by the device number of its mount. The kernel
//! gives that number to one file system at a time, and to the next when this one has gone: two daemons never want the
//! same name, and what lies at ours when we begin is what a killed one has left.
//!
//! Root's are in `/run/loopfs`. Another user's are below `$XDG_RUNTIME_DIR` or `/run/user/UID`, and where neither is
//! there in `/tmp/loopfs-UID`, a name that anybody can take first: a directory counts only if it is its owner's, no
//! symlink, and nobody else may write to it. One that does not count is as good as none.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{Timespec, poll};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags};
use rustix::process::Pid;

use crate::sys::mountinfo::DeviceNumber;

const SUFFIX: &str = ".sock";
/// How long is spent on removing left-overs, in one go.
const CLEANING: Duration = Duration::from_millis(100);
/// As many names are looked at, at most: a directory of another user's may have any number.
const MOST_NAMES: usize = 1 << 16;
/// How long another of us may keep a directory to itself: what is done meanwhile takes microseconds.
const LOCKED: Duration = Duration::from_millis(500);

/// Where sockets of mounts of `owner` may be, in the order in which a daemon tries them.
fn candidates(owner: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if owner == 0 {
        found.push(PathBuf::from("/run/loopfs"));
    }
    if owner == rustix::process::geteuid().as_raw()
        && let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
    {
        found.push(runtime.join("loopfs"));
    }
    found.push(PathBuf::from(format!("/run/user/{owner}/loopfs")));
    found.push(PathBuf::from(format!("/tmp/loopfs-{owner}")));
    found
}

/// A directory of sockets.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    owner: u32,
}

impl Directory {
    /// Those of `owner` that are there.
    pub(super) fn all_of(owner: u32) -> Vec<Self> {
        let open = |path| Self::open(path, owner).ok();
        let mut all: Vec<Self> = Vec::new();
        for directory in candidates(owner).into_iter().filter_map(open) {
            if !all.iter().any(|other| other.path == directory.path) {
                all.push(directory);
            }
        }
        all
    }

    /// The one for mounts of this process, made if need be.
    pub(super) fn own() -> io::Result<Self> {
        let owner = rustix::process::geteuid().as_raw();
        let mut failed = Vec::new();
        for path in candidates(owner) {
            // Closed to others, who could lock it otherwise.
            let mode = Mode::RWXU;
            let made = rustix::fs::mkdir(&path, mode);
            let opened = match made {
                Ok(()) | Err(Errno::EXIST) => Self::open(path, owner),
                Err(errno) => Err(named(&path, errno)),
            };
            match opened {
                Ok(directory) => {
                    // The umask may have taken more than it should.
                    let _ = rustix::fs::fchmod(&directory.fd, mode);
                    return Ok(directory);
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        // All of them: any one that is mended will do.
        Err(io::Error::other(failed.join("; ")))
    }

    fn open(path: PathBuf, owner: u32) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| named(&path, errno))?;
        let stat = rustix::fs::fstat(&fd)?;
        if stat.st_uid != owner || stat.st_mode & 0o022 != 0 {
            let text = format!("{} belongs to somebody else", path.display());
            return Err(io::Error::other(text));
        }
        Ok(Self { fd, path, owner })
    }

    /// The address of the name in it: through the descriptor, so that it is this directory whatever happens to its
    /// path, and short enough for an address.
    fn address(&self, name: &str) -> io::Result<SocketAddrUnix> {
        let path = format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd());
        Ok(SocketAddrUnix::new(path)?)
    }

    /// Who alone may have put sockets here.
    pub(super) fn owner(&self) -> u32 {
        self.owner
    }

    /// Keeps others of us from changing it meanwhile; until the descriptor is closed. One of them that is stopped keeps
    /// it for as long: nobody waits for that longer than a moment, and goes on without.
    fn lock(&self) -> Option<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::empty()).ok()?;
        let end = Instant::now() + LOCKED;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(fd),
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < end => {
                    let pause = Timespec::try_from(LOCKED / 20).ok();
                    let _ = poll(&mut [], pause.as_ref());
                }
                Err(_) => return None,
            }
        }
    }

    /// The names in it.
    fn names(&self) -> impl Iterator<Item = OsString> + use<> {
        // Not by the path, which may lead elsewhere by now.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let names = fs::read_dir(path).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name())
    }

    /// The devices that there are sockets for.
    pub(super) fn devices(&self) -> Vec<DeviceNumber> {
        self.names()
            .filter_map(|name| device_of(&name))
            .take(MOST_NAMES)
            .collect()
    }

    /// Whether somebody listens there, or might: only a refusal says that nobody does.
    pub(super) fn is_stale(&self, device: DeviceNumber) -> bool {
        matches!(self.connect(device), Err(Errno::CONNREFUSED))
    }

    /// A connection to the socket for `device`.
    pub(super) fn connect(&self, device: DeviceNumber) -> rustix::io::Result<OwnedFd> {
        let name = name_of(device);
        let stat = rustix::fs::statat(&self.fd, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != self.owner {
            return Err(Errno::ACCESS);
        }
        let socket = super::new_socket(SocketFlags::NONBLOCK)?;
        let address = self.address(&name).map_err(|_| Errno::NAMETOOLONG)?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket)
    }

    /// A socket for `device` that listens and that nobody but its owner may open.
    pub(super) fn listen(self, device: DeviceNumber, backlog: i32) -> io::Result<Listening> {
        let socket = super::new_socket(SocketFlags::NONBLOCK)?;
        // Of the socket, before it has a name: the name gets this mode (`unix_bind_bsd`), and is at no time open to
        // more than it should be.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        let name = name_of(device);
        let first = format!(".{name}.{}", rustix::process::getpid());
        let alone = self.lock();
        if alone.is_some() {
            self.remove_stale();
        }
        let _ = rustix::fs::unlinkat(&self.fd, &first, AtFlags::empty());
        rustix::net::bind(&socket, &self.address(&first)?)?;
        let stat = rustix::fs::statat(&self.fd, &first, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::net::listen(&socket, backlog)?;
        // It replaces what a killed daemon has left of that name.
        rustix::fs::renameat(&self.fd, &first, &self.fd, &name)?;
        Ok(Listening {
            socket,
            name,
            inode: (stat.st_dev, stat.st_ino),
            directory: self,
        })
    }

    /// Removes what killed daemons have left: sockets that nobody listens on. Under the lock only: one that is just
    /// being made does not listen yet. Each time from another place on, so that there is time for all of them.
    fn remove_stale(&self) {
        let remove = |name: &OsStr| {
            let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
        };
        let end = Instant::now() + CLEANING;
        // Of daemons that were killed between making a socket and giving it its name.
        let is_over = |pid: Pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH);
        let (mut devices, mut unfinished) = (Vec::new(), Vec::new());
        for name in self.names() {
            if let Some(device) = device_of(&name) {
                devices.push(device);
            } else if maker_of(&name).is_some_and(is_over) {
                unfinished.push(name);
            }
            if devices.len() + unfinished.len() == MOST_NAMES {
                break;
            }
        }
        let nanoseconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanoseconds = nanoseconds.map_or(0, |since| since.subsec_nanos() as usize);
        let first = nanoseconds.checked_rem(devices.len()).unwrap_or(0);
        let (before, after) = devices.split_at(first);
        for &device in after.iter().chain(before) {
            if self.is_stale(device) {
                remove(name_of(device).as_ref());
            }
            if Instant::now() > end {
                return;
            }
        }
        for name in unfinished {
            remove(&name);
        }
    }

    /// The same, for a client, who may not if it is somebody else's directory.
    pub(super) fn clean(&self) {
        if let Some(_alone) = self.lock() {
            self.remove_stale();
        }
    }
}

/// A socket that listens, under its name until this is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    socket: OwnedFd,
    directory: Directory,
    name: String,
    inode: (u64, u64),
}

impl Listening {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Where it lies, for the log.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _alone = self.directory.lock();
        // When the mount has gone its number may be another's already, and so may the name.
        let stat = rustix::fs::statat(&self.directory.fd, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.inode) {
            let _ = rustix::fs::unlinkat(&self.directory.fd, &self.name, AtFlags::empty());
        }
    }
}

fn name_of(device: DeviceNumber) -> String {
    format!("{}:{}{SUFFIX}", device.major, device.minor)
}

fn device_of(name: &OsString) -> Option<DeviceNumber> {
    let (major, minor) = name.to_str()?.strip_suffix(SUFFIX)?.split_once(':')?;
    Some(DeviceNumber {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// Of a socket that has not its name yet: the process that makes it.
fn maker_of(name: &OsStr) -> Option<Pid> {
    let (name, pid) = name.to_str()?.strip_prefix('.')?.rsplit_once('.')?;
    device_of(&OsString::from(name))?;
    Pid::from_raw(pid.parse().ok()?)
}

fn named(path: &Path, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::net::UnixListener;

    fn device(minor: u32) -> DeviceNumber {
        DeviceNumber { major: 0, minor }
    }

    /// More live ones than anybody has, and left-overs among them, wherever the directory lists them.
    #[test]
    fn left_overs_among_many_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let directory = Directory::open(dir.path().to_owned(), owner).unwrap();
        let mut live = Vec::new();
        for minor in 0..600 {
            let listener = UnixListener::bind(dir.path().join(name_of(device(minor)))).unwrap();
            if minor % 6 != 0 {
                live.push((listener, device(minor)));
            }
        }
        // Somebody is short of CPUs: what is not done in time is left for the next.
        for _ in 0..100 {
            directory.clean();
            if directory.devices().len() == live.len() {
                break;
            }
        }
        let mut left = directory.devices();
        left.sort_by_key(|device| device.minor);
        let expected: Vec<_> = live.iter().map(|(_, device)| *device).collect();
        assert_eq!(left, expected);
    }

    #[test]
    fn what_a_killed_daemon_was_making_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let directory = Directory::open(dir.path().to_owned(), owner).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = child.id();
        child.wait().unwrap();
        let names = [
            format!(".0:7.sock.{ended}"),
            format!(".0:8.sock.{}", std::process::id()),
            format!(".other.{ended}"),
        ];
        for name in &names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        directory.clean();
        let left = names.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [false, true, true]);
    }
}
