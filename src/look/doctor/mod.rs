//! `loopfs doctor [MNT]`: what is wrong, and the command that mends it. Of the system and of every mount, or of one.
//!
//! In reading order: `system` (what FUSE needs), `kernel` (what newer kernels have), `mounts` (those that are there, and
//! the place of one that is to be).

mod kernel;
mod mounts;
mod system;

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::text;
use crate::exit::{ExitCode, Failure};

/// What a finding means for whoever wants to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works without; what is lost is said.
    Note,
    /// Something does not work.
    Wrong,
}

/// One thing that was looked at. The names are a promise to those who read `--json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at: `/dev/fuse`, `passthrough`, a mount.
    about: String,
    verdict: Verdict,
    /// How it is.
    what: String,
    /// The command that mends it, where there is one.
    mend: Option<String>,
}

impl Finding {
    fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(about, Verdict::Ok, what)
    }

    fn note(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(about, Verdict::Note, what)
    }

    fn wrong(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(about, Verdict::Wrong, what)
    }

    fn new(about: impl Into<String>, verdict: Verdict, what: impl Into<String>) -> Self {
        Self {
            about: about.into(),
            verdict,
            what: what.into(),
            mend: None,
        }
    }

    fn mended_by(self, command: impl Into<String>) -> Self {
        Self {
            mend: Some(command.into()),
            ..self
        }
    }
}

/// Looks, and tells. What is merely missing is no failure; [`ExitCode::System`] if something is wrong.
pub(super) fn run(target: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let mut findings = system::findings();
    findings.extend(kernel::findings());
    findings.extend(mounts::findings(target)?);
    let wrong = findings.iter().any(|it| it.verdict == Verdict::Wrong);
    super::print(&if json {
        text::json(&findings)
    } else {
        for_people(&findings)
    })?;
    Ok(if wrong {
        ExitCode::System
    } else {
        ExitCode::Success
    })
}

fn for_people(findings: &[Finding]) -> String {
    let mut shown = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok   ",
            Verdict::Note => "note ",
            Verdict::Wrong => "WRONG",
        };
        // Writing to a String can't fail.
        let _ = writeln!(shown, "{verdict}  {}: {}", finding.about, finding.what);
        if let Some(command) = &finding.mend {
            let _ = writeln!(shown, "         {command}");
        }
    }
    let wrong = findings.iter().filter(|it| it.verdict == Verdict::Wrong);
    let _ = match wrong.count() {
        0 => writeln!(shown, "nothing is wrong"),
        1 => writeln!(shown, "1 thing is wrong; the command below it mends it"),
        number => writeln!(
            shown,
            "{number} things are wrong; the command below each mends it"
        ),
    };
    shown
}

/// A path as a word of a shell's command line.
fn word(path: &Path) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    match path.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
        Some(text) if !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        // As bash and others have it.
        _ => format!("$'{}'", text::name(path).replace('\'', r"\'")),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn a_finding_has_its_command_below_it() {
        let findings = [
            Finding::ok("a", "as it should be"),
            Finding::note("b", "not there"),
            Finding::wrong("c", "broken").mended_by("mend c"),
        ];
        assert_eq!(
            for_people(&findings),
            "ok     a: as it should be\nnote   b: not there\nWRONG  c: broken\n         mend c\n\
             1 thing is wrong; the command below it mends it\n"
        );
        assert!(for_people(&findings[..2]).ends_with("nothing is wrong\n"));
    }

    #[test]
    fn a_command_can_be_pasted() {
        assert_eq!(word(Path::new("/mnt/a-b")), "/mnt/a-b");
        assert_eq!(word(Path::new("/mnt/it's a")), r"'/mnt/it'\''s a'");
        assert_eq!(word(Path::new("/a\nb")), r"$'/a\nb'");
        assert_eq!(word(Path::new(OsStr::from_bytes(b"/a\xff"))), r"$'/a\xff'");
    }
}
