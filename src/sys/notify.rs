//! Notifications to the FUSE client in the kernel that fuser has no call for.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::{Errno, Result};

/// `FUSE_NOTIFY_INVAL_INODE` (linux/fuse.h): what is remembered of an inode may have changed.
const INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY` (linux/fuse.h): what a name leads to may have changed.
const INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`: the name is to be looked up anew, as if its time had passed.
const EXPIRE_ONLY: u32 = 1;
/// `FUSE_NOTIFY_INC_EPOCH`: all names are to be looked up anew.
const INC_EPOCH: i32 = 8;
/// `FUSE_NOTIFY_RESEND` (linux/fuse.h): what was read and not answered is to be given out again.
const RESEND: i32 = 7;
/// `FUSE_NOTIFY_PRUNE` (linux/fuse.h): forget what nobody uses of these nodes.
const PRUNE: i32 = 9;
/// `struct fuse_out_header`: length, code, unique (0 for a notification).
const HEADER: usize = 16;
/// `struct fuse_notify_prune_out`: count, padding, spare.
const PRUNE_HEADER: usize = 16;
/// Nodes in one message: as many as the kernel takes out of it at a time.
const BATCH: usize = 512;

/// Asks the kernel to forget those of `nodes` that nobody has open or stands in: it drops their cached
/// names and gives their lookup counts back. `device` is the connection's /dev/fuse. `EINVAL` before
/// Linux 6.18.
///
/// Never to be called while a request is being served: the kernel may wait for other requests first.
pub fn forget_unused(device: BorrowedFd<'_>, nodes: &[u64]) -> Result<()> {
    for batch in nodes.chunks(BATCH) {
        let message = prune_message(batch).ok_or(Errno::OVERFLOW)?;
        rustix::io::retry_on_intr(|| rustix::io::write(device, &message))?;
    }
    Ok(())
}

/// Has the kernel look `name` in the directory `parent` up anew before it is used again. `ENOENT` if it remembers
/// nothing of it. `device` is the connection's /dev/fuse.
///
/// Never to be called while a request is being served: the kernel waits for others in that directory first.
pub fn expire_name(device: BorrowedFd<'_>, parent: u64, name: &OsStr) -> Result<()> {
    let message = name_message(parent, name.as_bytes()).ok_or(Errno::NAMETOOLONG)?;
    rustix::io::retry_on_intr(|| rustix::io::write(device, &message)).map(drop)
}

/// Has the kernel ask anew for the attributes of an inode, and for what is in it if `contents` is set, after writing that
/// back. `ENOENT` if it does not know the inode. `device` is the connection's /dev/fuse.
///
/// Never to be called while a request is being served: the kernel waits for pages that are being read, and for an inode that it is
/// about to forget.
pub fn forget_inode(device: BorrowedFd<'_>, node: u64, contents: bool) -> Result<()> {
    let message = node_message(node, contents).ok_or(Errno::OVERFLOW)?;
    rustix::io::retry_on_intr(|| rustix::io::write(device, &message)).map(drop)
}

/// Has the kernel forget all names, and what is mounted on them with them. `EINVAL` before Linux 6.16.
pub fn forget_all_names(device: BorrowedFd<'_>) -> Result<()> {
    let message = header(HEADER, INC_EPOCH).ok_or(Errno::OVERFLOW)?;
    rustix::io::retry_on_intr(|| rustix::io::write(device, &message)).map(drop)
}

/// Has the kernel give out again what was taken from it and not answered, with [`RESENT`] set in each request's number. `EINVAL`
/// before Linux 6.9.
pub fn resend(device: BorrowedFd<'_>) -> Result<()> {
    let message = header(HEADER, RESEND).ok_or(Errno::OVERFLOW)?;
    rustix::io::retry_on_intr(|| rustix::io::write(device, &message)).map(drop)
}

/// `FUSE_UNIQUE_RESEND` (linux/fuse.h): set in the number of a request that is given out again.
pub const RESENT: u64 = 1 << 63;

/// `struct fuse_out_header` of a notification that is `len` bytes long, this included.
fn header(len: usize, code: i32) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(len);
    message.extend(u32::try_from(len).ok()?.to_ne_bytes());
    message.extend(code.to_ne_bytes());
    message.extend(0_u64.to_ne_bytes());
    Some(message)
}

/// With `struct fuse_notify_inval_entry_out`: parent, length of the name, flags; then the name, and a NUL.
fn name_message(parent: u64, name: &[u8]) -> Option<Vec<u8>> {
    let mut message = header(HEADER + 16 + name.len() + 1, INVAL_ENTRY)?;
    message.extend(parent.to_ne_bytes());
    message.extend(u32::try_from(name.len()).ok()?.to_ne_bytes());
    message.extend(EXPIRE_ONLY.to_ne_bytes());
    message.extend(name);
    message.push(0);
    Some(message)
}

/// With `struct fuse_notify_inval_inode_out`: inode, where it begins, how long it is. From a negative offset on it is the
/// attributes alone, and without a length all that follows.
fn node_message(node: u64, contents: bool) -> Option<Vec<u8>> {
    let offset: i64 = if contents { 0 } else { -1 };
    let mut message = header(HEADER + 24, INVAL_INODE)?;
    message.extend(node.to_ne_bytes());
    message.extend(offset.to_ne_bytes());
    message.extend(0_i64.to_ne_bytes());
    Some(message)
}

fn prune_message(nodes: &[u64]) -> Option<Vec<u8>> {
    let len = HEADER + PRUNE_HEADER + size_of_val(nodes);
    let mut message = header(len, PRUNE)?;
    message.extend(u32::try_from(nodes.len()).ok()?.to_ne_bytes());
    message.extend([0; 12]);
    message.extend(nodes.iter().flat_map(|node| node.to_ne_bytes()));
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_layout_of_the_kernels_structures() {
        let message = prune_message(&[7, 9]).unwrap_or_default();
        assert_eq!(message.len(), 48);
        let word = |at: usize| {
            message
                .get(at..at + 4)
                .and_then(|word| word.try_into().ok())
        };
        let word = |at| word(at).map(u32::from_ne_bytes);
        assert_eq!((word(0), word(4), word(8)), (Some(48), Some(9), Some(0)));
        assert_eq!((word(16), word(20), word(24)), (Some(2), Some(0), Some(0)));
        let node = |at: usize| {
            message
                .get(at..at + 8)
                .and_then(|node| node.try_into().ok())
        };
        let node = |at| node(at).map(u64::from_ne_bytes);
        assert_eq!((node(32), node(40)), (Some(7), Some(9)));
        let message = node_message(7, false).unwrap_or_default();
        let wanted = [40_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat();
        let wanted = [
            wanted,
            [0_u64, 7, u64::MAX, 0].map(u64::to_ne_bytes).concat(),
        ]
        .concat();
        assert_eq!(message, wanted);
    }
}
