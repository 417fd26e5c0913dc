//! The commands beside `loopfs SRC MNT`: those that look at mounts.
//!
//! The first word decides. If it is the name of a command it is that command, whatever follows, as in every
//! program with commands; a directory of such a name is written `./list`, or after `--`. An option before it
//! makes it an operand: commands have their own options, behind their name.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command as Definition, FromArgMatches as _, Subcommand};

use crate::config::Command;

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
}

impl Commands {
    /// What was meant.
    pub(super) fn meant(self) -> Command {
        match self {
            Self::List { json } => Command::List { json },
        }
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
pub(super) fn parse(program: Definition, args: Vec<OsString>) -> Result<Command, clap::Error> {
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
        for args in ["./list m", "-- list m", "-f list m", "s list", "lists m"] {
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
    }
}
