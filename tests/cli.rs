//! The command line of the real program, as far as nothing gets mounted: what it prints and with which exit code.
//! `tests/cli/*.trycmd` are the snapshots, of stdout and stderr together; `TRYCMD=overwrite cargo test --test cli`
//! writes them anew.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

const LOOPFS: &str = env!("CARGO_BIN_EXE_loopfs");

/// The program, without anything in the environment that changes what it prints.
fn loopfs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(LOOPFS)
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn snapshots() {
    // The names by which mount(8) calls it.
    let names = tempfile::tempdir().unwrap();
    let cases = trycmd::TestCases::new();
    for name in ["mount.fuse.loopfs", "mount.loopfs"] {
        let path = names.path().join(name);
        symlink(LOOPFS, &path).unwrap();
        cases.register_bin(name, path.as_path());
    }
    cases
        .env("RUST_LOG", "")
        .env("JOURNAL_STREAM", "")
        .env("COLUMNS", "100")
        .case("tests/cli/*.trycmd")
        .run();
}

/// What was asked for goes to stdout, what is wrong to stderr: the snapshots don't tell them apart.
#[test]
fn answers_and_errors_go_where_they_belong() {
    let help = loopfs(["--help"]);
    assert!(help.status.success() && help.stderr.is_empty(), "{help:?}");
    assert_eq!(help.stdout, loopfs(["-h"]).stdout);
    let wrong = loopfs(["/"]);
    assert!(wrong.stdout.is_empty(), "{wrong:?}");
    let line = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[test]
fn version_is_name_and_number() {
    let version = concat!("loopfs ", env!("CARGO_PKG_VERSION"), "\n");
    for arg in ["--version", "-V"] {
        assert_eq!(loopfs([arg]).stdout, version.as_bytes());
    }
}

#[test]
fn names_that_are_not_text_are_named_all_the_same() {
    let output = loopfs([
        OsStr::new("-o"),
        OsStr::from_bytes(b"a\n\xff"),
        OsStr::new("/"),
        OsStr::new("/mnt"),
    ]);
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "loopfs: unknown mount option 'a\\n\u{fffd}'. See loopfs(1) for the list\n"
    );
}

/// The child's failure is the parent's, word by word and with its code.
#[test]
fn a_failure_in_the_background_reaches_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("missing");
    let output = loopfs([dir.path(), &target]);
    let line = String::from_utf8(output.stderr).unwrap();
    let code = output.status.code().unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    // Without /dev/fuse that is what is wrong, and has its own code.
    let expected = if code == 2 {
        "/dev/fuse"
    } else {
        "does not exist: create it, or use --mkdir"
    };
    assert!(
        line.starts_with("loopfs: ") && line.contains(expected),
        "{code}: {line}"
    );
    assert!(code == 32 || code == 2, "{code}: {line}");
}
