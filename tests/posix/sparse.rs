//! Holes: where data and holes are said to be, what fallocate(2) makes of them in each mode, and what it
//! refuses.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use rustix::fs::{
    FallocateFlags, IFlags, SeekFrom, fallocate, ioctl_getflags, ioctl_setflags, seek,
};

use super::content::read_write;
use super::raw::{Mapping, lseek};
use super::special::on_mount;
use crate::common::process::eventually;
use crate::common::tree::{checksum, pattern};
use crate::common::user::NOBODY;
use crate::common::{LIMIT, Mount, as_user, run, sh};
use crate::{Tree, errno};

const K: u64 = 1 << 10;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;
const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;

/// FALLOC_FL_WRITE_ZEROES and FALLOC_FL_NO_HIDE_STALE, of linux/falloc.h, and one that there is not.
const WRITE_ZEROES: FallocateFlags = FallocateFlags::from_bits_retain(0x80);
const NO_HIDE_STALE: FallocateFlags = FallocateFlags::from_bits_retain(0x04);
const UNKNOWN: FallocateFlags = FallocateFlags::from_bits_retain(0x100);

/// Where data begins and ends, from the start of the file to its end, as cp(1) and tar(1) walk it.
fn extents(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(data) = seek(file, SeekFrom::Data(at)) {
        let hole = seek(file, SeekFrom::Hole(data)).unwrap();
        assert!(hole > data, "a walk that gets on");
        found.push((data, hole));
        at = hole;
    }
    assert_eq!(errno(seek(file, SeekFrom::Data(at))), libc::ENXIO);
    found
}

fn see(t: &mut Tree, what: &str, file: &File) {
    t.see(what, extents(file));
    file.sync_all().unwrap();
    let meta = file.metadata().unwrap();
    t.see("after fsync", (extents(file), meta.len(), meta.blocks()));
    let mut content = vec![0; usize::try_from(meta.len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    t.see("content", checksum(&content));
}

cases! {
    /// A walk over data and holes, however they came to be.
    fn walks_over_data_and_holes(t) {
        let file = read_write(&t.path("f"));
        see(t, "empty", &file);
        file.set_len(1024 * K).unwrap();
        see(t, "one hole", &file);
        for at in [16, 100, 104, 500, 900] {
            file.write_all_at(&pattern(1, 5_000), at * K).unwrap();
        }
        see(t, "islands", &file);
        fallocate(&file, FallocateFlags::empty(), 200 * K, 100 * K).unwrap();
        see(t, "allocated, not written", &file);
        file.write_all_at(b"x", 250 * K).unwrap();
        see(t, "a byte in what was allocated", &file);
        fallocate(&file, PUNCH, 17 * K, 90 * K).unwrap();
        see(t, "punched", &file);
        fallocate(&file, ZERO, 496 * K, 64 * K).unwrap();
        see(t, "zeroed", &file);
        file.set_len(902 * K).unwrap();
        see(t, "cut", &file);
        file.set_len(2048 * K).unwrap();
        see(t, "longer", &file);
        fallocate(&file, KEEP, 4096 * K, 64 * K).unwrap();
        see(t, "allocated beyond the end", &file);
        let mut map = Mapping::at(&file, 700 * K, 8_192, true).unwrap();
        map.bytes()[100] = 1;
        map.sync().unwrap();
        see(t, "written through a mapping", &file);
    }

    /// lseek(2) in all its forms, at the edges of a file with one island.
    fn every_form_of_lseek(t) {
        let file = read_write(&t.path("f"));
        file.write_all_at(&[1; 4_096], 64 * K).unwrap();
        file.set_len(128 * K).unwrap();
        for offset in [0, 1, 64 * K - 1, 64 * K, 68 * K - 1, 68 * K, 128 * K - 1, 128 * K, 128 * K + 1, 1 << 42, i64::MAX as u64] {
            t.try_see("data", seek(&file, SeekFrom::Data(offset)));
            t.try_see("hole", seek(&file, SeekFrom::Hole(offset)));
        }
        for offset in [-1, i64::MIN] {
            t.try_see("data before the start", lseek(&file, offset, libc::SEEK_DATA));
            t.try_see("hole before the start", lseek(&file, offset, libc::SEEK_HOLE));
        }
        t.try_see("set", seek(&file, SeekFrom::Start(7)));
        t.try_see("end", seek(&file, SeekFrom::End(-10)));
        t.try_see("current", seek(&file, SeekFrom::Current(5)));
        t.try_see("before the start", seek(&file, SeekFrom::End(-200_000)));
        t.try_see("current is unchanged", seek(&file, SeekFrom::Current(0)));
        t.try_see("beyond the end", seek(&file, SeekFrom::End(1 << 20)));
        t.try_see("sum too large", seek(&file, SeekFrom::Current(i64::MAX)));
        let folder = File::open(t.directory("d")).unwrap();
        t.try_see("data of a directory", seek(&folder, SeekFrom::Data(0)).map(drop));
        t.try_see("start of a directory", seek(&folder, SeekFrom::Start(0)));
    }

    /// Every mode at every kind of place: result, extents, size, blocks and content.
    fn every_mode_of_fallocate(t) {
        let data = pattern(2, 64 << 10);
        for (name, mode) in [("default", FallocateFlags::empty()), ("keep size", KEEP), ("punch", PUNCH), ("zero", ZERO), ("zero, keep size", ZERO | KEEP)] {
            for (offset, length) in [
                (0, 4 * K), (4 * K, 8 * K), (5_000, 3_000), (4_095, 2), (60 * K, 8 * K), (60 * K + 1, 10_000), (64 * K, 4 * K), (100 * K, 12 * K), (0, 200 * K),
            ] {
                let file = read_write(&t.file("f", &data));
                // Where nothing is on its way to the disk, data is exactly what is allocated and written.
                file.sync_all().unwrap();
                let what = format!("{name} {offset} {length}");
                t.try_see(&what, fallocate(&file, mode, offset, length));
                see(t, &what, &file);
            }
        }
    }

    /// Modes, ranges and files that are refused, each with its error.
    fn what_fallocate_refuses(t) {
        let path = t.file("f", pattern(3, 64 << 10));
        let file = read_write(&path);
        let modes = [
            FallocateFlags::empty(), KEEP, FallocateFlags::PUNCH_HOLE, PUNCH, ZERO, PUNCH | ZERO,
            NO_HIDE_STALE, NO_HIDE_STALE | KEEP, UNKNOWN,
        ];
        let largest = i64::MAX as u64;
        for mode in modes {
            for (offset, length) in [(0, 0), (largest, 1), (largest, largest), (1 << 62, 1 << 40), (u64::MAX, 1), (0, u64::MAX)] {
                t.try_see(&format!("{mode:?} {offset} {length}"), fallocate(&file, mode, offset, length));
            }
        }
        for mode in [PUNCH | ZERO, NO_HIDE_STALE, UNKNOWN] {
            t.try_see(&format!("{mode:?}"), fallocate(&file, mode, 0, 4_096));
        }
        t.try_see("read-only", fallocate(File::open(&path).unwrap(), FallocateFlags::empty(), 0, 1));
        let appending = OpenOptions::new().append(true).open(&path).unwrap();
        t.try_see("appending", fallocate(&appending, FallocateFlags::empty(), 60 << 10, 8 << 10));
        t.try_see("appending, punch", fallocate(&appending, PUNCH, 0, 4_096));
        t.try_see("directory", fallocate(File::open(t.directory("d")).unwrap(), FallocateFlags::empty(), 0, 1));
        sh(t.top(), "mkfifo p");
        let fifo = OpenOptions::new().read(true).write(true).open(t.path("p")).unwrap();
        t.try_see("FIFO", fallocate(&fifo, FallocateFlags::empty(), 0, 1));
        t.see("content", checksum(&fs::read(&path).unwrap()));
    }

    /// Collapsing, inserting, unsharing and writing zeroes: the kernel's FUSE client refuses all four
    /// before any daemon is asked (fuse_file_fallocate), so this asserts the limit (SEMANTICS.md).
    fn modes_that_fuse_has_not(t) {
        let file = read_write(&t.path("f"));
        file.write_all_at(&pattern(6, 64 << 10), 0).unwrap();
        let modes = [
            (FallocateFlags::COLLAPSE_RANGE, true),
            (FallocateFlags::INSERT_RANGE, true),
            (FallocateFlags::UNSHARE_RANGE, false),
            (WRITE_ZEROES, false),
        ];
        for (mode, works_on_ext4) in modes {
            let result = fallocate(&file, mode, 4_096, 4_096);
            if on_mount(t) || !works_on_ext4 {
                assert_eq!(errno(result), libc::EOPNOTSUPP, "{mode:?}");
            } else {
                result.unwrap();
            }
            // What is wrong anyway is refused as such.
            t.try_see("with keep size", fallocate(&file, mode | KEEP, 4_096, 4_096));
            t.try_see("nothing", fallocate(&file, mode, 4_096, 0));
            t.try_see("too much", fallocate(&file, mode, i64::MAX as u64, 4_096));
            t.try_see("two at once", fallocate(&file, mode | FallocateFlags::PUNCH_HOLE, 4_096, 4_096));
        }
    }

    /// Append-only, immutable and swapped-in files, by root and by their owner.
    fn fallocate_of_files_with_flags(t) {
        for flag in [IFlags::APPEND, IFlags::IMMUTABLE] {
            let path = t.file("f", pattern(4, 16 << 10));
            std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
            let file = read_write(&path);
            let handle = File::open(&path).unwrap();
            let before = ioctl_getflags(&handle).unwrap();
            ioctl_setflags(&handle, before | flag).unwrap();
            for (name, mode) in [("default", FallocateFlags::empty()), ("keep size", KEEP), ("punch", PUNCH), ("zero", ZERO)] {
                t.try_see(&format!("{name} {flag:?}"), fallocate(&file, mode, 4_096, 32 << 10));
                let file = file.as_fd();
                t.try_see("by the owner", as_user(NOBODY, NOBODY, &[], || fallocate(file, mode, 4_096, 40 << 10)));
            }
            t.try_see("truncate", file.set_len(1));
            t.try_see("write", file.write_at(b"x", 0));
            ioctl_setflags(&handle, before).unwrap();
            t.see("content", checksum(&fs::read(&path).unwrap()));
            fs::remove_file(&path).unwrap();
        }
    }

    /// cp(1) and tar(1) keep holes.
    fn programs_keep_holes(t) {
        sh(t.top(), "truncate -s 4M f; for at in 0 100 511 1000; do printf data | dd of=f bs=4k seek=$at conv=notrunc status=none; done
            sync f; cp --sparse=auto f copy; tar -cSf f.tar f; mkdir x; tar -xSf f.tar -C x; cmp f copy; cmp f x/f; sync copy x/f");
        t.see("du", sh(t.top(), "stat -c '%n %s %b' f copy x/f f.tar"));
    }
}

/// A file that was emptied and written anew goes to the disk when it is closed, so that a crash of the
/// machine does not leave it empty (`auto_da_alloc` in ext4(5)).
#[test]
fn a_file_written_anew_is_written_out_when_it_is_closed() {
    let mount = Mount::start(&[]);
    let waits = |name: &str| {
        let mut filefrag = Command::new("filefrag");
        let extents = run(filefrag.arg("-v").arg(mount.source(name)), LIMIT).success();
        extents.contains("delalloc")
    };
    fs::write(mount.path("f"), "old").unwrap();
    assert!(
        waits("f"),
        "a new file has time: only then does this show anything"
    );
    fs::write(mount.path("f"), "new").unwrap();
    eventually("it is written out", LIMIT, || !waits("f"));
    mount.finish();
}
