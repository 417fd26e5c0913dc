//! Extended attributes in every namespace, POSIX ACLs among them.

use std::ffi::OsStr;

use super::inode::NodeNo;
use super::{Caller, Loopback, name};
use crate::error::{Error, Result, Tried};
use crate::policy;
use crate::sys::xattr::{self, Answer};
use crate::sys::{creds, fs};

/// The largest value that the kernel takes (`XATTR_SIZE_MAX`), in bytes.
const MAX_VALUE: usize = 64 * 1024;

/// The attribute that holds a POSIX access ACL: the mode's group bits are its mask.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

fn room(size: u32) -> Result<usize> {
    usize::try_from(size).map_err(|_| Error::BAD_RANGE)
}

impl Loopback {
    /// The value of an attribute, or its size when `size` is 0.
    pub fn getxattr(&self, node: NodeNo, name: &OsStr, size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        xattr::get(inode.object(), &name, room(size)?).tried("getxattr")
    }

    /// The names of all attributes, or the size of that list when `size` is 0.
    pub fn listxattr(&self, node: NodeNo, size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        xattr::list(inode.object(), room(size)?).tried("listxattr")
    }

    /// Sets an attribute with the caller's `XATTR_CREATE` or `XATTR_REPLACE`.
    ///
    /// Setting an access ACL changes the mode, and clears the set-group-id bit unless the caller is
    /// in the file's group: done as the caller, so that SRC decides by the right groups.
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
        let mut _as_caller = None;
        if name.as_bytes() == ACCESS_ACL && self.acts_as_callers {
            let stat = fs::stat(inode.object()).tried("statx")?;
            let mode = u32::from(stat.stx_mode);
            let groups = policy::acl_depends_on_groups(mode, stat.stx_gid, caller.gid)
                .then(|| creds::groups_of(caller.pid));
            _as_caller = Some(self.acting(caller, groups.as_deref(), 0)?);
        }
        xattr::set(inode.object(), &name, value, flags.cast_unsigned()).tried("setxattr")
    }

    /// Removes an attribute.
    pub fn removexattr(&self, node: NodeNo, name: &OsStr) -> Result<()> {
        let inode = self.inode(node)?;
        let name = name::text(name)?;
        xattr::remove(inode.object(), &name).tried("removexattr")
    }
}
