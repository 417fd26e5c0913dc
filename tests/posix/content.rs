//! What is in a file: reading, writing, truncating, holes, mappings, direct I/O, copying.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::thread;

use rustix::fs::{
    FallocateFlags, OFlags, SeekFrom as Whence, copy_file_range, fallocate, fsync, seek,
};

use super::raw::Mapping;
use crate::common::sh;
use crate::common::tree::{checksum, pattern, read_all};
use crate::errno;

pub(crate) fn read_write(path: &std::path::Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

/// Blocks in use, in units of 4 KiB, less what ext4 may need for the map of a large file.
fn used(path: &std::path::Path) -> u64 {
    fs::metadata(path).unwrap().blocks() / 8
}

cases! {
    /// Writes at any offset read back, in pieces of any size.
    fn reads_give_what_was_written(t) {
        let file = read_write(&t.path("f"));
        let data = pattern(1, 300_000);
        let mut at = 0;
        for size in [1, 4095, 4096, 4097, 65_536, 131_072, 1, 90_201] {
            let piece = &data[at..(at + size).min(data.len())];
            file.write_all_at(piece, at as u64).unwrap();
            at += piece.len();
        }
        let back = read_all(&file).unwrap();
        t.see("content", (back.len(), checksum(&back)));
        assert!(back == data[..at]);
        let mut tail = [0; 10];
        t.try_see("at the end", file.read_at(&mut tail, at as u64));
        t.try_see("across the end", file.read_at(&mut tail, at as u64 - 3));
        t.try_see("beyond", file.read_at(&mut tail, 1 << 40));
    }

    /// Two writers that append never overwrite each other.
    fn appends_of_two_writers_are_all_there(t) {
        let path = t.path("f");
        File::create(&path).unwrap();
        thread::scope(|scope| {
            for letter in ["a", "b"] {
                let path = &path;
                scope.spawn(move || {
                    let mut file = OpenOptions::new().append(true).open(path).unwrap();
                    for number in 0..200 {
                        file.write_all(format!("{letter}{number:03}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!((lines.len(), lines[0], lines[399]), (400, "a000", "b199"));
        t.see("lines", lines);
    }

    /// O_APPEND writes at the end wherever the file position is; pwrite does so too on Linux.
    fn append_ignores_the_position(t) {
        let path = t.file("f", "0123456789");
        let mut file = OpenOptions::new().append(true).read(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(2)).unwrap();
        file.write_all(b"A").unwrap();
        t.try_see("pwrite", file.write_at(b"B", 0));
        t.try_see("content", fs::read_to_string(&path));
    }

    /// truncate and ftruncate, shorter, longer, to nothing, and what they refuse.
    fn truncate_in_all_directions(t) {
        let path = t.file("f", pattern(2, 10_000));
        for size in [5_000, 5_001, 20_000, 4_096, 0, 1 << 33, 3] {
            File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
            let meta = fs::metadata(&path).unwrap();
            t.see("size", meta.len());
            if size < 1 << 20 {
                t.see("content", checksum(&fs::read(&path).unwrap()));
            }
        }
        let read_only = File::open(&path).unwrap();
        assert_eq!(errno(read_only.set_len(1)), libc::EINVAL);
        let folder = File::open(t.directory("d")).unwrap();
        t.try_see("a directory", folder.set_len(1));
    }

    /// Bytes cut off by a truncation don't come back when the file grows again.
    fn truncated_bytes_are_zero_afterwards(t) {
        let path = t.file("f", pattern(3, 8_192));
        let file = read_write(&path);
        file.set_len(100).unwrap();
        file.set_len(8_192).unwrap();
        let back = fs::read(&path).unwrap();
        assert!(back[100..].iter().all(|byte| *byte == 0));
        t.see("content", checksum(&back));
    }

    /// O_TRUNC, O_EXCL and O_CREAT in the combinations that differ.
    fn open_flags(t) {
        let path = t.file("f", "content");
        let open = |flags: i32| OpenOptions::new().write(true).custom_flags(flags).open(&path);
        t.try_see("O_CREAT|O_EXCL on a file", open(libc::O_CREAT | libc::O_EXCL).map(|_| ()));
        t.try_see("O_CREAT", open(libc::O_CREAT).map(|_| ()));
        t.try_see("kept", fs::read_to_string(&path));
        t.try_see("O_TRUNC", open(libc::O_TRUNC).map(|_| ()));
        t.try_see("emptied", fs::read_to_string(&path));
        t.try_see("O_DIRECTORY on a file", open(libc::O_DIRECTORY).map(|_| ()));
        t.try_see("absent", OpenOptions::new().write(true).open(t.path("absent")).map(|_| ()));
        t.try_see("a directory for writing", OpenOptions::new().write(true).open(t.top()).map(|_| ()));
        t.try_see("O_SYNC", open(libc::O_SYNC).and_then(|mut f| f.write_all(b"s")));
        t.try_see("O_DSYNC", open(libc::O_DSYNC).and_then(|mut f| f.write_all(b"t")));
        let read_only = File::open(&path).unwrap();
        t.try_see("write on a read-only descriptor", (&read_only).write(b"x"));
    }

    /// A file that has no name any more works as long as it is open.
    fn unlinked_files_live_until_closed(t) {
        let path = t.path("f");
        let file = read_write(&path);
        file.write_all_at(b"before", 0).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all_at(b" and after", 6).unwrap();
        t.try_see("content", read_all(&file).map(String::from_utf8));
        t.try_see("truncate", file.set_len(6));
        t.try_see("attributes", file.metadata().map(|meta| (meta.len(), meta.nlink(), meta.mode())));
        t.try_see("chmod", file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)));
        t.try_see("mode", file.metadata().map(|meta| meta.mode()));
        t.try_see("fsync", file.sync_all());
        t.try_see("the name", fs::metadata(&path).map(|_| ()));
        let namesake = t.file("f", "another");
        t.try_see("still the old one", read_all(&file).map(String::from_utf8));
        t.try_see("the new one", fs::read_to_string(namesake));
    }

    /// A file that another one was renamed over works as long as it is open.
    fn renamed_over_files_live_until_closed(t) {
        let old = t.file("old", "old");
        let new = t.file("new", "new");
        let file = OpenOptions::new().read(true).write(true).open(&old).unwrap();
        fs::rename(&new, &old).unwrap();
        file.write_all_at(b"OLD", 0).unwrap();
        t.try_see("open", read_all(&file).map(String::from_utf8));
        t.try_see("links", file.metadata().map(|meta| meta.nlink()));
        t.try_see("by name", fs::read_to_string(&old));
    }

    /// Holes: sizes and blocks of a sparse file, SEEK_DATA and SEEK_HOLE over it.
    fn holes_stay_holes(t) {
        let path = t.path("f");
        let file = read_write(&path);
        file.write_all_at(&pattern(4, 4_096), 1 << 20).unwrap();
        file.set_len(3 << 20).unwrap();
        file.sync_all().unwrap();
        let meta = fs::metadata(&path).unwrap();
        t.see("blocks", (meta.len(), meta.blocks(), meta.blksize()));
        assert!(meta.blocks() < 64, "a hole takes no space");
        for offset in [0, 4_096, 1 << 20, (1 << 20) + 100, 2 << 20, (3 << 20) - 1, 3 << 20, 4 << 20] {
            t.try_see("data", seek(&file, Whence::Data(offset)));
            t.try_see("hole", seek(&file, Whence::Hole(offset)));
        }
    }

    /// fallocate in every mode that the file system below has.
    fn fallocate_modes(t) {
        let path = t.path("f");
        let file = read_write(&path);
        let data = pattern(5, 64 << 10);
        let modes = [
            ("extend", FallocateFlags::empty(), 0, 128 << 10),
            ("keep size", FallocateFlags::KEEP_SIZE, 128 << 10, 64 << 10),
            ("punch", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 8 << 10, 16 << 10),
            ("punch unaligned", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 100, 5_000),
            ("punch alone", FallocateFlags::PUNCH_HOLE, 0, 4_096),
            ("zero", FallocateFlags::ZERO_RANGE, 30 << 10, 10_000),
            ("zero, keep size", FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 60 << 10, 90 << 10),
            ("nothing", FallocateFlags::empty(), 0, 0),
        ];
        for (name, flags, offset, length) in modes {
            file.set_len(0).unwrap();
            file.write_all_at(&data, 0).unwrap();
            t.try_see(name, fallocate(&file, flags, offset, length));
            file.sync_all().unwrap();
            t.see("size and blocks", (file.metadata().unwrap().len(), used(&path)));
            t.see("content", checksum(&fs::read(&path).unwrap()));
        }
        let read_only = File::open(&path).unwrap();
        t.try_see("read-only", fallocate(&read_only, FallocateFlags::empty(), 0, 10));
    }

    /// copy_file_range within the tree, at offsets, over the end, and into itself.
    fn copy_file_range_copies(t) {
        let source = File::open(t.file("a", pattern(7, 100_000))).unwrap();
        let path = t.path("b");
        let target = read_write(&path);
        let mut copy = |what: &str, mut from: u64, mut to: u64, length| {
            let result = copy_file_range(&source, Some(&mut from), &target, Some(&mut to), length);
            t.try_see(what, result.map(|count| (count, from, to)));
            t.see("content", checksum(&fs::read(&path).unwrap()));
        };
        copy("all", 0, 0, 100_000);
        copy("at offsets", 5_000, 200, 10_000);
        copy("over the end", 90_000, 150_000, 50_000);
        copy("beyond the end", 200_000, 0, 10);
        let same = read_write(&path);
        t.try_see("overlapping", copy_file_range(&same, Some(&mut 0), &same, Some(&mut 10), 100));
        t.try_see("not overlapping", copy_file_range(&same, Some(&mut 0), &same, Some(&mut 50_000), 100));
        t.see("at last", checksum(&fs::read(&path).unwrap()));
    }

    /// A shared mapping writes the file, and sees what write(2) writes.
    fn shared_mappings_are_the_file(t) {
        let path = t.file("f", pattern(8, 12_288));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut map = Mapping::new(&file, 12_288, true).unwrap();
        map.bytes()[4_000..4_010].copy_from_slice(b"0123456789");
        map.sync().unwrap();
        let back = fs::read(&path).unwrap();
        assert_eq!(&back[4_000..4_010], b"0123456789");
        t.see("through the file", checksum(&back));
        file.write_all_at(b"written", 8_000).unwrap();
        assert_eq!(&map.bytes()[8_000..8_007], b"written");
        t.see("through the mapping", checksum(map.bytes()));
        drop(map);
        t.see("at last", checksum(&fs::read(&path).unwrap()));
    }

    /// A private mapping never writes the file.
    fn private_mappings_are_private(t) {
        let path = t.file("f", pattern(9, 4_096));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut map = Mapping::new(&file, 4_096, false).unwrap();
        map.bytes()[..7].copy_from_slice(b"private");
        t.see("mapping", checksum(map.bytes()));
        let back = fs::read(&path).unwrap();
        assert!(back == pattern(9, 4_096));
        t.see("file", checksum(&back));
    }

    /// A mapping of an unlinked file that is closed already stays usable.
    fn mappings_outlive_name_and_descriptor(t) {
        let path = t.file("f", pattern(10, 4_096));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut map = Mapping::new(&file, 4_096, true).unwrap();
        drop(file);
        fs::remove_file(&path).unwrap();
        map.bytes()[0] = 1;
        t.try_see("sync", map.sync());
        t.see("content", checksum(map.bytes()));
    }

    /// O_DIRECT reads and writes, aligned ones, beside cached ones of the same file.
    fn direct_io(t) {
        let path = t.file("f", pattern(11, 16_384));
        let mut direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        // Aligned memory without unsafe code: the aligned part of a buffer that is larger.
        let mut buffer = vec![0_u8; 8_192 + 4_096];
        let start = buffer.as_ptr().align_offset(4_096);
        let block = &mut buffer[start..start + 8_192];
        direct.read_exact(block).unwrap();
        assert!(block == &pattern(11, 16_384)[..8_192]);
        t.see("read", checksum(block));
        block.fill(b'd');
        direct.write_all(block).unwrap();
        drop(direct);
        t.see("file", checksum(&fs::read(&path).unwrap()));
        fs::write(&path, pattern(12, 8_192)).unwrap();
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        t.try_see("after a cached write", direct.read_at(block, 0));
        t.see("content", checksum(block));
    }

    /// fcntl(2) gives O_APPEND and O_DIRECT to an open file and takes them away: each write goes by what holds then.
    fn flags_of_an_open_file_change(t) {
        let path = t.file("f", pattern(11, 8_192));
        let mut buffer = vec![0_u8; 4_096 + 4_096];
        for (given, taken) in [(0, libc::O_APPEND), (0, libc::O_DIRECT), (libc::O_APPEND, 0), (libc::O_DIRECT, 0)] {
            let file = OpenOptions::new().read(true).write(true).custom_flags(given).open(&path).unwrap();
            let start = buffer.as_ptr().align_offset(4_096);
            let block = &mut buffer[start..start + 4_096];
            for flags in [given, taken, given] {
                rustix::fs::fcntl_setfl(&file, OFlags::from_bits_retain(flags.cast_unsigned())).unwrap();
                t.try_see("whole", file.write_at(block, 4_096));
                if flags & libc::O_DIRECT == 0 {
                    t.try_see("part", file.write_at(b"part", 10));
                }
                t.try_see("read", file.read_at(block, 0));
                t.see(&format!("{given:o}, now {flags:o}"), (checksum(block), file.metadata().unwrap().len()));
            }
            let mut map = Mapping::new(&file, 4_096, true).unwrap();
            map.bytes()[7] ^= 1;
            map.sync().unwrap();
            t.see("mapped", checksum(&fs::read(&path).unwrap()));
        }
        let source = t.file("source", pattern(12, 10_000));
        let command = format!("dd if={} of=copy bs=4096 oflag=direct status=none; cmp copy {0}", source.display());
        sh(t.top(), &command);
    }

    /// fsync and fdatasync on files and directories, on read-only descriptors too.
    fn fsync_works_on_everything(t) {
        let path = t.file("f", "x");
        let folder = t.directory("d");
        for place in [&path, &folder] {
            let file = File::open(place).unwrap();
            t.try_see("fsync", fsync(&file));
            t.try_see("fdatasync", file.sync_data());
            t.try_see("syncfs", rustix::fs::syncfs(&file));
        }
    }

    /// A write beyond what a file may be, and beyond RLIMIT_FSIZE's neighbour, the largest offset.
    fn too_large_offsets_are_refused(t) {
        let file = read_write(&t.path("f"));
        let largest = i64::MAX as u64;
        t.try_see("write", file.write_at(b"x", largest));
        t.try_see("truncate", rustix::fs::ftruncate(&file, largest));
        t.try_see("fallocate", fallocate(&file, FallocateFlags::empty(), 1 << 62, 1 << 61));
        t.try_see("size", file.metadata().map(|meta| meta.len()));
    }

    /// Many files open at once, each with its own content.
    fn many_open_files(t) {
        let files: Vec<_> = (0..400).map(|number| {
            let file = read_write(&t.path(format!("{number}")));
            file.write_all_at(format!("file {number}").as_bytes(), 0).unwrap();
            file
        }).collect();
        let all: Vec<_> = files.iter().map(|file| String::from_utf8(read_all(file).unwrap()).unwrap()).collect();
        assert_eq!(all[399], "file 399");
        t.see("contents", all);
    }
}
