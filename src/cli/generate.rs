//! The man pages and the shell completions, made from the command line's definition, the table of
//! mount options and the exit codes, so that none of them can say something else than the program.
//!
//! The results are checked in under `man/`; `loopfs-gen` writes them, `tests/generated.rs` compares.

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

mod diagnostics;
mod helper;

pub use diagnostics::{DIAGNOSTICS, Diagnostic, is_documented};

use crate::exit::ExitCode;
use crate::options::{TABLE, Word};

use super::{EXAMPLES, definition, helper as mount_helper};

/// A generated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Its place below `man/`.
    pub path: &'static str,
    /// Its content.
    pub content: String,
}

/// All of them.
#[must_use]
pub fn generated() -> Vec<Generated> {
    let completions = [
        ("completions/loopfs.bash", Shell::Bash),
        ("completions/_loopfs", Shell::Zsh),
        ("completions/loopfs.fish", Shell::Fish),
    ];
    let command = definition();
    let version = command.get_version().unwrap_or_default();
    let mut files = vec![
        Generated {
            path: "loopfs.1",
            content: man_page(version),
        },
        Generated {
            path: "mount.fuse.loopfs.8",
            content: helper::man_page(version),
        },
    ];
    files.extend(completions.map(|(path, shell)| {
        let mut content = Vec::new();
        let mut program = match shell {
            Shell::Zsh => without_operands(&definition()),
            _ => definition(),
        };
        clap_complete::generate(shell, &mut program, "loopfs", &mut content);
        let content = String::from_utf8_lossy(&content).into_owned();
        let content = match shell {
            Shell::Zsh => where_the_second_word_decides(&content, &program),
            Shell::Fish => where_the_first_word_decides(&content, &program),
            _ => with_operands(&content),
        };
        Generated { path, content }
    }));
    files
}

/// clap's completion for fish, with its idea of a command replaced by ours: the first word decides. clap's own parses
/// what was typed, fails on an option whose value is still to come, so that none is offered, and offers no option
/// behind an operand.
fn where_the_first_word_decides(completion: &str, program: &Command) -> String {
    const NAME: &str = "function __fish_loopfs_needs_command\n";
    let Some((before, rest)) = completion.split_once(NAME) else {
        return completion.to_owned();
    };
    let after = rest.split_once("\nend\n").map_or("", |(_, after)| after);
    let commands: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
    let ours = format!(
        "    set -l cmd (commandline -opc)\n    \
             if contains -- \"$cmd[2]\" {}\n        \
                 echo $cmd[2]\n        \
                 return 1\n    \
             end\n    \
             return 0\nend\n",
        commands.join(" ")
    );
    let first = "\"__fish_loopfs_needs_command; and test (count (commandline -opc)) -eq 1\" -a";
    let after = after.replace("\"__fish_loopfs_needs_command\" -a", first);
    // What is left of clap's own is used by nothing.
    let before = before
        .split("# Print an optspec")
        .next()
        .unwrap_or_default();
    format!("{before}{NAME}{ours}{after}")
}

/// clap's completion for bash, which then offers options behind a dash only, and commands as the first word: where
/// nothing is offered bash completes paths by itself, which the operands are.
fn with_operands(completion: &str) -> String {
    const ALL: &str = "            COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )\n            return 0\n            ;;\n";
    completion
        .replace(" || ${COMP_CWORD} -eq 2 ]]", " ]]")
        .replace(ALL, "            return 0\n            ;;\n")
}

/// `program` with its options and commands only. clap's completion for zsh expects the command behind the operands of
/// the program, where none is; the operands are added by [`where_the_second_word_decides`].
fn without_operands(program: &Command) -> Command {
    let options = program.get_arguments().filter(|arg| !arg.is_positional());
    Command::new("loopfs")
        .version(program.get_version().unwrap_or_default().to_owned())
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(options)
        .subcommands(program.get_subcommands())
}

/// clap's completion for zsh, put together anew from its parts: the word behind the program's name decides, as for fish
/// above. clap's own takes every first operand for a command, and offers no option behind one that is none. Parts that
/// are not found are left out, which `scripts/check-package` sees.
fn where_the_second_word_decides(completion: &str, program: &Command) -> String {
    let between = |start: &str, end: &str| {
        let after = completion.split_once(start).map_or("", |(_, after)| after);
        after.split_once(end).map_or("", |(part, _)| part)
    };
    let options = between(
        "_arguments \"${_arguments_options[@]}\" : \\\n",
        "\":: :_loopfs_commands\" \\\n",
    );
    let commands = between("        case $line[1] in\n", "        esac\n");
    let descriptions = between("    local commands; commands=(\n", "    )\n");
    let names: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
    format!(
        r#"#compdef loopfs

autoload -U is-at-least

_loopfs() {{
    typeset -A opt_args
    typeset -a _arguments_options
    local ret=1

    if is-at-least 5.2; then
        _arguments_options=(-s -S -C)
    else
        _arguments_options=(-s -C)
    fi

    local context curcontext="$curcontext" state line
    if (( CURRENT > 2 )) && [[ $words[2] == ({names}) ]]; then
        shift words
        (( CURRENT -= 1 ))
        curcontext="${{curcontext%:*:*}}:loopfs-command-$words[1]:"
        case $words[1] in
{commands}        esac
        return ret
    fi
    _arguments "${{_arguments_options[@]}}" : \
{options}'1: :_loopfs_first' \
'2:MNT:_files -/' \
&& ret=0
    return ret
}}

(( $+functions[_loopfs_first] )) ||
_loopfs_first() {{
    local ret=1
    # A command is the first word of all.
    if (( CURRENT == 2 )); then
        _loopfs_commands && ret=0
    fi
    _files -/ && ret=0
    return ret
}}

(( $+functions[_loopfs_commands] )) ||
_loopfs_commands() {{
    local commands; commands=(
{descriptions}    )
    _describe -t commands 'loopfs commands' commands "$@"
}}

if [ "$funcstack[1]" = "_loopfs" ]; then
    _loopfs "$@"
else
    compdef _loopfs loopfs
fi
"#,
        names = names.join("|"),
    )
}

/// The day of the last change that a reader of the page should know of.
const DATE: &str = "2026-11-27";

const DESCRIPTION: [&str; 5] = [
    "`loopfs` makes the directory tree |SRC| visible at |MNT| as well, as a FUSE file system. What a program \
     does below |MNT| is done in |SRC|. |MNT| need not be empty; what it holds is hidden as long as the mount lasts.",
    "The program goes to the background and returns when the mount can be used. If that fails it prints one line \
     that says why, leaves nothing mounted, and returns another status than 0.",
    "From then on its working directory is |/|, and its messages go to stderr only if that is the journal or a file; a \
     terminal or a pipe belongs to the caller. With `-f` everything stays as it was.",
    "Mounted by root, the tree is for every user, and the kernel checks permissions (`allow_other`, \
     `default_permissions`). Mounted by another user, through `fusermount3`(1), it is for that user only, without \
     set-user-ID programs and devices.",
    "In the mount table the mount has the type |fuse.loopfs| and |SRC| as its source.",
];

const COMMANDS: [&str; 5] = [
    "These look at mounts that are there, and end them. They never go through a mount, so that they work when it is \
     dead or stuck: the daemon of each mount answers at a socket, which only root and the user who mounted it may open. \
     Of others' mounts they show what the mount table does.",
    "A first word that is the name of a command is a command, whatever follows: write `./list` for a directory of \
     that name, or put `--` in front.",
    "States: |serving|; |draining|, no longer mounted and serving what is open; |aborting|, being cut off; |silent|, the \
     daemon is there and does not answer; |dead|, it has ended without unmounting, and `loopfs unmount` mends that; \
     |unknown|, somebody else's.",
    "They return 0 when it was done, and also if there was nothing left to unmount; 1 if the command line is wrong; 2 \
     if something is not permitted or not possible; 32 if nothing of loopfs is mounted there, or it is still in use.",
    "`loopfs doctor` looks at what FUSE needs of the system, at what this kernel has and lacks, and at every mount or |MNT|: \
     one that is dead, stopped, covered, or hangs. Where there is a command that mends something, it stands below it. With \
     status 0 nothing is wrong (what is merely missing is a note), with 2 something is. `--json` gives a list of objects with \
     |about|, |verdict| (ok, note or wrong), |what| and |mend|.",
];

const MOUNT_OPTIONS: &str = "The words of the `-o` list. A later word wins over an earlier one, within a list and \
     across several `-o`. A comma that belongs to a value is written with a backslash in front, and so is a backslash \
     that stands before a comma or another backslash. An unknown word is an error.";

const IGNORED_OPTIONS: &str = "These words are accepted, with or without a value, because other programs pass them \
     on; they change nothing:";

const ENDING: [&str; 5] = [
    "Any of these ends the mount and the program, with status 0:",
    "`umount` |MNT| or `fusermount3 -u` |MNT|. While something is in use below |MNT| they refuse, and nothing changes.",
    "`umount -l` |MNT| or `fusermount3 -uz` |MNT|. The mount disappears from |MNT| at once; files that are open go on \
     working, and the last close ends the program.",
    "SIGINT (Ctrl-C), SIGTERM or SIGHUP. If something is in use below |MNT|, the mount disappears from |MNT| at once \
     and open files have as long as `--drain-timeout` says; then they are cut off. A second signal cuts them off at \
     once. A signal before the mount can be used ends the program with status 8.",
    "After a crash a dead mount stays, on which every access fails with \"Transport endpoint is not connected\". \
     `fusermount3 -uz` |MNT| or `umount -l` |MNT| removes it, and so does the next `loopfs --replace-stale`.",
];

const EXIT_STATUS: &str = "The numbers are those of `mount`(8). COMMANDS above says which ones the commands return. What a unit of \
     systemd shows beyond these (203/EXEC) is systemd's own: `mount.fuse.loopfs`(8).";

const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "RUST_LOG",
        "Which messages to show, in place of `-v` and `-d`: a level (error, warn, info, debug, trace, off), or \
         |module|=|level| pairs separated by commas, such as `loopfs::attach=debug,warn`.",
    ),
    (
        "JOURNAL_STREAM",
        "Set by `systemd`(1). If it names what stderr is, messages carry priorities for the journal.",
    ),
    (
        "LOOPFS_FEATURES_OFF",
        "Features of newer kernels to do without, separated by commas, for tests and for ruling one out: \
         `new-mount-api`, `statmount`, `unique-mount-id`, `openat2`, `file-handles`, `private-copy`, \
         `fanotify`, `passthrough`, `backing-by-path`, `no-opens`, `another-device`, `guard`, `prune`. A word that is none of these is warned of.",
    ),
];

const FILES: [(&str, &str); 5] = [
    (
        "/run/loopfs",
        "The sockets at which root's daemons are asked how they are. Another user's are in `XDG_RUNTIME_DIR`, in \
         |/run/user/UID/loopfs|, or in |/tmp/loopfs-UID|.",
    ),
    ("/dev/fuse", "What the kernel sends its requests through."),
    (
        "/etc/fuse.conf",
        "What `fusermount3`(1) allows users other than root, such as `user_allow_other`.",
    ),
    (
        "/proc/self/mountinfo",
        "The mount table, watched for the end of the mount.",
    ),
    (
        "/sys/fs/fuse/connections",
        "Where a connection to the kernel is aborted, if need be.",
    ),
];

const SEE_ALSO: &str =
    "`mount.fuse.loopfs`(8), `fusermount3`(1), `mount`(8), `umount`(8), `fstab`(5), `fuse`(4)";

fn man_page(version: &str) -> String {
    let mut command = definition();
    command.build();
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut page = Roff::new();
    page.control(
        "TH",
        [
            "LOOPFS",
            "1",
            DATE,
            &format!("loopfs {version}"),
            "User Commands",
        ],
    );

    page.control("SH", ["NAME"])
        .text([roman(format!("loopfs - {about}"))]);
    page.control("SH", ["SYNOPSIS"]);
    page.text(rich("`loopfs` [|OPTIONS|] |SRC| |MNT|"));
    for command in command.get_subcommands_mut() {
        page.control("br", []).text(rich(&usage(command)));
    }

    page.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut page, &DESCRIPTION);

    page.control("SH", ["OPTIONS"]);
    options(&mut page, &command);

    page.control("SH", ["COMMANDS"]);
    paragraphs(&mut page, &COMMANDS);
    commands(&mut page, &mut command);

    page.control("SH", ["MOUNT OPTIONS"])
        .text(rich(MOUNT_OPTIONS));
    mount_options(&mut page);

    page.control("SH", ["ENDING"]).text(rich(ENDING[0]));
    for way in &ENDING[1..4] {
        page.control("IP", ["\\(bu", "2"]).text(rich(way));
    }
    page.control("PP", []).text(rich(ENDING[4]));

    page.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in ExitCode::ALL {
        term(
            &mut page,
            vec![bold((code as u8).to_string())],
            &marked(&sentence(meaning)),
        );
    }

    page.control("PP", []).text(rich(EXIT_STATUS));

    diagnostics::section(&mut page);

    page.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in ENVIRONMENT {
        term(&mut page, vec![bold(name)], meaning);
    }

    page.control("SH", ["FILES"]);
    for (name, meaning) in FILES {
        term(&mut page, vec![italic(name)], meaning);
    }

    page.control("SH", ["EXAMPLES"]);
    for (what, line) in EXAMPLES {
        term(&mut page, vec![bold(line)], what);
    }

    page.control("SH", ["SEE ALSO"]).text(rich(SEE_ALSO));
    page.render()
}

/// The commands, each with its options.
fn commands(page: &mut Roff, program: &mut Command) {
    for command in program.get_subcommands_mut() {
        let usage = usage(command);
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        page.control("TP", [])
            .text(rich(&usage))
            .text(rich(&marked(&sentence(&about))));
        page.control("RS", []);
        options(page, command);
        page.control("RE", []);
    }
}

/// How a command is called, marked.
fn usage(command: &mut Command) -> String {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let name = format!("loopfs {}", command.get_name());
    let operands = usage.strip_prefix(&name).unwrap_or_default();
    let operands = operands.replace("OPTIONS", "|OPTIONS|");
    format!("`{name}`{}", marked(&operands))
}

/// The options of the command line, under the headings of `--help`.
fn options(page: &mut Roff, command: &Command) {
    let mut heading = None;
    for arg in command.get_arguments() {
        // The same for every command.
        if arg.get_id() == "help" && command.get_name() != "loopfs" {
            continue;
        }
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            page.control("SS", heading);
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        term(page, option_head(arg), &marked(&sentence(&help)));
        let takes_values = arg.get_num_args().is_some_and(|range| range.takes_values());
        if !takes_values {
            continue;
        }
        for value in arg.get_possible_values() {
            let help = value
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let is_default = arg
                .get_default_values()
                .iter()
                .any(|default| default == value.get_name());
            let default = if is_default { " (default)" } else { "" };
            page.control("RS", [])
                .control("TP", [])
                .text([bold(value.get_name())]);
            page.text([roman(sentence(&format!("{help}{default}")))])
                .control("RE", []);
        }
    }
}

/// `-o LIST`, `--threads N`, `SRC`.
fn option_head(arg: &Arg) -> Vec<Inline> {
    let mut head = Vec::new();
    if let Some(short) = arg.get_short() {
        head.push(bold(format!("-{short}")));
    }
    if let Some(long) = arg.get_long() {
        if !head.is_empty() {
            head.push(roman(", "));
        }
        head.push(bold(format!("--{long}")));
    }
    if arg.get_num_args().is_some_and(|range| range.takes_values()) {
        for name in arg.get_value_names().unwrap_or_default() {
            if !head.is_empty() {
                head.push(roman(" "));
            }
            head.push(italic(name.as_str()));
        }
    }
    head
}

fn mount_options(page: &mut Roff) {
    let (ignored, effective): (Vec<&Word>, Vec<&Word>) =
        TABLE.iter().partition(|word| word.is_ignored());
    for word in effective {
        let mut head = vec![bold(word.name)];
        if let Some(placeholder) = word.placeholder() {
            head.extend([bold("="), italic(placeholder)]);
        }
        term(page, head, &marked(word.help));
    }
    page.control("PP", []).text(rich(IGNORED_OPTIONS));
    // One item for each reason, which neighbours in the table share.
    for group in ignored.chunk_by(|one, next| one.help == next.help) {
        let mut head = Vec::new();
        for word in group {
            if !head.is_empty() {
                head.push(roman(", "));
            }
            head.push(bold(word.name));
        }
        term(page, head, &marked(group[0].help));
    }
}

fn paragraphs(page: &mut Roff, texts: &[&str]) {
    for (index, text) in texts.iter().enumerate() {
        // A section's heading starts a paragraph by itself.
        if index > 0 {
            page.control("PP", []);
        }
        page.text(rich(text));
    }
}

fn term(page: &mut Roff, head: Vec<Inline>, body: &str) {
    page.control("TP", []).text(head).text(rich(body));
}

/// `text` with a capital in front and a full stop behind, as sentences of a man page have.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    let stop = if text.ends_with(['.', ']']) { "" } else { "." };
    first.chain(characters).chain(stop.chars()).collect()
}

/// Plain text with the two operands marked as the page marks them everywhere.
fn marked(text: &str) -> String {
    text.replace("SRC", "|SRC|").replace("MNT", "|MNT|")
}

/// Text in which `` `bold` `` and `|italic|` are marked.
fn rich(text: &str) -> Vec<Inline> {
    let mut inlines = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['`', '|']) {
        let (before, marked) = rest.split_at(start);
        let (mark, marked) = marked.split_at(1);
        let (inside, after) = marked.split_once(mark).unwrap_or((marked, ""));
        inlines.push(roman(before));
        inlines.push(if mark == "`" {
            bold(inside)
        } else {
            italic(inside)
        });
        rest = after;
    }
    inlines.push(roman(rest));
    inlines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_fonts() {
        let expected = vec![roman("a "), bold("b"), roman(" "), italic("c"), roman(".")];
        assert_eq!(rich("a `b` |c|."), expected);
    }

    #[test]
    fn zsh_has_every_part() {
        let files = generated();
        let zsh = files.iter().find(|file| file.path.ends_with("/_loopfs"));
        let zsh = zsh.map(|file| file.content.as_str()).unwrap_or_default();
        for part in [
            "'*-o+[Mount options",
            "'--version[Print the version]' \\\n'1: :_loopfs_first' \\\n'2:MNT:_files -/'",
            "[[ $words[2] == (list|status|",
            "            (list)\n_arguments",
            "'--prometheus[",
            "    local commands; commands=(\n'list:Show ",
        ] {
            assert_eq!(zsh.matches(part).count(), 1, "{part}");
        }
    }

    #[test]
    fn help_becomes_a_sentence() {
        assert_eq!(sentence("print this"), "Print this.");
        assert_eq!(sentence("N threads [default: 2]"), "N threads [default: 2]");
        assert_eq!(sentence(""), ".");
    }

    #[test]
    fn the_page_has_every_option_word_and_code() {
        let page = man_page("")
            .replace("\\-", "-")
            .replace("\\fR", "")
            .replace("\\fB", "");
        for word in TABLE {
            assert!(page.contains(word.name), "{}", word.name);
        }
        let program = definition();
        let commands = program.get_subcommands();
        for command in std::iter::once(&program).chain(commands) {
            for arg in command.get_arguments() {
                if let Some(long) = arg.get_long() {
                    assert!(page.contains(&format!("--{long}")), "{long}");
                }
            }
            assert!(page.contains(command.get_name()));
        }
    }
}
