//! ENOSPC: in every operation that needs a block or an inode, for users before root.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, XattrFlags, copy_file_range, fallocate, lsetxattr,
    mknodat, statvfs,
};

use super::image::Image;
use crate::common::process::eventually;
use crate::common::{LIMIT, as_user, run};
use crate::compare_with;
use crate::{Seen, USER, compare};

const M: u64 = 1 << 20;

/// Half of it is root's alone, and there are few inodes.
fn small() -> Image {
    Image::new(
        8 * M,
        &["mkfs.ext4", "-q", "-m", "50", "-N", "64"],
        "defaults",
    )
}

/// Writes pieces of `size` bytes until one fails; the file's size and the error.
fn fill(path: &Path, size: usize, flags: i32) -> (u64, io::Result<()>) {
    let mut options = OpenOptions::new();
    let opened = options
        .create(true)
        .append(true)
        .custom_flags(flags)
        .open(path);
    let result = opened.and_then(|mut file| {
        let piece = vec![b'x'; size];
        (0..100_000).try_for_each(|_| file.write_all(&piece))
    });
    (fs::metadata(path).map_or(0, |meta| meta.len()), result)
}

fn see_fill(seen: &mut Seen, what: &str, (size, result): (u64, io::Result<()>)) {
    seen.see(what, size);
    seen.try_see(what, result);
}

fn as_them<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    as_user(USER, USER, &[], act)
}

type Act = fn(&Path) -> io::Result<()>;

/// What needs a block, and last what needs none.
const NEEDING: [(&str, Act); 9] = [
    ("a directory", |path| fs::create_dir(path)),
    ("a long symlink", |path| symlink("x".repeat(1_000), path)),
    ("write", |path| File::create(path)?.write_all(b"x")),
    ("O_SYNC", |path| {
        let mut options = OpenOptions::new();
        options.create(true).write(true).custom_flags(libc::O_SYNC);
        options.open(path)?.write_all(b"x")
    }),
    ("fallocate", |path| {
        Ok(fallocate(
            File::create(path)?,
            FallocateFlags::empty(),
            0,
            100_000,
        )?)
    }),
    ("fallocate, keep size", |path| {
        Ok(fallocate(
            File::create(path)?,
            FallocateFlags::KEEP_SIZE,
            0,
            100_000,
        )?)
    }),
    ("copy_file_range", |path| {
        let (from, to) = (
            File::open(path.with_file_name("theirs"))?,
            File::create(path)?,
        );
        copy_file_range(from, Some(&mut 0), to, Some(&mut 0), 50_000).map(drop)?;
        Ok(())
    }),
    ("a large attribute", |path| {
        File::create(path)?;
        Ok(lsetxattr(
            path,
            "user.large",
            &[1; 2_000],
            XattrFlags::empty(),
        )?)
    }),
    ("what needs none", |path| {
        let file = File::create(path)?;
        file.set_len(1 << 30)?;
        file.sync_all()
    }),
];

#[test]
fn blocks_run_out_for_users_first() {
    let lines = compare(small, |seen, _| {
        let theirs = seen.path("theirs");
        see_fill(seen, "a user's", as_them(|| fill(&theirs, 60_000, 0)));
        see_fill(seen, "again", as_them(|| fill(&theirs, 1, 0)));
        // What a user is refused now, root is not.
        let path = seen.path("other");
        for (what, act) in NEEDING {
            for uid in [USER, 0] {
                seen.try_see(
                    &format!("{what} by {uid}"),
                    as_user(uid, uid, &[], || act(&path)),
                );
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            }
        }
        // Overwriting what is there needs nothing. Their own file: whose rights count through one that is
        // handed on, the one who opened it first decides (SEMANTICS.md).
        let mut options = OpenOptions::new();
        let file = as_them(|| options.read(true).write(true).open(&theirs)).unwrap();
        seen.try_see("overwriting", as_them(|| file.write_at(b"again", 100)));
        seen.try_see(
            "punching",
            fallocate(
                &file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                0,
                65_536,
            ),
        );
        file.sync_all().unwrap();
        seen.try_see(
            "writing into the hole",
            as_them(|| file.write_at(&vec![1; 65_536], 0)),
        );
        seen.try_see(
            "writing into the end",
            as_them(|| file.write_at(&[1; 4_096], 1 << 24)),
        );
        drop(file);
        // What was removed above may be free a moment later only, so that sizes are not the same.
        let (size, result) = fill(&seen.path("roots"), 60_000, 0);
        seen.see("root's", size > 2 * M);
        seen.try_see("root's", result);
        seen.try_see(
            "root's last",
            fill(&seen.path("roots"), 4_096, libc::O_SYNC).1,
        );
        seen.try_see("a user's again", as_them(|| fill(&theirs, 60_000, 0)).1);
    });
    assert!(
        lines.contains("a directory by 4321: No space left"),
        "{lines}"
    );
    assert!(lines.contains("a directory by 0: ()"), "{lines}");
}

/// What is removed makes room: at once on the file system itself; through a mount when the kernel has told
/// the daemon that nobody uses it any more, which it does unasked and without waiting (SEMANTICS.md).
#[test]
fn what_is_removed_makes_room() {
    compare(small, |seen, _| {
        for round in 0..10 {
            let (path, next) = (seen.path(format!("{round}")), seen.path("next"));
            let (size, result) = as_them(|| fill(&path, 65_536, 0));
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
            let half = vec![1; usize::try_from(size / 2).unwrap()];
            let write = |path: &Path| {
                let result = as_them(|| fs::write(path, &half));
                if result.is_err() && seen.is_mounted() {
                    eventually("there is room", LIMIT, || {
                        as_them(|| fs::write(path, &half)).is_ok()
                    });
                } else {
                    result.unwrap();
                }
            };
            fs::remove_file(&path).unwrap();
            write(&next);
            as_them(|| File::create(&next)).unwrap();
            write(&path);
            fs::write(&next, "x").unwrap();
            fs::rename(&next, &path).unwrap();
            write(&next);
            fs::remove_file(&path).unwrap();
            fs::remove_file(&next).unwrap();
        }
    });
}

/// Names that need a block of their directory: users are refused it from the reserve, root is not.
#[test]
fn directories_grow_at_the_expense_of_who_makes_names() {
    let lines = compare(small, |seen, _| {
        let path = seen.path("theirs");
        as_them(|| fs::write(&path, "x")).unwrap();
        let folders: Vec<_> = ["link", "rename", "link by root"]
            .map(|name| {
                let folder = seen.path(name);
                as_them(|| fs::create_dir(&folder)).unwrap();
                folder
            })
            .into();
        let (_, full) = as_them(|| fill(&seen.path("filler"), 4_096, libc::O_SYNC));
        assert!(full.is_err());
        // 1 KiB blocks: five names of 200 bytes do not fit into one.
        let name = |number: usize| format!("{number:0200}");
        // Which of them need a block is the file system's affair; that none comes from the reserve is not.
        let mut refused = |what: &str, uid: u32, act: &(dyn Fn(usize) -> io::Result<()> + Sync)| {
            let refused: Vec<_> = as_user(uid, uid, &[], || {
                (0..40).filter_map(|number| act(number).err()).collect()
            });
            assert!(
                refused
                    .iter()
                    .all(|error| error.raw_os_error() == Some(libc::ENOSPC)),
                "{refused:?}"
            );
            seen.see(what, refused.len() > 20);
        };
        refused("links", USER, &|number| {
            fs::hard_link(&path, folders[0].join(name(number)))
        });
        refused("renames", USER, &|number| {
            let extra = path.with_file_name(format!("extra {number}"));
            fs::hard_link(&path, &extra)?;
            fs::rename(&extra, folders[1].join(name(number)))
        });
        refused("links by root", 0, &|number| {
            fs::hard_link(&path, folders[2].join(name(number)))
        });
    });
    assert_eq!(lines, "links: true\nrenames: true\nlinks by root: false");
}

/// A write through a mapping for which there is no room: a signal, on ext4 itself and where the kernel has
/// mapped the file of SRC. Otherwise the page is there first, and what the daemon can't write of it is told by
/// msync(2) (SEMANTICS.md).
#[test]
fn a_mapped_write_without_room_does_not_go_unnoticed() {
    for (options, told) in [
        (&[][..], ("", Some(libc::SIGBUS))),
        (&["--io", "cached"], ("No space left on device", None)),
    ] {
        mapped_without_room(options, told);
    }
}

fn mapped_without_room(options: &[&str], told: (&str, Option<i32>)) {
    compare_with(options, small, |seen, _| {
        let path = seen.path("f");
        File::create(&path).unwrap().set_len(M).unwrap();
        assert!(fill(&seen.path("filler"), 4_096, libc::O_SYNC).1.is_err());
        let script = "import mmap, sys
f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0)
for i in range(0, 1 << 20, 4096): m[i] = 1
try: m.flush(); print('flushed')
except OSError as error: print(error.strerror)";
        let mut python = Command::new("python3");
        let finished = run(python.args(["-c", script]).arg(&path), LIMIT);
        let seen_there = (finished.stdout.trim(), finished.status.signal());
        if seen.is_mounted() {
            assert_eq!(seen_there, told, "with {options:?}");
        } else {
            assert_eq!(seen_there, ("", Some(libc::SIGBUS)));
        }
    });
}

/// Inodes run out: so many files, and then none of any kind.
#[test]
fn inodes_run_out() {
    let lines = compare(small, |seen, _| {
        let made = (0..1_000).find_map(|number| {
            let path = seen.path(format!("{number}"));
            as_them(|| File::create(&path))
                .err()
                .map(|error| (number, error.to_string()))
        });
        seen.see("files", made);
        seen.try_see("directory", fs::create_dir(seen.path("d")));
        seen.try_see("symlink", symlink("x", seen.path("l")));
        seen.try_see(
            "FIFO",
            mknodat(CWD, seen.path("p"), FileType::Fifo, Mode::empty(), 0),
        );
        seen.try_see("link", fs::hard_link(seen.path("0"), seen.path("link")));
        seen.try_see("unlink", fs::remove_file(seen.path("1")));
        // When the kernel has told the daemon that nobody uses it.
        eventually("a free inode", LIMIT, || {
            statvfs(seen.path("")).unwrap().f_ffree > 0
        });
        seen.try_see(
            "with one less",
            as_them(|| File::create(seen.path("new")).map(drop)),
        );
        seen.try_see("and again", File::create(seen.path("another")).map(drop));
        let free = statvfs(seen.path("")).unwrap();
        seen.see("statvfs", (free.f_files, free.f_ffree));
    });
    assert!(lines.contains("No space left"), "{lines}");
}

/// On a tmpfs: blocks and inodes, where nothing is delayed.
#[test]
fn a_tmpfs_runs_out() {
    compare(
        || Image::tmpfs("size=1M,nr_inodes=32"),
        |seen, _| {
            see_fill(seen, "file", as_them(|| fill(&seen.path("f"), 100_000, 0)));
            seen.try_see(
                "fallocate",
                fallocate(
                    File::create(seen.path("g")).unwrap(),
                    FallocateFlags::empty(),
                    0,
                    2 * M,
                ),
            );
            seen.try_see("room", fs::remove_file(seen.path("f")));
            eventually("room", LIMIT, || {
                statvfs(seen.path("")).unwrap().f_bfree > 100
            });
            seen.try_see(
                "fallocate",
                fallocate(
                    File::create(seen.path("g")).unwrap(),
                    FallocateFlags::empty(),
                    0,
                    M / 2,
                ),
            );
            see_fill(seen, "file", as_them(|| fill(&seen.path("f"), 4_096, 0)));
            let made = (0..1_000).find_map(|number| {
                File::create(seen.path(format!("{number}")))
                    .err()
                    .map(|error| (number, error.to_string()))
            });
            seen.see("files", made);
            seen.see("blocks", fs::metadata(seen.path("f")).unwrap().blocks());
        },
    );
}
