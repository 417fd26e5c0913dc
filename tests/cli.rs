//! The command line of the real program, as far as nothing gets mounted: what it prints, where, and
//! with which exit code.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output, Stdio};

/// The program, without anything in the environment that changes what it prints.
fn loopfs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loopfs"))
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs it with arguments that must fail; the one line on stderr, and the exit code.
fn failing<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> (String, i32) {
    let output = loopfs(args);
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let line = stderr.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "more than one line: {stderr}");
    (line.to_owned(), output.status.code().unwrap())
}

/// Runs it with arguments that are wrong; the one line on stderr.
fn usage_error<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let (line, code) = failing(args);
    assert_eq!(code, 1, "{line}");
    line
}

fn answer(arg: &str) -> String {
    let output = loopfs([arg]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_has_options_exit_codes_and_examples() {
    let help = answer("--help");
    assert_eq!(help, answer("-h"));
    for part in [
        "Usage: loopfs [OPTIONS] SRC MNT",
        "--foreground",
        "--read-only",
        "--threads <N>",
        "--mkdir",
        "--replace-stale",
        "--drain-timeout <SECONDS|never>",
        "--log-format <FORMAT>",
        "   0  mounted",
        "  32  the mount could not be made",
        "loopfs -r ~/photos /mnt/photos",
    ] {
        assert!(help.contains(part), "{part:?} is not in\n{help}");
    }
}

#[test]
fn version_is_name_and_number() {
    let version = concat!("loopfs ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(answer("--version"), version);
    assert_eq!(answer("-V"), version);
}

#[test]
fn usage_errors_are_one_line_and_code_1() {
    let cases: &[(&[&str], &str)] = &[
        (
            &[],
            "loopfs: SRC and MNT are missing (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["/"],
            "loopfs: MNT is missing (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["/", "/mnt", "x"],
            "loopfs: unexpected argument 'x' found (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["--mkdr", "/", "/mnt"],
            "loopfs: unexpected argument '--mkdr' found; did you mean '--mkdir'? (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["--threads", "0", "/", "/mnt"],
            "loopfs: invalid value '0' for '--threads <N>': not a whole number from 1 to 64 (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["--threads=65", "/", "/mnt"],
            "loopfs: invalid value '65' for '--threads <N>': not a whole number from 1 to 64 (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["--drain-timeout=soon", "/", "/mnt"],
            "loopfs: invalid value 'soon' for '--drain-timeout <SECONDS|never>': \
             not a number of seconds such as 10 or 0.5, or 'never' (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
        ),
        (
            &["/", "/mnt", "-o", "ro,allow_othr"],
            "loopfs: unknown mount option 'allow_othr': did you mean 'allow_other'? See loopfs(1) for the list",
        ),
        (
            &["/", "/mnt", "-o", "uid=5"],
            "loopfs: unknown mount option 'uid'. See loopfs(1) for the list",
        ),
        (
            &["/", "/mnt", "-o", "ro=yes"],
            "loopfs: mount option 'ro' takes no value",
        ),
        (
            &["/", "/mnt", "-o", "fsname"],
            "loopfs: mount option 'fsname' needs a value: 'fsname=TEXT'",
        ),
        (
            &["/", "/mnt", "-o", "entry_timeout=1s"],
            "loopfs: mount option 'entry_timeout': '1s' is not a number of seconds such as 1 or 0.5",
        ),
        (
            &["/", "/mnt", "-o", "ro=1,remount"],
            "loopfs: mount option 'ro' takes no value",
        ),
    ];
    for (args, line) in cases {
        assert_eq!(usage_error(*args), *line, "{args:?}");
    }
    assert!(usage_error(["--log-format=jsn", "/", "/mnt"]).contains("did you mean 'json'?"));
}

#[test]
fn a_wrong_option_is_found_before_anything_is_looked_at() {
    assert!(
        usage_error(["/nowhere", "/nowhere", "-o", "bogus"])
            .contains("unknown mount option 'bogus'")
    );
}

#[test]
fn names_that_are_not_text_are_named_all_the_same() {
    let line = usage_error([
        OsStr::new("-o"),
        OsStr::from_bytes(b"a\n\xff"),
        OsStr::new("/"),
        OsStr::new("/mnt"),
    ]);
    assert_eq!(
        line,
        "loopfs: unknown mount option 'a\\n\u{fffd}'. See loopfs(1) for the list"
    );
}

#[test]
fn an_unusable_source_or_target_is_one_line_and_code_32() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().to_str().unwrap();
    File::create(dir.path().join("file")).unwrap();
    let in_base = |name: &str| format!("{base}/{name}");
    let cases = [
        (
            in_base("none"),
            base.to_owned(),
            format!("loopfs: SRC '{base}/none': no such file or directory"),
        ),
        (
            in_base("file"),
            base.to_owned(),
            format!("loopfs: SRC '{base}/file': not a directory"),
        ),
        (
            base.to_owned(),
            in_base("no/mnt"),
            format!(
                "loopfs: MNT '{base}/no/mnt': no such file or directory (nor the one that should hold it)"
            ),
        ),
        (
            base.to_owned(),
            in_base("file/mnt"),
            format!("loopfs: MNT '{base}/file/mnt': not a directory on the way to it"),
        ),
    ];
    for (source, target, line) in cases {
        assert_eq!(failing([&source, &target]), (line, 32));
    }
}

#[test]
fn what_others_pass_on_is_accepted() {
    // SRC is missing, so that an accepted list ends in that error and not in a mount.
    let list = "defaults,rw,noauto,nofail,_netdev,user=joe,uhelper=x,x-systemd.automount,comment=c,nonempty";
    let (line, code) = failing(["/nowhere", "/mnt", "-o", list]);
    assert_eq!(
        (line.as_str(), code),
        ("loopfs: SRC '/nowhere': no such file or directory", 32)
    );
}

#[test]
fn a_failure_follows_the_log_format() {
    let (line, _) = failing(["--log-format=json", "/nowhere", "/mnt"]);
    let json = r#"{"level":"ERROR","target":"loopfs","message":"SRC '/nowhere': no such file or directory","exit_code":32}"#;
    assert_eq!(line, json);
    let (line, _) = failing(["--log-format=journal", "/nowhere", "/mnt"]);
    assert_eq!(line, "<3>loopfs: SRC '/nowhere': no such file or directory");
}

#[test]
fn a_failure_in_the_background_reaches_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("missing");
    let (line, code) = failing([dir.path(), &target]);
    assert!(line.starts_with("loopfs: "), "{line}");
    // Without /dev/fuse that is what is wrong, and has its own code.
    assert!(code == 32 || code == 2, "{code}: {line}");
}
