//! Names to inodes: lookup, forget, readlink.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};

use super::Loopback;
use super::attr::Attr;
use super::inode::{Identity, Inode, NodeNo};
use super::name::Name;
use super::table::LookupRef;
use crate::error::{Error, Result, Tried};
use crate::sync::Arc;
use crate::sys::fs::{self, FileType, Found, Statx};

/// A name that was found: what the kernel will remember.
#[derive(Debug)]
#[must_use = "dropping it gives the lookup count back"]
pub struct Entry {
    /// The count on its inode.
    pub lookup: LookupRef,
    /// Its attributes.
    pub attr: Attr,
}

/// An inode whose last name is about to go, held meanwhile.
#[derive(Debug)]
pub(super) struct Going {
    inode: Arc<Inode>,
    object: OwnedFd,
}

impl Going {
    /// The name has gone: the inode keeps its descriptor for as long as it is remembered. One whose
    /// removal failed does not, or whoever can't remove things could use up all descriptors.
    pub(super) fn gone(self) {
        self.inode.keep(self.object);
    }
}

impl Loopback {
    /// Finds `name` in a directory.
    pub fn lookup(&self, parent: NodeNo, name: &OsStr) -> Result<Entry> {
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        self.entry(&parent, name.as_c_str())
    }

    pub(super) fn entry(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Entry> {
        let object = match fs::open_object(self.object(parent)?.fd(), name).tried("openat2")? {
            Found::Here(object) => object,
            Found::OtherMount(object) => self.shielded(object)?,
        };
        self.enter(object)
    }

    /// An entry for an object descriptor, wherever it came from.
    pub(super) fn enter(&self, object: OwnedFd) -> Result<Entry> {
        let stat = fs::stat(object.as_fd()).tried("statx")?;
        let found = self.described(object, &stat)?;
        let number = found.number();
        let (lookup, spare) = self.table.take(found);
        match spare.map(Inode::into_object) {
            None => self.descriptors.opened(lookup.inode()),
            // Known before: what was opened to look at it may serve the request that follows.
            Some(Some(object)) => drop(self.descriptors.lend(lookup.inode(), object)),
            Some(None) => {}
        }
        Ok(Entry {
            lookup,
            attr: Attr::new(number, &stat),
        })
    }

    /// An object descriptor as an inode: its number and, where there is one, its file handle.
    fn described(&self, object: OwnedFd, stat: &Statx) -> Result<Inode> {
        let identity = Identity::of(stat);
        let handle = self.descriptors.handle_of(object.as_fd(), identity)?;
        Ok(Inode::new(
            self.numbering.number(identity),
            stat,
            object,
            handle,
        ))
    }

    /// What `name` leads to, if the kernel remembers it and this is its last name: to be kept reachable
    /// when that has gone ([`Going::gone`]), because its handle may lead nowhere then, and somebody may
    /// be in it (a working directory, an `O_PATH` descriptor). Whatever goes wrong here comes up again
    /// when the name is removed.
    pub(super) fn going(&self, parent: &Arc<Inode>, name: &CStr) -> Option<Going> {
        if !self.descriptors.by_handle() {
            return None;
        }
        let parent = self.object(parent).ok()?;
        let Found::Here(object) = fs::open_object(parent.fd(), name).ok()? else {
            return None;
        };
        let stat = fs::stat(object.as_fd()).ok()?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        if kind != FileType::Directory && stat.stx_nlink > 1 {
            return None;
        }
        let found = self.described(object, &stat).ok()?;
        let known = self.table.get(found.number());
        let inode = known.filter(|known| known.is(&found))?;
        let object = found.into_object()?;
        Some(Going { inode, object })
    }

    /// What is mounted there, if mounts are crossed; if it is our own mount, the directory below it.
    fn shielded(&self, object: OwnedFd) -> Result<OwnedFd> {
        self.crossing.check()?;
        if let Some(own) = self.own_mount.get() {
            let (_, device) = fs::mount_of(object.as_fd()).tried("statx")?;
            if device == own.device {
                let covered = own.covered.as_ref().ok_or(Error::OWN_MOUNT)?;
                return fs::duplicate(covered.as_fd()).tried("dup");
            }
        }
        Ok(object)
    }

    /// The kernel no longer remembers `count` lookups of a node.
    pub fn forget(&self, node: NodeNo, count: u64) {
        self.table.give_back(node, count);
    }

    /// The target of a symlink, for the caller's kernel to follow in the caller's own namespace.
    pub fn readlink(&self, node: NodeNo) -> Result<Vec<u8>> {
        let inode = self.inode(node)?;
        if inode.kind() != FileType::Symlink {
            return Err(Error::WRONG_TYPE);
        }
        fs::read_link(self.object(&inode)?.fd()).tried("readlinkat")
    }
}
