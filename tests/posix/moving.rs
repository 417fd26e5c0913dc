//! The other ways to move bytes: preadv2(2) with its flags, vectors, splice(2), sendfile(2), vmsplice(2),
//! copy_file_range(2), and what is only advice.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;

use rustix::fs::{
    Advice, OFlags, copy_file_range, fadvise, fcntl_getfl, fcntl_setfl, ioctl_ficlone,
    ioctl_getflags, sendfile,
};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use rustix::pipe::{SpliceFlags, pipe, splice, tee};

use super::content::read_write;
use super::raw::{aligned, give, readahead, sync_file_range};
use super::special::on_mount;
use crate::common::sh;
use crate::common::tree::{checksum, pattern, read_all};
use crate::{Tree, errno};

const MAX: usize = 0x7fff_f000;

const fn flag(bits: u32) -> ReadWriteFlags {
    ReadWriteFlags::from_bits_retain(bits)
}

const HIPRI: ReadWriteFlags = ReadWriteFlags::HIPRI;
const NOWAIT: ReadWriteFlags = ReadWriteFlags::NOWAIT;
const APPEND: ReadWriteFlags = ReadWriteFlags::APPEND;
const NOAPPEND: ReadWriteFlags = flag(0x20);
const ATOMIC: ReadWriteFlags = flag(0x40);
const DONTCACHE: ReadWriteFlags = flag(0x80);
const UNKNOWN: ReadWriteFlags = flag(0x4000_0000);

fn see_file(t: &mut Tree, what: &str, file: &File) {
    let back = read_all(file).unwrap();
    t.see(
        what,
        (back.len(), checksum(&back), file.metadata().unwrap().len()),
    );
}

cases! {
    /// pwritev2(2) and preadv2(2) with each flag that does not depend on what the disk can do.
    fn flags_of_a_single_write(t) {
        for (opened, options) in [("plainly", 0), ("to append", libc::O_APPEND), ("O_DSYNC", libc::O_DSYNC)] {
            let path = t.file("f", "0123456789");
            let file = OpenOptions::new().read(true).write(true).custom_flags(options).open(&path).unwrap();
            for flags in [
                ReadWriteFlags::empty(), HIPRI, ReadWriteFlags::DSYNC, ReadWriteFlags::SYNC, APPEND, APPEND | ReadWriteFlags::DSYNC,
                UNKNOWN,
            ] {
                let what = format!("{opened}, {flags:?}");
                t.try_see(&what, pwritev2(&file, &[IoSlice::new(b"ab"), IoSlice::new(b"cd")], 3, flags));
                see_file(t, &what, &file);
                let mut buffer = [0; 6];
                t.try_see(&what, preadv2(&file, &mut [IoSliceMut::new(&mut buffer)], 2, flags));
                t.see("read", buffer);
                t.try_see("at the current position", pwritev2(&file, &[IoSlice::new(b"!")], u64::MAX, flags));
                t.try_see("position", rustix::fs::tell(&file));
            }
            t.try_see("both", pwritev2(&file, &[IoSlice::new(b"x")], 0, APPEND | NOAPPEND));
        }
    }

    /// Flags that are changed by fcntl(2) count from the next write on.
    fn flags_changed_later(t) {
        let path = t.file("f", "0123456789");
        let file = read_write(&path);
        let mut write = |what: &str, flags: OFlags| {
            t.try_see(what, fcntl_setfl(&file, flags));
            t.see(what, fcntl_getfl(&file).unwrap());
            t.try_see("write", file.write_at(b"ab", 1));
            see_file(t, what, &file);
        };
        write("append", OFlags::APPEND);
        write("no more", OFlags::empty());
        write("append, not waiting", OFlags::APPEND | OFlags::NONBLOCK);
        write("no more", OFlags::empty());
        t.try_see("O_DIRECT", fcntl_setfl(&file, OFlags::DIRECT));
        let mut buffer = vec![b'd'; 2 * 4_096];
        t.try_see("write", file.write_at(aligned(&mut buffer, 4_096), 4_096));
        t.try_see("cached again", fcntl_setfl(&file, OFlags::empty()));
        see_file(t, "at last", &file);
    }

    /// The flags that FUSE has not: without waiting (RWF_NOWAIT), without caching (RWF_DONTCACHE), all or
    /// nothing (RWF_ATOMIC), and not appending where the file was opened to append (RWF_NOAPPEND)
    /// (SEMANTICS.md).
    fn flags_that_fuse_has_not(t) {
        let path = t.file("f", "0123456789");
        let file = read_write(&path);
        let mut buffer = [0; 4];
        for flags in [NOWAIT, DONTCACHE] {
            let read = preadv2(&file, &mut [IoSliceMut::new(&mut buffer)], 2, flags);
            let written = pwritev2(&file, &[IoSlice::new(b"ab")], 3, flags);
            if on_mount(t) {
                assert_eq!((read, written), (Err(Errno::OPNOTSUPP), Err(Errno::OPNOTSUPP)), "{flags:?}");
            } else {
                // EOPNOTSUPP here, too, on kernels before 6.14.
                assert!(matches!(read, Ok(4) | Err(Errno::AGAIN | Errno::OPNOTSUPP)), "{read:?}");
            }
        }
        let whole = pwritev2(&file, &[IoSlice::new(b"ab")], 3, ATOMIC);
        assert!(matches!(whole, Err(Errno::OPNOTSUPP | Errno::INVAL)), "{whole:?}");
        let appending = OpenOptions::new().append(true).open(&path).unwrap();
        let size = fs::metadata(&path).unwrap().len();
        let written = pwritev2(&appending, &[IoSlice::new(b"xy")], 0, NOAPPEND);
        t.try_see("not appending", written);
        let longer = fs::metadata(&path).unwrap().len() > size;
        assert_eq!(longer, on_mount(t), "FUSE does not tell the daemon of RWF_NOAPPEND");
    }

    /// Vectors: none, empty ones, many, too many; reads and writes of nothing and of too much.
    fn vectors_of_every_length(t) {
        let file = read_write(&t.path("f"));
        let data = pattern(1, 1_000);
        let pieces: Vec<_> = data.chunks(1).map(IoSlice::new).collect();
        t.try_see("no vector", pwritev2(&file, &[], 0, ReadWriteFlags::empty()));
        t.try_see("empty ones", rustix::io::pwritev(&file, &[IoSlice::new(b""), IoSlice::new(b"")], 5));
        see_file(t, "nothing", &file);
        t.try_see("many", rustix::io::pwritev(&file, &pieces, 0));
        see_file(t, "many", &file);
        t.try_see("some empty", rustix::io::pwritev(&file, &[IoSlice::new(b""), IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")], 100));
        see_file(t, "some empty", &file);
        t.try_see("nothing far away", file.write_at(b"", 1 << 40));
        see_file(t, "nothing far away", &file);
        t.try_see("read nothing", file.read_at(&mut [], 0));
        t.try_see("read nothing at the end", file.read_at(&mut [], 1_000));
        let mut buffer = vec![0; 5_000];
        for at in [0, 999, 1_000, 1_001, 4_096, 1 << 40, i64::MAX as u64] {
            t.try_see(&format!("read at {at}"), file.read_at(&mut buffer, at));
        }
        t.try_see("read before the start", rustix::io::pread(&file, &mut buffer, u64::MAX));
        let (mut a, mut b) = ([0; 600], [0; 600]);
        t.try_see("scattered", rustix::io::preadv(&file, &mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)], 0));
        t.see("scattered", (checksum(&a), checksum(&b)));
        t.try_see("a directory", rustix::io::read(File::open(t.top()).unwrap(), &mut buffer[..]).map(drop));
    }

    /// splice(2) and sendfile(2) from a file, to a file, at offsets, over the end, and through tee(2).
    fn spliced_both_ways(t) {
        let data = pattern(2, 200_000);
        let source = File::open(t.file("source", &data)).unwrap();
        let target = read_write(&t.path("target"));
        let move_on = |at: u64, to: Option<u64>, length: usize| -> rustix::io::Result<(usize, usize)> {
            let (out, into) = pipe()?;
            let (mut from, mut to) = (at, to);
            let first = splice(&source, Some(&mut from), &into, None, length, SpliceFlags::empty())?;
            assert_eq!(from, at + first as u64);
            drop(into);
            let mut second = 0;
            while second < first {
                second += splice(&out, None, &target, to.as_mut(), first - second, SpliceFlags::MOVE)?;
            }
            Ok((first, second))
        };
        for (at, to, length) in [(0, Some(0), 4_096), (4_096, Some(4_096), 65_536), (5, Some(100), 10_000), (199_990, Some(50_000), 100), (200_000, Some(0), 10), (0, None, 8_192)] {
            t.try_see(&format!("{at} {to:?} {length}"), move_on(at, to, length));
            see_file(t, "target", &target);
        }
        let (a, into_a) = pipe().unwrap();
        let (b, into_b) = pipe().unwrap();
        t.try_see("into a pipe", splice(&source, Some(&mut 10), &into_a, None, 5_000, SpliceFlags::empty()));
        t.try_see("tee", tee(&a, &into_b, 5_000, SpliceFlags::empty()));
        for pipe in [a, b] {
            let mut buffer = vec![0; 5_000];
            File::from(pipe).read_exact(&mut buffer).unwrap();
            assert!(buffer == data[10..5_010]);
        }
        let appending = OpenOptions::new().append(true).open(t.path("target")).unwrap();
        let (out, into) = pipe().unwrap();
        File::from(into).write_all(b"piped").unwrap();
        t.try_see("to one that appends", splice(&out, None, &appending, None, 5, SpliceFlags::empty()));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        t.try_see("to a socket", sendfile(&theirs, &source, Some(&mut 100_000), 5_000));
        let mut buffer = vec![0; 5_000];
        ours.read_exact(&mut buffer).unwrap();
        assert!(buffer == data[100_000..105_000]);
        t.try_see("file to file", sendfile(&target, &source, Some(&mut 0), MAX));
        see_file(t, "file to file", &target);
        t.try_see("beyond the end", sendfile(&target, &source, Some(&mut (1 << 20)), 100));
    }

    /// Pages of memory given to a pipe and spliced into a file.
    fn pages_are_given_to_a_file(t) {
        let file = read_write(&t.path("f"));
        let data = pattern(3, 16_384);
        let (out, into) = pipe().unwrap();
        assert_eq!(give(&into, &data).unwrap(), data.len());
        t.try_see("spliced", splice(&out, None, &file, Some(&mut 1_000), data.len(), SpliceFlags::empty()));
        see_file(t, "file", &file);
    }

    /// copy_file_range(2): what it copies, how much at once, and what it refuses.
    fn copied_in_the_kernel(t) {
        let data = pattern(4, 300_000);
        let path = t.file("source", &data);
        let source = read_write(&path);
        let target = read_write(&t.path("target"));
        let copy = |from: &File, mut at: u64, to: &File, mut on: u64, length| {
            copy_file_range(from, Some(&mut at), to, Some(&mut on), length).map(|count| (count, at, on))
        };
        for (at, to, length) in [
            (0, 0, 300_000), (100_000, 50_000, 1), (299_000, 400_000, MAX), (0, 1 << 20, usize::MAX >> 1), (300_000, 0, 10), (1 << 40, 0, 10),
            (0, 0, 0), (4_096, 8_192, 4_096),
        ] {
            t.try_see(&format!("{at} {to} {length}"), copy(&source, at, &target, to, length));
            see_file(t, "target", &target);
        }
        t.try_see("longer than any number", copy(&source, 0, &target, 0, usize::MAX));
        t.try_see("over the last offset", copy(&source, i64::MAX as u64 - 5, &target, 0, 10));
        t.try_see("to the last offset", copy(&source, 0, &target, i64::MAX as u64 - 5, 10));
        t.try_see("to before the start", copy(&source, 0, &target, u64::MAX, 10));
        for (at, to, length) in [(0, 10, 100), (0, 100, 100), (100, 0, 101), (0, 0, 10), (10, 10, 0), (299_990, 300_000, 100), (299_990, 300_000, 10)] {
            t.try_see(&format!("within: {at} {to} {length}"), copy(&source, at, &source, to, length));
        }
        see_file(t, "source", &source);
        let mut number = 0;
        let mut refused = |t: &mut Tree, from: &File, to: &File| {
            number += 1;
            t.try_see(&format!("refused {number}"), copy(from, 0, to, 0, 10));
        };
        refused(t, &OpenOptions::new().write(true).open(&path).unwrap(), &target);
        refused(t, &source, &File::open(t.path("target")).unwrap());
        refused(t, &source, &OpenOptions::new().append(true).open(t.path("target")).unwrap());
        refused(t, &File::open(t.top()).unwrap(), &target);
        refused(t, &source, &File::open(t.top()).unwrap());
        sh(t.top(), "mkfifo p");
        let fifo = read_write(&t.path("p"));
        refused(t, &fifo, &target);
        refused(t, &source, &fifo);
        fs::remove_file(&path).unwrap();
        t.try_see("from a removed file", copy(&source, 0, &target, 0, 10));
    }

    /// Between file systems: to and from a tmpfs, whatever the kernel makes of it.
    fn copied_between_file_systems(t) {
        let source = File::open(t.file("f", pattern(5, 10_000))).unwrap();
        let memory = File::from(rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        t.try_see("out", copy_file_range(&source, Some(&mut 0), &memory, Some(&mut 0), 10_000));
        memory.set_len(5_000).unwrap();
        let target = read_write(&t.path("g"));
        t.try_see("in", copy_file_range(&memory, Some(&mut 0), &target, Some(&mut 0), 10_000));
        t.try_see("sent out", sendfile(&memory, &source, Some(&mut 0), 10_000));
        t.try_see("sent in", sendfile(&target, &memory, Some(&mut 0), 5_000));
        see_file(t, "copy", &target);
    }

    /// Clones: the kernel's FUSE client has none, and neither has ext4 (SEMANTICS.md).
    fn clones_are_refused(t) {
        let source = File::open(t.file("f", pattern(6, 10_000))).unwrap();
        let target = read_write(&t.path("g"));
        assert_eq!(errno(ioctl_ficlone(&target, &source)), libc::EOPNOTSUPP);
        t.see("cp", sh(t.top(), "cp --reflink=auto f copy; cmp f copy; cp --reflink=always f c 2>&1 | grep -o 'not supported'"));
        t.try_see("flags", ioctl_getflags(&target).map(|flags| flags.bits()));
    }

    /// Advice and hints: accepted, refused, and never a change.
    fn advice_changes_nothing(t) {
        let path = t.file("f", pattern(7, 100_000));
        let file = read_write(&path);
        for advice in [Advice::Normal, Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::NoReuse, Advice::DontNeed] {
            t.try_see(&format!("{advice:?}"), fadvise(&file, 0, std::num::NonZeroU64::new(50_000), advice));
            t.try_see("to the end", fadvise(&file, 10_000, None, advice));
        }
        for (offset, count) in [(0, 0), (0, 1 << 20), (99_999, 10), (1 << 40, 10)] {
            t.try_see("readahead", readahead(&file, offset, count));
        }
        let write_only = OpenOptions::new().write(true).open(&path).unwrap();
        t.try_see("readahead of one to write", readahead(&write_only, 0, 10));
        t.try_see("readahead of a directory", readahead(&File::open(t.top()).unwrap(), 0, 10));
        for (offset, count, flags) in [(0, 0, 7), (0, 4_096, 2), (5, 10, 1), (-1, 10, 7), (0, -1, 7), (i64::MAX, 10, 7), (0, 0, 8), (0, 0, 0)] {
            file.write_all_at(b"x", 10).unwrap();
            t.try_see("sync_file_range", sync_file_range(&file, offset, count, flags));
        }
        t.try_see("of a directory", sync_file_range(&File::open(t.top()).unwrap(), 0, 0, 7));
        t.try_see("fdatasync", file.sync_data());
        t.see("size", file.metadata().unwrap().size());
        see_file(t, "content", &file);
    }

    /// O_SYNC and O_DSYNC, from the start and by later writes, in all pieces.
    fn synchronous_writes(t) {
        for flags in [libc::O_SYNC, libc::O_DSYNC, libc::O_SYNC | libc::O_APPEND, libc::O_SYNC | libc::O_DIRECT] {
            let path = t.file("f", vec![1; 8_192]);
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
            if flags & libc::O_DIRECT == 0 {
                t.try_see("write", file.write_at(&pattern(8, 10_000), 100));
                t.try_see("write", file.write_at(b"", 100));
            }
            t.try_see("truncate", file.set_len(12_288));
            t.see("flags", rustix::fs::fcntl_getfl(&file).unwrap());
            t.see("content", checksum(&fs::read(&path).unwrap()));
        }
    }
}
