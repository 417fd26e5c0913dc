//! Why the daemon ended, and what its caller is told: the cause alone decides the exit code.

use std::fmt;

use crate::exit::ExitCode;

/// The signals that end the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalName {
    /// Ctrl-C.
    Int,
    /// kill(1), systemd.
    Term,
    /// The terminal went away.
    Hup,
}

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SignalName::Int => "SIGINT",
            SignalName::Term => "SIGTERM",
            SignalName::Hup => "SIGHUP",
        })
    }
}

/// Why it ended. The first one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A signal, or whoever speaks for one, while serving.
    Signal(SignalName),
    /// A signal before the mount was ready.
    Interrupted(SignalName),
    /// Somebody else unmounted it, lazily or not.
    Unmounted,
    /// Somebody else aborted the connection (fusectl, `umount -f` on a busy mount).
    ConnectionAborted,
    /// Serving ended with an error.
    ServingFailed,
    /// Whoever restarts the serving process, and holds the connection for the next one, is gone.
    SupervisorLost,
    /// The mount never became ready; the code is start-up's own.
    StartupFailed(ExitCode),
}

impl Cause {
    /// What the caller of the program is told.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        match self {
            Cause::Signal(_) | Cause::Unmounted | Cause::ConnectionAborted => ExitCode::Success,
            Cause::Interrupted(_) => ExitCode::Interrupted,
            Cause::ServingFailed | Cause::SupervisorLost => ExitCode::Internal,
            Cause::StartupFailed(code) => code,
        }
    }

    /// The same wish, uttered before there was a mount to take down.
    pub(super) fn before_ready(self) -> Self {
        match self {
            Cause::Signal(name) => Cause::Interrupted(name),
            other => other,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Signal(name) => write!(f, "{name}"),
            Cause::Interrupted(name) => write!(f, "{name} before the mount was ready"),
            Cause::Unmounted => f.write_str("unmounted from outside"),
            Cause::ConnectionAborted => f.write_str("connection aborted from outside"),
            Cause::ServingFailed => f.write_str("serving failed"),
            Cause::SupervisorLost => f.write_str("the supervisor is gone"),
            Cause::StartupFailed(_) => f.write_str("start-up failed"),
        }
    }
}
