//! [`Respond`] for fuser's reply types: how a value of ours becomes an answer.

use std::time::Duration;

use fuser::{
    Errno, FileHandle, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert;
use super::opening::Opening;
use super::serve::Respond;
use super::wrap;
use crate::config::Caching;
use crate::loopback::attr::{Attr, Keep};
use crate::loopback::inode::NodeNo;
use crate::loopback::lock::{Held, Range};
use crate::loopback::lookup::Entry;
use crate::loopback::table::LookupRef;
use crate::sys::fs::StatVfs;
use crate::sys::lock::number_of;
use crate::sys::xattr::Answer;

/// What a name leads to.
pub(super) enum Found {
    /// An inode.
    Entry(Entry, Caching),
    /// Nothing, which the kernel may remember so long.
    Nothing(Duration),
}

/// How long the kernel remembers what it is told the changes of, if that can be forgotten.
const LONG: Duration = Duration::from_secs(4 * 3600);

/// How long the kernel may remember something, which is `briefly` unless there is more to say.
pub(super) fn time_of(keep: Keep, briefly: Duration) -> Duration {
    match keep {
        Keep::No => Duration::ZERO,
        Keep::Briefly => briefly,
        Keep::UntilTold => LONG,
    }
}

macro_rules! respond {
    ($reply:ty, $ok:ty, |$this:ident, $value:pat_param| $answer:expr) => {
        impl Respond for $reply {
            type Ok = $ok;
            fn ok(self, value: $ok) {
                let ($this, $value) = (self, value);
                $answer
            }
            fn err(self, errno: i32) {
                self.error(Errno::from_i32(errno));
            }
        }
    };
}

respond!(ReplyEmpty, (), |reply, ()| reply.ok());
respond!(ReplyData, Vec<u8>, |reply, data| reply.data(&data));
respond!(ReplyWrite, u32, |reply, count| reply.written(count));
respond!(ReplyLseek, i64, |reply, offset| reply.offset(offset));
respond!(ReplyIoctl, Vec<u8>, |reply, data| reply.ioctl(0, &data));
respond!(ReplyDirectory, (), |reply, ()| reply.ok());
respond!(ReplyLock, Option<Held>, |reply, held| match held {
    Some(held) => {
        let Range { start, end } = held.range;
        let process = held.process.unwrap_or(0);
        reply.locked(start, end, number_of(Some(held.access)), process);
    }
    None => reply.locked(0, 0, number_of(None), 0),
});
respond!(ReplyAttr, (Attr, Caching), |reply, (attr, caching)| {
    reply.attr(&time_of(attr.keep, caching.attr), &convert::attr(&attr));
});
respond!(ReplyOpen, Opening, |reply, opening| {
    let (handle, flags) = (FileHandle(opening.handle), opening.flags);
    match opening.backing {
        Some(backing) => wrap::opened(reply, handle, flags, &backing),
        None => reply.opened(handle, flags),
    }
});
respond!(ReplyXattr, Answer, |reply, answer| match answer {
    Answer::Size(size) => reply.size(size),
    Answer::Data(data) => reply.data(&data),
});
respond!(ReplyEntry, Found, |reply, found| match found {
    Found::Entry(Entry { lookup, attr, name }, caching) => {
        let kept = time_of(attr.keep, caching.attr);
        let entry_kept = time_of(name, caching.entry);
        let attr = convert::attr(&attr);
        let generation = Generation(lookup.inode().generation());
        // The root is found by its node number, which is not its st_ino: the kernel is to ask again.
        let is_root = lookup.inode().number() == NodeNo::ROOT;
        let ttl = if is_root { Duration::ZERO } else { kept };
        lookup.into_kernel();
        reply.entry_with_ttls(&ttl, &entry_kept, &attr, generation);
    }
    Found::Nothing(time) => reply.entry(&time, &convert::no_entry(), Generation(0)),
});
respond!(ReplyCreate, (Entry, Opening, Caching), |reply,
                                                  (
    entry,
    opening,
    caching,
)| {
    let Entry { lookup, attr, name } = entry;
    let (handle, flags) = (FileHandle(opening.handle), opening.flags);
    let kept = time_of(attr.keep, caching.attr);
    let entry_kept = time_of(name, caching.entry);
    let attr = convert::attr(&attr);
    let generation = Generation(lookup.inode().generation());
    lookup.into_kernel();
    // fuser has one time for both here: the shorter one is true for both.
    let ttl = kept.min(entry_kept);
    match opening.backing {
        Some(backing) => {
            let entry = (&ttl, &attr, generation);
            wrap::created(reply, entry, (handle, flags), &backing);
        }
        None => reply.created(&ttl, &attr, generation, handle, flags),
    }
});
respond!(ReplyDirectoryPlus, Vec<LookupRef>, |reply, lookups| {
    lookups.into_iter().for_each(LookupRef::into_kernel);
    reply.ok();
});
respond!(ReplyStatfs, StatVfs, |reply, stat| {
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    reply.statfs(
        stat.f_blocks,
        stat.f_bfree,
        stat.f_bavail,
        stat.f_files,
        stat.f_ffree,
        word(stat.f_bsize),
        word(stat.f_namemax),
        word(stat.f_frsize),
    );
});
