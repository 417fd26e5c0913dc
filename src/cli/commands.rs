//! The commands beside `loopfs SRC MNT`: those that look at mounts.
//!
//! The first word decides. If it is the name of a command it is that command, whatever follows, as in every
//! program with commands; a directory of such a name is written `./list`, or after `--`. An option before it
//! makes it an operand: commands have their own options, behind their name.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command as Definition, FromArgMatches as _, Subcommand, ValueHint};

use super::target;
use crate::config::{Command, Limit, Shape, Unmount};
use crate::exit::Failure;
use crate::options;

// What was typed. No doc comment: it would become the whole program's.
#[derive(Debug, Subcommand)]
pub(super) enum Commands {
    /// Show the loopfs mounts of this machine
    #[command(override_usage = "loopfs list [OPTIONS]")]
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show how a mount is: requests and how long they take, open files and who holds them, cache, memory
    #[command(override_usage = "loopfs status [OPTIONS] MNT")]
    Status {
        /// Where it is mounted
        #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
        target: PathBuf,
        /// Print JSON, for programs
        #[arg(long, conflicts_with = "prometheus")]
        json: bool,
        /// Print the text format of Prometheus, for a textfile collector
        #[arg(long)]
        prometheus: bool,
    },
    /// Unmount, when nobody uses the mount any more
    #[command(override_usage = "loopfs unmount [OPTIONS] MNT")]
    Unmount {
        /// Where it is mounted
        #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
        target: PathBuf,
        /// When time is up: unmount all the same, what is open goes on working until it is closed
        #[arg(short, long, conflicts_with = "force")]
        lazy: bool,
        /// When time is up: unmount all the same, and cut off what is open
        #[arg(short, long)]
        force: bool,
        /// How long to wait for those who use it [default: 10, or 0 with --lazy or --force]
        #[arg(short, long, value_name = "SECONDS|never", value_parser = options::limit_from_text)]
        timeout: Option<Limit>,
        /// Only if nobody serves it any more: a mount whose daemon is there is left alone
        #[arg(long, conflicts_with_all = ["lazy", "force", "timeout"])]
        if_dead: bool,
    },
    /// Find what is wrong with the system or a mount, and the commands that mend it; the status is 2 if something is
    #[command(override_usage = "loopfs doctor [OPTIONS] [MNT]")]
    Doctor {
        /// Where it is mounted, or is to be; without it every mount is looked at
        #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
        target: Option<PathBuf>,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Have the program that is installed by now go on with a mount served with --supervise, without unmounting
    #[command(override_usage = "loopfs upgrade MNT")]
    Upgrade {
        /// Where it is mounted
        #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
        target: PathBuf,
    },
    /// Watch what is done with a mount: operations a second, how long they take, the busiest files and processes
    #[command(override_usage = "loopfs top [MNT]")]
    Top {
        /// Where it is mounted; without it, if there are several, a list to choose from is shown
        #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
        target: Option<PathBuf>,
    },
}

impl Commands {
    /// What was meant.
    fn meant(self) -> Result<Command, Failure> {
        Ok(match self {
            Self::List { json } => Command::List { json },
            Self::Status {
                target,
                json,
                prometheus,
            } => Command::Status {
                target: target::of_a_mount(&target)?,
                shape: match (json, prometheus) {
                    (_, true) => Shape::Prometheus,
                    (true, false) => Shape::Json,
                    (false, false) => Shape::People,
                },
            },
            Self::Unmount {
                target,
                lazy,
                force,
                timeout,
                if_dead,
            } => Command::Unmount {
                target: target::of_a_mount(&target)?,
                how: Unmount {
                    lazy,
                    force,
                    timeout,
                    if_dead,
                },
            },
            Self::Doctor { target, json } => Command::Doctor {
                target: target.as_deref().map(target::to_look_at).transpose()?,
                json,
            },
            Self::Upgrade { target } => Command::Upgrade {
                target: target::of_a_mount(&target)?,
            },
            Self::Top { target } => Command::Top {
                target: target.as_deref().map(target::of_a_mount).transpose()?,
            },
        })
    }
}

/// `program`, which knows the commands from now on.
pub(super) fn with_commands(program: Definition) -> Definition {
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::HelpShort)
        .help("Print this help");
    Commands::augment_subcommands(program)
        .subcommand_required(false)
        .arg_required_else_help(false)
        .subcommand_negates_reqs(true)
        .disable_help_subcommand(true)
        .mut_subcommands(|command| command.arg(help.clone()))
}

/// Whether `word` is a command.
pub(super) fn is_command(word: &OsStr) -> bool {
    word.to_str().is_some_and(Commands::has_subcommand)
}

/// Reads a command line whose first word is a command.
pub(super) fn parse(
    program: Definition,
    args: Vec<OsString>,
) -> Result<Result<Command, Failure>, clap::Error> {
    let matches = program.try_get_matches_from(args)?;
    Commands::from_arg_matches(&matches).map(Commands::meant)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{Asked, Cli};
    use super::*;

    fn asked(args: &str) -> Result<Option<Asked>, crate::exit::Failure> {
        let args = std::iter::once("loopfs").chain(args.split_whitespace());
        Cli::parse_from_args(args.map(OsString::from))
    }

    fn command(args: &str) -> Command {
        match asked(args).unwrap().unwrap() {
            Asked::Command(command) => command,
            Asked::Mount(cli) => unreachable!("{cli:?}"),
        }
    }

    #[test]
    fn the_first_word_decides() {
        assert_eq!(command("list"), Command::List { json: false });
        assert_eq!(command("list --json"), Command::List { json: true });
        let status = |shape| Command::Status {
            target: "/".into(),
            shape,
        };
        assert_eq!(command("status /"), status(Shape::People));
        assert_eq!(command("status --prometheus /"), status(Shape::Prometheus));
        let how = Unmount {
            force: true,
            timeout: Some(Limit::After(std::time::Duration::from_secs(5))),
            ..Unmount::default()
        };
        let target = "/".into();
        assert_eq!(command("unmount / -ft5"), Command::Unmount { target, how });
        assert_eq!(command("top"), Command::Top { target: None });
        for args in ["./list m", "-- list m", "-f top m", "s status", "lists m"] {
            assert!(
                matches!(asked(args), Ok(Some(Asked::Mount(_)))),
                "{args} is a mount"
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_command_is_said_with_its_usage() {
        let message = |args| asked(args).unwrap_err().message;
        assert_eq!(
            message("list m"),
            "unexpected argument 'm' found (Usage: loopfs list [OPTIONS]; try loopfs list --help)"
        );
        assert!(message("list --jsn").contains("did you mean '--json'?"));
        assert_eq!(
            message("unmount"),
            "MNT is missing (Usage: loopfs unmount [OPTIONS] MNT; try loopfs unmount --help)"
        );
        assert!(message("unmount -fl /").contains("cannot be used with"));
        assert!(message("unmount -f --if-dead /").contains("cannot be used with"));
        assert!(message("status /dev/null/mnt").starts_with("MNT '/dev/null/mnt': "));
    }
}
