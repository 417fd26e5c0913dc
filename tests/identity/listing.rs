//! Large directories on every kind of file system: MNT lists what SRC lists, in its order and with its
//! cookies, whatever happens meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RawDir, SeekFrom, mkdirat, mknodat, seek, symlinkat};
use rustix::io::Errno;

use super::disk::{AT_ONCE, Kind, finish, sys};
use crate::common::{Mount, TestEnv};

/// One entry as getdents64(2) gives it: name, cookie of the next one, type.
type Entry = (OsString, u64, FileType);

/// Entries from the directory's position on: at most `most`, in calls with room for `size` bytes.
fn entries_by(directory: &File, most: usize, size: usize) -> Result<Vec<Entry>, Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); size];
    let mut raw = RawDir::new(directory, &mut buffer);
    let mut found = Vec::new();
    while found.len() < most {
        let Some(entry) = raw.next() else { break };
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        found.push((name, entry.next_entry_cookie(), entry.file_type()));
    }
    Ok(found)
}

fn entries(directory: &File) -> Vec<Entry> {
    entries_by(directory, usize::MAX, 64 << 10).unwrap()
}

fn go_to(directory: &File, cookie: u64) {
    seek(directory, SeekFrom::Start(cookie)).unwrap();
}

/// The name of entry `number`: most short, some with bytes that are no UTF-8, some of 255 bytes.
fn name_of(number: usize) -> OsString {
    let mut name = format!("entry-{number}").into_bytes();
    match number % 100 {
        7 => name.extend([0xff, b'\n', 0x80]),
        8 => name.resize(255, b'x'),
        _ => {}
    }
    OsString::from_vec(name)
}

/// Makes entry `number`, of one type or another.
fn make(directory: &Path, number: usize) {
    let path = directory.join(name_of(number));
    let mode = Mode::RUSR;
    match number % 100 {
        1 => mkdirat(CWD, path, Mode::RWXU),
        2 => symlinkat("target", CWD, path),
        3 => mknodat(CWD, path, FileType::Fifo, mode, 0),
        _ => mknodat(CWD, path, FileType::RegularFile, mode, 0),
    }
    .unwrap();
}

/// A fixed order that looks like none.
fn scattered(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| index * 7_919 % count)
}

fn prepared(kind: Kind, count: usize) -> Mount {
    let env = TestEnv::new();
    kind.mount(&env, &env.src());
    let directory = env.src().join("d");
    fs::create_dir(&directory).unwrap();
    (0..count).for_each(|number| make(&directory, number));
    Mount::start_in(env, AT_ONCE)
}

/// 100,000 entries: the same as in SRC, in the same order, with the same cookies and types; each cookie leads
/// back; and from the start once more.
fn a_hundred_thousand(kind: Kind) {
    const COUNT: usize = 100_000;
    let mount = prepared(kind, COUNT);
    let plain = File::open(mount.source("d")).unwrap();
    let directory = File::open(mount.path("d")).unwrap();
    let (expected, found) = (entries(&plain), entries(&directory));
    assert_eq!(found.len(), COUNT + 2);
    let names: BTreeSet<&OsStr> = found.iter().map(|entry| entry.0.as_os_str()).collect();
    assert_eq!(names.len(), COUNT + 2, "each once");
    assert!((0..COUNT).all(|number| names.contains(name_of(number).as_os_str())));
    assert!(found == expected, "names, cookies and types are SRC's");
    for index in scattered(COUNT).step_by(COUNT / 200) {
        for directory in [&plain, &directory] {
            go_to(directory, found[index].1);
            let next = entries_by(directory, 1, 4_096).unwrap();
            assert_eq!(next.first(), found.get(index + 1), "after entry {index}");
        }
    }
    // Cookies that no entry gave: whatever SRC makes of them.
    for index in scattered(COUNT).step_by(COUNT / 20) {
        let between = found[index].1 / 2 + found[index + 1].1 / 2;
        let next = [&plain, &directory].map(|directory| {
            go_to(directory, between);
            entries_by(directory, 3, 4_096)
        });
        assert_eq!(next[0], next[1], "cookie {between}");
    }
    go_to(&directory, found.last().unwrap().1);
    assert_eq!(entries(&directory), [], "the end is the end");
    go_to(&directory, 0);
    assert!(entries(&directory) == expected, "from the start");
    drop((plain, directory));
    finish(mount);
}

/// Entries come and go between two calls, on MNT and in SRC: those that stay are listed once each, those that were
/// never there not at all, and nothing twice.
fn while_it_changes(kind: Kind) {
    const COUNT: usize = 6_000;
    let mount = prepared(kind, COUNT);
    let (top, behind) = (mount.path("d"), mount.source("d"));
    let directory = File::open(&top).unwrap();
    let stays = |number: &usize| !number.is_multiple_of(3);
    let mut going = scattered(COUNT).filter(|number| !stays(number));
    let mut seen: HashMap<OsString, usize> = HashMap::new();
    let mut cookie = 0;
    for round in 0.. {
        go_to(&directory, cookie);
        let some = entries_by(&directory, 100, 8_192).unwrap();
        let Some(last) = some.last() else { break };
        cookie = last.1;
        for (name, ..) in some {
            *seen.entry(name).or_default() += 1;
        }
        let place = if round % 2 == 0 { &top } else { &behind };
        for number in going.by_ref().take(20) {
            let path = place.join(name_of(number));
            fs::remove_file(&path)
                .or_else(|_| fs::remove_dir(&path))
                .unwrap();
        }
        for number in 0..20 {
            make(place, COUNT + round * 20 + number);
        }
        assert!(round < 2_000, "the listing never ends");
    }
    for number in (0..COUNT).filter(stays) {
        let times = seen.get(&name_of(number)).copied().unwrap_or_default();
        assert_eq!(times, 1, "entry {number} was there all the time");
    }
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let names = |path: &Path| -> BTreeSet<OsString> {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    };
    assert_eq!(names(&top), names(&behind), "afterwards");
    drop(directory);
    finish(mount);
}

/// Calls with room for one entry, for none, and for all; two readers that take turns.
fn by_few_and_many(kind: Kind) {
    let mount = prepared(kind, 300);
    let [plain, first, second] =
        [mount.source("d"), mount.path("d"), mount.path("d")].map(|path| File::open(path).unwrap());
    let expected = entries(&plain);
    // The longest record: 19 bytes, the name, its end, rounded up.
    assert_eq!(entries_by(&first, usize::MAX, 280).unwrap(), expected);
    for size in [24, 48] {
        let tried = [&plain, &first].map(|directory| {
            go_to(directory, 0);
            entries_by(directory, usize::MAX, size)
        });
        assert_eq!(tried[0], tried[1], "in {size} bytes");
    }
    go_to(&first, 0);
    let mut turns = [Vec::new(), Vec::new()];
    for _ in 0..400 {
        for (directory, turn) in [&first, &second].into_iter().zip(&mut turns) {
            let cookie = turn.last().map_or(0, |entry: &Entry| entry.1);
            go_to(directory, cookie);
            turn.extend(entries_by(directory, 1, 4_096).unwrap());
        }
    }
    assert!(turns[0] == expected && turns[1] == expected);
    drop((plain, first, second));
    finish(mount);
}

/// A directory that is removed while it is listed: in SRC, and on MNT.
fn removed_while_listed(kind: Kind) {
    let mount = prepared(kind, 2_000);
    for (round, place) in [mount.source("d"), mount.path("d"), mount.source("plain")]
        .iter()
        .enumerate()
    {
        if !place.exists() {
            fs::create_dir(place).unwrap();
            (0..2_000).for_each(|number| make(place, number));
        }
        let listed = if round < 2 {
            mount.path("d")
        } else {
            place.clone()
        };
        let directory = File::open(listed).unwrap();
        let some = entries_by(&directory, 100, 8_192).unwrap();
        assert_eq!(some.len(), 100);
        fs::remove_dir_all(place).unwrap();
        // What was read ahead may still come; then there is an end.
        let rest = entries_by(&directory, usize::MAX, 64 << 10).unwrap_or_default();
        assert!(rest.len() < 2_000);
        go_to(&directory, 0);
        let again = entries_by(&directory, usize::MAX, 64 << 10);
        let none = match &again {
            Err(errno) => *errno == Errno::NOENT || *errno == Errno::STALE,
            Ok(entries) => entries
                .iter()
                .all(|entry| entry.0 == "." || entry.0 == ".."),
        };
        assert!(none, "{}: {again:?}", place.display());
    }
    finish(mount);
}

isolated! {
    fn a_hundred_thousand_on_ext4() { a_hundred_thousand(Kind::Ext4); }
    fn a_hundred_thousand_on_xfs() { a_hundred_thousand(Kind::Xfs); }
    fn a_hundred_thousand_on_btrfs() { a_hundred_thousand(Kind::Btrfs); }
    fn a_hundred_thousand_on_tmpfs() { a_hundred_thousand(Kind::Tmpfs); }

    fn while_it_changes_on_ext4() { while_it_changes(Kind::Ext4); }
    fn while_it_changes_on_xfs() { while_it_changes(Kind::Xfs); }
    fn while_it_changes_on_btrfs() { while_it_changes(Kind::Btrfs); }
    fn while_it_changes_on_tmpfs() { while_it_changes(Kind::Tmpfs); }

    fn by_few_and_many_on_every_kind() {
        for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Tmpfs] {
            by_few_and_many(kind);
        }
    }

    fn removed_while_listed_on_every_kind() {
        for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Tmpfs] {
            removed_while_listed(kind);
        }
    }

    /// A file system whose listings don't tell types: those of MNT do, or tell the truth that they don't.
    fn types_that_the_source_does_not_list_are_not_made_up() {
        let env = TestEnv::new();
        let image = env.root().join("image");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        sys("mkfs.ext4", &["-q", "-O", "^filetype"], &image);
        let image = image.to_str().unwrap().to_owned();
        sys("mount", &["-o", "loop", &image], &env.src());
        let directory = env.src().join("d");
        fs::create_dir(&directory).unwrap();
        (0..8).for_each(|number| make(&directory, number));
        let listed = entries(&File::open(&directory).unwrap());
        assert!(listed.iter().all(|(_, _, kind)| *kind == FileType::Unknown));
        let mount = Mount::start_in(env, &["-o", "readdirplus=never"]);
        let listed = entries(&File::open(mount.path("d")).unwrap());
        assert_eq!(listed.len(), 10);
        for (name, _, kind) in listed {
            let path = directory.join(&name);
            let real = rustix::fs::statx(
                CWD,
                &path,
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                rustix::fs::StatxFlags::TYPE,
            );
            let real = FileType::from_raw_mode(real.unwrap().stx_mode.into());
            assert!(kind == real || kind == FileType::Unknown, "{name:?}: {kind:?}, a {real:?}");
        }
        finish(mount);
    }
}
