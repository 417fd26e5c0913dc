//! EDQUOT, by a quota group of btrfs, which this asks of no kernel configuration: in everything that needs
//! room, and at once when it is used up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use rustix::fs::{FallocateFlags, XattrFlags, fallocate, lsetxattr};

use super::image::Image;
use crate::common::{LIMIT, as_user, run};
use crate::{USER, compare};

fn limited() -> Image {
    let image = Image::new(200 << 20, &["mkfs.btrfs", "-q"], "defaults");
    for arguments in [&["quota", "enable"][..], &["qgroup", "limit", "8M"]] {
        run(
            Command::new("btrfs").args(arguments).arg(image.top()),
            LIMIT,
        )
        .success();
    }
    image
}

#[test]
fn a_quota_is_used_up() {
    let lines = compare(limited, |seen, _| {
        for uid in [USER, 0] {
            let path = seen.path(format!("{uid}"));
            let mut failed = None;
            as_user(uid, uid, &[], || {
                let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
                for piece in 0..100 {
                    if let Err(error) = file.write_all(&vec![b'x'; 1 << 20]) {
                        failed = Some((piece, error.to_string()));
                        break;
                    }
                }
                io::Result::Ok(())
            })
            .or_else(|error| {
                if error.raw_os_error() == Some(libc::EDQUOT) {
                    Ok(())
                } else {
                    Err(error)
                }
            })
            .unwrap();
            seen.see("write", failed);
            let other = seen.path("other");
            let results = as_user(uid, uid, &[], || {
                [
                    fs::create_dir(&other),
                    symlink("x", &other),
                    File::create(&other).map(drop),
                    fs::hard_link(&path, &other),
                    lsetxattr(&path, "user.a", &[1; 3_000], XattrFlags::empty())
                        .map_err(Into::into),
                    OpenOptions::new().write(true).open(&path).and_then(|file| {
                        Ok(fallocate(
                            &file,
                            FallocateFlags::empty(),
                            100 << 20,
                            1 << 20,
                        )?)
                    }),
                    OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .and_then(|file| file.sync_all()),
                    OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .and_then(|file| file.write_all_at(&vec![1; 100_000], 1 << 30)),
                ]
                .map(|result| result.map_err(|error| error.raw_os_error()))
            });
            seen.see("others", results);
        }
    });
    assert!(lines.contains("quota exceeded"), "{lines}");
}
