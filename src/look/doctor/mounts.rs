//! The mounts that are there, and the place of one that is to be. None is touched: what is known of them is the mount
//! table's, /proc's and their daemons' word.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::super::mounts::{self, HANGS, Mount, State, Unasked, is_root};
use super::super::text;
use super::{Finding, Verdict, word};
use crate::attach::mountinfo;
use crate::exit::Failure;
use crate::sys::ask::{Question, ask};

/// How long a path may take to be looked up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of all mounts, or of what is or is to be at `target`.
pub(super) fn findings(target: Option<&Path>) -> Result<Vec<Finding>, Failure> {
    let Some(target) = target else {
        return Ok(mounts::all()?.iter().flat_map(of).collect());
    };
    if let Some(mount) = mounts::at(target)? {
        return Ok(of(&mount));
    }
    let way = mounts::on_the_way_to(target)?;
    let states = way.iter().map(state);
    // Who is wrong is in the way of everybody who goes there.
    let wrong = states.filter(|it| it.verdict == Verdict::Wrong);
    Ok(std::iter::once(place(target)).chain(wrong).collect())
}

fn of(mount: &Mount) -> Vec<Finding> {
    let mut findings = vec![state(mount)];
    findings.extend(cover(mount));
    findings.extend(descriptors(mount));
    findings.extend(slower(mount));
    if mount.state != State::Dead {
        findings.extend(source(mount));
    }
    findings
}

fn about(mount: &Mount) -> String {
    text::name(&mount.target.0)
}

fn state(mount: &Mount) -> Finding {
    let about = about(mount);
    let target = word(mount.target.path());
    match &mount.state {
        State::Dead => {
            let what = "dead (Transport endpoint is not connected): its daemon ended without unmounting it";
            let command = if is_root() {
                format!("umount -l {target}")
            } else {
                format!("fusermount3 -uz {target}")
            };
            Finding::wrong(about, what).mended_by(command)
        }
        State::Silent => {
            let what = "its daemon is there and does not answer: it is stopped (a signal, a debugger), or hangs";
            match mount.pid {
                Some(pid) => Finding::wrong(about, format!("{what} (process {pid})"))
                    .mended_by(format!("kill -CONT {pid}")),
                None => Finding::wrong(about, what)
                    .mended_by(format!("loopfs unmount --force {target}")),
            }
        }
        State::NotOurs => Finding::note(
            about,
            "another user's: only that user and root can ask how it is",
        ),
        State::Served(Unasked::NoSocket) => Finding::note(
            about,
            "served; its daemon has no socket, so 'loopfs status' knows little of it",
        ),
        State::Served(Unasked::Refused(why)) => {
            Finding::note(about, format!("served; its daemon can't be asked: {why}"))
        }
        State::Told(state) => {
            let figures = mount.figures.as_ref();
            let oldest = figures.and_then(|it| it.oldest_request.as_ref());
            match oldest.filter(|oldest| oldest.seconds >= HANGS) {
                Some(oldest) => {
                    let what = format!(
                        "{} waits for {} s in {}: what that is on hangs, or is slow",
                        oldest.operation,
                        oldest.seconds.round(),
                        text::name(&mount.source.0)
                    );
                    Finding::wrong(about, what)
                        .mended_by(format!("loopfs unmount --force {target}"))
                }
                None => Finding::ok(about, state.clone()),
            }
        }
    }
}

fn cover(mount: &Mount) -> Option<Finding> {
    let target = mount.target.path();
    mount.covered_by.iter().any(|over| over == target).then(|| {
        Finding::wrong(
            about(mount),
            "something else is mounted over it, so nobody sees it",
        )
        .mended_by(format!("umount {}", word(target)))
    })
}

fn descriptors(mount: &Mount) -> Option<Finding> {
    let figures = mount.figures.as_ref()?;
    let (open, most) = (figures.descriptors, figures.descriptor_limit);
    (open >= most - most / 16).then(|| {
        let what = format!("its daemon has {open} of {most} files open: programs get EMFILE (Too many open files) beyond");
        Finding::wrong(about(mount), what).mended_by("systemctl edit loopfs@    # [Service] LimitNOFILE=infinity; or ulimit -Hn before it is started")
    })
}

/// What it does without, and why.
fn slower(mount: &Mount) -> Vec<Finding> {
    let figures = mount.figures.iter();
    let modes = figures.flat_map(|figures| [&figures.io, &figures.cache]);
    modes
        .filter_map(|mode| {
            let why = mode.why.as_ref()?;
            Some(Finding::note(about(mount), format!("{}: {why}", mode.mode)))
        })
        .collect()
}

/// SRC, if it can be looked at without waiting for anybody who may hang.
fn source(mount: &Mount) -> Option<Finding> {
    let path = mount.source.path();
    if !path.is_absolute() || may_hang(path) {
        return None;
    }
    match looked_up(path)? {
        Ok(()) => None,
        Err(Errno::ACCESS) if !is_root() => None,
        Err(errno) => {
            let what = format!(
                "its source {} can't be reached any more by that name: {}",
                text::name(path),
                std::io::Error::from(errno)
            );
            Some(Finding::note(about(mount), what))
        }
    }
}

/// Whether somebody has to answer for what is at `path`, or for a directory on the way to it.
fn may_hang(path: &Path) -> bool {
    let table = mountinfo::read().unwrap_or_default();
    let way = mountinfo::way(&table, path);
    way.is_empty() || way.iter().any(|entry| entry.may_hang())
}

/// Asked by a process of its own, with a limit; `None` if there is no answer.
fn looked_up(path: &Path) -> Option<Result<(), Errno>> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    ask(Question::Path(&name), PATIENCE, || ()).ok().flatten()
}

/// Where nothing of loopfs is mounted: whether something could be.
fn place(target: &Path) -> Finding {
    let about = text::name(target);
    let path = word(target);
    let table = mountinfo::read().unwrap_or_default();
    let here = mountinfo::holding(&table, target).filter(|entry| entry.mount_point == target);
    if let Some(entry) = here {
        let what = format!(
            "nothing of loopfs is mounted there, but {}",
            text::name(&entry.fs_type)
        );
        return Finding::note(about, what);
    }
    if may_hang(target) {
        return Finding::note(
            about,
            "nothing of loopfs is mounted there; it lies on a file system that may hang, and was not looked at",
        );
    }
    match looked_up(target) {
        Some(Ok(())) => mountable(target),
        Some(Err(Errno::NOENT)) => Finding::new(about, Verdict::Wrong, "does not exist")
            .mended_by(format!("mkdir -p {path}")),
        Some(Err(errno)) => Finding::wrong(
            about,
            format!("can't be reached: {}", std::io::Error::from(errno)),
        )
        .mended_by(format!(
            "namei -l {path}    # shows where the way to it ends"
        )),
        None => Finding::wrong(about, "does not answer")
            .mended_by(format!("findmnt -T {path}    # shows what it is on")),
    }
}

fn mountable(target: &Path) -> Finding {
    let about = text::name(target);
    match std::fs::metadata(target) {
        Ok(found) if !found.is_dir() => Finding::wrong(about, "not a directory")
            .mended_by("loopfs SRC DIRECTORY    # with another one"),
        // fusermount3 asks that of users (`check_perm`).
        Ok(_)
            if !is_root() && rustix::fs::access(target, rustix::fs::Access::WRITE_OK).is_err() =>
        {
            Finding::wrong(
                about,
                "this user may not write there, so may not mount on it",
            )
            .mended_by(format!("sudo chown $USER {}", word(target)))
        }
        Ok(_) => Finding::ok(about, "nothing is mounted there, and it can be mounted on"),
        Err(error) => Finding::wrong(about, error.to_string()),
    }
}
