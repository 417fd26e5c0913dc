//! How proptest draws operations, and sequences of them from a seed.

use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::operation::{
    AclEntry, Allocate, DIRECTORIES, FILES, Lock, NAMES, Node, Opening, Operation, Path, Place,
    Rename, SetTime, SetXattr, Slot, User, Xattr,
};

/// The sequence that belongs to `seed` and to a `place` in a run (a test, a worker, a round): the same
/// whenever it is asked for. As proptest's tree it can be made smaller while it fails.
pub(crate) fn sequence(
    seed: u64,
    place: [u64; 3],
    longest: usize,
) -> impl ValueTree<Value = Vec<Operation>> {
    let mut bytes = [0; 32];
    for (part, number) in bytes.chunks_exact_mut(8).zip([seed].iter().chain(&place)) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = (skeleton(), vec(operation(), 1..=longest));
    let strategy = strategy.prop_map(|(first, then)| [first, then].concat());
    strategy.new_tree(&mut runner).expect("nothing is rejected")
}

fn path() -> impl Strategy<Value = Path> + Clone {
    let from = prop_oneof![7 => Just(None), 1 => (0..DIRECTORIES).prop_map(Some)];
    let name = || select(&NAMES[..]);
    let names = prop_oneof![4 => vec(name(), 1), 4 => vec(name(), 2), 1 => vec(name(), 3)];
    (from, names).prop_map(|(from, names)| Path { from, names })
}

fn slot() -> impl Strategy<Value = Slot> + Clone {
    0..FILES
}

fn place() -> impl Strategy<Value = Place> + Clone {
    prop_oneof![path().prop_map(Place::Path), slot().prop_map(Place::Slot)]
}

fn user() -> impl Strategy<Value = User> {
    let groups = select(vec![
        vec![],
        vec![1],
        vec![2],
        vec![3],
        vec![2, 3],
        vec![1, 2, 3],
    ]);
    (1..=3_u32, 1..=3_u32, groups).prop_map(|(uid, gid, groups)| User { uid, gid, groups })
}

/// Permission bits that let most people in, any, or any with the special ones.
fn mode() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![
        3 => select(vec![0o777_u32, 0o755, 0o775, 0o666, 0o644, 0o640]),
        2 => 0..0o1000_u32,
        2 => 0..0o10000_u32,
        1 => select(vec![0o2777_u32, 0o1777, 0o6755, 0o2745]),
    ]
}

/// The same for directories: where nobody may go, nothing happens.
fn directory_mode() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![
        4 => select(vec![0o777_u32, 0o775, 0o2777, 0o1777, 0o3775]),
        1 => mode(),
    ]
}

/// Owners and groups: root, and those whose users there are.
fn id() -> impl Strategy<Value = u32> + Clone {
    0..4_u32
}

/// What chown(2) is to set. Not neither: FUSE does not tell that from what comes before a write.
fn owners() -> impl Strategy<Value = (Option<u32>, Option<u32>)> {
    let some = || id().prop_map(Some);
    prop_oneof![(some(), some()), (some(), Just(None)), (Just(None), some())]
}

fn opening() -> impl Strategy<Value = Opening> {
    let access = select(vec![
        (true, true),
        (true, true),
        (true, true),
        (true, false),
        (false, true),
    ]);
    let rare = (0..4_u8, 0..6_u8, 0..4_u8, 0..8_u8);
    (access, any::<bool>(), rare).prop_map(
        |((read, write), create, (exclusive, truncate, append, no_follow))| Opening {
            read,
            write,
            create,
            exclusive: create && exclusive == 0,
            truncate: truncate == 0,
            append: append == 0,
            no_follow: no_follow == 0,
        },
    )
}

fn rename() -> impl Strategy<Value = Rename> {
    prop_oneof![
        4 => Just(Rename::Plain),
        1 => Just(Rename::NoReplace),
        2 => Just(Rename::Exchange),
        1 => Just(Rename::Whiteout),
    ]
}

fn set_time() -> impl Strategy<Value = SetTime> + Clone {
    prop_oneof![
        Just(SetTime::Omit),
        Just(SetTime::Now),
        (any::<i32>(), 0..1_000_000_000_u32).prop_map(|(s, ns)| SetTime::At(s, ns)),
    ]
}

fn xattr() -> impl Strategy<Value = Xattr> + Clone {
    select(vec![
        Xattr::User,
        Xattr::User,
        Xattr::OtherUser,
        Xattr::Trusted,
        Xattr::Security,
        Xattr::Capability,
    ])
}

fn any_xattr() -> impl Strategy<Value = Xattr> + Clone {
    prop_oneof![2 => xattr(), 1 => Just(Xattr::AccessAcl), 1 => Just(Xattr::DefaultAcl)]
}

/// Mostly an ACL; one in eight is none, because its mask or its last entry is missing.
fn acl() -> impl Strategy<Value = Vec<AclEntry>> {
    let permissions = || 0..8_u16;
    let base = (permissions(), permissions(), permissions(), permissions());
    let named = || option::of((permissions(), 1..=3_u32));
    (base, named(), named(), 0..16_u8).prop_map(
        |((owner, group, mask, others), user, other, odd)| {
            let mut entries = vec![(1, owner, 0)];
            entries.extend(user.map(|(permissions, id)| (2, permissions, id)));
            entries.push((4, group, 0));
            entries.extend(other.map(|(permissions, id)| (8, permissions, id)));
            if (user.is_some() || other.is_some()) && odd != 0 {
                entries.push((0x10, mask, 0));
            }
            if odd != 1 {
                entries.push((0x20, others, 0));
            }
            entries
        },
    )
}

/// A tree to begin with: in an empty one most operations find nothing.
fn skeleton() -> impl Strategy<Value = Vec<Operation>> {
    use Operation::{Mkdir, Open, OpenDirectory, Write};
    let path = |names: &str| Path {
        from: None,
        names: names.as_bytes().to_vec(),
    };
    let how = Opening {
        read: true,
        write: true,
        create: true,
        exclusive: false,
        truncate: false,
        append: false,
        no_follow: false,
    };
    let mut all = Vec::new();
    for directory in ["a", "b", "aa", "ab", "ba"] {
        let (path, mode) = (path(directory), 0o777);
        all.push(Mkdir { path, mode });
    }
    for (slot, file) in ["c", "ac", "bb", "aaa"].into_iter().enumerate() {
        let (slot, path, mode) = ((slot < FILES).then_some(slot), path(file), 0o666);
        all.push(Open {
            slot,
            path,
            how,
            mode,
        });
    }
    for slot in 0..FILES {
        let (on, offset, length, seed) = (Place::Slot(slot), 0, 8_000, 1);
        all.push(Write {
            on,
            offset,
            length,
            seed,
        });
    }
    for (slot, directory) in ["a", "ba"].into_iter().enumerate() {
        all.push(OpenDirectory {
            slot,
            path: path(directory),
        });
    }
    // Nearly all of it; when a sequence is shortened, what is not needed.
    vec(weighted(0.95), all.len()).prop_map(move |kept| {
        let kept = all.iter().zip(kept).filter(|(_, kept)| *kept);
        kept.map(|(operation, _)| operation.clone()).collect()
    })
}

/// What makes a tree.
fn making() -> impl Strategy<Value = Operation> {
    use Operation::{Link, Mkdir, Node as MakeNode, Open, OpenDirectory, Symlink, Write};
    let kind = select(vec![Node::Fifo, Node::Socket, Node::Null, Node::Regular]);
    prop_oneof![
        6 => (option::weighted(0.8, slot()), path(), opening(), mode())
            .prop_map(|(slot, path, how, mode)| Open { slot, path, how, mode }),
        4 => (path(), directory_mode()).prop_map(|(path, mode)| Mkdir { path, mode }),
        2 => (place(), path(), any::<bool>()).prop_map(|(from, to, follow)| Link { from, to, follow }),
        2 => (place(), 0..40_000_u32, 0..9_000_u16, any::<u8>())
            .prop_map(|(on, offset, length, seed)| Write { on, offset, length, seed }),
        1 => (0..4_u8, path(), path())
            .prop_map(|(up, target, path)| Symlink { up: up == 0, target, path }),
        1 => (path(), kind, mode()).prop_map(|(path, kind, mode)| MakeNode { path, kind, mode }),
        1 => (0..DIRECTORIES, path()).prop_map(|(slot, path)| OpenDirectory { slot, path }),
    ]
}

/// What takes names away.
fn taking() -> impl Strategy<Value = Operation> {
    use Operation::{Close, CloseDirectory, Rename as Move, Rmdir, Unlink};
    prop_oneof![
        10 => (path(), path(), rename()).prop_map(|(from, to, how)| Move { from, to, how }),
        4 => path().prop_map(|path| Unlink { path }),
        2 => path().prop_map(|path| Rmdir { path }),
        2 => slot().prop_map(|slot| Close { slot }),
        1 => (0..DIRECTORIES).prop_map(|slot| CloseDirectory { slot }),
    ]
}

fn contents() -> impl Strategy<Value = Operation> {
    use Operation::{
        Allocate as Reserve, Append, Copy, Holes, KeepMapping, KeptRead, KeptWrite,
        Lock as TakeLock, MapRead, MapWrite, Read, ReadPart, SetAppending, Sync, Truncate, Write,
    };
    let offset = || 0..40_000_u32;
    let length = || 0..9_000_u16;
    let how = select(vec![
        Allocate::Extend,
        Allocate::KeepSize,
        Allocate::Punch,
        Allocate::Zero,
    ]);
    let lock = select(vec![Lock::Shared, Lock::Exclusive, Lock::Unlock]);
    prop_oneof![
        4 => (place(), offset(), length(), any::<u8>())
            .prop_map(|(on, offset, length, seed)| Write { on, offset, length, seed }),
        3 => (place(), length(), any::<u8>()).prop_map(|(on, length, seed)| Append { on, length, seed }),
        2 => place().prop_map(|on| Read { on }),
        1 => (place(), offset(), length()).prop_map(|(on, offset, length)| ReadPart { on, offset, length }),
        2 => (place(), 0..60_000_u32).prop_map(|(on, size)| Truncate { on, size }),
        2 => (place(), how, offset(), length())
            .prop_map(|(on, how, offset, length)| Reserve { on, how, offset, length }),
        2 => (place(), offset(), length(), any::<u8>())
            .prop_map(|(on, offset, length, seed)| MapWrite { on, offset, length, seed }),
        1 => (place(), offset(), length()).prop_map(|(on, offset, length)| MapRead { on, offset, length }),
        1 => slot().prop_map(|slot| KeepMapping { slot }),
        1 => (slot(), offset(), length(), any::<u8>())
            .prop_map(|(slot, offset, length, seed)| KeptWrite { slot, offset, length, seed }),
        1 => (slot(), offset(), length()).prop_map(|(slot, offset, length)| KeptRead { slot, offset, length }),
        2 => (place(), place(), (offset(), offset()), length())
            .prop_map(|(from, to, offsets, length)| Copy { from, to, offsets, length }),
        1 => place().prop_map(|on| Holes { on }),
        1 => (place(), any::<bool>()).prop_map(|(on, data_only)| Sync { on, data_only }),
        1 => (slot(), lock).prop_map(|(slot, how)| TakeLock { slot, how }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, appending)| SetAppending { slot, appending }),
    ]
}

fn attributes() -> impl Strategy<Value = Operation> {
    use Operation::{
        Chmod, Chown, GetXattr, ListXattrs, RemoveXattr, SetAcl, SetFlags, SetXattr as Set, Times,
        Umask,
    };
    let how = select(vec![
        SetXattr::Any,
        SetXattr::Any,
        SetXattr::Create,
        SetXattr::Replace,
    ]);
    let length = prop_oneof![7 => 0..300_u16, 1 => 0..5_000_u16];
    let room = || prop_oneof![2 => Just(u16::MAX), 1 => Just(0_u16), 2 => 0..300_u16];
    let mask = select(vec![0o022_u32, 0o002, 0, 0o077, 0o027]);
    prop_oneof![
        4 => (place(), mode()).prop_map(|(on, mode)| Chmod { on, mode }),
        3 => (place(), owners(), any::<bool>())
            .prop_map(|(on, (uid, gid), follow)| Chown { on, uid, gid, follow }),
        3 => (place(), set_time(), set_time(), any::<bool>())
            .prop_map(|(on, access, modification, follow)| Times { on, access, modification, follow }),
        4 => (place(), xattr(), length, how).prop_map(|(on, name, length, how)| Set { on, name, length, how }),
        1 => (place(), any_xattr(), room()).prop_map(|(on, name, room)| GetXattr { on, name, room }),
        1 => (place(), room()).prop_map(|(on, room)| ListXattrs { on, room }),
        2 => (place(), any_xattr()).prop_map(|(on, name)| RemoveXattr { on, name }),
        4 => (place(), any::<bool>(), acl())
            .prop_map(|(on, default, entries)| SetAcl { on, default, entries }),
        1 => (place(), 0..4_u8)
            .prop_map(|(on, flags)| SetFlags { on, flags }),
        1 => mask.prop_map(|mask| Umask { mask }),
    ]
}

fn looking() -> impl Strategy<Value = Operation> {
    use Operation::{Access, List, ReadLink, Same, Seek, Stat};
    prop_oneof![
        4 => place().prop_map(|on| Stat { on }),
        1 => (path(), path()).prop_map(|(one, other)| Same { one, other }),
        1 => (path(), 0..8_u8).prop_map(|(path, rights)| Access { path, rights }),
        1 => path().prop_map(|path| ReadLink { path }),
        2 => path().prop_map(|path| List { path }),
        1 => (0..DIRECTORIES, any::<u8>()).prop_map(|(slot, after)| Seek { slot, after }),
    ]
}

/// Any operation; those that make a tree come more often than those that take it down.
fn operation() -> impl Strategy<Value = Operation> {
    let simple = prop_oneof![5 => making(), 3 => taking(), 6 => contents(), 5 => attributes(), 3 => looking()].boxed();
    let boxed = simple.clone().prop_map(Box::new);
    let of_a_user = (user(), boxed.clone())
        .prop_map(|(user, operation)| Operation::As { user, operation })
        .boxed();
    let observed = prop_oneof![boxed, of_a_user.clone().prop_map(Box::new)]
        .prop_map(|operation| Operation::Observe { operation });
    prop_oneof![8 => simple, 3 => of_a_user, 1 => observed]
}
