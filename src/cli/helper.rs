//! The command line of a mount helper: what mount(8) passes to `mount.fuse.loopfs` or `mount.loopfs`
//! (EXTERNAL HELPERS in mount(8)). Its letters mean other things than loopfs's own: `-f` is "fake".

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use clap::{ArgAction, Command, CommandFactory as _, Parser};

use crate::config::LogFormat;
use crate::exit::{ExitCode, Failure};

use super::{Cli, one_line};

/// How it is called, as usage errors say.
const USAGE: &str = "mount.fuse.loopfs SRC MNT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o LIST]";

/// Whether a program called `name` (`argv[0]`) is the mount helper.
pub(super) fn is_helper(name: &OsStr) -> bool {
    Path::new(name)
        .file_name()
        .is_some_and(|name| name == "mount.fuse.loopfs" || name == "mount.loopfs")
}

/// The definition, for the man page.
pub(super) fn command() -> Command {
    let mut command = Helper::command();
    command.build();
    command
}

/// What mount(8) passes.
#[derive(Debug, Parser)]
#[command(
    override_usage = USAGE,
    disable_help_flag = true,
    disable_version_flag = true
)]
// Independent switches, not a state.
#[allow(clippy::struct_excessive_bools)]
struct Helper {
    /// The directory to serve
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The directory to mount it on
    #[arg(value_name = "MNT")]
    target: PathBuf,
    /// Check everything and mount nothing ("fake")
    #[arg(short = 'f')]
    fake: bool,
    /// Pass over unknown mount options ("sloppy")
    #[arg(short = 's')]
    sloppy: bool,
    /// Accepted; there is no /etc/mtab to leave alone any more
    #[arg(short = 'n')]
    _no_mtab: bool,
    /// Say more; the same as -v of loopfs
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Mount in the mount namespace that this file stands for, such as /proc/1/ns/mnt; SRC and MNT are
    /// paths there
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// The type in fstab: fuse.NAME is shown as such in the mount table
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
    /// Mount options
    #[arg(short = 'o', value_name = "LIST", action = ArgAction::Append)]
    options: Vec<OsString>,
}

/// Reads the helper's command line as the one of loopfs that means the same.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Failure> {
    let helper = Helper::try_parse_from(args)
        .map_err(|error| Failure::new(ExitCode::Usage, one_line(&error, USAGE)))?;
    let subtype = helper.kind.as_deref().and_then(subtype);
    Ok(Cli {
        source: helper.source,
        target: helper.target,
        // First, so that a `subtype=` in the list wins.
        options: subtype.into_iter().chain(helper.options).collect(),
        read_only: false,
        one_file_system: false,
        forward_locks: false,
        io: None,
        cache: None,
        low_latency: false,
        mkdir: false,
        replace_stale: false,
        foreground: false,
        threads: None,
        drain_timeout: None,
        supervise: None,
        restart_limit: None,
        lazy_timeout: None,
        verbose: helper.verbose,
        debug: false,
        log_format: LogFormat::Auto,
        help: None,
        version: None,
        fake: helper.fake,
        sloppy: helper.sloppy,
        namespace: helper.namespace,
    })
}

/// `subtype=X` for the type `fuse.X`.
fn subtype(kind: &OsStr) -> Option<OsString> {
    let subtype = kind.as_bytes().strip_prefix(b"fuse.")?;
    let escaped = subtype.iter().flat_map(|&byte| {
        [b'\\', byte]
            .into_iter()
            .skip(usize::from(!matches!(byte, b',' | b'\\')))
    });
    Some(OsString::from_vec(
        b"subtype=".iter().copied().chain(escaped).collect(),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parsed(args: &str) -> Cli {
        let args = ["mount.fuse.loopfs"].into_iter().chain(args.split(' '));
        parse(args.map(OsString::from)).unwrap()
    }

    #[test]
    fn the_name_decides() {
        for name in [
            "mount.fuse.loopfs",
            "/sbin/mount.fuse.loopfs",
            "/usr/sbin/mount.loopfs",
        ] {
            assert!(is_helper(OsStr::new(name)), "{name}");
        }
        for name in ["loopfs", "/mount.loopfs/loopfs", "mount.fuse", ""] {
            assert!(!is_helper(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_mount_passes_is_understood() {
        let cli = parsed("/src /mnt -o rw,noexec,_netdev");
        assert_eq!((cli.source, cli.target), ("/src".into(), "/mnt".into()));
        assert_eq!(cli.options, ["rw,noexec,_netdev"]);
        assert!(!cli.fake && !cli.sloppy && !cli.foreground);
        let cli = parsed("/src /mnt -sfnv -N /proc/1/ns/mnt -t fuse.photos -o subtype=x");
        assert!(cli.fake && cli.sloppy && !cli.foreground);
        assert_eq!(cli.verbose, 1);
        assert_eq!(cli.namespace, Some("/proc/1/ns/mnt".into()));
        assert_eq!(cli.options, ["subtype=photos", "subtype=x"]);
        assert!(parsed("/src /mnt -t loopfs").options.is_empty());
        assert_eq!(
            parsed(r"/src /mnt -t fuse.a,b\c").options,
            [r"subtype=a\,b\\c"]
        );
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let args = ["mount.loopfs", "/src"].map(OsString::from);
        let failure = parse(args).unwrap_err();
        assert_eq!(failure.code, ExitCode::Usage);
        assert_eq!(failure.message, format!("MNT is missing (Usage: {USAGE})"));
    }
}
