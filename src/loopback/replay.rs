//! What is asked for twice is done once.
//!
//! A request that a process had read, and not answered when it was killed, comes again to the next one; it may have been
//! done. Where doing it twice would be something else than doing it once, what there was before is noted first, in the
//! request's slot (`survive`): when it comes again, what there is now tells whether it was done. Where nobody could come again
//! this costs nothing.
//!
//! What needs none of this can be done twice: attributes are set to the same, data is written to the same place.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::inode::Inode;
use super::name::Name;
use super::{Caller, Loopback};
use crate::error::{Errno, Result, Tried};
use crate::survive::State;
use crate::sync::Arc;
use crate::sys::fs::{self, FileType, Found, RenameFlags, Statx, open_flags};
use crate::sys::xattr::{self, Answer};

/// What a request is about to do, as its slot has it.
const REMOVE: u64 = 1;
const RENAME: u64 = 2;
const MAKE: u64 = 3;
const APPEND: u64 = 4;
const SHIFT: u64 = 5;
const ATTRIBUTE: u64 = 6;

/// Times in a file system may lag behind the clock by its granularity: 10 ms at worst.
const LAG: Duration = Duration::from_millis(20);

/// What has a name: device, number and birth, which tells it from a later one with the same number. Zeros for nothing.
type Being = [u64; 3];
const NOTHING: Being = [0; 3];

fn being(stat: &Statx) -> Being {
    let device = fs::device_number(stat.stx_dev_major, stat.stx_dev_minor);
    let birth = fs::birth(stat).map_or(0, |time| {
        let nanos = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        u64::try_from(nanos).unwrap_or(0)
    });
    [device, stat.stx_ino, birth]
}

/// When something was made: at least not before that, where SRC does not say.
fn made_at(stat: &Statx) -> (i64, u32) {
    let time = fs::birth(stat).unwrap_or(stat.stx_ctime);
    (time.tv_sec, time.tv_nsec)
}

/// How far an append came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Appended(pub(super) usize);

impl Loopback {
    /// The memory that outlives this process, if this thread is at work on a request that could come again.
    fn journal(&self) -> Option<&State> {
        self.state.as_deref().filter(|state| state.is_in_hand())
    }

    fn being(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Being> {
        match fs::stat_name_at_rest(self.object(parent)?.fd(), name) {
            Ok(stat) => Ok(being(&stat)),
            Err(Errno::NOENT) => Ok(NOTHING),
            Err(errno) => Err(errno).tried("statx"),
        }
    }

    /// A name is about to be taken away: whether it was, by the same request.
    pub(super) fn was_removed(&self, parent: &Arc<Inode>, name: &CStr) -> Result<bool> {
        let Some(journal) = self.journal() else {
            return Ok(false);
        };
        let now = self.being(parent, name)?;
        if let Some((REMOVE, [device, ino, birth, ..])) = journal.intended() {
            let before = [device, ino, birth];
            return Ok(before != NOTHING && before != now);
        }
        journal.intend(REMOVE, &now);
        Ok(false)
    }

    /// A name is about to be moved: whether it was.
    pub(super) fn was_moved(
        &self,
        from: (&Arc<Inode>, &CStr),
        to: (&Arc<Inode>, &CStr),
        flags: RenameFlags,
    ) -> Result<bool> {
        let Some(journal) = self.journal() else {
            return Ok(false);
        };
        let (from, to) = (self.being(from.0, from.1)?, self.being(to.0, to.1)?);
        if let Some((RENAME, [d1, i1, b1, d2, i2, b2, ..])) = journal.intended() {
            let (before, replaced) = ([d1, i1, b1], [d2, i2, b2]);
            let has_come = before != NOTHING && to == before;
            // Two names of one inode stay where they are, whatever is done.
            return Ok(if flags.contains(RenameFlags::EXCHANGE) {
                has_come && from == replaced && before != replaced
            } else {
                has_come && from != before
            });
        }
        let [d1, i1, b1] = from;
        let [d2, i2, b2] = to;
        journal.intend(RENAME, &[d1, i1, b1, d2, i2, b2]);
        Ok(false)
    }

    /// A name is about to be made.
    pub(super) fn making(&self) {
        let Some(journal) = self
            .journal()
            .filter(|journal| journal.intended().is_none())
        else {
            return;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = now.unwrap_or_default().saturating_sub(LAG);
        journal.intend(MAKE, &[since.as_secs(), since.subsec_nanos().into()]);
    }

    /// Since when what a request makes that came before would have been made.
    fn making_since(&self) -> Option<(i64, u32)> {
        match self.journal()?.intended() {
            Some((MAKE, [secs, nanos, ..])) => {
                Some((i64::try_from(secs).ok()?, u32::try_from(nanos).ok()?))
            }
            _ => None,
        }
    }

    /// What has the name, if that was made by the same request before: by the caller, not before it was asked for, and
    /// under no other name.
    fn made_before(
        &self,
        caller: Caller,
        parent: &Arc<Inode>,
        name: &CStr,
        kind: FileType,
    ) -> Option<(OwnedFd, Statx)> {
        let since = self.making_since()?;
        let parent = self.object(parent).ok()?;
        let Found::Here(object) = fs::open_object(parent.fd(), name).ok()? else {
            return None;
        };
        let stat = fs::stat(object.as_fd()).ok()?;
        let is_ours = FileType::from_raw_mode(stat.stx_mode.into()) == kind
            && made_at(&stat) >= since
            && (kind == FileType::Directory || stat.stx_nlink == 1)
            && (!self.acts_as_callers || stat.stx_uid == caller.uid);
        is_ours.then_some((object, stat))
    }

    /// What came of making something, which may have been there because the same request made it.
    pub(super) fn made_once(
        &self,
        made: Result<()>,
        caller: Caller,
        (parent, name): (&Arc<Inode>, &Name),
        kind: FileType,
        is_it: impl FnOnce(BorrowedFd<'_>) -> bool,
    ) -> Result<()> {
        let exists = made.is_err_and(|error| error.errno() == Errno::EXIST);
        let before = exists
            .then(|| self.made_before(caller, parent, name.as_c_str(), kind))
            .flatten();
        match before {
            Some((object, _)) if is_it(object.as_fd()) => Ok(()),
            _ => made,
        }
    }

    /// The file that the same request has created before, opened.
    pub(super) fn created_before(
        &self,
        caller: Caller,
        (parent, name): (&Arc<Inode>, &Name),
        flags: i32,
    ) -> Option<OwnedFd> {
        let kind = FileType::RegularFile;
        let (object, _) = self.made_before(caller, parent, name.as_c_str(), kind)?;
        let flags = open_flags::without_waiting(flags);
        self.opened(flags, |flags| fs::reopen(object.as_fd(), flags))
            .ok()
    }

    /// What came of giving an inode one more name, which may have been there because the same request gave it.
    pub(super) fn linked_once(
        &self,
        made: Result<()>,
        (parent, name): (&Arc<Inode>, &Name),
        inode: &Inode,
    ) -> Result<()> {
        let exists = made.is_err_and(|error| error.errno() == Errno::EXIST);
        let Some(since) = self.making_since().filter(|_| exists) else {
            return made;
        };
        let stat = fs::stat_name_at_rest(self.object(parent)?.fd(), name.as_c_str());
        let is_done = stat.is_ok_and(|stat| {
            let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
            super::inode::Identity::of(&stat) == inode.identity() && changed >= since
        });
        if is_done { Ok(()) } else { made }
    }

    /// Data is about to be appended: how much of it was, by the same request. A process that is killed may have written a
    /// part.
    pub(super) fn appended(&self, file: BorrowedFd<'_>, data: &[u8]) -> Result<Appended> {
        let Some(journal) = self.journal() else {
            return Ok(Appended(0));
        };
        let size = fs::stat(file).tried("statx")?.stx_size;
        let Some((APPEND, [before, ..])) = journal.intended() else {
            journal.intend(APPEND, &[size]);
            return Ok(Appended(0));
        };
        let more = usize::try_from(size.saturating_sub(before)).unwrap_or(usize::MAX);
        let more = more.min(data.len());
        if more == 0 {
            return Ok(Appended(0));
        }
        // It may be open for writing only.
        let file = fs::reopen(file, open_flags::READ_ONLY).tried("open")?;
        let there = fs::read_at(file.as_fd(), before, more).tried("pread")?;
        let is_ours = data.get(..more) == Some(&*there);
        Ok(Appended(if is_ours { more } else { 0 }))
    }

    /// A range is about to be cut out of a file, or put into it: whether it was.
    pub(super) fn was_shifted(&self, file: BorrowedFd<'_>, mode: i32, len: u64) -> Result<bool> {
        let (true, Some(journal)) = (fs::shifts(mode), self.journal()) else {
            return Ok(false);
        };
        let size = fs::stat(file).tried("statx")?.stx_size;
        if let Some((SHIFT, [before, ..])) = journal.intended() {
            return Ok(size != before && size.abs_diff(before) == len);
        }
        journal.intend(SHIFT, &[size]);
        Ok(false)
    }

    /// An attribute is about to be made or removed, which is not to be there (`value`) or is.
    pub(super) fn changing_attribute(&self, object: BorrowedFd<'_>, name: &CStr) {
        if let Some(journal) = self.journal()
            && journal.intended().is_none()
        {
            let is_there = xattr::get(object, name, 0).is_ok();
            journal.intend(ATTRIBUTE, &[is_there.into()]);
        }
    }

    /// What came of it, which may be an error because the same request has done it.
    pub(super) fn attribute_once(
        &self,
        changed: Result<()>,
        (object, name): (BorrowedFd<'_>, &CStr),
        value: Option<&[u8]>,
    ) -> Result<()> {
        let Err(error) = changed else {
            return changed;
        };
        let intended = self.journal().and_then(State::intended);
        let Some((ATTRIBUTE, [was_there, ..])) = intended else {
            return changed;
        };
        let is_done = match (error.errno(), value) {
            (Errno::EXIST, Some(value)) => {
                let room = value.len().max(1);
                let now = xattr::get(object, name, room);
                was_there == 0
                    && now.is_ok_and(|now| matches!(now, Answer::Data(now) if now == value))
            }
            (Errno::NODATA, None) => was_there != 0,
            _ => false,
        };
        if is_done { Ok(()) } else { changed }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
