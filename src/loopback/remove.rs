//! What takes names away or moves them: unlink, rmdir, rename. As the caller, so that in a sticky directory
//! SRC judges by what has that name now.

use std::ffi::OsStr;

use super::inode::{Inode, NodeNo};
use super::lookup::Going;
use super::name::Name;
use super::{Caller, Loopback};
use crate::error::{Result, Tried};
use crate::sync::Arc;
use crate::sys::fs::{self, RenameFlags};

impl Loopback {
    /// Removes a name that is no directory's. The inode lives on while somebody has it open.
    pub fn unlink(&self, caller: Caller, parent: NodeNo, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        if self.was_removed(&parent, name.as_c_str())? {
            return Ok(());
        }
        // Without handles nothing would be kept.
        let going = if self.descriptors.by_handle() {
            self.going(&parent, name.as_c_str())?
        } else {
            None
        };
        let removed = self.removing(caller, || {
            fs::remove_file(self.object(&parent)?.fd(), name.as_c_str()).tried("unlinkat")
        });
        self.went(removed, going)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: NodeNo, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        if self.was_removed(&parent, name.as_c_str())? {
            return Ok(());
        }
        let going = self.going(&parent, name.as_c_str())?;
        let removed = self.removing(caller, || {
            fs::remove_dir(self.object(&parent)?.fd(), name.as_c_str()).tried("unlinkat")
        });
        self.went(removed, going)
    }

    /// What came of taking a name away, for what was about to go with it.
    fn went(&self, removed: Result<()>, going: Option<Going>) -> Result<()> {
        match (removed, going) {
            (Ok(()), Some(going)) => going.gone(),
            (Err(error), Some(going)) => {
                going.stays(self);
                Err(error)
            }
            (removed, None) => removed,
        }
    }

    /// Moves a name, with renameat2(2)'s flags as the caller gave them. A directory may grow, and a
    /// whiteout is a new node: at the caller's expense.
    pub fn rename(
        &self,
        caller: Caller,
        from: (NodeNo, &OsStr),
        to: (NodeNo, &OsStr),
        flags: u32,
    ) -> Result<()> {
        let (name, new_name) = (Name::new(from.1)?, Name::new(to.1)?);
        let (parent, new_parent) = (self.inode(from.0)?, self.inode(to.0)?);
        let flags = RenameFlags::from_bits_retain(flags);
        let (from, to) = ((&parent, &name), (&new_parent, &new_name));
        let was_moved =
            self.was_moved((from.0, from.1.as_c_str()), (to.0, to.1.as_c_str()), flags)?;
        // Nothing goes in an exchange.
        let going = if flags.contains(RenameFlags::EXCHANGE) || was_moved {
            None
        } else {
            self.going(&new_parent, new_name.as_c_str())?
        };
        let rename = |from: (&Arc<Inode>, &Name), to: (&Arc<Inode>, &Name), flags| {
            self.removing(caller, || {
                let (parent, new_parent) = (self.object(from.0)?, self.object(to.0)?);
                let (name, new_name) = (from.1.as_c_str(), to.1.as_c_str());
                fs::rename((parent.fd(), name), (new_parent.fd(), new_name), flags)
                    .tried("renameat2")
            })
        };
        if !was_moved && let Err(error) = rename(from, to, flags) {
            return self.went(Err(error), going);
        }
        if let Err(error) = going.map_or(Ok(()), Going::gone) {
            // It is done once more, with what the kernel finds then.
            let _ = rename(to, from, RenameFlags::NOREPLACE);
            return Err(error);
        }
        self.moved((from.0, name.as_c_str()), (to.0, new_name.as_c_str()));
        if flags.contains(RenameFlags::EXCHANGE) {
            self.moved((to.0, new_name.as_c_str()), (from.0, name.as_c_str()));
        }
        Ok(())
    }
}
