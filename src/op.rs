//! The FUSE operations that loopfs serves: each one's name and class, written once.

use std::fmt;

macro_rules! operations {
    ($($variant:ident $name:literal;)*) => {
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
        }
    };
}

operations! {
    Lookup "lookup";
    Forget "forget";
    BatchForget "batch_forget";
    Getattr "getattr";
    Setattr "setattr";
    Access "access";
    Readlink "readlink";
    Symlink "symlink";
    Link "link";
    Mknod "mknod";
    Mkdir "mkdir";
    Unlink "unlink";
    Rmdir "rmdir";
    Rename "rename";
    Open "open";
    Create "create";
    Read "read";
    Write "write";
    Flush "flush";
    Release "release";
    Fsync "fsync";
    Opendir "opendir";
    Readdir "readdir";
    Readdirplus "readdirplus";
    Releasedir "releasedir";
    Fsyncdir "fsyncdir";
    Statfs "statfs";
    Getxattr "getxattr";
    Listxattr "listxattr";
    Setxattr "setxattr";
    Removexattr "removexattr";
    Fallocate "fallocate";
    Lseek "lseek";
    CopyFileRange "copy_file_range";
    Ioctl "ioctl";
    Getlk "getlk";
    Setlk "setlk";
    Setlkw "setlkw";
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
