//! Extended attributes in every namespace, POSIX ACLs among them.

use std::ffi::{CStr, OsStr};

use super::inode::{Inode, NodeNo};
use super::{Caller, Loopback, name};
use crate::error::{Error, Result, Tried};
use crate::policy;
use crate::sync::Arc;
use crate::sys::creds::CallerGuard;
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

impl Loopback {
    /// The value of an attribute, or its size when `size` is 0.
    pub fn getxattr(&self, node: NodeNo, name: &OsStr, size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        xattr::get(self.object(&inode)?.fd(), &name, room(size)?).tried("getxattr")
    }

    /// The names of all attributes that the caller may know of, or the size of that list when
    /// `size` is 0. SRC shows `trusted.` ones to this process where it would not to the caller.
    pub fn listxattr(&self, caller: Caller, node: NodeNo, size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        let room = room(size)?;
        if !self.acts_as_callers || policy::sees_trusted_attributes(caller.uid) {
            return xattr::list(self.object(&inode)?.fd(), room).tried("listxattr");
        }
        let all = match xattr::list(self.object(&inode)?.fd(), MAX_VALUE).tried("listxattr")? {
            Answer::Data(all) => all,
            size @ Answer::Size(_) => return Ok(size),
        };
        let shown = all
            .split_inclusive(|&byte| byte == 0)
            .filter(|name| !name.starts_with(TRUSTED))
            .collect::<Vec<_>>()
            .concat();
        match room {
            0 => u32::try_from(shown.len())
                .map(Answer::Size)
                .map_err(|_| Error::BAD_RANGE),
            room if shown.len() > room => Err(Error::NO_ROOM),
            _ => Ok(Answer::Data(shown)),
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
        let _as_caller = self.changing_xattr(caller, &inode, &name)?;
        xattr::set(
            self.object(&inode)?.fd(),
            &name,
            value,
            flags.cast_unsigned(),
        )
        .tried("setxattr")
    }

    /// Removes an attribute, likewise.
    pub fn removexattr(&self, caller: Caller, node: NodeNo, name: &OsStr) -> Result<()> {
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        let _as_caller = self.changing_xattr(caller, &inode, &name)?;
        xattr::remove(self.object(&inode)?.fd(), &name).tried("removexattr")
    }

    /// This thread as `caller` for a change of an attribute: an access control list is the owner's.
    fn changing_xattr(
        &self,
        caller: Caller,
        inode: &Arc<Inode>,
        name: &CStr,
    ) -> Result<Option<CallerGuard>> {
        if name.to_bytes().starts_with(ACL) {
            self.changing_as_owner(caller, inode)
        } else {
            self.changing(caller, inode)
        }
    }
}
