//! Who uses the mount: processes with a file, a working directory, a mapping or another mount of
//! it. Finding them never touches the mount, whose daemon may be the one that hangs: the kernel's
//! own words in /proc are read (`readlink` there asks no file system), and nothing is ever looked
//! up, opened or stat'ed through them.
//!
//! What gives a user away:
//!
//! - a file: `mnt_id` in `/proc/PID/fdinfo/N`. Right also after a lazy unmount;
//! - a mapping, a running program: the device number in `/proc/PID/maps`. Right as well;
//! - a working or root directory: only the text of its link, which is a path below MNT as long as
//!   we are mounted and a path below nothing afterwards (`prepend_path` in `fs/d_path.c` stops
//!   at the root of a detached mount). So the links are noted right before the mount is detached
//!   ([`Finder::note_links`]) and recognised by what their text must have turned into;
//! - another mount of the same superblock, a bind mount or a copy in somebody's mount namespace:
//!   the device number in `/proc/PID/mountinfo`, read once for each namespace.
//!
//! What /proc does not tell can't be found: a working directory after a lazy unmount by somebody
//! else, users inside the kernel (a loop device, an NFS export), processes of other users if we are
//! not root. [`Report::hidden`] counts the last.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A device number as /proc writes it: major, minor.
pub type Device = (u32, u32);

/// Our mount as /proc names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Where it is mounted, absolute.
    pub target: PathBuf,
    /// The device number of its superblock.
    pub device: Option<Device>,
    /// Its 32-bit id: the first field of its line in mountinfo, `mnt_id` in fdinfo. Without it
    /// open files are not found.
    pub mount_id: Option<u32>,
}

/// One way of using the mount. Paths are relative to its root where that is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A working directory.
    WorkingDirectory(PathBuf),
    /// A root directory (chroot).
    Root(PathBuf),
    /// The program that it runs.
    Program(PathBuf),
    /// An open file or directory.
    File(PathBuf),
    /// A mapped file.
    Mapping(PathBuf),
    /// Another mount of the same file system, in the mount namespace of that process.
    MountedAt(PathBuf),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::WorkingDirectory(path) => write!(f, "working directory {}", path.display()),
            Use::Root(path) => write!(f, "root directory {}", path.display()),
            Use::Program(path) => write!(f, "runs {}", path.display()),
            Use::File(path) => write!(f, "open {}", path.display()),
            Use::Mapping(path) => write!(f, "mapped {}", path.display()),
            Use::MountedAt(path) => write!(f, "also mounted at {}", path.display()),
        }
    }
}

/// A process that uses the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, as in `/proc/PID/comm`. The command line is not read: that waits for the
    /// process's memory, and a page of it may be ours.
    pub command: String,
    /// What it uses, each once.
    pub uses: BTreeSet<Use>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        write!(f, "pid {} ({})", self.pid, self.command)?;
        for (nth, it) in self.uses.iter().take(SHOWN).enumerate() {
            write!(f, "{}{it}", if nth == 0 { ": " } else { ", " })?;
        }
        match self.uses.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more"),
        }
    }
}

/// What one search found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Who uses the mount, by process id.
    pub holders: Vec<Holder>,
    /// How many processes we may not look into.
    pub hidden: usize,
}

/// The links of a process that lead to a directory or a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Cwd,
    Root,
    Exe,
}

impl Link {
    const ALL: [(Link, &'static str); 3] =
        [(Link::Cwd, "cwd"), (Link::Root, "root"), (Link::Exe, "exe")];

    fn used(self, path: PathBuf) -> Use {
        match self {
            Link::Cwd => Use::WorkingDirectory(path),
            Link::Root => Use::Root(path),
            Link::Exe => Use::Program(path),
        }
    }
}

/// Looks for the users of one mount.
#[derive(Debug, Clone)]
pub struct Finder {
    identity: Identity,
    /// Links below MNT when it was detached, by process, as paths below its root.
    noted: BTreeMap<u32, Vec<(Link, PathBuf)>>,
}

impl Finder {
    /// Looks for the users of the mount that `identity` describes.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            noted: BTreeMap::new(),
        }
    }

    /// Where the mount is or was.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.identity.target
    }

    /// Notes whose working directory, root or program lies below MNT; to be called right before it
    /// is detached. Takes no lock that a hanging file system could hold, so it can't hang either.
    pub fn note_links(&mut self) {
        for pid in processes() {
            let noted: Vec<(Link, PathBuf)> = links(pid)
                .into_iter()
                .filter_map(|(link, path)| Some((link, below(&path, &self.identity.target)?)))
                .collect();
            if !noted.is_empty() {
                self.noted.insert(pid, noted);
            }
        }
    }

    /// Looks through /proc. Reading `maps` takes a process's memory lock, so this can take long
    /// while something hangs: a thread of its own is the place for it.
    #[must_use]
    pub fn find(&self) -> Report {
        let mut mounts = Mounts::default();
        let own = std::process::id();
        mounts.read(own, &self.identity);
        let pids = processes();
        for &pid in &pids {
            mounts.read(pid, &self.identity);
        }
        let mut report = Report::default();
        for pid in pids {
            let files = match files(pid) {
                Ok(files) => files,
                Err(error) => {
                    report.hidden += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
                    continue;
                }
            };
            let mut uses = mounts.elsewhere.remove(&pid).unwrap_or_default();
            uses.extend(self.by_links(pid, links(pid), mounts.attached));
            uses.extend(self.by_files(files, &mounts));
            if uses.is_empty() {
                uses.extend(self.by_mappings(&read(pid, "maps"), mounts.attached));
            }
            if !uses.is_empty() {
                let name = read(pid, "comm");
                let command = String::from_utf8_lossy(&name).trim_end().to_owned();
                report.holders.push(Holder { pid, command, uses });
            }
        }
        report
    }

    fn by_links(&self, pid: u32, links: Vec<(Link, PathBuf)>, attached: bool) -> BTreeSet<Use> {
        let noted = self.noted.get(&pid).map_or(&[] as &[_], Vec::as_slice);
        links
            .into_iter()
            .filter_map(|(link, path)| {
                let inside = if attached {
                    below(&path, &self.identity.target)?
                } else {
                    let inside = below(&path, Path::new("/"))?;
                    noted.contains(&(link, inside.clone())).then_some(inside)?
                };
                Some(link.used(inside))
            })
            .collect()
    }

    fn by_files(&self, files: Vec<(PathBuf, u32)>, mounts: &Mounts) -> BTreeSet<Use> {
        files
            .into_iter()
            .filter_map(|(path, mount)| {
                if self.identity.mount_id == Some(mount) && !mounts.taken {
                    Some(Use::File(self.inside(path, mounts.attached)))
                } else {
                    mounts.ids.contains(&mount).then_some(Use::File(path))
                }
            })
            .collect()
    }

    fn by_mappings(&self, maps: &[u8], attached: bool) -> BTreeSet<Use> {
        let Some(device) = self.identity.device else {
            return BTreeSet::new();
        };
        maps.split(|&byte| byte == b'\n')
            .filter_map(mapping)
            .filter(|&(of, _)| of == device)
            .map(|(_, path)| Use::Mapping(self.inside(path, attached)))
            .collect()
    }

    /// `path` below the root of the mount, if it lies there.
    fn inside(&self, path: PathBuf, attached: bool) -> PathBuf {
        let root = if attached {
            &self.identity.target
        } else {
            Path::new("/")
        };
        below(&path, root).unwrap_or(path)
    }
}

/// `path` relative to `root`; `.` for the root itself.
fn below(path: &Path, root: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(root).ok()?;
    Some(if rest.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        rest.to_owned()
    })
}

/// Other mounts of our superblock, in any mount namespace that a process we may look into is in.
#[derive(Debug, Default)]
struct Mounts {
    seen: BTreeSet<PathBuf>,
    /// Ours is in our own mount table.
    attached: bool,
    /// Our id is in a mount table, but is another file system's: ours is gone, its number reused.
    taken: bool,
    /// Ids of the other mounts.
    ids: BTreeSet<u32>,
    /// Where the other mounts are, by the process whose namespace they were found in.
    elsewhere: BTreeMap<u32, BTreeSet<Use>>,
}

impl Mounts {
    /// Reads the mount table of `pid` unless it is in a namespace that was read before.
    fn read(&mut self, pid: u32, ours: &Identity) {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            return;
        };
        if self.seen.insert(namespace) {
            self.learn(pid, &read(pid, "mountinfo"), ours);
        }
    }

    fn learn(&mut self, pid: u32, table: &[u8], ours: &Identity) {
        for (id, device, target) in table.split(|&byte| byte == b'\n').filter_map(mount) {
            let same = ours.device.is_none_or(|of| of == device);
            if ours.mount_id.map_or(target == ours.target, |of| of == id) {
                self.attached |= same;
                self.taken |= !same;
            } else if ours.device == Some(device) {
                self.ids.insert(id);
                self.elsewhere
                    .entry(pid)
                    .or_default()
                    .insert(Use::MountedAt(target));
            }
        }
    }
}

/// Id, device and target of a line of mountinfo (`proc_pid_mountinfo(5)`).
fn mount(line: &[u8]) -> Option<(u32, Device, PathBuf)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?, 10)?;
    let device = device(fields.nth(1)?, 10)?;
    Some((id, device, path(fields.nth(1)?)))
}

/// Device and path of a line of maps (`proc_pid_maps(5)`) that names a file.
fn mapping(line: &[u8]) -> Option<(Device, PathBuf)> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let device = device(fields.nth(3)?, 16)?;
    let name = fields.nth(1)?.trim_ascii_start();
    name.starts_with(b"/").then(|| (device, path(name)))
}

fn number(text: &[u8], radix: u32) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

fn device(text: &[u8], radix: u32) -> Option<Device> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    Some((
        number(&text[..colon], radix)?,
        number(&text[colon + 1..], radix)?,
    ))
}

/// A path with the kernel's octal escapes (`\040` for a space) undone.
fn path(escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        let byte = octal.and_then(|digits| u8::try_from(number(digits, 8)?).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Every process, in ascending order.
fn processes() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| number(entry.file_name().as_bytes(), 10))
        .collect();
    pids.sort_unstable();
    pids
}

/// A file of a process, empty if it can't be read: the process may have ended meanwhile.
fn read(pid: u32, name: &str) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

fn links(pid: u32) -> Vec<(Link, PathBuf)> {
    Link::ALL
        .into_iter()
        .filter_map(|(link, name)| Some((link, fs::read_link(format!("/proc/{pid}/{name}")).ok()?)))
        .collect()
}

/// The paths of the open files of a process and the ids of the mounts they are on.
fn files(pid: u32) -> io::Result<Vec<(PathBuf, u32)>> {
    let on_mount = |name: &OsStr| {
        let name = name.to_str()?;
        let path = fs::read_link(format!("/proc/{pid}/fd/{name}")).ok()?;
        // Pipes, sockets and the like have no path and are on no mount of ours.
        path.is_absolute().then_some(())?;
        let info = read(pid, &format!("fdinfo/{name}"));
        let id = info
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(b"mnt_id:"))
            .and_then(|id| number(id.trim_ascii(), 10))?;
        Some((path, id))
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| on_mount(&entry.file_name()))
        .collect())
}

#[cfg(all(test, not(loom)))]
mod tests;
