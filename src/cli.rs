//! What the user typed, and nothing else: [`Cli`] is the command line as clap reads it, nothing
//! looked up, nothing decided; `helper` is the one that mount(8) passes, `commands` are those that look at mounts.
//! `resolve` turns it into what the user meant, a [`Config`](crate::config::Config); [`generate`] turns it into the
//! man page and the completions.

mod commands;
pub mod generate;
mod helper;
mod resolve;
mod target;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command as Definition, CommandFactory as _, Parser, ValueEnum, ValueHint};
use log::LevelFilter;

use crate::config::{
    Cache, Choice as _, Command, Io, Limit, LogFormat, Logging, RestartLimit, Supervise,
};
use crate::exit::{ExitCode, Failure};
use crate::options;

pub use resolve::Environment;

/// Shown at the end of `--help` and in the man page: what it does, and the line to type.
const EXAMPLES: [(&str, &str); 4] = [
    (
        "Show ~/photos at /mnt/photos, unchangeable, until somebody unmounts it.",
        "loopfs -r ~/photos /mnt/photos",
    ),
    (
        "Stay in the foreground, say more, make the directory and remove it again.",
        "loopfs -f -v --mkdir -o noexec,fsname=data /srv/data /mnt/data",
    ),
    (
        "Show what is mounted, and how busy it is.",
        "loopfs list; loopfs top",
    ),
    (
        "Unmount, waiting up to a minute for whoever uses it; then cut them off.",
        "loopfs unmount --force --timeout 60 /mnt/data",
    ),
];

/// How it is called, as `--help` and every usage error say.
const USAGE: &str = "loopfs [OPTIONS] SRC MNT\n       loopfs COMMAND [OPTIONS] [MNT]";
/// The same at the end of an error.
const HINT: &str = "loopfs [OPTIONS] SRC MNT; try --help";

/// What a command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// A mount.
    Mount(Box<Cli>),
    /// A look at those that are there.
    Command(Command),
}

/// The command line of a mount.
#[derive(Debug, Parser)]
#[command(
    name = "loopfs",
    version,
    about = "Serve a directory tree at another place through FUSE",
    override_usage = USAGE,
    after_help = after_help(),
    disable_help_flag = true,
    disable_version_flag = true,
)]
// Independent switches, not a state. The doc comments of the fields are the help text.
#[allow(clippy::struct_excessive_bools, clippy::doc_markdown)]
pub struct Cli {
    /// The directory to serve
    #[arg(value_name = "SRC", value_hint = ValueHint::DirPath)]
    source: PathBuf,

    /// The directory to mount it on; it need not be empty
    #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
    target: PathBuf,

    /// Mount options, separated by commas; a later one wins. MOUNT OPTIONS in loopfs(1) has the list
    #[arg(short = 'o', value_name = "LIST", action = ArgAction::Append, help_heading = "The mount")]
    options: Vec<OsString>,

    /// Nothing can be changed through the mount; wins over '-o rw'
    #[arg(short, long, help_heading = "The mount")]
    read_only: bool,

    /// Don't cross into other file systems that are mounted below SRC: where one is mounted, show the
    /// directory that it covers
    #[arg(long, help_heading = "The mount")]
    one_file_system: bool,

    /// Take locks (flock, fcntl) in SRC too, so that programs that work on SRC itself and those that work
    /// on MNT see each other's
    #[arg(long, help_heading = "The mount")]
    forward_locks: bool,

    /// How open files are read and written [default: auto]
    #[arg(long, value_name = "WAY", help_heading = "The mount")]
    io: Option<Io>,

    /// What makes the kernel ask again for names and attributes that it was told of [default: auto]
    #[arg(long, value_name = "MODE", help_heading = "The mount")]
    cache: Option<Cache>,

    /// Keep CPUs from sleeping deeply while requests come, so that each is answered sooner; takes power, and
    /// root
    #[arg(long, help_heading = "The mount")]
    low_latency: bool,

    /// Make MNT first, and remove it at the end
    #[arg(long, help_heading = "The mount")]
    mkdir: bool,

    /// If a dead mount is found at MNT ("Transport endpoint is not connected"), detach it first
    #[arg(long, help_heading = "The mount")]
    replace_stale: bool,

    /// Stay in the foreground instead of returning when the mount can be used
    #[arg(short, long, help_heading = "Running")]
    foreground: bool,

    /// Serve with N threads, 1 to 64 [default: one for each CPU, at least 2, at most 4]
    // A negative number is a wrong value, and not an unknown option.
    #[arg(long, value_name = "N", value_parser = options::threads_from_text, allow_negative_numbers = true, help_heading = "Running")]
    threads: Option<NonZeroUsize>,

    /// How long open files may delay the end that a signal asks for [default: 10]
    #[arg(long, value_name = "SECONDS|never", value_parser = options::limit_from_text, allow_negative_numbers = true, help_heading = "Running")]
    drain_timeout: Option<Limit>,

    /// How long open files may go on working after an unmount from outside with -l or -z
    /// [default: never cut off]
    #[arg(long, value_name = "SECONDS|never", value_parser = options::limit_from_text, allow_negative_numbers = true, help_heading = "Running")]
    lazy_timeout: Option<Limit>,

    /// Have a second process start the one that serves again if it dies, unnoticed by programs
    /// [default: off; on if no MODE is given]
    #[arg(
        long,
        value_name = "MODE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on",
        help_heading = "Running"
    )]
    supervise: Option<Supervise>,

    /// With --supervise: give up if it has died more than N times in a minute [default: 10]
    #[arg(long, value_name = "N|never", value_parser = options::restart_limit_from_text, allow_negative_numbers = true, help_heading = "Running")]
    restart_limit: Option<RestartLimit>,

    /// Say more: once for what loopfs does, twice for each request; without it a program in the
    /// background only warns. RUST_LOG wins over it
    #[arg(short, long, action = ArgAction::Count, help_heading = "Messages")]
    verbose: u8,

    /// The same as -f -vv
    #[arg(short, long, help_heading = "Messages")]
    debug: bool,

    /// The shape of messages on stderr
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "auto",
        help_heading = "Messages"
    )]
    log_format: LogFormat,

    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort, help_heading = "Messages")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Messages")]
    version: Option<bool>,

    /// Of a mount helper only: check everything, mount nothing.
    #[arg(skip)]
    fake: bool,

    /// Of a mount helper only: tolerate unknown mount options.
    #[arg(skip)]
    sloppy: bool,

    /// Of a mount helper only: the mount namespace to mount in, as a file below /proc.
    #[arg(skip)]
    namespace: Option<PathBuf>,
}

impl Cli {
    /// Reads a command line, the program's name included. `None`: it asked for the help or the version,
    /// which are printed now.
    ///
    /// # Errors
    /// One line that says what is wrong, with [`ExitCode::Usage`].
    pub fn parse_from_args(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Asked>, Failure> {
        let args: Vec<OsString> = args.into_iter().collect();
        if args.first().is_some_and(|name| helper::is_helper(name)) {
            return helper::parse(args).map(|cli| Some(Asked::Mount(Box::new(cli))));
        }
        let command = args
            .get(1)
            .filter(|word| commands::is_command(word))
            .cloned();
        let hint = command.as_deref().map_or_else(|| HINT.to_owned(), hint);
        let parsed = match command {
            Some(_) => match commands::parse(definition(), args) {
                Ok(command) => return command.map(|command| Some(Asked::Command(command))),
                Err(error) => Err(error),
            },
            None => Self::try_parse_from(args).map(|cli| Asked::Mount(Box::new(cli))),
        };
        match parsed {
            Ok(asked) => Ok(Some(asked)),
            // With the commands, which the definition of a mount's command line knows nothing of.
            Err(answer) if answer.kind() == ErrorKind::DisplayHelp && command.is_none() => {
                // A reader that has seen enough (`loopfs --help | head -1`) is no failure.
                let _ = definition().print_help();
                Ok(None)
            }
            Err(answer) if !answer.use_stderr() => {
                let _ = answer.print();
                Ok(None)
            }
            Err(error) => Err(Failure::new(ExitCode::Usage, one_line(&error, &hint))),
        }
    }

    /// What to log, and how.
    #[must_use]
    pub fn logging(&self) -> Logging {
        let level = match self.verbose {
            _ if self.debug => LevelFilter::Trace,
            // A program that went to the background after all went well says nothing.
            0 if !self.foreground => LevelFilter::Warn,
            0 => LevelFilter::Info,
            1 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        };
        Logging {
            level,
            format: self.log_format,
        }
    }
}

/// The whole program: a mount's command line, and the commands.
fn definition() -> Definition {
    commands::with_commands(Cli::command())
}

/// The end of an error in the command called `name`: its usage.
fn hint(name: &OsStr) -> String {
    let mut program = definition();
    program.build();
    let Some(command) = name.to_str().and_then(|it| program.find_subcommand_mut(it)) else {
        return HINT.to_owned();
    };
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    format!("{usage}; try loopfs {} --help", command.get_name())
}

impl ValueEnum for Io {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Auto => "By the kernel itself in SRC where that can be had, else as cached",
            Self::Passthrough => "By the kernel itself; refused where that can't be had",
            Self::Cached => {
                "By requests, with the kernel's page cache; files are opened without a request where changes in SRC are followed: the fastest for trees that are mostly read"
            }
            Self::Direct => "By requests, without it",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for Cache {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Auto => "Changes in SRC where they can be followed, else as ttl",
            Self::Coherent => "Changes in SRC; refused where they can't be followed",
            Self::Timed => "The passing of entry_timeout and attr_timeout",
            Self::Off => "It always asks",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for Supervise {
    fn value_variants<'a>() -> &'a [Self] {
        Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Off => "A mount is dead when the process that serves it has died",
            Self::On => "It is started again where that can be done, else the mount is taken down",
            Self::Require => "It is started again; refused where that can't be done",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Text, Self::Journal, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Auto => (
                "auto",
                "As journal if stderr is the journal's, else as text",
            ),
            Self::Text => ("text", "Lines for people"),
            Self::Journal => ("journal", "Lines with a syslog priority in front"),
            Self::Json => ("json", "One JSON object a line"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// clap's account of what is wrong spans paragraphs; a program that starts loopfs shows one line of it.
fn one_line(error: &clap::Error, usage: &str) -> String {
    let mut line = if error.kind() == ErrorKind::MissingRequiredArgument {
        missing(error)
    } else {
        let text = error.render().to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        first.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let suggestion = [ContextKind::SuggestedArg, ContextKind::SuggestedValue]
        .into_iter()
        .find_map(|kind| match error.get(kind)? {
            ContextValue::String(one) => Some(one),
            ContextValue::Strings(several) => several.first(),
            _ => None,
        });
    if let Some(suggestion) = suggestion {
        // Writing to a String can't fail.
        let _ = write!(line, "; did you mean '{suggestion}'?");
    }
    format!("{line} (Usage: {usage})")
}

fn missing(error: &clap::Error) -> String {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(one)) if one.len() == 1 => {
            format!("{} is missing", one[0].trim_matches(['<', '>']))
        }
        _ => "SRC and MNT are missing".to_owned(),
    }
}

fn after_help() -> String {
    let mut text = String::from("Exit status:\n");
    for (code, meaning) in ExitCode::ALL {
        let _ = writeln!(text, "  {:>2}  {meaning}", code as u8);
    }
    text.push_str("\nExamples:\n");
    for (what, command) in EXAMPLES {
        let _ = writeln!(text, "  {command}\n      {what}");
    }
    text.push_str(
        "\nTo end it: umount MNT, fusermount3 -u MNT, or Ctrl-C where it runs in the foreground.",
    );
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(args: &str) -> Result<Option<Asked>, Failure> {
        Cli::parse_from_args(
            std::iter::once("loopfs")
                .chain(args.split_whitespace())
                .map(OsString::from),
        )
    }

    fn parsed(args: &str) -> Cli {
        match parse(args).unwrap().unwrap() {
            Asked::Mount(cli) => *cli,
            Asked::Command(command) => unreachable!("{command:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn options_may_stand_anywhere() {
        for args in [
            "-r -o a,b -o c s m",
            "s m -r -oa,b -oc",
            "s -o a,b -r m -o c",
        ] {
            let cli = parsed(args);
            assert_eq!((cli.source, cli.target), ("s".into(), "m".into()), "{args}");
            assert!(cli.read_only, "{args}");
            assert_eq!(cli.options, ["a,b", "c"], "{args}");
        }
    }

    #[test]
    fn verbosity_adds_up() {
        let level = |args: &str| parsed(args).logging().level;
        assert_eq!(level("s m"), LevelFilter::Warn);
        assert_eq!(level("-f s m"), LevelFilter::Info);
        assert_eq!(level("-v s m"), LevelFilter::Debug);
        assert_eq!(level("-v -v s m"), LevelFilter::Trace);
        assert_eq!(level("-vvvv s m"), LevelFilter::Trace);
        assert_eq!(level("-d s m"), LevelFilter::Trace);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let cases = [
            (
                "",
                "SRC and MNT are missing (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
            (
                "s",
                "MNT is missing (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
            (
                "s m x",
                "unexpected argument 'x' found (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
            (
                "--mkdr s m",
                "unexpected argument '--mkdr' found; did you mean '--mkdir'? (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
            (
                "-q s m",
                "unexpected argument '-q' found (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
            (
                "--threads 0 s m",
                "invalid value '0' for '--threads <N>': not a whole number from 1 to 64 (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
            (
                "s m -o",
                "a value is required for '-o <LIST>' but none was supplied (Usage: loopfs [OPTIONS] SRC MNT; try --help)",
            ),
        ];
        for (args, line) in cases {
            let failure = parse(args).unwrap_err();
            assert_eq!(
                (failure.code, failure.message.as_str()),
                (ExitCode::Usage, line),
                "{args}"
            );
        }
        let failure = parse("--log-format jsn s m").unwrap_err();
        assert!(
            failure.message.contains("did you mean 'json'?"),
            "{}",
            failure.message
        );
        assert!(!failure.message.contains('\n'), "{}", failure.message);
    }
}
