//! Directories: opendir, readdir, readdirplus, releasedir, fsyncdir.
//!
//! Cookies are SRC's own `d_off`, so telldir and seekdir mean there what they mean here. `.` and
//! `..` are listed as SRC lists them and take no lookup count.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use super::Loopback;
use super::attr::{Attr, Keep};
use super::handle::DirHandle;
use super::inode::{Identity, NodeNo};
use super::lookup::Entry;
use super::numbering::Numbering;
use super::table::LookupRef;
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::{Mutex, lock};
use crate::sys::dir::DirStream;
use crate::sys::fs::{self, FileType};

/// A listed name.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// `d_ino`.
    pub ino: NodeNo,
    /// The cookie from which the listing goes on after it.
    pub next: u64,
    /// Its type, if SRC says; `None` for `DT_UNKNOWN`.
    pub kind: Option<FileType>,
    /// The name.
    pub name: &'a OsStr,
}

/// What a listing with attributes says about a name.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its attributes.
    pub attr: Attr,
    /// What tells its inode from an earlier one with the same number.
    pub generation: u64,
    /// How long the kernel may keep the name and them: not at all where the inode could not be reached.
    pub keep: Keep,
}

/// A directory that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedDir {
    /// The number of its handle.
    pub handle: u64,
    /// The kernel may remember the list of names that it is about to read: it hears when that changes.
    pub told: bool,
    /// It may go on with the list that it remembers.
    pub kept: bool,
}

/// Whether the reply had room for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It was taken.
    Taken,
    /// It was not: the listing ends before it, for now.
    Full,
}

impl Loopback {
    /// Opens a directory, without marking its access time if the caller's flags say so.
    pub fn opendir(&self, node: NodeNo, flags: i32) -> Result<OpenedDir> {
        let inode = self.inode(node)?;
        let (stat, fd) = {
            let object = self.object(&inode)?;
            let stat = fs::stat(object.fd()).tried("statx")?;
            Self::check_has_name(&inode, &stat)?;
            let fd = self.opened(flags, |flags| fs::reopen_dir_with(object.fd(), flags))?;
            (stat, fd)
        };
        let fd = self.descriptors.for_caller(fd).tried("open")?;
        let told = self.is_followed(&inode);
        let kept = self.read_for_all(&inode, fd.as_fd(), &stat);
        let stream = Mutex::new(DirStream::new(fd));
        let handle = self.hold_dir(DirHandle { inode, stream }, flags);
        Ok(OpenedDir { handle, told, kept })
    }

    /// Lists names from a cookie on, until `sink` is full or the directory ends. An error counts only where
    /// it comes first: otherwise it comes up again when the listing goes on, and what came before it is
    /// not lost.
    pub fn readdir(
        &self,
        handle: u64,
        cookie: u64,
        mut sink: impl FnMut(&Listed<'_>) -> Room,
    ) -> Result<()> {
        let dir = self.dir(handle)?;
        self.list(&dir, cookie, |listed| {
            let kind = listed.kind.or_else(|| self.kind_of_name(&dir, listed));
            Ok(sink(&Listed { kind, ..*listed }))
        })
    }

    /// The type of a listed name, where SRC's listing does not tell it. A program that gets one goes by it, and fuser has no
    /// word for "unknown". What is mounted there is of the same type, and not asked.
    fn kind_of_name(&self, dir: &DirHandle, listed: &Listed<'_>) -> Option<FileType> {
        if matches!(listed.name.as_bytes(), b"." | b"..") {
            return Some(FileType::Directory);
        }
        let name = CString::new(listed.name.as_bytes()).ok()?;
        let object = self.object(&dir.inode).ok()?;
        let stat = fs::stat_name_at_rest(object.fd(), &name).ok()?;
        Some(FileType::from_raw_mode(stat.stx_mode.into()))
    }

    /// Lists names with their attributes. The result holds a lookup count for each entry that was
    /// taken, `.` and `..` excepted, for the reply to hand over.
    pub fn readdirplus(
        &self,
        handle: u64,
        cookie: u64,
        mut sink: impl FnMut(&Listed<'_>, &Known) -> Room,
    ) -> Result<Vec<LookupRef>> {
        let dir = self.dir(handle)?;
        let mut lookups = Vec::new();
        self.list(&dir, cookie, |listed| {
            let Some((known, lookup)) = self.known(&dir, listed)? else {
                return Ok(Room::Taken); // gone meanwhile: left out, as if never listed
            };
            let room = sink(listed, &known);
            if room == Room::Taken {
                lookups.extend(lookup);
            }
            Ok(room)
        })?;
        Ok(lookups)
    }

    /// Attributes and lookup count of a listed name; `None` when it has gone.
    fn known(
        &self,
        dir: &DirHandle,
        listed: &Listed<'_>,
    ) -> Result<Option<(Known, Option<LookupRef>)>> {
        if matches!(listed.name.as_bytes(), b"." | b"..") {
            // The kernel reads the type and number of these two and nothing else.
            let attr = Attr {
                ino: listed.ino,
                ..self.attr_of(&dir.inode)?
            };
            return Ok(Some((
                Known {
                    attr,
                    generation: 0,
                    keep: Keep::Briefly,
                },
                None,
            )));
        }
        let name = CString::new(listed.name.as_bytes()).map_err(|_| Error::BAD_NAME)?;
        match self.listed_entry(&dir.inode, &name, listed.ino) {
            Ok(Entry { lookup, attr, name }) => {
                let generation = lookup.inode().generation();
                Ok(Some((
                    Known {
                        attr,
                        generation,
                        // The kernel is told one time for both.
                        keep: attr.keep.min(name),
                    },
                    Some(lookup),
                )))
            }
            Err(error) if matches!(error.errno(), Errno::NOENT | Errno::STALE) => Ok(None),
            Err(_) => {
                // The name is there although its inode can't be had (EMFILE, EIO, a dead mount on
                // it). A listing shows it; whoever goes on to use it gets the error.
                let attr = Attr {
                    ino: Numbering::no_inode(listed.next),
                    kind: listed.kind.unwrap_or(FileType::RegularFile),
                    ..self.attr_of(&dir.inode)?
                };
                Ok(Some((
                    Known {
                        attr,
                        generation: 0,
                        keep: Keep::No,
                    },
                    None,
                )))
            }
        }
    }

    fn list(
        &self,
        dir: &DirHandle,
        cookie: u64,
        mut take: impl FnMut(&Listed<'_>) -> Result<Room>,
    ) -> Result<()> {
        let mut stream = lock(&dir.stream);
        stream.seek(cookie).tried("lseek")?;
        let mut listed_some = false;
        loop {
            let entry = match stream.peek().tried("getdents64") {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(_) if listed_some => break,
                Err(error) => return Err(error),
            };
            let identity = Identity {
                ino: entry.ino,
                ..dir.inode.identity()
            };
            let listed = Listed {
                ino: self.numbering.number(identity),
                next: entry.next,
                kind: kind_of(entry.kind),
                name: OsStr::from_bytes(entry.name),
            };
            match take(&listed) {
                Ok(Room::Taken) => {}
                Ok(Room::Full) => break,
                Err(_) if listed_some => break,
                Err(error) => return Err(error),
            }
            listed_some = true;
            stream.advance();
        }
        Ok(())
    }

    /// The last descriptor of the directory was closed.
    pub fn releasedir(&self, handle: u64) -> Result<()> {
        self.let_go(handle);
        self.dirs.remove(handle).map(drop).ok_or(Error::BAD_HANDLE)
    }

    /// fsync(2) of a directory: its names are durable when this returns.
    pub fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<()> {
        let dir = self.dir(handle)?;
        // A descriptor of its own, so that a slow fsync does not hold up the listing's lock.
        let fd = fs::duplicate(lock(&dir.stream).as_fd()).tried("dup")?;
        fs::sync(fd.as_fd(), data_only).tried("fsync")
    }
}

fn kind_of(d_type: u8) -> Option<FileType> {
    match fs::type_of(d_type) {
        FileType::Unknown => None,
        kind => Some(kind),
    }
}
