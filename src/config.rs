//! What the user meant: validated, resolved, immutable. Made from [`crate::cli`] by one function
//! and read by everybody else; nothing here is parsed again.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Make the mount and serve it.
    Serve,
    /// Check everything and mount nothing (`-f` of mount(8)).
    Check,
    /// Change the flags of the mount that is there (`remount`).
    Remount,
}

/// A look at the mounts that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// All of them.
    List {
        /// For programs, rather than for people.
        json: bool,
    },
    /// Everything about one.
    Status {
        /// Where it is mounted, absolute.
        target: PathBuf,
        /// For whom.
        shape: Shape,
    },
    /// Takes one away.
    Unmount {
        /// Where it is mounted, absolute.
        target: PathBuf,
        /// What about those who use it.
        how: Unmount,
    },
    /// The program on the disk is to go on with it.
    Upgrade {
        /// Where it is mounted.
        target: PathBuf,
    },
    /// What is wrong, and what mends it.
    Doctor {
        /// Where something is mounted or is to be, absolute; else of every mount.
        target: Option<PathBuf>,
        /// For programs, rather than for people.
        json: bool,
    },
    /// What is done with one, live.
    Top {
        /// Where it is mounted, absolute; else it is chosen.
        target: Option<PathBuf>,
    },
}

/// For whom something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Tables.
    People,
    /// JSON.
    Json,
    /// The text format of Prometheus.
    Prometheus,
}

/// What an unmount does about those who use the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmount {
    /// When they have not finished in time, they keep what they have open.
    pub lazy: bool,
    /// When they have not finished in time, they are cut off.
    pub force: bool,
    /// How long they are waited for.
    pub timeout: Option<Limit>,
    /// Nothing is done unless nobody serves it any more.
    pub if_dead: bool,
}

/// One mount, completely described.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is to be done with it.
    pub task: Task,
    /// The tree to serve: absolute, an existing directory when it was resolved.
    pub source: PathBuf,
    /// Where to mount it: absolute, symlinks resolved (the last component exists unless `make_target`).
    pub target: PathBuf,
    /// Stay in the foreground instead of going to the background when the mount is ready.
    pub foreground: bool,
    /// Create `target` before, remove it after (`--mkdir`).
    pub make_target: bool,
    /// Detach a dead mount ("Transport endpoint is not connected") found at `target` first.
    pub replace_stale: bool,
    /// How requests are served.
    pub serving: Serving,
    /// What the mount itself is like.
    pub mount: MountOptions,
    /// How long the kernel may keep what it was told.
    pub caching: Caching,
    /// How SRC is shown.
    pub tree: TreeOptions,
    /// How long open files are given after a signal on a busy mount.
    pub drain_timeout: Limit,
    /// How long open files are given after a lazy unmount from outside.
    pub lazy_timeout: Limit,
    /// What happens when the serving process dies.
    pub restart: Restart,
    /// What is logged, and how.
    pub logging: Logging,
    /// Options that were given and that a remount can't change, as they are written.
    pub lasting: Vec<&'static str>,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Number of event loops.
    pub threads: NonZeroUsize,
    /// How open files are read and written.
    pub io: Io,
    /// Whether a listing brings attributes along.
    pub listing: Listing,
    /// CPUs are kept from sleeping deeply while requests come.
    pub low_latency: bool,
}

/// Options of the mount, as mount(8) and mount.fuse3(8) name them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is one word of the -o list, independent of the others
pub struct MountOptions {
    /// `ro`: nothing can be changed through the mount.
    pub read_only: bool,
    /// `nosuid`: set-user-id bits and file capabilities have no effect.
    pub nosuid: bool,
    /// `nodev`: device nodes can't be opened.
    pub nodev: bool,
    /// `noexec`: nothing can be executed.
    pub noexec: bool,
    /// `nosymfollow`: nobody is led on by a symlink.
    pub nosymfollow: bool,
    /// `noatime`: the kernel does not keep access times of this mount.
    pub noatime: bool,
    /// `sync`: writes are synchronous.
    pub sync: bool,
    /// `dirsync`: directory changes are synchronous.
    pub dirsync: bool,
    /// `allow_other`: every user may use the mount, not only the one who mounted it.
    pub allow_other: bool,
    /// `allow_root`: root may use it beside its owner (unprivileged mounts).
    pub allow_root: bool,
    /// `default_permissions`: the kernel checks modes and ACLs itself.
    pub default_permissions: bool,
    /// `fsname=`: the source shown in the mount table; SRC if absent.
    pub fsname: Option<OsString>,
    /// `subtype=`: shown as `fuse.SUBTYPE`; `loopfs` if absent.
    pub subtype: OsString,
    /// `max_read=`: largest read request in bytes; the kernel's own limit if absent.
    pub max_read: Option<u32>,
}

/// One of a few words.
pub trait Choice: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// As it is written.
    #[must_use]
    fn name(self) -> &'static str;

    /// The one that is written so.
    #[must_use]
    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }
}

/// How open files are read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Io {
    /// By the kernel itself where it can be had, otherwise by requests with the page cache.
    #[default]
    Auto,
    /// By the kernel itself, or not at all: it is an error if that can't be had.
    Passthrough,
    /// By requests, with the page cache.
    Cached,
    /// By requests, without it.
    Direct,
}

impl Choice for Io {
    const ALL: &'static [Self] = &[Self::Auto, Self::Passthrough, Self::Cached, Self::Direct];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Passthrough => "passthrough",
            Self::Cached => "cached",
            Self::Direct => "direct",
        }
    }
}

/// Whether a listing brings attributes along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Listing {
    /// If the kernel thinks that they are wanted.
    #[default]
    Auto,
    /// Each time.
    Always,
    /// Never: names only.
    Never,
}

impl Choice for Listing {
    const ALL: &'static [Self] = &[Self::Auto, Self::Always, Self::Never];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// What makes the kernel ask again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cache {
    /// Changes in SRC where they can be followed, otherwise the passing of time.
    #[default]
    Auto,
    /// Changes in SRC; it is an error if they can't be followed.
    Coherent,
    /// The passing of time.
    Timed,
    /// It always asks.
    Off,
}

impl Choice for Cache {
    const ALL: &'static [Self] = &[Self::Auto, Self::Coherent, Self::Timed, Self::Off];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Coherent => "coherent",
            Self::Timed => "ttl",
            Self::Off => "none",
        }
    }
}

/// How long the kernel may answer from what it was told, without asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caching {
    /// What makes it ask; the times count where that is the passing of time.
    pub mode: Cache,
    /// `entry_timeout=`: a name and the inode behind it.
    pub entry: Duration,
    /// `attr_timeout=`: attributes of an inode.
    pub attr: Duration,
    /// `negative_timeout=`: that a name does not exist; zero: not remembered.
    pub negative: Duration,
}

/// Options of the tree below the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeOptions {
    /// `one_file_system`: mounts below SRC are not crossed.
    pub one_file_system: bool,
    /// `forward_locks`: locks taken through the mount are taken in SRC too.
    pub forward_locks: bool,
}

/// What happens when the serving process dies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restart {
    /// Whether there is somebody to start it again.
    pub supervise: Supervise,
    /// How often that is done.
    pub limit: RestartLimit,
}

/// Whether a process that dies is followed by another one, without anybody noticing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Supervise {
    /// No: its mount is dead then.
    #[default]
    Off,
    /// As far as that can be done; the log says what can't.
    On,
    /// Yes: it is an error if that can't be done.
    Require,
}

impl Choice for Supervise {
    const ALL: &'static [Self] = &[Self::Off, Self::On, Self::Require];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Require => "require",
        }
    }
}

/// How often in a minute a process that dies is followed by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartLimit {
    /// As often as this.
    Times(u32),
    /// As often as it takes.
    Never,
}

impl Default for RestartLimit {
    fn default() -> Self {
        Self::Times(10)
    }
}

/// A time limit that may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// At most this long.
    After(Duration),
    /// No limit.
    Never,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// Level from `-v`/`-d`; `RUST_LOG` wins when it is set.
    pub level: log::LevelFilter,
    /// Shape of a line.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `journal` when stderr is the journal's stream, `text` otherwise.
    Auto,
    /// A line for people.
    Text,
    /// A line with a syslog priority in front (`<3>`), as sd-daemon(3) wants it.
    Journal,
    /// One JSON object a line.
    Json,
}
