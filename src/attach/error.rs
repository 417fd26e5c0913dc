//! Why there is no mount, or why it can't be taken down: one clear line, and the kind of fault
//! that decides the exit code.

use std::fmt;
use std::path::Path;

use crate::exit::{ExitCode, Failure};
use crate::sys::limits;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachErrorKind {
    /// MNT, or the directory it is to be made in, does not exist.
    TargetMissing,
    /// MNT is not a directory.
    TargetNotDirectory,
    /// MNT can't be reached, made, or mounted on.
    TargetUnusable,
    /// MNT lies on a mount whose daemon has gone.
    TargetDead,
    /// MNT lies on a FUSE mount whose daemon does not answer.
    TargetUnresponsive,
    /// There is no FUSE in this kernel, or no /dev/fuse.
    NoDevice,
    /// /dev/fuse can't be opened.
    DeviceDenied,
    /// fusermount3 is needed and not there.
    NoHelper,
    /// Mounting, or something that it needs, is not permitted.
    NotPermitted,
    /// The kernel, or fusermount3, refused the mount.
    Refused,
    /// The new mount did not answer its self-test.
    SelfTest,
    /// The mount could not be taken down.
    Detach,
    /// A system call that has no reason to fail did.
    System,
}

/// A failure of attaching or detaching. `Display` is one line: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachError {
    /// What kind of thing went wrong.
    pub kind: AttachErrorKind,
    message: String,
}

impl AttachError {
    pub(crate) fn new(kind: AttachErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The code to end with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        use AttachErrorKind as Kind;
        match self.kind {
            Kind::TargetMissing
            | Kind::TargetNotDirectory
            | Kind::TargetUnusable
            | Kind::TargetDead
            | Kind::TargetUnresponsive
            | Kind::Refused
            | Kind::SelfTest => ExitCode::MountFailed,
            Kind::NoDevice
            | Kind::DeviceDenied
            | Kind::NoHelper
            | Kind::NotPermitted
            | Kind::Detach
            | Kind::System => ExitCode::System,
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AttachError {}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        Self::new(error.exit_code(), error.message)
    }
}

/// A path as part of a one-line message: control characters can't break the line.
pub(crate) fn shown(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}

/// `text` with every control character escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// What the system says of `errno`, in words and without the number.
pub(crate) fn says(errno: rustix::io::Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The same, and what to do about it where a limit explains it.
pub(crate) fn explained(errno: rustix::io::Errno) -> String {
    let said = says(errno);
    match limits::remedy(&errno.into()) {
        Some(remedy) => format!("{said}: {remedy}"),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_can_not_break_the_line() {
        assert_eq!(shown(Path::new("/a b\n\x1b[1mü")), "/a b\\n\\u{1b}[1mü");
    }

    #[test]
    fn errno_in_words() {
        assert_eq!(
            says(rustix::io::Errno::NOTCONN),
            "Transport endpoint is not connected"
        );
    }
}
