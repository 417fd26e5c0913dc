//! The socket of a mount: where its daemon is asked how it is, and told to end, without going through the mount. So it
//! answers while the mount or SRC hangs.
//!
//! - `place`: where it lies, whose it must be, and what is left of it when its daemon was killed;
//! - [`protocol`]: a question and an answer, each a line of JSON;
//! - [`server`]: the daemon's side, on threads of its own;
//! - [`client`]: the commands' side.
//!
//! Only root and the mount's owner may open it: its mode says so, and the server asks who is there. What a client can
//! make the server do is bounded: the length of a question, the time for it, the number of clients.

pub mod client;
mod place;
pub mod protocol;
pub mod server;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// A socket of the kind that is used here.
fn new_socket(flags: SocketFlags) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | flags;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
