//! Extended attributes in every namespace, POSIX ACLs among them.

use std::ffi::{CStr, OsStr};
use std::os::fd::BorrowedFd;

use super::inode::NodeNo;
use super::{Caller, Loopback, name};
use crate::error::{Error, Result, Tried};
use crate::sys::creds::{self, CallerGuard, Own, OwnerCheck};
use crate::sys::xattr::{self, Answer};

/// The largest value that the kernel takes (`XATTR_SIZE_MAX`), in bytes.
const MAX_VALUE: usize = 64 * 1024;

/// What the names of access control lists begin with.
const ACL: &[u8] = b"system.posix_acl_";

/// The namespace that is root's alone.
const TRUSTED: &[u8] = b"trusted.";

fn room(size: u32) -> Result<usize> {
    usize::try_from(size).map_err(|_| Error::BAD_RANGE)
}

/// The names in an answer of listxattr(2), each with its final zero byte.
fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split_inclusive(|&byte| byte == 0)
}

/// A whole answer as one that asked for `room` bytes gets it: listxattr(2).
fn fitting(answer: Vec<u8>, room: usize) -> Result<Answer> {
    match room {
        0 => u32::try_from(answer.len())
            .map(Answer::Size)
            .map_err(|_| Error::BAD_RANGE),
        room if answer.len() > room => Err(Error::NO_ROOM),
        _ => Ok(Answer::Data(answer)),
    }
}

impl Loopback {
    /// The value of an attribute, or its size when `size` is 0.
    pub fn getxattr(&self, node: NodeNo, name: &OsStr, size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        let object = self.object(&inode)?;
        if self.is_of_no_effect(inode.identity(), object.fd(), &name) {
            return Err(Error::NO_ATTRIBUTE);
        }
        xattr::get(object.fd(), &name, room(size)?).tried("getxattr")
    }

    /// The names of all attributes that the caller may know of, or the size of that list when
    /// `size` is 0. Who may know of `trusted.` ones is for SRC to say: most file systems show them to who
    /// has `CAP_SYS_ADMIN`, which a caller does not get from this process; btrfs shows them to everybody.
    pub fn listxattr(&self, caller: Caller, node: NodeNo, size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        let room = room(size)?;
        let object = self.object(&inode)?;
        if !self.acts_for_another(caller) {
            return xattr::list(object.fd(), room).tried("listxattr");
        }
        match xattr::list(object.fd(), MAX_VALUE).tried("listxattr")? {
            Answer::Data(all) if !names(&all).any(|name| name.starts_with(TRUSTED)) => {
                fitting(all, room)
            }
            _ => {
                let as_caller = creds::Identity {
                    uid: caller.uid,
                    gid: caller.gid,
                    groups: None,
                    umask: None,
                    owner_check: OwnerCheck::Made,
                    admin: false,
                    own: Own::NONE,
                };
                let _as_caller = CallerGuard::enter(as_caller, self.acts_as_callers)
                    .tried("acting as the caller")?;
                xattr::list(object.fd(), room).tried("listxattr")
            }
        }
    }

    /// Sets an attribute with the caller's `XATTR_CREATE` or `XATTR_REPLACE`, as the caller: setting
    /// an access ACL changes the mode, and may clear the set-group-id bit.
    pub fn setxattr(
        &self,
        caller: Caller,
        node: NodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        if value.len() > MAX_VALUE {
            return Err(Error::BAD_RANGE);
        }
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        let object = self.object(&inode)?;
        if xattr::creates(flags) {
            self.changing_attribute(object.fd(), &name);
        }
        let _as_caller = self.changing_xattr(caller, object.fd(), &name)?;
        let set = xattr::set(object.fd(), &name, value, flags.cast_unsigned()).tried("setxattr");
        self.attribute_once(set, (object.fd(), &name), Some(value))
    }

    /// Removes an attribute, likewise.
    pub fn removexattr(&self, caller: Caller, node: NodeNo, name: &OsStr) -> Result<()> {
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        let object = self.object(&inode)?;
        self.changing_attribute(object.fd(), &name);
        let _as_caller = self.changing_xattr(caller, object.fd(), &name)?;
        let removed = xattr::remove(object.fd(), &name).tried("removexattr");
        self.attribute_once(removed, (object.fd(), &name), None)
    }

    /// This thread as `caller` for a change of an attribute: an access control list is the owner's.
    fn changing_xattr(
        &self,
        caller: Caller,
        object: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<Option<CallerGuard>> {
        if name.to_bytes().starts_with(ACL) {
            self.changing_as_owner(caller, object)
        } else {
            self.changing(caller, object)
        }
    }
}
