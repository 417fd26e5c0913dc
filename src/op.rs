//! The FUSE operations that loopfs serves: each one's name and class, written once.

use std::fmt;

/// What an operation does to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Reads contents, names or attributes.
    Read,
    /// Changes contents, names or attributes: refused on a read-only mount.
    Change,
    /// Concerns the kernel's own bookkeeping only.
    Control,
}

macro_rules! operations {
    ($($variant:ident $name:literal $class:ident;)*) => {
        /// A FUSE operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Op {
            /// Every operation, in the order of its number.
            pub const ALL: &[Op] = &[$(Op::$variant),*];

            /// Its name, as FUSE_* in linux/fuse.h, in lower case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Op::$variant => $name,)* }
            }

            /// What it does to the tree.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Op::$variant => Class::$class,)* }
            }
        }
    };
}

operations! {
    Lookup "lookup" Read;
    Forget "forget" Control;
    BatchForget "batch_forget" Control;
    Getattr "getattr" Read;
    Setattr "setattr" Change;
    Access "access" Read;
    Readlink "readlink" Read;
    Symlink "symlink" Change;
    Link "link" Change;
    Mknod "mknod" Change;
    Mkdir "mkdir" Change;
    Unlink "unlink" Change;
    Rmdir "rmdir" Change;
    Rename "rename" Change;
    Open "open" Read;
    Create "create" Change;
    Read "read" Read;
    Write "write" Change;
    Flush "flush" Control;
    Release "release" Control;
    Fsync "fsync" Read;
    Opendir "opendir" Read;
    Readdir "readdir" Read;
    Readdirplus "readdirplus" Read;
    Releasedir "releasedir" Control;
    Fsyncdir "fsyncdir" Read;
    Statfs "statfs" Read;
    Getxattr "getxattr" Read;
    Listxattr "listxattr" Read;
    Setxattr "setxattr" Change;
    Removexattr "removexattr" Change;
    Fallocate "fallocate" Change;
    Lseek "lseek" Read;
    CopyFileRange "copy_file_range" Change;
    Ioctl "ioctl" Read;
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_table() {
        for (place, op) in Op::ALL.iter().enumerate() {
            assert_eq!(*op as usize, place, "{op}");
        }
    }
}
