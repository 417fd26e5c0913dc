//! EIO: storage that has gone, or that takes no writes any more; and ENOSPC from storage that has less room
//! than it said. Reads fail where the data was; writes fail at fsync(2), once for each open file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::image::Image;
use crate::common::{LIMIT, run};
use crate::{Seen, chmod, compare};

const M: u64 = 1 << 20;

/// Without a journal, which would end all writing at the first error.
const EXT4: &[&str] = &[
    "mkfs.ext4",
    "-q",
    "-b",
    "4096",
    "-O",
    "^has_journal",
    "-E",
    "lazy_itable_init=0",
];

fn whole() -> Image {
    Image::new(64 * M, EXT4, "defaults")
}

/// Room for the file system's own data and for some of what is written.
fn thin() -> Image {
    Image::thin(6 * M, 64 * M, EXT4, "defaults")
}

/// A file of which the second half is not there any more.
fn cut() -> Image {
    let mut image = whole();
    let file = File::create(image.top().join("file")).unwrap();
    file.write_all_at(&vec![b'x'; 16 << 20], 0).unwrap();
    drop(file);
    image.remount("defaults");
    let at = place_of(&image, 8 * M);
    let file = OpenOptions::new().write(true).open(image.file()).unwrap();
    file.set_len(at).unwrap();
    image
}

/// Where in the image that offset of `file` is.
fn place_of(image: &Image, offset: u64) -> u64 {
    let mut command = Command::new("debugfs");
    let request = format!("bmap /file {}", offset / 4_096);
    command.args(["-R", &request]).arg(image.file());
    let block = run(&mut command, LIMIT).success();
    block.trim().parse::<u64>().expect("a block number") * 4_096
}

/// Reading what was cut off, and what was not.
#[test]
fn reads_of_what_has_gone() {
    let lines = compare(cut, |seen, _| {
        let path = seen.above("file");
        let file = File::open(&path).unwrap();
        let mut buffer = vec![0; 65_536];
        seen.try_see("size", file.metadata().map(|meta| meta.len()));
        seen.try_see("what is there", file.read_at(&mut buffer, M));
        seen.try_see("what is not", file.read_at(&mut buffer, 12 * M));
        seen.try_see("again", file.read_at(&mut buffer, 12 * M));
        seen.try_see("one byte of it", file.read_at(&mut buffer[..1], 16 * M - 1));
        seen.try_see("the end", file.read_at(&mut buffer, 16 * M));
        seen.try_see("all", fs::read(&path).map(|content| content.len()));
        seen.try_see("copied", fs::copy(&path, seen.path("copy")));
        let mapped = "import mmap, sys
f = open(sys.argv[1], 'rb')
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(m[100], flush=True); m[12 << 20]";
        let mut python = Command::new("python3");
        let finished = run(python.args(["-c", mapped]).arg(&path), LIMIT);
        seen.see("mapped", (finished.stdout, finished.status.signal()));
        seen.try_see("fsync after all that", file.sync_all());
    });
    assert!(lines.contains("what is not: Input/output error"), "{lines}");
    assert!(lines.contains("Some(7)"), "SIGBUS: {lines}");
}

/// What every descriptor of a file says at fsync(2), before and after, when what was written to it can't
/// be stored.
fn see_failing_writes(seen: &mut Seen, mut breaks: impl FnMut(bool)) {
    let path = seen.path("f");
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(&path).unwrap()
    };
    let data = vec![b'x'; 16 << 20];
    open().write_all_at(&data[..4_096], 0).unwrap();
    open().sync_all().unwrap();
    breaks(true);
    let (writer, other) = (open(), open());
    let only_reads = File::open(&path).unwrap();
    seen.try_see("write", writer.write_at(&data, 0));
    for (what, file) in [
        ("writer", &writer),
        ("other", &other),
        ("reader", &only_reads),
    ] {
        seen.try_see(what, file.sync_data());
        seen.try_see(&format!("{what} again"), file.sync_data());
    }
    seen.try_see("opened afterwards", open().sync_data());
    let later = open();
    seen.try_see("write once more", writer.write_at(&data, 0));
    seen.try_see("once more", writer.sync_data());
    seen.try_see("once more again", writer.sync_data());
    seen.try_see("told later", later.sync_data());
    let mut sync = OpenOptions::new();
    let sync = sync
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(&path)
        .unwrap();
    seen.try_see("O_DSYNC", sync.write_at(&[b'z'; 4_096], 15 * M));
    let mut direct = OpenOptions::new();
    direct.write(true).custom_flags(libc::O_SYNC);
    let appended = direct.append(true).open(&path).unwrap().write(b"end");
    seen.try_see("O_SYNC, at the end", appended);
    let all = [writer, other, only_reads, later, sync];
    seen.see("closed", all.map(crate::close));
    seen.try_see(
        "read from the cache",
        fs::read(&path).map(|content| content.len()),
    );
    breaks(false);
    seen.try_see("mended", open().write_at(&data, 0));
    let file = open();
    // What was not told before is told here; then it is well.
    let _ = file.sync_all();
    seen.try_see("mended", file.sync_all());
}

#[test]
fn writes_that_can_not_be_stored_fail_at_fsync() {
    let lines = compare(whole, |seen, image| {
        see_failing_writes(seen, |broken| {
            if broken {
                image.break_writes();
            } else {
                image.mend_writes();
            }
        });
    });
    for once in ["writer", "other", "reader", "once more", "told later"] {
        assert!(
            lines.contains(&format!("\n{once}: Input/output error")),
            "{lines}"
        );
    }
    assert!(
        lines.contains("other again: ()\n"),
        "once for each: {lines}"
    );
    assert!(lines.contains("O_DSYNC: Input/output error"), "{lines}");
}

/// Where the storage has less room than the file system believes, the error is that there is no space, and
/// it comes as late.
#[test]
fn space_that_is_missing_at_last_is_told_at_fsync() {
    let lines = compare(thin, |seen, _| see_failing_writes(seen, |_| {}));
    assert!(lines.contains("\nwriter: No space left"), "{lines}");
}

/// The same through a shared mapping: msync(2) says so.
#[test]
fn mapped_writes_that_can_not_be_stored_fail_at_msync() {
    let lines = compare(whole, |seen, image| {
        let path = seen.path("f");
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.sync_all().unwrap();
        image.break_writes();
        let script = "import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, 0)
def attempt(what, act):
    try: act(); print(what, 'done')
    except OSError as error: print(what, error.strerror)
for i in range(0, 1 << 20, 4096): m[i] = 1
attempt('msync', m.flush)
attempt('msync again', m.flush)
# Where the kernel has mapped the file of SRC, that was one open file, and fsync asks another one, too.
try: os.fsync(f)
except OSError: pass
for i in range(0, 1 << 20, 4096): m[i] = 2
attempt('fsync first', lambda: os.fsync(f))
attempt('close', lambda: os.close(f))";
        let mut python = Command::new("python3");
        let finished = run(python.args(["-c", script]).arg(&path), LIMIT);
        seen.see("mapped", finished.stdout);
        seen.try_see("told elsewhere", file.sync_all());
        image.mend_writes();
    });
    assert!(lines.contains("msync Input/output error"), "{lines}");
}

/// The names in a directory: its fsync(2) says so. A file's attributes: its own.
#[test]
fn names_that_can_not_be_stored_fail_at_fsync_of_the_directory() {
    let lines = compare(whole, |seen, image| {
        let folder = seen.path("d");
        fs::create_dir(&folder).unwrap();
        let path = folder.join("f");
        fs::write(&path, "x").unwrap();
        let (one, two) = (File::open(&folder).unwrap(), File::open(&folder).unwrap());
        let file = File::open(&path).unwrap();
        one.sync_all().unwrap();
        file.sync_all().unwrap();
        image.break_writes();
        for number in 0..200 {
            fs::hard_link(&path, folder.join(format!("{number:0200}"))).unwrap();
        }
        seen.try_see("directory", one.sync_all());
        seen.try_see("another", two.sync_all());
        seen.try_see("again", one.sync_all());
        chmod(&path, 0o600);
        seen.try_see("attributes", file.sync_all());
        seen.see("count", fs::read_dir(&folder).unwrap().count());
        image.mend_writes();
        fs::write(folder.join("new"), "").unwrap();
        let _ = one.sync_all();
        seen.try_see("mended", one.sync_all());
    });
    assert!(lines.contains("directory: Input/output error"), "{lines}");
}
