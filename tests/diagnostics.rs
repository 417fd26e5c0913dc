//! Every message that can end the program is in the section DIAGNOSTICS of loopfs(1), and says there what to do.
//!
//! The messages are looked for in the text of `src/`: the literals with a space in them, in functions that make a
//! failure. A new one that is not documented fails here, with its words.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use loopfs::cli::generate::DIAGNOSTICS;

/// What makes a failure.
const MAKERS: [&str; 3] = [
    "Failure::new",
    "AttachError::new",
    "AttachErrorKind as Kind",
];

/// Literals in such functions that are no message.
const OTHERS: &[&str] = &[
    // What fusermount3 says, by which it is understood.
    "Device or resource busy",
    "Permission denied",
    "Operation not permitted",
    // A mistake in the program, which nobody who uses it can make.
    "the FUSE connection was taken already",
    "can't tell which mount it is",
    "can't go on with the connection",
    "the connection was being cut",
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") && !path.ends_with("bin") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `text` without comments, logging and unit tests.
fn shipped(text: &str) -> String {
    let text = text.split("\nmod tests {").next().unwrap();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The literals of `text`, as they are printed.
fn literals(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('"') {
        let mut escaped = false;
        let inside = &rest[start + 1..];
        let end = inside.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        // A backslash at the end of a line takes the line's end and the blanks behind it away.
        let mut parts = inside[..end].split("\\\n");
        let first = parts.next().unwrap().to_owned();
        let whole = parts.fold(first, |text, part| text + part.trim_start());
        if !is_logged(&rest[..start]) {
            found.push(whole.replace("\\'", "'"));
        }
        rest = &inside[end + 1..];
    }
    found
}

/// Whether what stands before a literal makes it a line of the log.
fn is_logged(before: &str) -> bool {
    let statement = before.rsplit([';', '{', '}']).next().unwrap();
    ["info!(", "warn!(", "debug!(", "error!("]
        .iter()
        .any(|name| statement.contains(name))
}

/// What of a format string is always printed.
fn fixed(literal: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = literal;
    while let Some(open) = rest.find('{') {
        parts.push(rest[..open].to_owned());
        rest = rest[open..].split_once('}').map_or("", |(_, rest)| rest);
    }
    parts.push(rest.to_owned());
    parts.retain(|part| part.chars().any(char::is_alphabetic));
    parts
}

fn is_documented(literal: &str) -> bool {
    DIAGNOSTICS.iter().any(|it| {
        let text = format!("{} {}", it.message, it.next).replace('|', "");
        let mut rest = text.as_str();
        fixed(literal).iter().all(|part| {
            let part = part.trim();
            rest.find(part)
                .map(|at| rest = &rest[at + part.len()..])
                .is_some()
        })
    })
}

/// The functions of a file that make a failure.
fn makers(text: &str) -> Vec<&str> {
    // A function of a module or of an impl begins a line with at most four blanks before it.
    let starts: Vec<usize> = text
        .match_indices("fn ")
        .map(|(at, _)| at)
        .filter(|&at| {
            let line = &text[text[..at].rfind('\n').map_or(0, |end| end + 1)..at];
            line.len() - line.trim_start().len() <= 4
        })
        .chain([text.len()])
        .collect();
    let functions = starts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
    functions
        .filter(|body| body.contains("Failure") || body.contains("AttachError"))
        .collect()
}

fn undocumented(text: &str) -> Vec<String> {
    let text = shipped(text);
    if !MAKERS.iter().any(|name| text.contains(name)) {
        return Vec::new();
    }
    makers(&text)
        .into_iter()
        .flat_map(literals)
        .filter(|literal| literal.trim().contains(' '))
        .filter(|literal| !OTHERS.contains(&literal.as_str()) && !is_documented(literal))
        .collect()
}

#[test]
fn every_failure_is_in_the_man_page() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut missing = Vec::new();
    for path in sources(&source) {
        if path.ends_with("exit.rs") || path.ends_with("generate/diagnostics.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(&source).unwrap().display().to_string();
        missing.extend(
            undocumented(&text)
                .into_iter()
                .map(|literal| format!("{name}: {literal}")),
        );
    }
    assert!(
        missing.is_empty(),
        "not in src/cli/generate/diagnostics.rs:\n{}",
        missing.join("\n")
    );
}

/// A checker that finds nothing proves nothing.
#[test]
fn a_planted_message_is_found() {
    let planted = r#"
        fn f() -> Result<(), Failure> {
            log::warn!("this is for the log: {x}");
            let text = format!("the moon {phase} is in \
                the way: wait {days} days");
            Err(Failure::new(ExitCode::System, text))
        }
        fn g() { h("no failure of anybody") }
    "#;
    assert_eq!(
        undocumented(&planted.replace("\n        ", "\n")),
        ["the moon {phase} is in the way: wait {days} days"]
    );
}

/// Without punctuation at its ends.
fn bare(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

/// None is documented that nobody prints any more: the longest fixed part of each stands somewhere in `src/`.
#[test]
fn nothing_is_documented_that_is_not_printed() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let printed: Vec<String> = sources(&source)
        .iter()
        .filter(|path| !path.ends_with("generate/diagnostics.rs"))
        .flat_map(|path| literals(&shipped(&fs::read_to_string(path).unwrap())))
        .flat_map(|literal| fixed(&literal))
        .collect();
    let stale: Vec<&str> = DIAGNOSTICS
        .iter()
        .map(|it| it.message)
        .filter(|message| {
            let parts = message.split('|').step_by(2);
            let words = bare(parts.max_by_key(|part| part.len()).unwrap());
            !printed.iter().any(|part| {
                part.contains(words) || bare(part).len() > 12 && words.contains(bare(part))
            })
        })
        .collect();
    assert!(stale.is_empty(), "{stale:#?}");
}
