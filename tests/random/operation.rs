//! One operation with its arguments, and how proptest draws it.
//!
//! Names come from a handful, so that operations meet: most of what can go wrong needs two of them
//! at the same file.

use proptest::prelude::*;

/// A path of one to three components, each one of four letters.
pub(crate) type Path = Vec<u8>;

/// Number of an open file; see `World`.
pub(crate) type Slot = usize;

/// How many files a sequence may have open at once.
pub(crate) const SLOTS: usize = 3;

/// What is done.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Create {
        path: Path,
        mode: u32,
        exclusive: bool,
    },
    Write {
        path: Path,
        offset: u32,
        length: u16,
        seed: u8,
    },
    Append {
        path: Path,
        length: u16,
        seed: u8,
    },
    Truncate {
        path: Path,
        size: u32,
    },
    Read {
        path: Path,
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
    Link {
        from: Path,
        to: Path,
    },
    Symlink {
        target: Path,
        path: Path,
    },
    Fifo {
        path: Path,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Chown {
        path: Path,
        uid: u16,
        gid: u16,
    },
    Times {
        path: Path,
        seconds: i32,
        nanoseconds: u32,
        access_too: bool,
    },
    SetXattr {
        path: Path,
        name: u8,
        length: u16,
    },
    RemoveXattr {
        path: Path,
        name: u8,
    },
    Allocate {
        path: Path,
        how: Allocate,
        offset: u32,
        length: u16,
    },
    Stat {
        path: Path,
    },
    List {
        path: Path,
    },
    Open {
        slot: Slot,
        path: Path,
        write: bool,
    },
    Close {
        slot: Slot,
    },
    SlotWrite {
        slot: Slot,
        offset: u32,
        length: u16,
        seed: u8,
    },
    SlotRead {
        slot: Slot,
    },
    SlotTruncate {
        slot: Slot,
        size: u32,
    },
    SlotStat {
        slot: Slot,
    },
}

/// renameat2's flags.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rename {
    Plain,
    NoReplace,
    Exchange,
    Whiteout,
}

/// fallocate's modes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Allocate {
    Extend,
    KeepSize,
    Punch,
    Zero,
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(b'a'..=b'd', 1..=3)
}

fn rename() -> impl Strategy<Value = Rename> {
    prop_oneof![
        4 => Just(Rename::Plain),
        1 => Just(Rename::NoReplace),
        1 => Just(Rename::Exchange),
        1 => Just(Rename::Whiteout),
    ]
}

fn allocate() -> impl Strategy<Value = Allocate> {
    prop_oneof![
        Just(Allocate::Extend),
        Just(Allocate::KeepSize),
        Just(Allocate::Punch),
        Just(Allocate::Zero)
    ]
}

/// Permission bits, with the special ones now and then. Root runs the tests, so none forbids anything.
fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..0o1000_u32, 1 => 0..0o10000_u32]
}

/// Any operation; those that build a tree come more often than those that take it down.
pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let offset = 0..40_000_u32;
    let length = 0..9_000_u16;
    let making = prop_oneof![
        3 => (path(), mode(), any::<bool>()).prop_map(|(path, mode, exclusive)| Create { path, mode, exclusive }),
        3 => (path(), mode()).prop_map(|(path, mode)| Mkdir { path, mode }),
        3 => (path(), offset.clone(), length.clone(), any::<u8>())
            .prop_map(|(path, offset, length, seed)| Write { path, offset, length, seed }),
        2 => (path(), length.clone(), any::<u8>()).prop_map(|(path, length, seed)| Append { path, length, seed }),
        2 => (path(), path()).prop_map(|(from, to)| Link { from, to }),
        1 => (path(), path()).prop_map(|(target, path)| Symlink { target, path }),
        1 => path().prop_map(|path| Fifo { path }),
    ];
    let moving = prop_oneof![
        4 => (path(), path(), rename()).prop_map(|(from, to, how)| Rename { from, to, how }),
        2 => path().prop_map(|path| Unlink { path }),
        1 => path().prop_map(|path| Rmdir { path }),
        1 => (path(), 0..60_000_u32).prop_map(|(path, size)| Truncate { path, size }),
        1 => (path(), allocate(), offset.clone(), length.clone())
            .prop_map(|(path, how, offset, length)| Allocate { path, how, offset, length }),
    ];
    let attributes = prop_oneof![
        (path(), mode()).prop_map(|(path, mode)| Chmod { path, mode }),
        (path(), 0..4_u16, 0..4_u16).prop_map(|(path, uid, gid)| Chown { path, uid, gid }),
        (path(), any::<i32>(), 0..1_000_000_000_u32, any::<bool>()).prop_map(
            |(path, seconds, nanoseconds, access_too)| Times {
                path,
                seconds,
                nanoseconds,
                access_too
            }
        ),
        (path(), 0..3_u8, 0..300_u16).prop_map(|(path, name, length)| SetXattr {
            path,
            name,
            length
        }),
        (path(), 0..3_u8).prop_map(|(path, name)| RemoveXattr { path, name }),
    ];
    let looking = prop_oneof![
        path().prop_map(|path| Stat { path }),
        path().prop_map(|path| List { path }),
        path().prop_map(|path| Read { path }),
    ];
    let open_files = prop_oneof![
        3 => (0..SLOTS, path(), any::<bool>()).prop_map(|(slot, path, write)| Open { slot, path, write }),
        1 => (0..SLOTS).prop_map(|slot| Close { slot }),
        3 => (0..SLOTS, offset, length, any::<u8>())
            .prop_map(|(slot, offset, length, seed)| SlotWrite { slot, offset, length, seed }),
        2 => (0..SLOTS).prop_map(|slot| SlotRead { slot }),
        1 => (0..SLOTS, 0..60_000_u32).prop_map(|(slot, size)| SlotTruncate { slot, size }),
        1 => (0..SLOTS).prop_map(|slot| SlotStat { slot }),
    ];
    prop_oneof![5 => making, 3 => moving, 2 => attributes, 2 => looking, 3 => open_files]
}
