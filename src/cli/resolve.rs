//! From what was typed to what was meant: paths made absolute, lists applied, defaults filled in.
//!
//! SRC is followed through every symlink, once, here. MNT is treated with care, in `target`: a dead or stuck mount
//! may be on it or on the way to it. What is at MNT is `attach`'s to judge.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::config::{Cache, Caching, Config, MountOptions, Restart, Serving, Task, TreeOptions};
use crate::exit::{ExitCode, Failure};
use crate::options::Options;
use crate::sys::fs::{is_too_many_links, restrictions_at};
use crate::sys::process::{enter_mount_namespace, is_root};

use super::Cli;
use super::target::to_mount_on;

/// What of the surroundings decides defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Environment {
    /// Run by root.
    pub privileged: bool,
    /// CPUs that this process may use.
    pub cpus: NonZeroUsize,
}

impl Environment {
    /// This process's.
    #[must_use]
    pub fn current() -> Self {
        Self {
            privileged: is_root(),
            cpus: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }

    /// One thread serves a single caller fastest, two serve two; a third and fourth pay off under load,
    /// more than there are CPUs never. Two at least, so that a slow read does not hold up everything.
    fn default_threads(self) -> NonZeroUsize {
        const LEAST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
        const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);
        self.cpus.clamp(LEAST, MOST)
    }
}

impl Cli {
    /// Goes to the mount namespace that the command line names, if it does: SRC and MNT are paths there.
    ///
    /// # Errors
    /// One line: the namespace can't be opened or entered ([`ExitCode::System`]).
    pub fn enter_namespace(&self) -> Result<(), Failure> {
        self.namespace.as_deref().map_or(Ok(()), |path| {
            enter_mount_namespace(path).map_err(|error| {
                let text = format!(
                    "can't enter the mount namespace {}: {error}: it takes root, and a file such as \
                     /proc/PID/ns/mnt",
                    path.display()
                );
                Failure::new(ExitCode::System, text)
            })
        })
    }

    /// What the user meant. Remarks about accepted options go to the log.
    ///
    /// # Errors
    /// One line: a mount option that is wrong ([`ExitCode::Usage`]), or SRC or MNT that can't be used
    /// ([`ExitCode::MountFailed`]).
    pub fn resolve(self, environment: &Environment) -> Result<Config, Failure> {
        self.resolve_at(environment, None)
    }

    /// The same with SRC and MNT as another process has found them. Neither is looked at: what leads to SRC may be covered by the
    /// very mount that is to be served.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_again(
        self,
        environment: &Environment,
        (source, target): (PathBuf, PathBuf),
    ) -> Result<Config, Failure> {
        self.resolve_at(environment, Some((source, target)))
    }

    fn resolve_at(
        self,
        environment: &Environment,
        found: Option<(PathBuf, PathBuf)>,
    ) -> Result<Config, Failure> {
        let logging = self.logging();
        let defaults = || Options::defaults(environment.privileged);
        // What is wrong with the words is said before SRC is looked at, which may change what they add to.
        let words = self.listed(defaults())?;
        let task = match (self.fake, words.remount) {
            (true, _) => Task::Check,
            (false, true) => Task::Remount,
            (false, false) => Task::Serve,
        };
        let (source, target, mount) = match (found, task) {
            (Some((source, target)), _) => (source, target, defaults().mount),
            // SRC may have gone, or be what the mount table shows in its place.
            (None, Task::Remount) => (
                self.source.clone(),
                to_mount_on(&self.target)?,
                as_strict_as(&self.source, defaults().mount),
            ),
            (None, Task::Serve | Task::Check) => {
                let source = source(&self.source)?;
                let mount = as_strict_as(&source, defaults().mount);
                (source, to_mount_on(&self.target)?, mount)
            }
        };
        let mut options = self.listed(Options {
            mount,
            ..defaults()
        })?;
        for remark in &options.remarks {
            log::info!("{remark}");
        }
        options.mount.read_only |= self.read_only;
        // Others must not get the rights of the user who lets them in, unless that is what was asked for.
        options.mount.default_permissions |= options.mount.allow_other
            && !environment.privileged
            && !options.lasting.contains(&"nodefault_permissions");
        if environment.privileged && options.mount.allow_other && !options.mount.default_permissions
        {
            let text = "'nodefault_permissions' with 'allow_other' would give every user root's \
                        rights on SRC: leave one of them out, or add 'noallow_other'";
            return Err(Failure::new(ExitCode::Usage, text));
        }
        let lasting = self.lasting(&options);
        let caching = caching(self.cache.or(options.cache), &options)?;
        Ok(Config {
            task,
            source,
            target,
            foreground: self.foreground || self.debug,
            make_target: self.mkdir,
            replace_stale: self.replace_stale,
            serving: Serving {
                threads: self
                    .threads
                    .or(options.threads)
                    .unwrap_or_else(|| environment.default_threads()),
                io: self.io.or(options.io).unwrap_or_default(),
                listing: options.listing,
                low_latency: self.low_latency || options.low_latency,
            },
            mount: options.mount,
            caching,
            tree: TreeOptions {
                one_file_system: self.one_file_system || options.tree.one_file_system,
                forward_locks: self.forward_locks || options.tree.forward_locks,
            },
            drain_timeout: self.drain_timeout.unwrap_or(options.drain_timeout),
            lazy_timeout: self.lazy_timeout.unwrap_or(options.lazy_timeout),
            restart: Restart {
                supervise: self.supervise.unwrap_or(options.restart.supervise),
                limit: self.restart_limit.unwrap_or(options.restart.limit),
            },
            logging,
            lasting,
        })
    }
}

impl Cli {
    /// `options` with what the lists say on top.
    fn listed(&self, mut options: Options) -> Result<Options, Failure> {
        options.sloppy = self.sloppy;
        for list in &self.options {
            options.apply(list)?;
        }
        Ok(options)
    }
}

impl Cli {
    /// What was given and lasts as long as the mount.
    fn lasting(&self, options: &Options) -> Vec<&'static str> {
        let own = [
            ("--one-file-system", self.one_file_system),
            ("--forward-locks", self.forward_locks),
            ("--io", self.io.is_some()),
            ("--cache", self.cache.is_some()),
            ("--low-latency", self.low_latency),
            ("--threads", self.threads.is_some()),
            ("--drain-timeout", self.drain_timeout.is_some()),
            ("--lazy-timeout", self.lazy_timeout.is_some()),
            ("--supervise", self.supervise.is_some()),
            ("--restart-limit", self.restart_limit.is_some()),
        ];
        let own = own.into_iter().filter(|(_, given)| *given);
        let own = own.map(|(name, _)| name);
        options.lasting.iter().copied().chain(own).collect()
    }
}

/// `mount` with the restrictions of the mount that `source` is on: what is no set-user-ID program there (a
/// stick that a user has put in) must not become one here. Words of the user's own still win.
fn as_strict_as(source: &Path, mut mount: MountOptions) -> MountOptions {
    // Of an unreadable SRC the start says more, in a moment.
    if let Ok(flags) = restrictions_at(source) {
        mount.nosuid |= flags.nosuid;
        mount.nodev |= flags.nodev;
        mount.noexec |= flags.noexec;
        // Others than root mount through fusermount3, which does not know it.
        mount.nosymfollow |= flags.nosymfollow && is_root();
    }
    mount
}

/// What the kernel may remember. Times of the user's own are kept to, unless something else was asked for too.
fn caching(mode: Option<Cache>, options: &Options) -> Result<Caching, Failure> {
    let mode = match mode {
        None if options.timed => Cache::Timed,
        Some(Cache::Off) if options.timed => {
            let text = "'cache=none' keeps nothing for any time: leave out the timeouts, or it";
            return Err(Failure::new(ExitCode::Usage, text));
        }
        mode => mode.unwrap_or_default(),
    };
    let times = options.caching;
    Ok(match mode {
        Cache::Off => Caching {
            mode,
            entry: Duration::ZERO,
            attr: Duration::ZERO,
            negative: Duration::ZERO,
        },
        _ => Caching { mode, ..times },
    })
}

/// SRC, absolute and without symlinks; a directory.
fn source(typed: &Path) -> Result<PathBuf, Failure> {
    let resolved = typed
        .canonicalize()
        .map_err(|error| unusable("SRC", typed, &error))?;
    let metadata = resolved
        .metadata()
        .map_err(|error| unusable("SRC", typed, &error))?;
    if metadata.is_dir() {
        Ok(resolved)
    } else {
        Err(unusable("SRC", typed, &io::ErrorKind::NotADirectory.into()))
    }
}

/// The one clear line.
pub(super) fn unusable(which: &str, path: &Path, error: &io::Error) -> Failure {
    let reason = match (which, error.kind()) {
        ("SRC", io::ErrorKind::NotFound) => {
            "no such file or directory: check the path, or mount what it is on"
        }
        (_, io::ErrorKind::NotFound) => {
            "no such file or directory (nor the one that should hold it): create it (mkdir -p)"
        }
        ("SRC", io::ErrorKind::NotADirectory) => "not a directory: name one",
        (_, io::ErrorKind::NotADirectory) => "not a directory on the way to it: check the path",
        (_, io::ErrorKind::PermissionDenied) => {
            "permission denied on the way to it: mount as a user who may go there"
        }
        (_, io::ErrorKind::NotConnected) => {
            "on a dead mount (Transport endpoint is not connected); unmount that one first"
        }
        (_, io::ErrorKind::InvalidFilename) => "a name in it is too long: check the path",
        _ if is_too_many_links(error) => "too many symbolic links: name the directory itself",
        _ => &error.to_string(),
    };
    let message = format!("{which} '{}': {reason}", path.display());
    Failure::new(ExitCode::MountFailed, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ffi::OsString;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use clap::Parser as _;

    use crate::config::Limit;

    use super::*;

    const ROOT: Environment = Environment {
        privileged: true,
        cpus: NonZeroUsize::MIN,
    };

    fn resolve(
        environment: &Environment,
        args: &[&str],
        source: &Path,
        target: &Path,
    ) -> Result<Config, Failure> {
        let args = ["loopfs"].iter().chain(args).map(OsString::from);
        Cli::try_parse_from(args.chain([source.into(), target.into()]))
            .unwrap()
            .resolve(environment)
    }

    fn resolved(args: &[&str]) -> Config {
        resolve(&ROOT, args, Path::new("/"), Path::new("/")).unwrap()
    }

    #[test]
    fn root_lends_its_rights_to_nobody() {
        let list = ["-o", "nodefault_permissions"];
        let refused = resolve(&ROOT, &list, Path::new("/"), Path::new("/")).unwrap_err();
        assert_eq!(refused.code, ExitCode::Usage);
        let alone = resolved(&["-o", "nodefault_permissions,noallow_other"]);
        assert!(!alone.mount.default_permissions && !alone.mount.allow_other);
    }

    #[test]
    fn defaults_follow_the_surroundings() {
        let root = resolved(&[]);
        assert!(root.mount.allow_other && root.mount.default_permissions && !root.mount.nosuid);
        assert!(!root.foreground && !root.make_target && !root.replace_stale);
        assert_eq!(root.drain_timeout, Limit::After(Duration::from_secs(10)));
        assert_eq!(root.lazy_timeout, Limit::Never);
        let user = Environment {
            privileged: false,
            ..ROOT
        };
        let user = resolve(&user, &[], Path::new("/"), Path::new("/")).unwrap();
        assert!(!user.mount.allow_other && !user.mount.default_permissions && user.mount.nosuid);
    }

    #[test]
    fn a_user_who_lets_others_in_lends_them_no_rights() {
        let user = Environment {
            privileged: false,
            ..ROOT
        };
        for (list, checks) in [
            ("allow_other", true),
            ("allow_other,nodefault_permissions", false),
            ("noallow_other", false),
        ] {
            let root = Path::new("/");
            let config = resolve(&user, &["-o", list], root, root).unwrap();
            assert_eq!(config.mount.default_permissions, checks, "{list}");
        }
    }

    #[test]
    fn threads_follow_the_cpus() {
        for (cpus, threads) in [(1, 2), (2, 2), (3, 3), (4, 4), (64, 4)] {
            let environment = Environment {
                cpus: NonZeroUsize::new(cpus).unwrap(),
                ..ROOT
            };
            assert_eq!(environment.default_threads().get(), threads, "{cpus} CPUs");
        }
    }

    #[test]
    fn an_option_of_its_own_wins_over_the_list() {
        let config = resolved(&[
            "--threads=7",
            "-o",
            "threads=3,drain_timeout=1,rw",
            "--drain-timeout=never",
            "-r",
        ]);
        assert_eq!(config.serving.threads.get(), 7);
        assert_eq!(config.drain_timeout, Limit::Never);
        let lazy = resolved(&["-o", "lazy_timeout=7", "--lazy-timeout=3"]);
        assert_eq!(lazy.lazy_timeout, Limit::After(Duration::from_secs(3)));
        assert!(config.mount.read_only);
        let config = resolved(&["-o", "threads=3,drain_timeout=0.5"]);
        assert_eq!(config.serving.threads.get(), 3);
        assert_eq!(
            config.drain_timeout,
            Limit::After(Duration::from_millis(500))
        );
    }

    #[test]
    fn debug_stays_in_the_foreground() {
        assert!(resolved(&["-d"]).foreground);
    }

    #[test]
    fn symlinks_are_followed_once_and_here() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("real/mnt")).unwrap();
        symlink("real", base.join("link")).unwrap();
        symlink("link/mnt", base.join("chain")).unwrap();
        symlink("chain", base.join("longer")).unwrap();
        for typed in [
            "real/mnt",
            "link/mnt",
            "chain",
            "longer",
            "real/mnt/",
            "real/./mnt/.",
            "real/mnt/../mnt",
        ] {
            let config = resolve(&ROOT, &[], &base.join(typed), &base.join(typed)).unwrap();
            assert_eq!(config.source, base.join("real/mnt"), "{typed}");
            assert_eq!(config.target, base.join("real/mnt"), "{typed}");
        }
        let config = resolve(&ROOT, &[], &base, &base.join("real/mnt/..")).unwrap();
        assert_eq!(config.target, base.join("real"));
    }

    #[test]
    fn a_target_need_not_exist_but_its_parent_must() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let config = resolve(&ROOT, &[], &base, &base.join("new")).unwrap();
        assert_eq!(config.target, base.join("new"));
        let failure = resolve(&ROOT, &[], &base, &base.join("no/new")).unwrap_err();
        assert_eq!(failure.code, ExitCode::MountFailed);
        assert!(
            failure.message.contains("nor the one that should hold it"),
            "{failure}"
        );
    }

    #[test]
    fn an_unusable_path_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        File::create(base.join("file")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        let line = |source: &str, target: &str| {
            let failure = resolve(&ROOT, &[], &base.join(source), &base.join(target)).unwrap_err();
            assert_eq!(failure.code, ExitCode::MountFailed);
            failure.message.replace(&format!("{}/", base.display()), "")
        };
        assert_eq!(
            line("none", ""),
            "SRC 'none': no such file or directory: check the path, or mount what it is on"
        );
        assert_eq!(line("file", ""), "SRC 'file': not a directory: name one");
        assert_eq!(
            line("file/x", ""),
            "SRC 'file/x': not a directory: name one"
        );
        assert_eq!(
            line("", "file/x"),
            "MNT 'file/x': not a directory on the way to it: check the path"
        );
        assert_eq!(
            line("", "loop"),
            "MNT 'loop': too many symbolic links: name the directory itself"
        );
        assert_eq!(
            line("loop", ""),
            "SRC 'loop': too many symbolic links: name the directory itself"
        );
        let long = "x".repeat(256);
        assert_eq!(
            line("", &long),
            format!("MNT '{long}': a name in it is too long: check the path")
        );
    }

    #[test]
    fn every_refusal_has_its_words() {
        let line =
            |which, kind: io::ErrorKind| unusable(which, Path::new("p"), &kind.into()).message;
        assert_eq!(
            line("SRC", io::ErrorKind::PermissionDenied),
            "SRC 'p': permission denied on the way to it: mount as a user who may go there"
        );
        assert_eq!(
            line("SRC", io::ErrorKind::NotConnected),
            "SRC 'p': on a dead mount (Transport endpoint is not connected); unmount that one first"
        );
    }
}
