//! The socket between the supervisor and a process that serves: whole messages (SOCK_SEQPACKET), with descriptors beside
//! them. Either end sees at once that the other is gone, however it went.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Descriptors beside one message, at most.
pub(crate) const MOST: usize = 8;

/// A message is no longer than this: it holds two paths at most.
const LONGEST: usize = 32 << 10;

/// One end.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

/// What came.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Link {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// The end that `socket` is.
    pub(crate) fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The end itself, to give it to another process.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// Sends a message whole; `EPIPE` if nobody is at the other end.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let data = [IoSlice::new(bytes)];
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &data, &mut control, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// The next message, which it waits for; `None` if nobody is at the other end any more.
    pub(crate) fn receive(&self) -> io::Result<Option<Parcel>> {
        self.receive_with(RecvFlags::empty())
    }

    /// The next message if one is there. An error of kind `WouldBlock` if not.
    pub(crate) fn receive_now(&self) -> io::Result<Option<Parcel>> {
        self.receive_with(RecvFlags::DONTWAIT)
    }

    fn receive_with(&self, flags: RecvFlags) -> io::Result<Option<Parcel>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; LONGEST];
        let received = rustix::io::retry_on_intr(|| {
            let mut data = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(
                &self.0,
                &mut data,
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            )
        });
        let length = match received {
            // It ended with what we sent unread.
            Err(Errno::CONNRESET) => return Ok(None),
            other => other?.bytes,
        };
        let descriptors = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        bytes.truncate(length);
        // No message is empty.
        Ok((length > 0).then_some(Parcel { bytes, descriptors }))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_apart_and_bring_their_descriptors() {
        let (one, other) = Link::pair().unwrap();
        one.send(b"first", &[other.as_fd(), one.as_fd()]).unwrap();
        one.send(b"second", &[]).unwrap();
        let first = other.receive().unwrap().unwrap();
        assert_eq!(
            (first.bytes, first.descriptors.len()),
            (b"first".to_vec(), 2)
        );
        let second = other.receive_now().unwrap().unwrap();
        assert_eq!(
            (second.bytes, second.descriptors.len()),
            (b"second".to_vec(), 0)
        );
        let kind = other.receive_now().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_end_that_is_gone_is_noticed() {
        let (one, other) = Link::pair().unwrap();
        other.send(b"last", &[]).unwrap();
        drop(other);
        assert_eq!(one.receive().unwrap().unwrap().bytes, b"last");
        assert!(one.receive().unwrap().is_none());
        assert!(one.send(b"", &[]).is_err());
    }
}
