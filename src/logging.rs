//! What is written to stderr: log lines, and the one line that says why the program ended.
//!
//! A line has one of three shapes: text for people, a syslog priority in front (`<3>`) where the
//! journal listens, or a JSON object. Names of files end up in messages and may hold any byte, so
//! control characters are escaped in every shape: nobody can forge a line, or a priority, by the name
//! of a file.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use env_logger::Builder;
use log::{Level, LevelFilter};

use crate::config::{LogFormat, Logging};
use crate::exit::Failure;
use crate::sync::OnceLock;

/// The shape that [`init`] chose, for [`report`].
static SHAPE: OnceLock<Shape> = OnceLock::new();

/// The shape of a line, with `auto` decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Journal,
    Json,
}

impl Shape {
    fn of(format: LogFormat) -> Self {
        match format {
            LogFormat::Auto if stderr_is_journal() => Self::Journal,
            LogFormat::Auto | LogFormat::Text => Self::Text,
            LogFormat::Journal => Self::Journal,
            LogFormat::Json => Self::Json,
        }
    }
}

/// Starts logging to stderr. Starts no thread, so that the program can still fork. Only the first call
/// in a process has an effect.
///
/// `RUST_LOG` decides alone where it is set. Otherwise loopfs logs at the level that was asked for,
/// and everybody else's warnings are shown; fuser's account of each request comes with `trace`.
pub fn init(logging: &Logging) {
    let shape = *SHAPE.get_or_init(|| Shape::of(logging.format));
    let mut builder = Builder::new();
    match std::env::var("RUST_LOG") {
        Ok(filters) if !filters.is_empty() => {
            builder.parse_filters(&filters);
        }
        _ => {
            let everybody = if logging.level == LevelFilter::Trace {
                LevelFilter::Debug
            } else {
                LevelFilter::Warn
            };
            builder
                .filter_level(everybody)
                .filter_module("loopfs", logging.level);
            if logging.level != LevelFilter::Trace {
                // It calls a reply that the kernel no longer waits for (the caller was killed, the
                // mount has gone) an error. What loopfs did not answer it reports itself.
                builder.filter_module("fuser::reply", LevelFilter::Off);
            }
        }
    }
    builder.format(move |line, record| {
        let time = line.timestamp_millis().to_string();
        let message = record.args().to_string();
        writeln!(
            line,
            "{}",
            render(shape, &time, record.level(), record.target(), &message)
        )
    });
    // An error means that a logger is there already, which is what the caller wants.
    let _ = builder.try_init();
}

/// Prints why the program ends. Not a log line: no filter may hide it.
pub fn report(failure: &Failure) {
    let shape = *SHAPE.get_or_init(|| Shape::of(LogFormat::Auto));
    let line = match shape {
        Shape::Text => format!("loopfs: {}", one_line(&failure.message)),
        Shape::Journal => format!("<3>loopfs: {}", one_line(&failure.message)),
        Shape::Json => format!(
            r#"{{"level":"ERROR","target":"loopfs","message":{},"exit_code":{}}}"#,
            json_string(&failure.message),
            failure.code as u8,
        ),
    };
    // Nobody is left to be told that stderr can't be written.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether somebody reads stderr after the program that started us has ended, without waiting for its
/// end: the journal, or a file that the user chose.
pub(crate) fn stderr_endures() -> bool {
    stderr_metadata().is_ok_and(|stderr| stderr.is_file()) || stderr_is_journal()
}

/// `JOURNAL_STREAM` names device and inode of the stream that systemd made for us; only if stderr is
/// still that one (and not redirected by a wrapper) are priorities understood. systemd.exec(5).
fn stderr_is_journal() -> bool {
    let (Ok(stream), Ok(stderr)) = (std::env::var("JOURNAL_STREAM"), stderr_metadata()) else {
        return false;
    };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

fn stderr_metadata() -> io::Result<Metadata> {
    File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()
}

/// One line, without its end.
fn render(shape: Shape, time: &str, level: Level, target: &str, message: &str) -> String {
    match shape {
        Shape::Text => format!("{time} {level:<5} {}: {}", short(target), one_line(message)),
        // The journal keeps the time itself.
        Shape::Journal => format!(
            "<{}>{}: {}",
            priority(level),
            short(target),
            one_line(message)
        ),
        Shape::Json => format!(
            r#"{{"time":{},"level":"{level}","target":{},"message":{}}}"#,
            json_string(time),
            json_string(target),
            json_string(message),
        ),
    }
}

/// `loopfs::attach::helper` as `attach::helper`: the crate's name in each line would say nothing.
fn short(target: &str) -> &str {
    target.strip_prefix("loopfs::").unwrap_or(target)
}

/// The number of sd-daemon(3). There is none below debug.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// `text` with its control characters escaped.
fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    Cow::Owned(line)
}

/// `text` as a JSON string, quotes included (RFC 8259, section 7): quote, backslash and control
/// characters are escaped, everything else stands for itself.
fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            // C1 controls and DEL need no escape in JSON, but a terminal acts on them.
            control if control.is_control() => {
                // Writing to a String can't fail.
                let _ = write!(json, "\\u{:04x}", u32::from(control));
            }
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_escape_what_they_must() {
        assert_eq!(json_string(""), r#""""#);
        assert_eq!(json_string(r#"a "b" \ c/d"#), r#""a \"b\" \\ c/d""#);
        assert_eq!(json_string("\n\r\t"), r#""\n\r\t""#);
        assert_eq!(
            json_string("\0\u{1b}[31m\u{7f}\u{9b}"),
            r#""\u0000\u001b[31m\u007f\u009b""#
        );
        assert_eq!(json_string("grün 日本 🦀"), "\"grün 日本 🦀\"");
    }

    #[test]
    fn nothing_can_forge_a_line() {
        assert_eq!(one_line("plain grün"), "plain grün");
        assert_eq!(one_line("a\n<3>b\x1b[0m\u{85}"), r"a\n<3>b\u{1b}[0m\u{85}");
    }

    #[test]
    fn lines_have_their_shape() {
        let line = |shape| {
            render(
                shape,
                "2026-11-23T01:02:03.004Z",
                Level::Warn,
                "loopfs::mount",
                "it's \"x\"\n",
            )
        };
        assert_eq!(
            line(Shape::Text),
            r#"2026-11-23T01:02:03.004Z WARN  mount: it's "x"\n"#
        );
        assert_eq!(line(Shape::Journal), r#"<4>mount: it's "x"\n"#);
        assert_eq!(
            line(Shape::Json),
            r#"{"time":"2026-11-23T01:02:03.004Z","level":"WARN","target":"loopfs::mount","message":"it's \"x\"\n"}"#
        );
    }

    #[test]
    fn every_level_has_its_priority() {
        let priorities: Vec<u8> = Level::iter().map(priority).collect();
        assert_eq!(priorities, [3, 4, 6, 7, 7]);
    }

    #[test]
    fn only_auto_asks_what_stderr_is() {
        assert_eq!(Shape::of(LogFormat::Text), Shape::Text);
        assert_eq!(Shape::of(LogFormat::Journal), Shape::Journal);
        assert_eq!(Shape::of(LogFormat::Json), Shape::Json);
    }
}
