//! The exit codes of `loopfs`, once, as an enum; the man page and README list the same numbers.

/// How the program ended, as a number for the caller. The numbers are mount(8)'s, so that
/// `mount -t fuse.loopfs` hands on what people know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Mounted (background), or served and ended in an orderly way, whatever asked for the end.
    Success = 0,
    /// The command line or an option is wrong; nothing was tried.
    Usage = 1,
    /// Something of the system is missing or refused: no /dev/fuse, no fusermount3, no memory, no permission.
    System = 2,
    /// Serving failed after the mount had been made: an internal fault; the mount was taken down.
    Internal = 4,
    /// Interrupted by a signal before the mount was ready; nothing stays mounted.
    Interrupted = 8,
    /// The mount could not be made: SRC or MNT is unusable or the kernel refused.
    MountFailed = 32,
    /// As a service only: ended, and left the mount to the next start.
    Again = 75,
}

impl ExitCode {
    /// Every code with its meaning in a line, in ascending order: what the man page lists.
    pub const ALL: [(ExitCode, &'static str); 7] = [
        (
            ExitCode::Success,
            "mounted, or served and ended in an orderly way",
        ),
        (
            ExitCode::Usage,
            "the command line or an option is wrong; nothing was tried",
        ),
        (
            ExitCode::System,
            "something of the system is missing or was refused (/dev/fuse, fusermount3, permission)",
        ),
        (
            ExitCode::Internal,
            "serving failed after the mount had been made; the mount was taken down",
        ),
        (
            ExitCode::Interrupted,
            "interrupted by a signal before the mount was ready; nothing stays mounted",
        ),
        (
            ExitCode::MountFailed,
            "the mount could not be made: SRC or MNT can't be used, or the kernel refused",
        ),
        (
            ExitCode::Again,
            "as a service of systemd that is restarted: the mount is left to the next start",
        ),
    ];
}

impl ExitCode {
    /// The code with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .map(|(code, _)| code)
            .find(|code| *code as u8 == number)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// A failure that ends the program: the one line for stderr and the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: ExitCode,
    /// One line: what is wrong and what to do about it, without the program's name in front.
    pub message: String,
}

impl Failure {
    /// A failure with `code` and the line to print.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
