//! Mounting and unmounting through fusermount3, the set-user-id helper of the package fuse3: for
//! whoever may not mount.
//!
//! It opens /dev/fuse and mounts as its caller allows, and hands the connection back over a
//! socket that `_FUSE_COMMFD` names: one byte with the descriptor beside it (`SCM_RIGHTS`).

use std::ffi::{OsStr, OsString};
use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::error::{AttachError, AttachErrorKind as Kind, one_line, shown};
use super::table::Label;
use crate::config::MountOptions;
use crate::sys::ask::readable;
use crate::sys::limits;

const NAME: &str = "fusermount3";

/// It answers within milliseconds; an unmount may have to write out what is dirty first.
const LIMIT: Duration = Duration::from_secs(30);

/// Mounts at `target` and returns the connection.
pub(crate) fn mount(
    target: &Path,
    options: &MountOptions,
    label: &Label,
) -> Result<OwnedFd, AttachError> {
    let program = find(std::env::var_os("PATH").as_deref())?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(cannot_run)?;
    let mut command = command(&program);
    // As its standard input the socket is inherited without ever being inheritable in this
    // process, where another thread might start a program at the same moment.
    command.stdin(theirs).env("_FUSE_COMMFD", "0");
    command
        .arg("-o")
        .arg(option_list(options, label))
        .arg("--")
        .arg(target);
    let child = command.spawn().map_err(cannot_run)?;
    drop(command); // holds their end: without it the end of the helper is an end of file here
    let device = receive(&ours);
    let ended = finish(child)?;
    match device {
        Ok(Some(device)) if ended.success => Ok(device),
        Ok(_) => Err(refused(&ended.said, target)),
        Err(errno) => Err(cannot_run(errno)),
    }
}

/// Unmounts `target`; `Ok(false)` if it is in use. The helper knows only the path: the caller has
/// just seen that the mount there is its own, and looks again afterwards.
pub(crate) fn unmount(target: &Path, lazily: bool) -> Result<bool, AttachError> {
    let program = find(std::env::var_os("PATH").as_deref())?;
    let mut command = command(&program);
    command.stdin(Stdio::null()).arg("-u");
    if lazily {
        command.arg("-z");
    }
    let child = command.arg("--").arg(target).spawn().map_err(cannot_run)?;
    let ended = finish(child)?;
    if ended.success {
        return Ok(true);
    }
    if ended.said.contains("Device or resource busy") {
        return Ok(false);
    }
    Err(AttachError::new(
        Kind::Detach,
        format!(
            "{NAME} could not unmount {}: {}: try umount -l",
            shown(target),
            ended.said
        ),
    ))
}

/// The helper's path: first in `path` (a PATH), then where distributions put it.
pub(super) fn find(path: Option<&OsStr>) -> Result<PathBuf, AttachError> {
    let listed = path.into_iter().flat_map(std::env::split_paths);
    let usual = ["/usr/bin", "/bin"].into_iter().map(PathBuf::from);
    let mut programs = listed.chain(usual).map(|folder| folder.join(NAME));
    programs.find(|program| is_program(program)).ok_or_else(|| {
        AttachError::new(
            Kind::NoHelper,
            format!(
                "{NAME} is needed to mount without root's rights and is not installed: install \
                 the package fuse3"
            ),
        )
    })
}

fn is_program(path: &Path) -> bool {
    path.is_absolute()
        && path
            .metadata()
            .is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// The helper in a process group of its own, so that Ctrl-C on the terminal reaches loopfs alone,
/// and with messages that can be read by a program.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg0(NAME)
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Its -o list. In `fsname` and `subtype` a comma or backslash is written with a backslash.
fn option_list(options: &MountOptions, label: &Label) -> OsString {
    let mut list = Vec::from(if options.read_only { b"ro" } else { b"rw" });
    let words = [
        ("nosuid", options.nosuid),
        ("nodev", options.nodev),
        ("noexec", options.noexec),
        ("nosymfollow", options.nosymfollow),
        ("noatime", options.noatime),
        ("sync", options.sync),
        ("dirsync", options.dirsync),
        // See kernel.rs: the kernel knows no allow_root.
        ("allow_other", options.allow_other || options.allow_root),
        ("default_permissions", options.default_permissions),
    ];
    for (word, _) in words.iter().filter(|(_, wanted)| *wanted) {
        list.push(b',');
        list.extend_from_slice(word.as_bytes());
    }
    if let Some(bytes) = options.max_read {
        list.extend_from_slice(format!(",max_read={bytes}").as_bytes());
    }
    for (key, value) in [("fsname", &label.source), ("subtype", &options.subtype)] {
        if !value.is_empty() {
            list.push(b',');
            list.extend_from_slice(key.as_bytes());
            list.push(b'=');
            for &byte in value.as_bytes() {
                if matches!(byte, b',' | b'\\') {
                    list.push(b'\\');
                }
                list.push(byte);
            }
        }
    }
    OsString::from_vec(list)
}

/// The descriptor that comes over the socket; `None` if the helper ended without sending one.
fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    if !readable(socket, LIMIT)? {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    loop {
        match rustix::net::recvmsg(socket.as_fd(), &mut data, &mut control, flags) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            // It ended with our end unread: the same as an end of file.
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(rights)
}

/// How the helper ended.
struct Ended {
    success: bool,
    /// What it said, in one line, without its name in front.
    said: String,
}

/// Waits for the helper, within the limit: it holds its standard error open as long as it lives.
fn finish(mut child: Child) -> Result<Ended, AttachError> {
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        loop {
            if !readable(&stderr, LIMIT).map_err(cannot_run)? {
                // If it hangs in the kernel this ends it when it comes out; waiting would hang too.
                let _ = child.kill();
                return Err(AttachError::new(
                    Kind::System,
                    format!(
                        "{NAME} did not end within {} seconds: a mount on the way to MNT may hang",
                        LIMIT.as_secs()
                    ),
                ));
            }
            let mut part = [0_u8; 1024];
            match stderr.read(&mut part) {
                Ok(0) => break,
                Ok(length) => said.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cannot_run(error)),
            }
        }
    }
    let status = child.wait().map_err(cannot_run)?;
    let mut said = in_one_line(&String::from_utf8_lossy(&said));
    if said.is_empty() {
        said = format!("it ended with {status} and said nothing");
    }
    Ok(Ended {
        success: status.success(),
        said,
    })
}

fn in_one_line(said: &str) -> String {
    let prefix = format!("{NAME}: ");
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines
        .map(|line| one_line(line.strip_prefix(&prefix).unwrap_or(line)))
        .collect();
    lines.join("; ")
}

fn cannot_run(error: impl Into<std::io::Error>) -> AttachError {
    let error = error.into();
    let next = limits::remedy(&error).unwrap_or("install the package fuse3");
    AttachError::new(
        Kind::System,
        format!("{NAME} could not be run: {error}: {next}"),
    )
}

/// What the helper refused, with what can be done where that is known.
fn refused(said: &str, target: &Path) -> AttachError {
    let device = said.contains("/dev/fuse");
    let (kind, hint) = if said.contains("user_allow_other") {
        (
            Kind::NotPermitted,
            ": let root write the line user_allow_other in /etc/fuse.conf, or mount without allow_other",
        )
    } else if device && said.contains("Permission denied") {
        (
            Kind::DeviceDenied,
            ": this user may not open /dev/fuse (its mode is usually 0666)",
        )
    } else if device || said.contains("modprobe") {
        (
            Kind::NoDevice,
            ": load the module (modprobe fuse), or give the container the device /dev/fuse",
        )
    } else if said.contains("mount_max") {
        (
            Kind::NotPermitted,
            ": unmount one, or let root raise mount_max in /etc/fuse.conf",
        )
    } else if said.contains("nosymfollow") {
        (
            Kind::Refused,
            ": this fusermount3 does not know it: leave it out, or mount as root",
        )
    } else if said.contains("Operation not permitted") {
        (
            Kind::NotPermitted,
            ": is it set-user-id root, and does the service or container allow set-user-id programs?",
        )
    } else {
        (Kind::Refused, ": mount on a directory of your own")
    };
    let target = shown(target);
    AttachError::new(
        kind,
        format!("{NAME} refused to mount on {target}: {said}{hint}"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::unwrap_in_result)]
mod tests {
    use super::*;

    fn options() -> MountOptions {
        MountOptions {
            read_only: false,
            nosuid: true,
            nodev: true,
            noexec: false,
            nosymfollow: false,
            noatime: false,
            sync: false,
            dirsync: false,
            allow_other: false,
            allow_root: false,
            default_permissions: true,
            fsname: None,
            subtype: "loopfs".into(),
            max_read: Some(4096),
        }
    }

    #[test]
    fn the_option_list_escapes_names() {
        let label = Label {
            fs_type: "fuse.loopfs".into(),
            source: "/a,b\\c".into(),
        };
        assert_eq!(
            option_list(&options(), &label),
            "rw,nosuid,nodev,default_permissions,max_read=4096,fsname=/a\\,b\\\\c,subtype=loopfs"
        );
        let all = MountOptions {
            read_only: true,
            allow_root: true,
            max_read: None,
            ..options()
        };
        let list = option_list(&all, &label).into_string().unwrap();
        assert!(list.starts_with("ro,nosuid,nodev,allow_other,default_permissions,fsname="));
    }

    #[test]
    fn its_messages_become_one_line() {
        let said = "fusermount3: failed to open /dev/fuse: Permission denied\n\nmore\x1b\n";
        assert_eq!(
            in_one_line(said),
            "failed to open /dev/fuse: Permission denied; more\\u{1b}"
        );
    }

    #[test]
    fn known_refusals_have_a_remedy() {
        let kind = |said: &str| refused(said, Path::new("/m")).kind;
        let allow =
            "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf";
        assert_eq!(kind(allow), Kind::NotPermitted);
        assert_eq!(
            kind("failed to open /dev/fuse: Permission denied"),
            Kind::DeviceDenied
        );
        assert_eq!(
            kind("fuse device not found, try 'modprobe fuse' first"),
            Kind::NoDevice
        );
        let unknown = refused("unknown option 'nosymfollow'", Path::new("/m"));
        assert!(
            unknown.to_string().ends_with("mount as root"),
            "{unknown:?}"
        );
        assert_eq!(
            kind("user has no write access to mountpoint /m"),
            Kind::Refused
        );
    }

    #[test]
    fn it_is_found_outside_of_path_and_never_relatively() {
        assert!(find(Some(OsStr::new(""))).is_ok());
        assert!(find(None).is_ok());
        assert!(!is_program(Path::new("fusermount3")));
        assert!(!is_program(Path::new("/etc/passwd")));
    }

    #[test]
    fn a_socket_that_closes_brings_nothing() {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        drop(theirs);
        assert!(receive(&ours).unwrap().is_none());
    }

    #[test]
    fn a_descriptor_comes_over_the_socket() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let fds = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let byte = [std::io::IoSlice::new(b"x")];
        rustix::net::sendmsg(&theirs, &byte, &mut control, SendFlags::empty()).unwrap();
        assert!(receive(&ours).unwrap().is_some());
    }
}
