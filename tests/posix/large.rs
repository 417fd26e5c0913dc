//! Files beyond 4 GiB, as large as the file system goes, and as large as a process may make them.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom as Whence, copy_file_range, fallocate, seek};

use super::content::read_write;
use super::raw::{Mapping, aligned, truncate};
use super::special::on_mount;
use crate::common::tree::{checksum, pattern};
use crate::common::{LIMIT, TestEnv, run};
use crate::{Tree, errno};

const G: u64 = 1 << 30;

/// The size of the largest file: found out on the tree itself.
fn largest(t: &Tree) -> u64 {
    let file = read_write(&t.path("largest"));
    let (mut fits, mut not) = (0, i64::MAX as u64);
    while not - fits > 1 {
        let size = fits + (not - fits) / 2;
        match file.set_len(size) {
            Ok(()) => fits = size,
            Err(_) => not = size,
        }
    }
    fs::remove_file(t.path("largest")).unwrap();
    fits
}

cases! {
    /// Every way to move data, around 4 GiB and far beyond it.
    fn data_beyond_4_gib(t) {
        let path = t.path("f");
        let mut file = read_write(&path);
        let data = pattern(1, 20_000);
        for at in [2 * G - 10_000, 4 * G - 10_000, 5 * G + 1, 1 << 40] {
            t.try_see("write", file.write_at(&data, at));
            let mut back = vec![0; 30_000];
            let count = file.read_at(&mut back, at - 5_000).unwrap();
            t.see("read", (count, checksum(&back)));
        }
        t.try_see("size", fs::metadata(&path).map(|meta| meta.len()));
        for at in [0, 3 * G, 4 * G, 4 * G + 15_000, 6 * G] {
            t.try_see("data", seek(&file, Whence::Data(at)));
            t.try_see("hole", seek(&file, Whence::Hole(at)));
        }
        t.try_see("from the end", file.seek(SeekFrom::End(-100)));
        t.try_see("write there", file.write(b"x"));
        t.try_see("append", OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write(b"end")));
        let mut map = Mapping::at(&file, 4 * G - 8_192, 16_384, true).unwrap();
        map.bytes()[8_190..8_194].copy_from_slice(b"4GiB");
        map.sync().unwrap();
        t.see("mapped", checksum(map.bytes()));
        let mut back = [0; 4];
        file.read_exact_at(&mut back, 4 * G - 2).unwrap();
        assert_eq!(&back, b"4GiB");
        t.try_see("copied", copy_file_range(&file, Some(&mut (4 * G - 2)), &file, Some(&mut (9 * G)), 100));
        t.try_see("punched", fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4 * G - 4_096, 8_192));
        file.read_exact_at(&mut back, 4 * G - 2).unwrap();
        assert_eq!(back, [0; 4]);
        let mut buffer = vec![0; 3 * 4_096];
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        t.try_see("direct", direct.read_at(aligned(&mut buffer, 4_096), 9 * G));
        t.see("direct", checksum(aligned(&mut buffer, 4_096)));
        for size in [4 * G + 1, 4 * G, 4 * G - 1, 8 * G] {
            t.try_see("truncate", truncate(&path, size));
            t.try_see("size", fs::metadata(&path).map(|meta| meta.len()));
        }
        drop(map);
        fs::remove_file(&path).unwrap();
    }

    /// The last byte that a file may have, and the one after it.
    fn the_largest_file(t) {
        let size = largest(t);
        t.see("size", size);
        let path = t.path("f");
        let mut file = read_write(&path);
        t.try_see("the last byte", file.write_at(b"x", size - 1));
        t.try_see("across", file.write_at(b"abcdef", size - 3));
        t.try_see("the one after it", file.write_at(b"x", size));
        t.try_see("far away", file.write_at(b"x", size + 12_345));
        t.try_see("size", file.metadata().map(|meta| meta.len()));
        let mut back = [0; 10];
        t.try_see("read", file.read_at(&mut back, size - 5));
        t.see("read", back);
        t.try_see("read after it", file.read_at(&mut back, size));
        t.try_see("append", OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write(b"x")));
        t.try_see("data", seek(&file, Whence::Data(size - 1)));
        t.try_see("hole", seek(&file, Whence::Hole(size - 1)));
        t.try_see("end", file.seek(SeekFrom::End(0)));
        let page = size / 4_096 * 4_096 - 4_096;
        let mut map = Mapping::at(&file, page, 4_096, true).unwrap();
        map.bytes()[7] = 7;
        t.try_see("mapped", map.sync());
        for (offset, length) in [(size - 1, 1), (size, 1), (size - 10, 20), (0, size + 1)] {
            t.try_see("punch", fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length));
        }
        for (offset, length) in [(size, 1), (size - 10, 20), (size * 2, 10)] {
            t.try_see("allocate", fallocate(&file, FallocateFlags::empty(), offset, length));
        }
        t.try_see("copy over it", copy_file_range(&file, Some(&mut 0), &file, Some(&mut (size - 5)), 100));
        t.try_see("copy beyond it", copy_file_range(&file, Some(&mut 0), &file, Some(&mut (size + 5)), 100));
        t.try_see("truncate", truncate(&path, size));
        t.try_see("truncate to more", truncate(&path, size + 1));
        t.try_see("ftruncate to more", file.set_len(size + 1));
        // A file system can't tell its limit to the FUSE client, whose own one decides how far a position
        // may go (SEMANTICS.md).
        let beyond = file.seek(SeekFrom::Start(size + 1));
        if on_mount(t) {
            assert_eq!(beyond.unwrap(), size + 1);
        } else {
            assert_eq!(errno(beyond), libc::EINVAL);
        }
        drop(map);
        fs::remove_file(&path).unwrap();
    }

    /// RLIMIT_FSIZE: a signal, or EFBIG where it is ignored; what fits is written.
    fn as_large_as_a_process_may_make_it(t) {
        let script = "import os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
signal.signal(signal.SIGXFSZ, lambda *a: print('SIGXFSZ'))
f = os.open('f', os.O_RDWR | os.O_CREAT)
def attempt(what, act):
    try: print(what, act(), os.fstat(f).st_size)
    except OSError as error: print(what, error.strerror, os.fstat(f).st_size)
attempt('write', lambda: os.pwrite(f, b'x' * 20000, 0))
attempt('at the limit', lambda: os.pwrite(f, b'x', 10000))
attempt('across', lambda: os.pwrite(f, b'xyz', 9998))
attempt('truncate', lambda: os.truncate('f', 10001))
attempt('ftruncate', lambda: os.ftruncate(f, 10001))
attempt('truncate to the limit', lambda: os.truncate('f', 10000))
attempt('allocate', lambda: os.posix_fallocate(f, 9000, 5000))
attempt('shorter', lambda: os.ftruncate(f, 9990))
attempt('copy', lambda: os.copy_file_range(f, f, 100, 0, 9990))
attempt('append', lambda: os.write(os.open('f', os.O_WRONLY | os.O_APPEND), b'x' * 100))
attempt('sendfile', lambda: os.sendfile(f, os.open('/proc/self/exe', os.O_RDONLY), 0, 100))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt('ignored', lambda: os.pwrite(f, b'x', 10000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.pwrite(f, b'x', 10000)";
        let mut python = Command::new("python3");
        let finished = run(python.args(["-c", script]).current_dir(t.top()), LIMIT);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&finished.status), Some(libc::SIGXFSZ), "{finished:?}");
        t.see("printed", finished.stdout);
        t.see("content", checksum(&fs::read(t.path("f")).unwrap()));
    }
}

/// The limit on file sizes of who started the daemon is not that of who uses the mount. Where it can't be
/// lifted, a write beyond it fails, and the daemon goes on.
#[test]
fn the_daemons_own_limit_is_nobodys() {
    let env = TestEnv::new();
    let script = "
        end() { umount \"$MNT\"; timeout 20 pidwait -f \"^$LOOPFS\" || [ $? -eq 1 ]; }
        (ulimit -S -f 8; exec \"$LOOPFS\" \"$SRC\" \"$MNT\")
        head -c 1000000 /dev/zero >\"$MNT/f\"; truncate -s 5000000 \"$MNT/f\"; fallocate -l 2000000 \"$MNT/g\"
        stat -c %s \"$SRC/f\" \"$SRC/g\"; end
        (ulimit -f 8; setpriv --bounding-set -sys_resource \"$LOOPFS\" --io cached \"$SRC\" \"$MNT\")
        head -c 1000000 /dev/zero 2>&1 >\"$MNT/h\" | grep -o 'File too large'
        stat -c %s \"$MNT/h\"; end";
    let seen = env.private_script(script).success();
    assert_eq!(seen, "5000000\n2000000\nFile too large\n4096\n");
    env.assert_clean();
}
