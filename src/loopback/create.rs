//! What makes new names: create, mkdir, mknod, symlink, link.
//!
//! All of it runs as the caller, with the caller's umask, so that owner, group (of a set-group-id
//! directory, too), mode, default ACL, quota and reserve come out as if the caller had done it in SRC
//! itself.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use super::file::Opened;
use super::handle::FileHandle;
use super::inode::{Inode, NodeNo};
use super::lookup::Entry;
use super::name::{self, Name};
use super::{Caller, Loopback};
use crate::error::{Errno, Error, Result, Tried};
use crate::sync::Arc;
use crate::sys::creds::{Own, OwnerCheck};
use crate::sys::fs::{self, FileType, open_flags};

/// How often something is made that is removed in SRC before it was looked at: more often than two that race get in
/// step (sixteen times was once too few, on a loaded machine).
const ROUNDS: usize = 64;

/// A file that was created and opened.
#[derive(Debug)]
#[must_use = "dropping it gives the lookup count back"]
pub struct Created {
    /// Its entry.
    pub entry: Entry,
    /// It, open.
    pub opened: Opened,
}

/// Where and as what something is created.
#[derive(Debug, Clone, Copy)]
pub struct NewName<'a> {
    /// The directory.
    pub parent: NodeNo,
    /// The name in it.
    pub name: &'a OsStr,
    /// Type and permissions, before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
}

impl Loopback {
    /// The directory that something is to be made in: there must be room for the new inode's descriptor,
    /// because once it is made it would be too late to fail.
    fn parent_for_new(&self, parent: NodeNo) -> Result<Arc<Inode>> {
        let parent = self.inode(parent)?;
        self.descriptors.check_room(&parent)?;
        Ok(parent)
    }

    /// Creates a regular file and opens it with the data-related part of `flags`.
    ///
    /// The kernel asks for this where it believes that the name is free. If it is not (it was made
    /// in SRC meanwhile), nobody has checked whether the caller may open what is there: the answer
    /// is `ESTALE`, on which the kernel looks the name up anew and opens it in the ordinary way, or
    /// `EEXIST` where the caller said `O_EXCL`.
    pub fn create(
        &self,
        caller: Caller,
        new: NewName<'_>,
        flags: i32,
        exclusive: bool,
    ) -> Result<Created> {
        let name = Name::new(new.name)?;
        let parent = self.parent_for_new(new.parent)?;
        // A file of the caller's own: who made it may read it without marking its access time.
        let flags = if self.noatime {
            open_flags::without_access_time(flags)
        } else {
            flags
        };
        self.making();
        let moment = self.moment();
        let made = {
            let _as_caller = self.creating(caller, &parent, new.mode, new.umask)?;
            let dir = self.object(&parent)?;
            let mode = new.mode & 0o7777;
            let create = || fs::create(dir.fd(), name.as_c_str(), flags, mode);
            self.descriptors.with_room(create)
        };
        let before = matches!(made, Err(Errno::EXIST))
            .then(|| self.created_before(caller, (&parent, &name), flags));
        let file = match (made, before.flatten()) {
            (_, Some(file)) => Ok(file),
            (Err(Errno::EXIST), None) if !exclusive => Err(Errno::STALE),
            (made, None) => made,
        }
        .tried("creating a file")?;
        let reopen = || fs::reopen_object(file.as_fd());
        let object = self.descriptors.with_room(reopen).tried("open")?;
        let mut entry = self.enter(object)?;
        entry.name = self.name_kept_since(moment, (&parent, name.as_c_str()), entry.lookup.inode());
        let file = FileHandle::new(Arc::clone(entry.lookup.inode()), file);
        let handle = self.hold_file(file, flags);
        let opened = self.as_opened(handle, entry.attr.mode(), entry.lookup.inode());
        Ok(Created { entry, opened })
    }

    /// Creates a directory.
    pub fn mkdir(&self, caller: Caller, new: NewName<'_>) -> Result<Entry> {
        let name = Name::new(new.name)?;
        let parent = self.parent_for_new(new.parent)?;
        let make = || {
            let _as_caller = self.creating(caller, &parent, new.mode, new.umask)?;
            let dir = self.object(&parent)?;
            let made = fs::make_dir(dir.fd(), name.as_c_str(), new.mode & 0o7777).tried("mkdirat");
            self.made_once(made, caller, (&parent, &name), FileType::Directory, |_| {
                true
            })
        };
        self.made(&parent, &name, make, |inode| {
            inode.kind() == FileType::Directory
        })
    }

    /// Creates a FIFO, a socket, a device node or an empty regular file; `device` for a device node.
    pub fn mknod(&self, caller: Caller, new: NewName<'_>, device: (u32, u32)) -> Result<Entry> {
        let name = Name::new(new.name)?;
        let parent = self.parent_for_new(new.parent)?;
        let device = fs::device_number(device.0, device.1);
        let kind = FileType::from_raw_mode(new.mode);
        let make = || {
            let _as_caller = self.creating(caller, &parent, new.mode, new.umask)?;
            let dir = self.object(&parent)?;
            let made = fs::make_node(dir.fd(), name.as_c_str(), new.mode, device).tried("mknodat");
            self.made_once(made, caller, (&parent, &name), kind, |_| true)
        };
        self.made(&parent, &name, make, |inode| inode.kind() == kind)
    }

    /// Creates a symlink. Its target is text; what it leads to is nobody's business here.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: NodeNo,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        let name = Name::new(name)?;
        let target = name::text(target)?;
        let parent = self.parent_for_new(parent)?;
        let make = || {
            let _as_caller = self.acting(caller, None, None, OwnerCheck::Made, Own::NONE)?;
            let dir = self.object(&parent)?;
            let made = fs::make_symlink(&target, dir.fd(), name.as_c_str()).tried("symlinkat");
            self.made_once(made, caller, (&parent, &name), FileType::Symlink, |link| {
                fs::read_link(link).is_ok_and(|text| text == target.to_bytes())
            })
        };
        self.made(&parent, &name, make, |inode| {
            inode.kind() == FileType::Symlink
        })
    }

    /// Gives a node one more name, as the caller: the directory may grow, at the caller's expense, and SRC judges by whose
    /// it is now (`fs.protected_hardlinks`).
    pub fn link(
        &self,
        caller: Caller,
        node: NodeNo,
        parent: NodeNo,
        name: &OsStr,
    ) -> Result<Entry> {
        let name = Name::new(name)?;
        let inode = self.inode(node)?;
        let parent = self.inode(parent)?;
        let make = || {
            let (object, dir) = (self.object(&inode)?, self.object(&parent)?);
            let _as_caller = self.linking(caller, object.fd())?;
            let made = fs::make_link(object.fd(), dir.fd(), name.as_c_str()).tried("linkat");
            self.linked_once(made, (&parent, &name), &inode)
        };
        self.made(&parent, &name, make, |made| {
            made.identity() == inode.identity()
        })
    }

    /// What `make` has made under a name, if it still is that: in SRC it may be replaced or removed at once. What
    /// has been replaced is somebody else's now: with another type the kernel would make `EIO` of it
    /// (`create_new_entry`). What was removed is made again; who removes it each time has the name, too: `EEXIST`, as for
    /// any race about a name that was lost.
    pub(super) fn made(
        &self,
        parent: &Arc<Inode>,
        name: &Name,
        make: impl Fn() -> Result<()>,
        is_it: impl Fn(&Inode) -> bool,
    ) -> Result<Entry> {
        self.making();
        for _ in 0..ROUNDS {
            make()?;
            match self.entry(parent, name.as_c_str()) {
                Ok(entry) if is_it(entry.lookup.inode()) => return Ok(entry),
                Ok(_) => break,
                Err(error) if error.errno() == Errno::NOENT => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Errno::EXIST, "looking at what was made"))
    }
}
