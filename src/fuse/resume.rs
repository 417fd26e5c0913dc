//! Serving a connection that another process has begun: the kernel asks for the handshake once, and has had its answer.
//!
//! fuser begins with that handshake, so it gets one: a FUSE_INIT made here, over a socket pair, with what the kernel offered
//! to the first. Then its end of the pair is made to stand for the connection ([`descriptor::replace`]). The kernel gives out
//! once more what the other process took up and did not answer, when it is told to (FUSE_NOTIFY_RESEND, Linux 6.9).
//!
//! What was agreed with the kernel stays: [`Terms`] say what that was, and who would serve on other terms must not.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::record::{Reader, Writer};
use crate::sys::{descriptor, notify};

/// `FUSE_INIT` (linux/fuse.h).
const INIT: u32 = 26;
/// `struct fuse_in_header` and `struct fuse_init_in`.
const INIT_LEN: u32 = 40 + 64;
/// `FUSE_INIT_EXT`: there are flags beyond the first 32.
const INIT_EXT: u64 = 1 << 30;
/// `FUSE_KERNEL_VERSION`.
const MAJOR: u32 = 7;
/// What the kernel offers to read ahead; what is agreed on the socket pair nobody acts on.
const READAHEAD: u32 = 128 << 10;

/// What was agreed with the kernel when the connection was made, for as long as it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Its version of the protocol, after the 7.
    pub(super) minor: u32,
    /// What it offered.
    pub(super) offered: u64,
    /// What was made use of, of that.
    pub(super) used: u64,
    /// It was told to open files without asking.
    pub(super) opens_unasked: bool,
    /// It was told that it will hear of changes, and remembers until it does.
    pub(super) coherent: bool,
}

impl Terms {
    /// As a record for another process.
    #[must_use]
    pub fn to_record(self) -> Vec<u8> {
        Writer::default()
            .number(self.minor)
            .number(self.offered)
            .number(self.used)
            .number(u8::from(self.opens_unasked))
            .number(u8::from(self.coherent))
            .done()
    }

    /// Those of such a record.
    #[must_use]
    pub fn from_record(record: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(record);
        let terms = Self {
            minor: reader.number()?,
            offered: reader.number()?,
            used: reader.number()?,
            opens_unasked: reader.number::<u8>()? != 0,
            coherent: reader.number::<u8>()? != 0,
        };
        reader.is_done().then_some(terms)
    }

    /// The kernel's question, as it would ask it again.
    fn init(self) -> Vec<u8> {
        let [low, high] = [self.offered | INIT_EXT, self.offered >> 32].map(low_half);
        let mut message = Vec::new();
        for word in [INIT_LEN, INIT] {
            message.extend(word.to_ne_bytes());
        }
        // unique, node, then uid, gid, pid and lengths: nobody's.
        message.extend(2_u64.to_ne_bytes());
        message.extend([0; 24]);
        for word in [MAJOR, self.minor, READAHEAD, low, high] {
            message.extend(word.to_ne_bytes());
        }
        message.resize(INIT_LEN as usize, 0);
        message
    }
}

#[allow(clippy::cast_possible_truncation)] // what is meant
fn low_half(flags: u64) -> u32 {
    flags as u32
}

/// A connection whose handshake is done with ourselves.
#[derive(Debug)]
pub(super) struct Rehearsal {
    /// What plays the kernel; open until the real one takes its place.
    kernel: OwnedFd,
}

impl Rehearsal {
    /// The question asked, and the end that it is asked on.
    pub(super) fn begin(terms: &Terms) -> io::Result<(Self, OwnedFd)> {
        let (kernel, ours) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::write(&kernel, &terms.init())?;
        Ok((Self { kernel }, ours))
    }

    /// Has `session`, which has answered, stand for the connection `device`, and has the kernel give out what was taken up and
    /// not answered.
    pub(super) fn take_over(
        self,
        session: BorrowedFd<'_>,
        device: BorrowedFd<'_>,
    ) -> io::Result<()> {
        descriptor::replace(session, device)?;
        drop(self.kernel);
        match notify::resend(device) {
            // The connection has ended meanwhile, which who serves it hears at once.
            Ok(()) | Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        minor: 45,
        offered: 0x0000_01ff_8000_0001,
        used: 1 << 39,
        opens_unasked: false,
        coherent: true,
    };

    #[test]
    fn terms_go_from_process_to_process() {
        let record = TERMS.to_record();
        assert_eq!(Terms::from_record(&record), Some(TERMS));
        assert_eq!(Terms::from_record(&record[1..]), None);
        assert_eq!(Terms::from_record(&[record, vec![0]].concat()), None);
    }

    #[test]
    fn the_question_has_the_layout_of_the_kernels_structures() {
        let init = TERMS.init();
        let word = |at: usize| u32::from_ne_bytes(init[at..at + 4].try_into().unwrap());
        assert_eq!((init.len(), word(0), word(4)), (104, 104, 26));
        assert_eq!((word(40), word(44)), (7, 45));
        assert_eq!((word(52), word(56)), (0xc000_0001, 0x1ff));
    }
}
