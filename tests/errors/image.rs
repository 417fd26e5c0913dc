//! A file system of its own in an image file, on a loop device that goes with the mount.

// Each test binary that compiles this uses its own part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::chmod;
use crate::common::{LIMIT, run};

/// A mounted image. Dropping it unmounts it, whoever still uses it, and detaches its loop device (which
/// mount(8) makes so that it goes with the last use).
pub(crate) struct Image {
    // None only while it is dropped.
    directory: Option<TempDir>,
    file: PathBuf,
    top: PathBuf,
    /// What is mounted, in the order of mounting.
    mounts: Vec<PathBuf>,
}

impl Image {
    /// A file system made by `mkfs` with its arguments, of `size` bytes, mounted with `options`.
    #[track_caller]
    pub(crate) fn new(size: u64, mkfs: &[&str], options: &str) -> Self {
        Self::bare().with(size, mkfs, options)
    }

    /// The same on storage that runs out before the file system does: a file system that believes to be
    /// `size` bytes large, and has room for `room` bytes.
    #[track_caller]
    pub(crate) fn thin(room: u64, size: u64, mkfs: &[&str], options: &str) -> Self {
        let mut image = Self::bare();
        let store = image.file.with_file_name("store");
        fs::create_dir(&store).expect("a directory");
        image.file = store.join("image");
        mount(
            &format!("size={room}"),
            &["-t", "tmpfs"],
            Path::new("store"),
            &store,
        );
        image.mounts.push(store);
        image.with(size, mkfs, options)
    }

    /// A tmpfs.
    #[track_caller]
    pub(crate) fn tmpfs(options: &str) -> Self {
        let mut image = Self::bare();
        mount(options, &["-t", "tmpfs"], Path::new("tmpfs"), &image.top);
        image.mounts.push(image.top.clone());
        image
    }

    fn bare() -> Self {
        let directory = TempDir::with_prefix("loopfs-image-").expect("a temporary directory");
        let root = directory.path().canonicalize().expect("its real path");
        let top = root.join("top");
        fs::create_dir(&top).expect("a directory");
        chmod(&root, 0o755);
        Self {
            directory: Some(directory),
            file: root.join("image"),
            top,
            mounts: Vec::new(),
        }
    }

    #[track_caller]
    fn with(mut self, size: u64, mkfs: &[&str], options: &str) -> Self {
        let file = File::create(&self.file).expect("the image");
        file.set_len(size).expect("its size");
        let [program, arguments @ ..] = mkfs else {
            panic!("a program")
        };
        let mut command = Command::new(program);
        run(command.args(arguments).arg(&self.file), LIMIT).success();
        self.mount(options);
        self
    }

    #[track_caller]
    fn mount(&mut self, options: &str) {
        mount(&format!("loop,{options}"), &[], &self.file, &self.top);
        self.mounts.push(self.top.clone());
    }

    /// Unmounts it and mounts it again: nothing of it is cached afterwards.
    #[track_caller]
    pub(crate) fn remount(&mut self, options: &str) {
        let mut umount = Command::new("umount");
        run(umount.arg(&self.top), LIMIT).success();
        self.mounts.pop();
        self.mount(options);
    }

    /// From now on every write to the storage fails with EIO, and reads go well: the image is immutable, by
    /// which its file system refuses its loop device's writes.
    #[track_caller]
    pub(crate) fn break_writes(&self) {
        chattr("+i", &self.file);
    }

    /// Undoes [`Self::break_writes`].
    #[track_caller]
    pub(crate) fn mend_writes(&self) {
        chattr("-i", &self.file);
    }

    /// Where it is mounted.
    pub(crate) fn top(&self) -> &Path {
        &self.top
    }

    /// The image file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

#[track_caller]
fn chattr(flag: &str, file: &Path) {
    run(Command::new("chattr").arg(flag).arg(file), LIMIT).success();
}

#[track_caller]
fn mount(options: &str, arguments: &[&str], what: &Path, on: &Path) {
    let mut mount = Command::new("mount");
    mount
        .args(arguments)
        .args(["-o", options])
        .arg(what)
        .arg(on);
    run(&mut mount, LIMIT).success();
}

impl Drop for Image {
    fn drop(&mut self) {
        if std::thread::panicking() && self.file.exists() {
            // A test that failed in between may have left it immutable.
            let _ = Command::new("chattr").arg("-i").arg(&self.file).status();
        }
        let mut left = false;
        for target in self.mounts.iter().rev() {
            let unmounted = |arguments: &[&str]| {
                let mut umount = Command::new("umount");
                umount.args(arguments).arg(target);
                umount.status().is_ok_and(|status| status.success())
            };
            // Lazily only where a failing test left something open.
            left |= !(unmounted(&["-q"]) || unmounted(&["-l"]));
        }
        if left && let Some(directory) = self.directory.take() {
            eprintln!("still mounted, so kept: {}", directory.keep().display());
        }
    }
}
