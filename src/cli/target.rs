//! MNT, from what was typed to the directory that is meant: absolute, and without symlinks.
//!
//! A dead or stuck mount may be on it, or on the way to it, and whoever asks such a mount anything may wait for ever, beyond
//! the reach of any signal. So the way is gone name by name. What the mount table tells is not asked for: a name that is
//! a mount point, or leads to one, is a directory and no symlink. Where somebody has to answer for a name (a FUSE daemon, a
//! server), the question is put by a process of its own, with a limit.
//!
//! A symlink is recognised by reading it, which the kernel refuses for a mounted directory without asking its file
//! system (`do_readlinkat`).

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::resolve::unusable;
use crate::exit::{ExitCode, Failure};
use crate::sys::ask;
use crate::sys::mountinfo::{self, Entry};

/// As many symlinks in a row as the kernel follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// How long a name on the way may take for a command that looks at mounts.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for one who mounts: what is slow to wake up may be on the way.
const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// The directory to mount on; it may not exist.
pub(super) fn to_mount_on(typed: &Path) -> Result<PathBuf, Failure> {
    reached(typed, LONG_PATIENCE, Missing::Last)
}

/// The place of a mount that is to be there.
pub(super) fn of_a_mount(typed: &Path) -> Result<PathBuf, Failure> {
    reached(typed, PATIENCE, Missing::Any)
}

/// A place to find out what is wrong with. What can't be followed because something does not answer is left as it was typed.
pub(super) fn to_look_at(typed: &Path) -> Result<PathBuf, Failure> {
    match follow(typed, PATIENCE, Missing::Any)? {
        Followed::Found(path) | Followed::HeldUp { path, .. } => Ok(path),
    }
}

fn reached(typed: &Path, patience: Duration, missing: Missing) -> Result<PathBuf, Failure> {
    match follow(typed, patience, missing)? {
        Followed::Found(path) => Ok(path),
        Followed::HeldUp { by, .. } => Err(Failure::new(
            ExitCode::MountFailed,
            format!(
                "MNT '{}': the mount on the way to it ({}) did not answer within {} seconds: 'loopfs doctor' shows what \
                 helps",
                typed.display(),
                by.join(", "),
                patience.as_secs()
            ),
        )),
    }
}

/// Which names may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// The last one: it can be made.
    Last,
    /// Any: then nothing is mounted there, which is for others to say.
    Any,
}

enum Followed {
    Found(PathBuf),
    /// Somebody on the way does not answer.
    HeldUp {
        /// As far as it could be followed, and the rest.
        path: PathBuf,
        /// Where those are mounted who may be the one.
        by: Vec<String>,
    },
}

fn follow(typed: &Path, patience: Duration, missing: Missing) -> Result<Followed, Failure> {
    let failed = |error: &io::Error| unusable("MNT", typed, error);
    if typed.as_os_str().is_empty() {
        return Err(failed(&io::ErrorKind::NotFound.into()));
    }
    let table = mountinfo::read().unwrap_or_default();
    let mut path = if typed.is_absolute() {
        PathBuf::from("/")
    } else {
        // Already without symlinks, and nobody is asked for it.
        std::env::current_dir().map_err(|error| failed(&error))?
    };
    // The names that are left, the next one last.
    let mut names = names_of(typed);
    let mut links = 0;
    while let Some(name) = names.pop() {
        if name == ".." {
            path.pop();
            continue;
        }
        let next = path.join(&name);
        if leads_to_a_mount(&table, &next) {
            path = next;
            continue;
        }
        let Some(link) = read_link(&table, &path, &next, patience) else {
            let way = mountinfo::way(&table, &path);
            let by = way.iter().filter(|entry| entry.may_hang());
            return Ok(Followed::HeldUp {
                by: by.map(|it| it.mount_point.display().to_string()).collect(),
                path: names.iter().rev().fold(next, |path, name| path.join(name)),
            });
        };
        match link {
            Ok(link) => {
                links += 1;
                if links > MOST_LINKS {
                    let text = format!(
                        "MNT '{}': too many symbolic links: name the directory itself",
                        typed.display()
                    );
                    return Err(Failure::new(ExitCode::MountFailed, text));
                }
                if link.is_absolute() {
                    path = PathBuf::from("/");
                }
                names.extend(names_of(&link));
            }
            // No symlink.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => path = next,
            // Nothing there, which is for others to judge.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && (names.is_empty() || missing == Missing::Any) =>
            {
                let rest = names.iter().rev();
                return Ok(Followed::Found(
                    rest.fold(next, |path, name| path.join(name)),
                ));
            }
            Err(error) => return Err(failed(&error)),
        }
    }
    Ok(Followed::Found(path))
}

/// The names in `path`, the first one last.
fn names_of(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

/// Whether a lookup of `path` comes to a mount point, or goes on to one: then it is a directory, whoever serves it.
fn leads_to_a_mount(table: &[Entry], path: &Path) -> bool {
    table.iter().any(|entry| {
        entry.mount_point.starts_with(path)
            && mountinfo::holding(table, &entry.mount_point).is_some_and(|it| it.id == entry.id)
    })
}

/// What the symlink `link` in `directory` says; `None` if nobody answers.
fn read_link(
    table: &[Entry],
    directory: &Path,
    link: &Path,
    patience: Duration,
) -> Option<io::Result<PathBuf>> {
    let way = mountinfo::way(table, directory);
    if !way.iter().any(|entry| entry.may_hang()) {
        return Some(link.read_link());
    }
    let answer = c_string(link.as_os_str()).and_then(|name| Ok(ask::read_link(&name, patience)?));
    match answer {
        Ok(answer) => answer.map(|answer| Ok(answer?.into())),
        Err(error) => Some(Err(error)),
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::other("there is a NUL in it"))
}
