//! systemd's store of descriptors (`FileDescriptorStoreMax=`): it keeps them while nobody else is there to do it, and hands them to
//! the next process that it starts for the service.
//!
//! With it the supervisor may be killed, and with it everybody else of the service, or be started anew: the mount is left as it is, and
//! who asks for something waits for an answer until the next one serves. Whether a mount is kept depends on the unit as well: it
//! has to see to it that there is a next start, or that the mount goes (`packaging/examples/unnoticed.conf`).
//!
//! systemd is told by datagrams, of which it acknowledges none. `FDSTORE`, in the environment, says how many descriptors
//! it takes; it is systemd's since version 254, and the unit's own before.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::message::{Order, Report};
use super::succession::{Record, Succession, name};
use super::take_over::taken_over;
use super::{End, Keeper};
use crate::attach::Detach;
use crate::exit::ExitCode;
use crate::lifecycle::State;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, lock};
use crate::sys::descriptor;

/// Our descriptors' names begin with it.
const PREFIX: &str = "loopfs-";
/// A record's name, with a number behind it: the higher one is the newer.
const RECORD: &str = "record-";
/// As many descriptors are there beside those that are kept: two records, while one takes the other's place.
const OTHERS: usize = 8;
/// How long systemd may keep us waiting: it may itself wait for something in the mount.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first descriptor that systemd hands over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// The store of the service that this process belongs to.
#[derive(Debug)]
pub(crate) struct Store {
    socket: UnixDatagram,
    most: usize,
    /// The nodes of which there is a descriptor in it.
    kept: Mutex<BTreeSet<u64>>,
    said_lost: AtomicBool,
}

impl Store {
    /// The one that systemd offers, if it does.
    pub(crate) fn offered() -> Option<Self> {
        let address = env::var_os("NOTIFY_SOCKET")?;
        let most = env::var("FDSTORE").ok()?.parse::<usize>().ok()?;
        let most = most.checked_sub(OTHERS)?;
        connected(&address)
            .inspect_err(|error| {
                log::warn!("systemd's store of descriptors can't be used: {error}");
            })
            .ok()
            .map(|socket| Self {
                socket,
                most,
                kept: Mutex::default(),
                said_lost: AtomicBool::new(false),
            })
    }

    fn put(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        // Polled, the connection would wake systemd for each request.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={PREFIX}{name}\n");
        self.say(&text, &[descriptor])
    }

    fn take_out(&self, name: &str) {
        // It goes with the service at the latest.
        let _ = self.say(&format!("FDSTOREREMOVE=1\nFDNAME={PREFIX}{name}\n"), &[]);
    }

    /// Puts the descriptor of a node into it; whether it is there.
    pub(crate) fn keep(&self, node: u64, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        {
            let mut kept = lock(&self.kept);
            if kept.len() >= self.most && !kept.contains(&node) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            kept.insert(node);
        }
        self.put(&name::of_kept(node), descriptor)
    }

    /// Says, once, that a descriptor could not be put into it.
    pub(crate) fn say_lost(&self, error: &io::Error) {
        if !self.said_lost.swap(true, Ordering::Relaxed) {
            log::warn!(
                "systemd keeps {} files without a name at most, as FileDescriptorStoreMax= in its unit allows: others would not \
                 survive a restart of the service: {error}",
                self.most
            );
        }
    }

    /// It is not needed any more.
    pub(crate) fn give_up(&self, node: u64) {
        if lock(&self.kept).remove(&node) {
            self.take_out(&name::of_kept(node));
        }
    }

    /// The nodes of which there is one already.
    pub(crate) fn has(&self, nodes: impl IntoIterator<Item = u64>) {
        lock(&self.kept).extend(nodes);
    }

    /// Another process has taken it out.
    fn has_no_more(&self, node: u64) {
        lock(&self.kept).remove(&node);
    }

    fn say(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let data = [IoSlice::new(text.as_bytes())];
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &data, &mut control, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }
}

fn connected(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(address)?,
    }
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// What of a mount is in the store.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) store: Store,
    /// The number of the record that is there; 0: the mount is not there yet.
    pub(super) record: u64,
}

impl Stored {
    /// What systemd offers, with a record of that number.
    pub(super) fn with(record: u64) -> Option<Self> {
        let store = Store::offered()?;
        Some(Self { store, record })
    }

    /// Whether another supervisor would go on if this one were killed.
    pub(super) fn is_complete(&self) -> bool {
        self.record != 0
    }
}

impl Keeper {
    /// Whether another supervisor would go on if this one were killed.
    pub(super) fn is_stored(&self) -> bool {
        self.stored.as_ref().is_some_and(Stored::is_complete)
    }

    /// Has systemd keep all that it takes to go on with the mount; what it has already it takes for what it is. To be called when
    /// a child serves: one that was killed may have told systemd of something without being believed any more.
    pub(super) fn store(&mut self) {
        let Some(mount) = self.mount.as_ref().filter(|it| it.mounted.restartable) else {
            return;
        };
        let Some(stored) = &self.stored else {
            return;
        };
        let deaths = self.pace.deaths();
        let named = self.leaving(mount, &deaths).descriptors();
        let named = named
            .into_iter()
            .filter(|(name, _)| !name.starts_with(name::KEPT));
        let result = named
            .map(|(name, it)| stored.store.put(&name, it))
            .collect::<io::Result<Vec<()>>>();
        for (node, it) in &self.kept {
            // It has been said why.
            let _ = stored.store.keep(*node, it.as_fd());
        }
        match result.and_then(|_| self.store_record()) {
            Ok(()) => {
                // One that is dead hears nothing, and the next one is told with its first word.
                let _ = self.process.tell(&Order::Stored);
            }
            Err(error) => log::warn!(
                "systemd can't be told to keep {}: a restart of the service will be noticed: {error}",
                self.place.target.display()
            ),
        }
    }

    /// Puts a record of how things are now in the place of the one before.
    fn store_record(&mut self) -> io::Result<()> {
        let (Some(mount), Some(stored)) = (&self.mount, &self.stored) else {
            return Ok(());
        };
        let deaths = self.pace.deaths();
        let number = stored.record + 1;
        let record = self.leaving(mount, &deaths).record()?;
        stored
            .store
            .put(&format!("{RECORD}{number}"), record.as_fd())?;
        if let Some(stored) = &mut self.stored {
            if stored.is_complete() {
                stored.store.take_out(&format!("{RECORD}{}", stored.record));
            }
            stored.record = number;
        }
        Ok(())
    }

    /// The state of the mount has changed.
    pub(super) fn store_state(&mut self) {
        if self.is_stored()
            && let Err(error) = self.store_record()
        {
            log::warn!(
                "systemd can't be told how {} is: {error}",
                self.place.target.display()
            );
        }
    }

    /// The child wants a descriptor kept. What it has not told systemd itself is told here.
    pub(super) fn keeps(&mut self, node: u64, descriptor: OwnedFd, is_stored: bool) {
        if let Some(stored) = self.stored.as_ref().filter(|it| it.is_complete()) {
            if is_stored {
                stored.store.has([node]);
            } else {
                // It has been said why.
                let _ = stored.store.keep(node, descriptor.as_fd());
            }
        }
        self.kept.insert(node, descriptor);
    }

    /// The child does not want it any more.
    pub(super) fn drops(&mut self, node: u64, is_taken_out: bool) {
        if let Some(stored) = &self.stored {
            if is_taken_out {
                stored.store.has_no_more(node);
            } else {
                stored.store.give_up(node);
            }
        }
        self.kept.remove(&node);
    }

    /// The mount has gone, or is going: systemd need not keep anything of it.
    pub(super) fn empty_store(&mut self) {
        let Some(stored) = self.stored.take() else {
            return;
        };
        for name in [
            name::ROOT,
            name::DEVICE,
            name::ABORT,
            name::COVERED,
            name::MEMORY,
        ] {
            stored.store.take_out(name);
        }
        for node in self.kept.keys() {
            stored.store.give_up(*node);
        }
        if stored.is_complete() {
            stored.store.take_out(&format!("{RECORD}{}", stored.record));
        }
    }

    /// Whether the mount may be left to another supervisor: not if it is on its way out, where an end is what is wanted.
    pub(super) fn may_leave(&self) -> bool {
        self.is_stored() && self.state == State::Serving
    }

    /// Ends, and leaves the mount to the supervisor that systemd starts next.
    pub(super) fn leave(&mut self) -> End {
        if let Some(over) = self.hold_up() {
            return over;
        }
        // A thread of it that the kernel keeps waiting goes on waiting: systemd, too, waits for it before it starts the next one.
        self.process.kill_and_wait();
        if let Some(over) = self.listen() {
            return over;
        }
        if let Some(Report::Ended { code, .. }) = self.process.take_last_word() {
            return Ok(code);
        }
        // It works for nobody any more, and is not this process's child for much longer.
        let _ = self.process.reap(Duration::ZERO);
        if let Some(mount) = self.mount.take() {
            mount.attachment.leave();
        }
        // systemd has it, and is to go on having it.
        self.stored = None;
        log::info!(
            "{} is left to the next start of the service",
            self.place.target.display()
        );
        Ok(ExitCode::Again)
    }
}

/// What systemd has kept for this process, if that is a mount that can be gone on with. If not, it is said why, the mount is taken down
/// and the store emptied: then there is nothing to go on with.
#[must_use]
pub fn kept_by_systemd() -> Option<Succession> {
    let mut descriptors = handed_over();
    if descriptors.is_empty() {
        return None;
    }
    let names: Vec<String> = descriptors.keys().cloned().collect();
    let begun = Instant::now();
    match found(&mut descriptors) {
        Ok(succession) => {
            log::info!(
                "{}: going on with the mount that systemd has kept",
                succession.place.target.display()
            );
            log::debug!("it was looked at for {} ms", begun.elapsed().as_millis());
            Some(succession)
        }
        Err((why, succession)) => {
            log::error!("the mount that systemd has kept is taken down, and begun anew: {why}");
            if let Some(store) = Store::offered() {
                for name in &names {
                    store.take_out(name);
                }
            }
            discard(&mut descriptors, succession);
            None
        }
    }
}

/// All that are ours, by name. systemd numbers them one after the other.
fn handed_over() -> HashMap<String, OwnedFd> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return HashMap::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| i32::try_from(count).ok());
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let numbers = FIRST..FIRST.saturating_add(count.unwrap_or(0));
    numbers
        .zip(names.split(':'))
        .filter_map(|(number, name)| Some((descriptor::inherited(number).ok()?, name)))
        .filter_map(|(it, name)| Some((name.strip_prefix(PREFIX)?.to_owned(), it)))
        .collect()
}

/// The mount among them; if it can't be gone on with, why, and as much of it as there is.
fn found(
    descriptors: &mut HashMap<String, OwnedFd>,
) -> Result<Succession, (String, Option<Box<Succession>>)> {
    let numbers = descriptors.keys().filter_map(|name| {
        let number: u64 = name.strip_prefix(RECORD)?.parse().ok()?;
        Some((number, name.clone()))
    });
    // An older one may be there still.
    let (number, newest) = numbers
        .max()
        .ok_or_else(|| ("there is no record of it".to_owned(), None))?;
    let record = descriptors
        .remove(&newest)
        .ok_or_else(|| ("there is no record of it".to_owned(), None))?;
    let record = Record::read(record.as_fd()).map_err(|why| (why, None))?;
    descriptors.retain(|name, _| !name.starts_with(RECORD));
    let succession = record
        .with(descriptors)
        .ok_or_else(|| ("a descriptor of it is missing".to_owned(), None))?;
    let succession = Succession {
        record: number,
        ..succession
    };
    match unfit(&succession) {
        None => Ok(succession),
        Some(why) => Err((why, Some(Box::new(succession)))),
    }
}

/// Why a mount is not gone on with, if it is not.
fn unfit(succession: &Succession) -> Option<String> {
    let own: Vec<OsString> = env::args_os().skip(1).collect();
    if succession.arguments != own {
        return Some("the command line is another one".to_owned());
    }
    let mounted = &succession.mounted;
    if mounted.memory.is_none() || !mounted.restartable {
        return Some("its state is missing".to_owned());
    }
    let Some(attachment) = taken_over(mounted) else {
        return Some("it is not known which mount it is".to_owned());
    };
    // It is looked at, and no more.
    let (is_present, device) = (attachment.is_present(), attachment.device_number());
    attachment.leave();
    if !descriptor::is_of_fuse(mounted.device.as_fd()) {
        return Some("the connection is none".to_owned());
    }
    let connection = descriptor::own_fuse_connection(mounted.device.as_fd());
    if connection.is_some_and(|minor| minor != device.minor) {
        return Some("the connection is another mount's".to_owned());
    }
    if !is_alive(mounted.device.as_fd()) {
        return Some("its connection has ended".to_owned());
    }
    match succession.state {
        State::Serving if is_present => None,
        State::Draining { .. } => None,
        _ => Some("it is not mounted any more".to_owned()),
    }
}

/// Whether the kernel has not ended a connection.
fn is_alive(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(device, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // What can fail is a lack of memory.
    poll(&mut fds, Some(&now)).is_err() || fds[0].revents().is_empty()
}

/// Takes down what is not gone on with: who waits for an answer gets one, and what is left at MNT goes.
fn discard(descriptors: &mut HashMap<String, OwnedFd>, succession: Option<Box<Succession>>) {
    if let Some(succession) = succession {
        if let Some(attachment) = taken_over(&succession.mounted) {
            let target = attachment.target().display();
            if let Err(error) = attachment.abort_connection() {
                log::warn!("the connection of {target} can't be cut: {error}");
            }
            if let Err(error) = attachment.detach(Detach::Lazy) {
                log::error!("the dead mount at {target} stays: {error}");
            }
        }
    } else if let Some(abort) = descriptors.remove(name::ABORT)
        && let Err(errno) = rustix::io::write(&abort, b"1")
    {
        log::warn!("its connection can't be cut: {errno}");
    }
    descriptors.clear();
}
