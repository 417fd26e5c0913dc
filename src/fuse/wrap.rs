//! Answers that tell of a backing file by its number. fuser has a type for such a number, which it takes on trust: the one
//! place outside of `sys` where something is promised that the compiler can't see.
#![allow(unsafe_code)]

use std::time::Duration;

use fuser::{FileAttr, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};

use super::backing::Backing;

/// Answers to an open.
pub(super) fn opened(reply: ReplyOpen, handle: FileHandle, flags: FopenFlags, backing: &Backing) {
    // SAFETY: `backing` is registered on this connection, and stays so for longer than `id` is there.
    let id = unsafe { reply.wrap_backing(backing.id()) };
    reply.opened_passthrough(handle, flags, &id);
    // Not `id`'s to give up.
    let _ = id.into_raw();
}

/// Answers to a creation.
pub(super) fn created(
    reply: ReplyCreate,
    (ttl, attr, generation): (&Duration, &FileAttr, Generation),
    (handle, flags): (FileHandle, FopenFlags),
    backing: &Backing,
) {
    // SAFETY: as above.
    let id = unsafe { reply.wrap_backing(backing.id()) };
    reply.created_passthrough(ttl, attr, generation, handle, flags, &id);
    let _ = id.into_raw();
}
