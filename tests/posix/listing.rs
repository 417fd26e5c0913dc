//! Reading directories: complete, with cookies that hold while the directory changes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};

use rustix::fs::{CWD, FileType, Mode, RawDir, SeekFrom, mknodat, seek};

use crate::Tree;

/// One entry as getdents64 gives it: name, cookie of the next one, type.
type Entry = (OsString, u64, FileType);

/// At most `most` entries from the directory's position on; a call that returns nothing ends it.
fn entries(directory: &File, most: usize) -> Vec<Entry> {
    let mut buffer = [MaybeUninit::uninit(); 4_096];
    let mut raw = RawDir::new(directory, &mut buffer);
    let mut found = Vec::new();
    while found.len() < most {
        let Some(entry) = raw.next() else { break };
        let entry = entry.unwrap();
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        found.push((name, entry.next_entry_cookie(), entry.file_type()));
    }
    found
}

fn names(entries: &[Entry]) -> BTreeSet<OsString> {
    entries.iter().map(|entry| entry.0.clone()).collect()
}

fn fill(t: &Tree, count: usize) {
    for number in 0..count {
        File::create(t.path(format!("entry-{number:05}"))).unwrap();
    }
}

cases! {
    /// 5,000 entries, each once, with `.` and `..`.
    fn five_thousand_entries(t) {
        fill(t, 5_000);
        let all = entries(&File::open(t.top()).unwrap(), usize::MAX);
        assert_eq!((all.len(), names(&all).len()), (5_002, 5_002));
        t.see("names", names(&all));
    }

    /// Each cookie leads back to the entry that came after it.
    fn cookies_lead_back(t) {
        fill(t, 1_000);
        let directory = File::open(t.top()).unwrap();
        let all = entries(&directory, usize::MAX);
        for index in [0, 1, 2, 17, 500, 999, 1_000, 1_001] {
            seek(&directory, SeekFrom::Start(all[index].1)).unwrap();
            let next = entries(&directory, 1);
            assert_eq!(next.first().map(|e| &e.0), all.get(index + 1).map(|e| &e.0), "after entry {index}");
        }
        seek(&directory, SeekFrom::Start(0)).unwrap();
        assert_eq!(names(&entries(&directory, usize::MAX)), names(&all));
    }

    /// Removing what was listed, while listing, skips nothing: what `rm -r` does.
    fn removal_while_listing(t) {
        fill(t, 3_000);
        let directory = File::open(t.top()).unwrap();
        let mut removed = 0;
        loop {
            let some = entries(&directory, 50);
            if some.is_empty() {
                break;
            }
            for (name, ..) in some.iter().filter(|entry| entry.0 != "." && entry.0 != "..") {
                fs::remove_file(t.path(name)).unwrap();
                removed += 1;
            }
            seek(&directory, SeekFrom::Start(some.last().unwrap().1)).unwrap();
        }
        assert_eq!(removed, 3_000);
        t.see("left", fs::read_dir(t.top()).unwrap().count());
    }

    /// A listing that began before a file was made shows all that was there, each name at most once.
    fn creation_while_listing(t) {
        fill(t, 500);
        let directory = File::open(t.top()).unwrap();
        let first = entries(&directory, 100);
        seek(&directory, SeekFrom::Start(first.last().unwrap().1)).unwrap();
        for number in 0..500 {
            File::create(t.path(format!("new-{number}"))).unwrap();
        }
        let rest = entries(&directory, usize::MAX);
        let mut old: Vec<_> = first.iter().chain(&rest).map(|entry| entry.0.clone()).collect();
        old.retain(|name| name.to_string_lossy().starts_with("entry-"));
        assert_eq!(old.len(), 500, "an old entry is missing or doubled");
        t.see("old entries", names(&first).union(&names(&rest)).filter(|n| n.to_string_lossy().starts_with("entry-")).count());
        seek(&directory, SeekFrom::Start(0)).unwrap();
        assert_eq!(entries(&directory, usize::MAX).len(), 1_002, "a rewound directory shows the new ones");
    }

    /// Types and inode numbers of a listing are those of stat.
    fn types_and_numbers_agree_with_stat(t) {
        t.file("file", "x");
        t.directory("directory");
        symlink("x", t.path("symlink")).unwrap();
        mknodat(CWD, t.path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        mknodat(CWD, t.path("device"), FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
        std::os::unix::net::UnixListener::bind(t.path("socket")).unwrap();
        let mut kinds = Vec::new();
        for entry in fs::read_dir(t.top()).unwrap() {
            let entry = entry.unwrap();
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(entry.ino(), meta.ino(), "{:?}", entry.file_name());
            assert_eq!(entry.file_type().unwrap(), meta.file_type(), "{:?}", entry.file_name());
            kinds.push((entry.file_name(), meta.mode()));
        }
        kinds.sort();
        t.see("kinds", kinds);
    }

    /// A listing by many readers at once.
    fn parallel_listings(t) {
        fill(t, 2_000);
        let counts: Vec<_> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| fs::read_dir(t.top()).unwrap().count())).collect();
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        t.see("counts", counts);
    }

    /// Two names of one descriptor share its position.
    fn a_duplicate_shares_the_position(t) {
        fill(t, 300);
        let directory = File::open(t.top()).unwrap();
        let duplicate = directory.try_clone().unwrap();
        let first = entries(&directory, 1);
        seek(&directory, SeekFrom::Start(first[0].1)).unwrap();
        let rest = entries(&duplicate, usize::MAX);
        assert_eq!(first.len() + rest.len(), 302);
    }
}
