//! Errors that arrive: what SRC reports at write, fsync, close and wherever else reaches the program, and
//! nobody else. Each test makes a small file system of its own in an image, on which something runs out or
//! breaks; does the same things on it directly and through a mount; and both must see the same.
//!
//! In reading order: [`image`] (the file system, and the guard that takes it down), then by what happens:
//! [`full`] (ENOSPC, the reserve), [`quota`] (EDQUOT), [`broken`] (EIO), [`values`] (attributes that are
//! too large).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod errors {
    pub(crate) mod broken;
    pub(crate) mod full;
    pub(crate) mod image;
    pub(crate) mod quota;
    pub(crate) mod values;
}

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Mount, TestEnv};
use errors::image::Image;

/// A user without any right of its own, and its group.
pub(crate) const USER: u32 = 4321;

/// A directory on an image, reached directly or through a mount, and what was seen there.
pub(crate) struct Seen {
    top: PathBuf,
    mounted: bool,
    lines: Vec<String>,
}

impl Seen {
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.top.join(name)
    }

    /// A path in the root of the image.
    pub(crate) fn above(&self, name: impl AsRef<Path>) -> PathBuf {
        self.top.parent().expect("the root").join(name)
    }

    /// Whether this is through a mount.
    pub(crate) fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// Records a value that must be the same on both.
    pub(crate) fn see(&mut self, what: &str, value: impl Debug) {
        self.lines.push(format!("{what}: {value:?}"));
    }

    /// Records a result: its value, or the error by name.
    pub(crate) fn try_see<T: Debug, E: Into<io::Error>>(
        &mut self,
        what: &str,
        result: Result<T, E>,
    ) {
        self.lines.push(match result {
            Ok(value) => format!("{what}: {value:?}"),
            Err(error) => format!("{what}: {}", error.into()),
        });
    }
}

/// Runs `case` twice, each time on a new image: directly, and through a mount; what was seen must agree.
/// Returns what was seen, for a test to assert that it saw what it is about.
#[track_caller]
pub(crate) fn compare(make: fn() -> Image, case: fn(&mut Seen, &Image)) -> String {
    compare_with(&[], make, case)
}

/// The same, and the mount has these options.
pub(crate) fn compare_with(
    options: &[&str],
    make: fn() -> Image,
    case: impl Fn(&mut Seen, &Image),
) -> String {
    let direct = {
        let image = make();
        let mut seen = prepared(image.top(), &image);
        case(&mut seen, &image);
        seen.lines
    };
    let image = make();
    let env = TestEnv::new();
    let mut command = env.loopfs(["-f"]);
    command.args(options).arg(image.top()).arg(env.mnt());
    let mount = Mount::start_command(env, command);
    let mut seen = prepared(&mount.path(""), &image);
    case(&mut seen, &image);
    mount.finish();
    let differences: Vec<_> = direct
        .iter()
        .zip(&seen.lines)
        .filter(|(direct, mounted)| direct != mounted)
        .map(|(direct, mounted)| format!("direct: {direct}\n  mount:  {mounted}"))
        .collect();
    assert!(
        differences.is_empty(),
        "the mount differs from the file system itself:\n  {}",
        differences.join("\n  ")
    );
    assert_eq!(seen.lines.len(), direct.len());
    direct.join("\n")
}

/// A directory for everybody, made on the image itself.
fn prepared(top: &Path, image: &Image) -> Seen {
    let behind = image.top().join("case");
    fs::create_dir(&behind).unwrap();
    chmod(&behind, 0o777);
    Seen {
        mounted: top != image.top(),
        top: top.join("case"),
        lines: Vec::new(),
    }
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// close(2) with its error.
#[allow(unsafe_code)]
pub(crate) fn close(file: fs::File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is given up by `into_raw_fd`: nobody else uses or closes it.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
