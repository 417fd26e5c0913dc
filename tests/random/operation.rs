//! One operation with its arguments: what a program could ask of a tree.
//!
//! A failure prints them: their `Debug` form is short where it can be.

use std::fmt;

/// Number of an open file, or of an open directory; see `World`.
pub(crate) type Slot = usize;

/// How many files a sequence may have open at once.
pub(crate) const FILES: usize = 3;

/// How many directories a sequence may have open at once.
pub(crate) const DIRECTORIES: usize = 2;

/// The names that there are: few, so that operations meet. Most of what can go wrong needs two of them
/// at the same file.
pub(crate) const NAMES: [u8; 4] = *b"abcd";

/// One to three names, from the top of the tree or from an open directory (from the top if none is
/// open there).
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) from: Option<Slot>,
    pub(crate) names: Vec<u8>,
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(slot) = self.from {
            write!(f, "[{slot}]/")?;
        }
        let names: Vec<_> = self.names.iter().map(|name| char::from(*name)).collect();
        for (place, name) in names.iter().enumerate() {
            write!(f, "{}{name}", if place > 0 { "/" } else { "" })?;
        }
        Ok(())
    }
}

/// A file by a path or, if it is open, by its number.
#[derive(Clone)]
pub(crate) enum Place {
    Path(Path),
    Slot(Slot),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.fmt(f),
            Self::Slot(slot) => write!(f, "#{slot}"),
        }
    }
}

/// Somebody who is not root.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}+{:?}", self.uid, self.gid, self.groups)
    }
}

/// What is done. Where a path is followed if it leads to a symlink, that is what the system call of the
/// name does, unless there is a flag for it.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    // Names.
    Open {
        slot: Option<Slot>,
        path: Path,
        how: Opening,
        mode: u32,
    },
    Close {
        slot: Slot,
    },
    OpenDirectory {
        slot: Slot,
        path: Path,
    },
    CloseDirectory {
        slot: Slot,
    },
    Mkdir {
        path: Path,
        mode: u32,
    },
    Rmdir {
        path: Path,
    },
    Unlink {
        path: Path,
    },
    Rename {
        from: Path,
        to: Path,
        how: Rename,
    },
    /// An open file gets a name by way of `/proc/self/fd`.
    Link {
        from: Place,
        to: Path,
        follow: bool,
    },
    /// `up`: the target begins with `..`.
    Symlink {
        up: bool,
        target: Path,
        path: Path,
    },
    Node {
        path: Path,
        kind: Node,
        mode: u32,
    },

    // Contents.
    Write {
        on: Place,
        offset: u32,
        length: u16,
        seed: u8,
    },
    /// By path with `O_APPEND`, otherwise at the file's position.
    Append {
        on: Place,
        length: u16,
        seed: u8,
    },
    Read {
        on: Place,
    },
    ReadPart {
        on: Place,
        offset: u32,
        length: u16,
    },
    Truncate {
        on: Place,
        size: u32,
    },
    Allocate {
        on: Place,
        how: Allocate,
        offset: u32,
        length: u16,
    },
    /// Writes through a shared mapping, made for this and synchronised.
    MapWrite {
        on: Place,
        offset: u32,
        length: u16,
        seed: u8,
    },
    MapRead {
        on: Place,
        offset: u32,
        length: u16,
    },
    /// A shared mapping of a whole open file that lasts until the file is closed; what is written
    /// through it stays in memory.
    KeepMapping {
        slot: Slot,
    },
    KeptWrite {
        slot: Slot,
        offset: u32,
        length: u16,
        seed: u8,
    },
    KeptRead {
        slot: Slot,
        offset: u32,
        length: u16,
    },
    Copy {
        from: Place,
        to: Place,
        offsets: (u32, u32),
        length: u16,
    },
    /// Where SEEK_DATA and SEEK_HOLE say that there is nothing, there is nothing.
    Holes {
        on: Place,
    },
    Sync {
        on: Place,
        data_only: bool,
    },
    Lock {
        slot: Slot,
        how: Lock,
    },
    SetAppending {
        slot: Slot,
        appending: bool,
    },

    // Attributes.
    Chmod {
        on: Place,
        mode: u32,
    },
    Chown {
        on: Place,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Times {
        on: Place,
        access: SetTime,
        modification: SetTime,
        follow: bool,
    },
    SetXattr {
        on: Place,
        name: Xattr,
        length: u16,
        how: SetXattr,
    },
    GetXattr {
        on: Place,
        name: Xattr,
        room: u16,
    },
    ListXattrs {
        on: Place,
        room: u16,
    },
    RemoveXattr {
        on: Place,
        name: Xattr,
    },
    SetAcl {
        on: Place,
        default: bool,
        entries: Vec<AclEntry>,
    },
    SetFlags {
        on: Place,
        flags: u8,
    },
    Umask {
        mask: u32,
    },

    // Looking.
    Stat {
        on: Place,
    },
    /// Whether two names are the same file.
    Same {
        one: Path,
        other: Path,
    },
    Access {
        path: Path,
        rights: u8,
    },
    ReadLink {
        path: Path,
    },
    List {
        path: Path,
    },
    /// Reads an open directory from its start, goes back to the place after some entry, and reads on.
    Seek {
        slot: Slot,
        after: u8,
    },

    // Around another one.
    As {
        user: User,
        operation: Box<Operation>,
    },
    /// Tells, too, which times of what it names have changed.
    Observe {
        operation: Box<Operation>,
    },
}

impl Operation {
    /// The one inside, without who does it and who looks on.
    pub(crate) fn itself(&self) -> &Self {
        match self {
            Self::As { operation, .. } | Self::Observe { operation } => operation.itself(),
            other => other,
        }
    }

    /// What it is called.
    pub(crate) fn kind(&self) -> String {
        let text = format!("{:?}", self.itself());
        let name = text.split_whitespace().next();
        name.unwrap_or_default().to_owned()
    }

    /// Whether the file system may not know how to do it, or may lack the room of an inode for it.
    pub(crate) fn may_be_unsupported(&self) -> bool {
        matches!(
            self.itself(),
            Self::Allocate { .. }
                | Self::SetXattr { .. }
                | Self::GetXattr { .. }
                | Self::ListXattrs { .. }
                | Self::RemoveXattr { .. }
                | Self::SetAcl { .. }
        )
    }
}

/// open(2)'s flags.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools)] // each is a flag of its own
pub(crate) struct Opening {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) create: bool,
    pub(crate) exclusive: bool,
    pub(crate) truncate: bool,
    pub(crate) append: bool,
    pub(crate) no_follow: bool,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [
            (self.read, "read"),
            (self.write, "write"),
            (self.create, "create"),
            (self.exclusive, "exclusive"),
            (self.truncate, "truncate"),
            (self.append, "append"),
            (self.no_follow, "no_follow"),
        ];
        let set = flags.iter().filter(|(set, _)| *set);
        let names: Vec<_> = set.map(|(_, name)| *name).collect();
        f.write_str(&names.join("+"))
    }
}

/// renameat2's flags.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rename {
    Plain,
    NoReplace,
    Exchange,
    Whiteout,
}

/// What mknod makes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Node {
    Fifo,
    Socket,
    /// `/dev/null`, which does no harm when it is opened.
    Null,
    Regular,
}

/// fallocate's modes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Allocate {
    Extend,
    KeepSize,
    Punch,
    Zero,
}

/// flock's operations, none of which waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
    Unlock,
}

/// What utimensat is to do with a time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SetTime {
    Omit,
    Now,
    At(i32, u32),
}

/// The extended attributes that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Xattr {
    User,
    OtherUser,
    Trusted,
    Security,
    /// With a value that is one.
    Capability,
    AccessAcl,
    DefaultAcl,
}

impl Xattr {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::User => "user.one",
            Self::OtherUser => "user.two",
            Self::Trusted => "trusted.three",
            Self::Security => "security.four",
            Self::Capability => "security.capability",
            Self::AccessAcl => "system.posix_acl_access",
            Self::DefaultAcl => "system.posix_acl_default",
        }
    }
}

/// setxattr's flags.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SetXattr {
    Any,
    Create,
    Replace,
}

/// An entry of an ACL as linux/posix_acl_xattr.h has it: tag, permissions, id. Tags: 1 owner, 2 user,
/// 4 owning group, 8 group, 0x10 mask, 0x20 others.
pub(crate) type AclEntry = (u16, u16, u32);
