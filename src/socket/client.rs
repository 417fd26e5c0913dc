//! The commands' side. What a daemon answers may come from another user: it is limited in length and time, and its
//! process id is the kernel's word, not its own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::place::Directory;
use super::protocol::{self, Answer, LONGEST_ANSWER, Question};
use crate::figures::Figures;
use crate::sys::mountinfo::DeviceNumber;

/// How long a daemon may take to tell how it is: it has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// There is no socket of that mount, or nobody listens any more: the daemon has ended, or could not make one.
    Nobody,
    /// It is not ours to ask.
    NotAllowed,
    /// The daemon is there and does not answer: it is stopped, or hangs.
    NoAnswer,
    /// The device number is another mount's by now, and so is the daemon.
    AnotherMount,
    /// It said why not.
    Refused(String),
}

/// How the daemon of the mount with `device` is, which belongs to `owner`.
pub fn figures(device: DeviceNumber, owner: u32) -> Result<Figures, Silence> {
    match ask(device, owner, Question::Figures, PATIENCE)? {
        (Answer::Figures(figures), pid) => Ok(Figures { pid, ..*figures }),
        (answer, _) => Err(unexpected(&answer)),
    }
}

/// Puts `question`, and waits for the answer until `limit` has passed; also the daemon's process id.
pub fn ask(
    device: DeviceNumber,
    owner: u32,
    question: Question,
    limit: Duration,
) -> Result<(Answer, u32), Silence> {
    let end = Instant::now() + limit;
    loop {
        let (socket, pid) = connect(device, owner, end)?;
        send(&socket, &protocol::written(&question)).map_err(silence)?;
        let line = receive(&socket, end).map_err(silence)?;
        // It ended without a word: there are too many clients. A pause, and once more.
        if line.is_empty() {
            pause(end)?;
            continue;
        }
        let answer = serde_json::from_slice(&line).map_err(|error| {
            Silence::Refused(format!("an answer that is not understood: {error}"))
        })?;
        return match answer {
            Answer::Refused(why) => Err(Silence::Refused(why)),
            Answer::AnotherMount => Err(Silence::AnotherMount),
            answer => Ok((answer, pid)),
        };
    }
}

/// Puts a `question` that the daemon answers by ending, until `limit` has passed: the id of the process that has ended.
pub fn ask_to_end(
    device: DeviceNumber,
    owner: u32,
    question: Question,
    limit: Duration,
) -> Result<u32, Silence> {
    let end = Instant::now() + limit;
    let (socket, pid) = connect(device, owner, end)?;
    send(&socket, &protocol::written(&question)).map_err(silence)?;
    match receive(&socket, end) {
        Ok(line) if line.is_empty() => Ok(pid),
        Err(Errno::CONNRESET) => Ok(pid),
        Ok(line) => match serde_json::from_slice(&line) {
            Ok(Answer::Refused(why)) => Err(Silence::Refused(why)),
            Ok(Answer::AnotherMount) => Err(Silence::AnotherMount),
            Ok(answer) => Err(unexpected(&answer)),
            Err(error) => Err(Silence::Refused(format!(
                "an answer that is not understood: {error}"
            ))),
        },
        Err(errno) => Err(silence(errno)),
    }
}

/// As many that are not in the mount table are asked, at most: whoever has a directory of sockets may have made any.
const MOST_DETACHED: usize = 256;

/// Devices of mounts of `owner` that somebody listens for, and that are not among the `known`.
#[must_use]
pub fn devices(owner: u32, known: &[DeviceNumber]) -> Vec<DeviceNumber> {
    let directories = Directory::all_of(owner);
    for directory in &directories {
        if directory.owner() == rustix::process::geteuid().as_raw() {
            directory.clean();
        }
    }
    let mut all = Vec::new();
    for directory in &directories {
        let devices = directory.devices().into_iter();
        all.extend(devices.filter(|it| !known.contains(it) && !directory.is_stale(*it)));
    }
    all.truncate(MOST_DETACHED);
    all
}

/// For an answer to another question.
#[must_use]
pub fn unexpected(answer: &Answer) -> Silence {
    Silence::Refused(format!("an answer to another question: {answer:?}"))
}

fn connect(device: DeviceNumber, owner: u32, end: Instant) -> Result<(OwnedFd, u32), Silence> {
    let mut silence = Silence::Nobody;
    for directory in Directory::all_of(owner) {
        loop {
            match directory.connect(device) {
                Ok(socket) => {
                    let peer = rustix::net::sockopt::socket_peercred(&socket);
                    let peer = peer.map_err(|_| Silence::NoAnswer)?;
                    if !peer.uid.is_root() && peer.uid.as_raw() != owner {
                        return Err(Silence::NotAllowed);
                    }
                    let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
                    return Ok((socket, pid));
                }
                // Others wait to be taken up, more than there is room for.
                Err(Errno::AGAIN) => pause(end)?,
                Err(Errno::ACCESS | Errno::PERM) => {
                    silence = Silence::NotAllowed;
                    break;
                }
                Err(_) => break,
            }
        }
    }
    Err(silence)
}

/// A moment, if there is time for one.
fn pause(end: Instant) -> Result<(), Silence> {
    const MOMENT: Duration = Duration::from_millis(20);
    if Instant::now() + MOMENT >= end {
        return Err(Silence::NoAnswer);
    }
    let _ = poll(&mut [], Timespec::try_from(MOMENT).ok().as_ref());
    Ok(())
}

/// A question fits into the buffer of any socket.
fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).map(drop)
}

/// All that comes until the end of the connection.
fn receive(socket: &OwnedFd, end: Instant) -> rustix::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut part = vec![0; 1 << 16];
    while line.len() < LONGEST_ANSWER {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        match rustix::net::recv(socket, &mut part[..], RecvFlags::empty()) {
            Ok((_, 0)) => return Ok(line),
            Ok((_, length)) => line.extend_from_slice(&part[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::MSGSIZE)
}

fn silence(errno: Errno) -> Silence {
    match errno {
        // It ended, or turned us away, before it had read the question.
        Errno::PIPE | Errno::CONNRESET => Silence::Nobody,
        _ => Silence::NoAnswer,
    }
}
