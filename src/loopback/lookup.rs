//! Names to inodes: lookup, forget, readlink.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};

use super::Loopback;
use super::attr::Attr;
use super::inode::{Identity, Inode, NodeNo};
use super::name::Name;
use super::table::LookupRef;
use crate::error::{Error, Result, Tried};
use crate::sys::fs::{self, FileType, Found};

/// A name that was found: what the kernel will remember.
#[derive(Debug)]
#[must_use = "dropping it gives the lookup count back"]
pub struct Entry {
    /// The count on its inode.
    pub lookup: LookupRef,
    /// Its attributes.
    pub attr: Attr,
}

impl Loopback {
    /// Finds `name` in a directory.
    pub fn lookup(&self, parent: NodeNo, name: &OsStr) -> Result<Entry> {
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        self.entry(&parent, name.as_c_str())
    }

    pub(super) fn entry(&self, parent: &Inode, name: &CStr) -> Result<Entry> {
        let object = match fs::open_object(parent.object(), name).tried("openat2")? {
            Found::Here(object) => object,
            Found::OtherMount(object) => self.shielded(object)?,
        };
        self.enter(object)
    }

    /// An entry for an object descriptor, wherever it came from.
    pub(super) fn enter(&self, object: OwnedFd) -> Result<Entry> {
        let stat = fs::stat(object.as_fd()).tried("statx")?;
        let number = self.numbering.number(Identity::of(&stat));
        let lookup = self.table.take(number, &stat, object);
        Ok(Entry {
            lookup,
            attr: Attr::new(number, &stat),
        })
    }

    /// What is mounted there, or, if that is our own mount, the directory below it.
    fn shielded(&self, object: OwnedFd) -> Result<OwnedFd> {
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
        fs::read_link(inode.object()).tried("readlinkat")
    }
}
