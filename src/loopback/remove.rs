//! What takes names away or moves them: unlink, rmdir, rename. As the caller, so that in a sticky directory
//! SRC judges by what has that name now.

use std::ffi::OsStr;

use super::inode::NodeNo;
use super::name::Name;
use super::{Caller, Loopback};
use crate::error::{Result, Tried};
use crate::sys::fs::{self, RenameFlags};

impl Loopback {
    /// Removes a name that is no directory's. The inode lives on while somebody has it open.
    pub fn unlink(&self, caller: Caller, parent: NodeNo, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        // Without handles nothing would be kept.
        let going = if self.descriptors.by_handle() {
            self.going(&parent, name.as_c_str())?
        } else {
            None
        };
        self.removing(caller, || {
            fs::remove_file(self.object(&parent)?.fd(), name.as_c_str()).tried("unlinkat")
        })?;
        if let Some(going) = going {
            going.gone();
        }
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: NodeNo, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let parent = self.inode(parent)?;
        let going = self.going(&parent, name.as_c_str())?;
        self.removing(caller, || {
            fs::remove_dir(self.object(&parent)?.fd(), name.as_c_str()).tried("unlinkat")
        })?;
        if let Some(going) = going {
            going.gone();
        }
        Ok(())
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
        // Nothing goes in an exchange.
        let going = if flags.contains(RenameFlags::EXCHANGE) {
            None
        } else {
            self.going(&new_parent, new_name.as_c_str())?
        };
        self.removing(caller, || {
            fs::rename(
                (self.object(&parent)?.fd(), name.as_c_str()),
                (self.object(&new_parent)?.fd(), new_name.as_c_str()),
                flags,
            )
            .tried("renameat2")
        })?;
        let (from, to) = (
            (&parent, name.as_c_str()),
            (&new_parent, new_name.as_c_str()),
        );
        self.moved((from.0, from.1), to);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.moved((to.0, to.1), from);
        }
        if let Some(going) = going {
            going.gone();
        }
        Ok(())
    }
}
