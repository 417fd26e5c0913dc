//! One tree on which operations are carried out, and what is open in it. Names are dealt with here,
//! the rest in [`super::contents`], [`super::attributes`] and [`super::looking`].

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path as RealPath, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, makedev, mkdirat, mknodat, openat,
    renameat_with,
};

use super::operation::{
    DIRECTORIES, FILES, Node, Opening, Operation, Path, Place, Rename, Slot, User,
};
use super::raw::Mapping;
use crate::common::as_user;

/// What a program sees: a summary of the result, or the error.
pub(crate) type Outcome = io::Result<String>;

/// The "error" of an operation on an open file where none is open.
pub(crate) const NOTHING_OPEN: &str = "nothing open";

/// A tree and what is open in it.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // they have nothing to do with each other
pub(crate) struct World {
    pub(super) top: PathBuf,
    /// The same directory in SRC, if this is a mount and nobody else works in it.
    pub(super) behind: Option<PathBuf>,
    /// Somebody else works in it: what is seen now may be different in a moment.
    pub(super) shared: bool,
    pub(super) files: [Option<OpenFile>; FILES],
    pub(super) directories: [Option<OwnedFd>; DIRECTORIES],
    keeps_directories: bool,
    /// File flags were set, some of which keep a file from being removed.
    pub(super) flagged: bool,
    /// chmod gives set-id bits where it is asked to.
    pub(crate) grants_set_id: bool,
}

/// A regular file that is open. The mapping goes first.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) mapping: Option<Mapping>,
    pub(super) file: File,
}

/// A file to work on: one that is open, or one that was opened for this.
pub(super) enum Opened<'a> {
    Slot(&'a File),
    Own(File),
}

impl Deref for Opened<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Self::Slot(file) => file,
            Self::Own(file) => file,
        }
    }
}

impl World {
    /// A new tree below `directory`, which is made.
    pub(crate) fn new(directory: &RealPath) -> Self {
        let top = top_of(directory);
        fs::create_dir(directory).expect("a directory for the tree");
        fs::create_dir(&top).expect("a tree");
        // For the users, too.
        fs::set_permissions(&top, fs::Permissions::from_mode(0o777)).expect("open to all");
        Self::at(&top)
    }

    /// A tree that is there already, with nothing open.
    fn at(top: &RealPath) -> Self {
        Self {
            top: top.to_owned(),
            behind: None,
            shared: false,
            files: [const { None }; FILES],
            directories: [const { None }; DIRECTORIES],
            keeps_directories: true,
            flagged: false,
            grants_set_id: true,
        }
    }

    /// As [`Self::new`], on a mount that shows what is in `source`.
    pub(crate) fn mounted(directory: &RealPath, source: &RealPath) -> Self {
        Self {
            behind: Some(top_of(source)),
            ..Self::new(directory)
        }
    }

    /// One in which others work at the same time; `directory` is one that [`Self::new`] has made.
    pub(crate) fn shared(directory: &RealPath) -> Self {
        Self {
            shared: true,
            ..Self::at(&top_of(directory))
        }
    }

    /// The same, keeping no directory open.
    ///
    /// For a mount where others work in SRC: rmdir(2) and rename(2) over a directory say which one by its
    /// name, and the kernel takes that which it knew by it for removed. If it was another one by then, the
    /// kernel has to forget the wrong one before it is seen again, which it can't while it is open.
    pub(crate) fn shared_with_source(directory: &RealPath) -> Self {
        Self {
            keeps_directories: false,
            ..Self::shared(directory)
        }
    }

    /// Carries `operation` out.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Outcome {
        use Operation::{As, Observe, Umask};
        match operation {
            As { user, operation } => self.apply_as(user, operation),
            Observe { operation } => self.observe(operation),
            Umask { mask } => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                done(())
            }
            _ => None
                .or_else(|| self.names(operation))
                .or_else(|| self.contents(operation))
                .or_else(|| self.attributes(operation))
                .or_else(|| self.looking(operation))
                .unwrap_or_else(|| unreachable!("nobody does {operation:?}")),
        }
    }

    fn apply_as(&mut self, user: &User, operation: &Operation) -> Outcome {
        as_user(user.uid, user.gid, &user.groups, || self.apply(operation))
    }

    /// Whether operations may have set file flags that keep files from being removed.
    pub(crate) fn is_flagged(&self) -> bool {
        self.flagged
    }

    /// What was written through mappings reaches the files.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let mappings = self.files.iter().flatten();
        mappings
            .filter_map(|open| open.mapping.as_ref())
            .try_for_each(Mapping::sync)
    }

    /// Where a path leads. From an open directory it goes by `/proc/self/fd`, as openat(2) would.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        let from = path.from.and_then(|slot| self.directories[slot].as_ref());
        let top = match from {
            Some(directory) => format!("/proc/self/fd/{}", directory.as_raw_fd()).into(),
            None => self.top.clone(),
        };
        path.names
            .iter()
            .fold(top, |path, name| path.join(OsStr::from_bytes(&[*name])))
    }

    /// The open file of a number.
    pub(super) fn open_file(&self, slot: Slot) -> io::Result<&OpenFile> {
        self.files[slot]
            .as_ref()
            .ok_or_else(|| io::Error::other(NOTHING_OPEN))
    }

    /// The file of a place; by path it is opened so, without waiting for the other end if it is a FIFO.
    pub(super) fn file(&self, place: &Place, how: &mut OpenOptions) -> io::Result<Opened<'_>> {
        match place {
            Place::Slot(slot) => Ok(Opened::Slot(&self.open_file(*slot)?.file)),
            Place::Path(path) => how
                .custom_flags(libc::O_NONBLOCK)
                .open(self.path(path))
                .map(Opened::Own),
        }
    }

    /// A place as a path: that of an open file is in /proc and has to be followed.
    pub(super) fn path_of(&self, place: &Place) -> io::Result<PathBuf> {
        match place {
            Place::Path(path) => Ok(self.path(path)),
            Place::Slot(slot) => {
                let number = self.open_file(*slot)?.file.as_raw_fd();
                Ok(format!("/proc/self/fd/{number}").into())
            }
        }
    }

    /// Operations on names; `None` if it is another one.
    fn names(&mut self, operation: &Operation) -> Option<Outcome> {
        use Operation::{
            Close, CloseDirectory, Link, Mkdir, Node, Open, OpenDirectory, Rename, Rmdir, Symlink,
            Unlink,
        };
        Some(match operation {
            Open {
                slot,
                path,
                how,
                mode,
            } => self.open(*slot, path, *how, *mode),
            Close { slot } => {
                self.files[*slot] = None;
                done(())
            }
            OpenDirectory { slot, path } => self.open_directory(*slot, path),
            CloseDirectory { slot } => {
                self.directories[*slot] = None;
                done(())
            }
            Mkdir { path, mode } => {
                finished(mkdirat(CWD, self.path(path), Mode::from_raw_mode(*mode)))
            }
            Rmdir { path } => fs::remove_dir(self.path(path)).and_then(done),
            Unlink { path } => fs::remove_file(self.path(path)).and_then(done),
            Rename { from, to, how } => self.rename(from, to, *how),
            Link { from, to, follow } => self.link(from, to, *follow),
            Symlink { up, target, path } => {
                let names = target
                    .names
                    .iter()
                    .map(|name| OsStr::from_bytes(std::slice::from_ref(name)));
                let target: PathBuf = up
                    .then_some(OsStr::new(".."))
                    .into_iter()
                    .chain(names)
                    .collect();
                symlink(target, self.path(path)).and_then(done)
            }
            Node { path, kind, mode } => self.make_node(path, *kind, *mode),
            _ => return None,
        })
    }

    fn open(&mut self, slot: Option<Slot>, path: &Path, how: Opening, mode: u32) -> Outcome {
        let mut flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        flags |= match (how.read, how.write) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        };
        flags.set(OFlags::CREATE, how.create);
        flags.set(OFlags::EXCL, how.exclusive);
        flags.set(OFlags::TRUNC, how.truncate);
        flags.set(OFlags::APPEND, how.append);
        flags.set(OFlags::NOFOLLOW, how.no_follow);
        let file = openat(CWD, self.path(path), flags, Mode::from_raw_mode(mode))?;
        let file = File::from(file);
        let is_file = file.metadata()?.is_file();
        if let Some(slot) = slot {
            // A FIFO, directory or device that is open does no harm, but reads and writes of it
            // differ from those of files only in ways that say nothing about loopfs.
            self.files[slot] = is_file.then_some(OpenFile {
                mapping: None,
                file,
            });
        }
        done(())
    }

    fn open_directory(&mut self, slot: Slot, path: &Path) -> Outcome {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, self.path(path), flags, Mode::empty())?;
        self.directories[slot] = self.keeps_directories.then_some(directory);
        done(())
    }

    fn rename(&self, from: &Path, to: &Path, how: Rename) -> Outcome {
        let (from, to) = (self.path(from), self.path(to));
        let flags = match how {
            // Over a directory that is not empty ext4 fails, but changes the times of both parents. The
            // kernel expects no such thing, and keeps those that it knows for attr_timeout.
            Rename::Whiteout if to.symlink_metadata().is_ok_and(|meta| meta.is_dir()) => {
                RenameFlags::empty()
            }
            how => flags(how),
        };
        finished(renameat_with(CWD, from, CWD, to, flags))
    }

    fn link(&self, from: &Place, to: &Path, follow: bool) -> Outcome {
        let path = self.path_of(from)?;
        let flags = if follow || matches!(from, Place::Slot(_)) {
            AtFlags::SYMLINK_FOLLOW
        } else {
            AtFlags::empty()
        };
        finished(linkat(CWD, path, CWD, self.path(to), flags))
    }

    fn make_node(&self, path: &Path, kind: Node, mode: u32) -> Outcome {
        let (kind, device) = match kind {
            Node::Fifo => (FileType::Fifo, 0),
            Node::Socket => (FileType::Socket, 0),
            Node::Null => (FileType::CharacterDevice, makedev(1, 3)),
            Node::Regular => (FileType::RegularFile, 0),
        };
        let mode = Mode::from_raw_mode(mode);
        finished(mknodat(CWD, self.path(path), kind, mode, device))
    }
}

/// The tree in its directory. There is one level between, because a symlink with `..` may lead out of
/// the tree, and a file may be created there.
fn top_of(directory: &RealPath) -> PathBuf {
    directory.join("top")
}

/// What is seen of success that tells no more.
#[allow(clippy::unnecessary_wraps)] // it ends chains of results
pub(super) fn done((): ()) -> Outcome {
    Ok("done".to_owned())
}

/// The same for what rustix answers.
pub(super) fn finished(result: rustix::io::Result<()>) -> Outcome {
    result.map_err(io::Error::from).and_then(done)
}

fn flags(how: Rename) -> RenameFlags {
    match how {
        Rename::Plain => RenameFlags::empty(),
        Rename::NoReplace => RenameFlags::NOREPLACE,
        Rename::Exchange => RenameFlags::EXCHANGE,
        Rename::Whiteout => RenameFlags::WHITEOUT,
    }
}
