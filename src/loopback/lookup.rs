//! Names to inodes: lookup, forget, readlink.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use super::Loopback;
use super::attr::{Attr, Keep};
use super::crossing;
use super::inode::{Identity, Inode, NodeNo};
use super::name::Name;
use super::table::LookupRef;
use super::watch::Moment;
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::sys::fs::{self, FileType, Found, Statx};

/// A name that was found: what the kernel will remember.
#[derive(Debug)]
#[must_use = "dropping it gives the lookup count back"]
pub struct Entry {
    /// The count on its inode.
    pub lookup: LookupRef,
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may remember that the name leads there.
    pub name: Keep,
}

/// An inode of which a name is about to go, perhaps its last one, held meanwhile.
#[derive(Debug)]
pub(super) struct Going {
    inode: Arc<Inode>,
    object: Arc<OwnedFd>,
    /// For a later process its descriptor is kept already: afterwards it may be too late.
    kept: bool,
}

impl Going {
    /// The name has gone: if that was the last one, the inode keeps its descriptor for as long as it is
    /// remembered. One whose removal failed does not, or whoever can't remove things could use up all
    /// descriptors. Which name is the last is known afterwards only: two may go at once.
    ///
    /// `ESTALE` if it is not this directory that has gone, but another one that was put there in SRC at the last
    /// moment. The kernel must not hear of a success: see [`Loopback::going`].
    pub(super) fn gone(self) -> Result<()> {
        let has_gone = fs::stat(self.object.as_fd()).is_ok_and(|stat| stat.stx_nlink == 0);
        // A directory that has gone may still count a link on some file systems.
        if has_gone || (self.is_dir() && fs::is_unlinked(self.object.as_fd())) {
            self.inode.keep(self.object);
        } else if self.is_dir() {
            return Err(Error::STALE);
        }
        Ok(())
    }

    /// The name was not taken away.
    pub(super) fn stays(&self, tree: &Loopback) {
        if self.kept {
            tree.table.give_up(&self.inode);
        }
    }

    fn is_dir(&self) -> bool {
        self.inode.kind() == FileType::Directory
    }
}

impl Loopback {
    /// Finds `name` in a directory. For `.` the node may be anything, and forgotten too: see
    /// [`super::export`].
    pub fn lookup(&self, parent: NodeNo, name: &OsStr) -> Result<Entry> {
        match name.as_bytes() {
            b"." => return self.lookup_self(parent),
            b".." => return self.lookup_parent(parent),
            _ => {}
        }
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        self.entry(&parent, name.as_c_str())
    }

    /// The entry of a name. Where the kernel is told of changes it asks for names that it does not know, hardly ever for an
    /// inode that it does: so that is not looked for first.
    pub(super) fn entry(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Entry> {
        self.entry_of(parent, name, !self.is_followed(parent))
    }

    /// The same of a name that was listed, with the number of its inode.
    pub(super) fn listed_entry(
        &self,
        parent: &Arc<Inode>,
        name: &CStr,
        number: NodeNo,
    ) -> Result<Entry> {
        self.entry_of(parent, name, self.table.get(number).is_some())
    }

    fn entry_of(&self, parent: &Arc<Inode>, name: &CStr, likely_known: bool) -> Result<Entry> {
        let moment = self.moment();
        let dir = self.object(parent)?;
        let known = if likely_known {
            self.known_entry(parent, dir.fd(), name)?
        } else {
            None
        };
        let mut entry = match known {
            Some(entry) => entry,
            None => self.opened_entry(dir.fd(), name)?,
        };
        let inode = entry.lookup.inode();
        inode.note_place(parent.number(), name);
        entry.name = self.name_kept_since(moment, (parent, name), inode);
        Ok(entry)
    }

    /// What a name leads to, if that is an inode which the kernel remembers and which has a descriptor at hand: that
    /// keeps its number from being used again, so it is the same one.
    fn at_hand(
        &self,
        parent: &Inode,
        dir: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<Option<(NodeNo, Statx, Arc<OwnedFd>)>> {
        // What is mounted there may be our own mount, or one that hangs: neither is asked.
        if !fs::is_local(self.filesystem) {
            return Ok(None);
        }
        let stat = fs::stat_name_at_rest(dir, name).tried("statx")?;
        let identity = Identity::of(&stat);
        let is_here = identity.mount != 0 && identity.mount == parent.identity().mount;
        if !is_here || self.is_elsewhere(identity) {
            return Ok(None);
        }
        let number = self.numbering.number(identity);
        let known = self.table.get(number);
        let known = known.filter(|inode| inode.was_seen(&stat));
        let object = known.and_then(|inode| inode.shared_object());
        Ok(object.map(|object| (number, stat, object)))
    }

    /// The entry of such a name.
    fn known_entry(
        &self,
        parent: &Inode,
        dir: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<Option<Entry>> {
        let moment = self.moment();
        let Some((number, stat, object)) = self.at_hand(parent, dir, name)? else {
            return Ok(None);
        };
        // It may have been forgotten meanwhile, or be another one by now.
        let is_it = |inode: &Inode| {
            let now = inode.shared_object();
            now.is_some_and(|now| Arc::ptr_eq(&now, &object))
        };
        let Some(lookup) = self.table.take_again(number, is_it) else {
            return Ok(None);
        };
        let attr = self.seen(moment, lookup.inode(), Attr::new(number, &stat), &stat);
        Ok(Some(Entry {
            lookup,
            attr,
            name: Keep::Briefly,
        }))
    }

    /// The entry of any other name.
    fn opened_entry(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Entry> {
        let open = || fs::open_object(dir, name);
        let object = match self.descriptors.with_room(open).tried("openat2")? {
            Found::Here(object) => object,
            Found::OtherMount(object) => self.shielded(object)?,
        };
        self.enter(object)
    }

    /// What the kernel is about to be told of an inode that was looked at since a moment.
    pub(super) fn seen(
        &self,
        moment: Option<Moment>,
        inode: &Inode,
        mut attr: Attr,
        stat: &Statx,
    ) -> Attr {
        inode.note(stat);
        self.kept_since(moment, inode, &mut attr);
        if inode.is_mappable() {
            attr.keep = Keep::No;
        }
        attr
    }

    /// An entry for an object descriptor, wherever it came from.
    pub(super) fn enter(&self, object: OwnedFd) -> Result<Entry> {
        let moment = self.moment();
        let stat = fs::stat(object.as_fd()).tried("statx")?;
        let (identity, number) = (
            Identity::of(&stat),
            self.numbering.number(Identity::of(&stat)),
        );
        let attr = self.shown(identity, object.as_fd(), Attr::new(number, &stat));
        let found = self.described(object, &stat)?;
        let (lookup, spare) = self.table.take(found);
        match spare.map(Inode::into_object) {
            None => self.descriptors.admit(lookup.inode())?,
            // Known before: what was opened to look at it may serve the request that follows.
            Some(Some(object)) => drop(self.descriptors.lend(lookup.inode(), object)),
            Some(None) => {}
        }
        let attr = self.seen(moment, lookup.inode(), attr, &stat);
        Ok(Entry {
            lookup,
            attr,
            name: Keep::Briefly,
        })
    }

    /// An object descriptor as an inode: its number and, where there is one, its file handle.
    fn described(&self, object: OwnedFd, stat: &Statx) -> Result<Inode> {
        let identity = Identity::of(stat);
        let handle = self.descriptors.handle_of(object.as_fd(), identity)?;
        let generation = match handle {
            Some(_) => 0, // the handle tells it
            None => self.export.generation(object.as_fd()),
        };
        let number = self.numbering.number(identity);
        Ok(Inode::new(number, stat, object, handle).with_generation(generation))
    }

    /// What `name` leads to, if the kernel remembers it: to be kept reachable when its last name has
    /// gone ([`Going::gone`]), because its handle may lead nowhere then, and somebody may
    /// be in it (a working directory, an `O_PATH` descriptor). Whatever goes wrong here comes up again
    /// when the name is removed.
    ///
    /// `ESTALE` for a directory that the kernel has not got by that name: it was put there in SRC. The kernel takes the
    /// one that it has there for removed, wherever that is now in SRC, and lets nobody into it any
    /// more (`S_DEAD`). On `ESTALE` it looks the name up anew first.
    pub(super) fn going(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Option<Going>> {
        match self.going_at_hand(parent, name) {
            Ok(Some(going)) => return Ok(Some(self.going_for_good(going))),
            Err(error) if error.errno() == Errno::NOENT => return Ok(None),
            _ => {}
        }
        let Some((found, is_dir)) = self.found(parent, name) else {
            return Ok(None);
        };
        let known = self.table.get(found.number());
        let known = known.filter(|known| known.is(&found));
        if is_dir
            && !known
                .as_ref()
                .is_some_and(|known| known.may_be_at(parent.number(), name))
        {
            return Err(Error::STALE);
        }
        if !is_dir && !self.descriptors.by_handle() {
            return Ok(None);
        }
        let going = |inode| {
            let object = Arc::new(found.into_object()?);
            Some(Going {
                inode,
                object,
                kept: false,
            })
        };
        let going = known.and_then(going);
        Ok(going.map(|going| self.going_for_good(going)))
    }

    /// Sees to it that a later process finds what is going, where somebody may use it without a name: has it open, or is in
    /// it.
    fn going_for_good(&self, going: Going) -> Going {
        if self.state.is_none() || going.inode.is_kept() {
            return going;
        }
        // The table has one reference, this is another; each open file has one more.
        let is_used = going.is_dir()
            || self.opens_unheard.load(Ordering::Relaxed)
            || Arc::strong_count(&going.inode) > 2;
        let is_last = || fs::stat(going.object.as_fd()).is_ok_and(|stat| stat.stx_nlink <= 1);
        let kept = is_used
            && (going.is_dir() || is_last())
            && self.table.keep(&going.inode, going.object.as_fd());
        Going { kept, ..going }
    }

    /// The same of a file that the kernel remembers and that has a descriptor at hand.
    fn going_at_hand(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Option<Going>> {
        let dir = self.object(parent)?;
        let Some((number, _, object)) = self.at_hand(parent, dir.fd(), name)? else {
            return Ok(None);
        };
        let file = |inode: &Arc<Inode>| inode.kind() != FileType::Directory;
        let going = |inode| Going {
            inode,
            object,
            kept: false,
        };
        Ok(self.table.get(number).filter(file).map(going))
    }

    fn found(&self, parent: &Arc<Inode>, name: &CStr) -> Option<(Inode, bool)> {
        let parent = self.object(parent).ok()?;
        let Found::Here(object) = fs::open_object(parent.fd(), name).ok()? else {
            return None;
        };
        let stat = fs::stat(object.as_fd()).ok()?;
        let found = self.described(object, &stat).ok()?;
        let is_dir = found.kind() == FileType::Directory;
        Some((found, is_dir))
    }

    /// A name was moved on MNT: if it is a directory's, the kernel has it there now.
    pub(super) fn moved(&self, from: (&Inode, &CStr), to: (&Arc<Inode>, &CStr)) {
        let (parent, name) = to;
        let stat = self
            .object(parent)
            .and_then(|parent| fs::stat_name(parent.fd(), name).tried("statx"));
        if let Ok(stat) = stat
            && let Some(inode) = self.table.get(self.numbering.number(Identity::of(&stat)))
            && inode.may_be_at(from.0.number(), from.1)
        {
            inode.note_place(parent.number(), name);
        }
    }

    /// Checks that an inode which is to be opened was not removed in SRC behind the kernel's back: then the
    /// name in its cache is out of date, and on `ESTALE` it looks that up anew; or it was asked for by a
    /// file handle. Asked once more it goes by no name (`/proc/self/fd`), and who has it open on MNT may
    /// open it again, as may anybody who still knows it after a removal on MNT.
    pub(super) fn check_has_name(inode: &Arc<Inode>, stat: &Statx) -> Result<()> {
        // Without a handle its descriptor keeps it alive, and SRC may not count links at all.
        if inode.handle().is_none() || inode.is_kept() {
            return Ok(());
        }
        if stat.stx_nlink > 0 {
            return Ok(());
        }
        // The table has one reference, the request another; each open file has one more.
        let is_open = Arc::strong_count(inode) > 2;
        if inode.was_told() && is_open {
            Ok(())
        } else {
            Err(Error::STALE)
        }
    }

    /// What is mounted there, if mounts are crossed; if it is our own mount, the directory below it; and
    /// `ELOOP` if it is a mount that would ask us in turn.
    fn shielded(&self, object: OwnedFd) -> Result<OwnedFd> {
        self.crossing.check()?;
        if let Some(own) = self.own_mount.get() {
            let (mount, device) = fs::mount_of(object.as_fd()).tried("statx")?;
            if device == own.device {
                let covered = own.covered.as_ref().ok_or(Error::OWN_MOUNT)?;
                return fs::duplicate(covered.as_fd()).tried("dup");
            }
            if crossing::leads_back(mount, own.device) {
                return Err(Error::OWN_MOUNT);
            }
        }
        Ok(object)
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
