//! fuser's trait over the core: each method unpacks a request, names its operation and leaves the
//! rest to [`Service::serve`].

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::backing::Lack;
use super::convert::{LockRequest, asker, caller, decode_device, kind, node, set_time};
use super::lock::Forward;
use super::opening::{NO_HANDLE, Opener, Opening};
use super::reply::{Found, time_of};
use super::serve::{Asker, Respond, Service, Step};
use super::spare::Spare;
use super::workers::Workers;
use super::{Agreed, Options, Terms, convert};
use crate::config::{Caching, Listing};
use crate::error::{Errno as CoreErrno, Result};
use crate::loopback::attr::{Changes, Keep};
use crate::loopback::create::NewName;
use crate::loopback::dir::Room;
use crate::loopback::ioctl::Ioctl;
use crate::loopback::lock::Range;
use crate::loopback::lookup::Entry;
use crate::loopback::{Caller, Loopback};
use crate::op::Op;
use crate::sync::{Arc, OnceLock};
use crate::sys::features;
use crate::sys::fs::{FileType, WriteMode, open_flags};

/// The largest write request, in bytes: what the kernel's default of 256 pages a request allows.
const MAX_WRITE: u32 = 1 << 20;

/// Requests that the kernel may have under way in the background (readahead, asynchronous direct
/// I/O, releases): enough to keep several event loops busy.
const MAX_BACKGROUND: u16 = 64;

/// A tree behind fuser's trait.
#[derive(Debug)]
pub(super) struct Adapter {
    tree: Arc<Loopback>,
    service: Arc<Service>,
    /// Where locks go, unless the kernel keeps them to itself.
    forward: Option<Arc<Forward>>,
    /// For what may take long.
    slow: Arc<Workers>,
    opener: Opener,
    caching: Caching,
    listing: Listing,
    kernel_checks: bool,
    restartable: bool,
    negotiation: Negotiation,
    spare: Spare,
}

/// Does `act` with the handle of a file, which is opened for that alone if the kernel has none.
fn with_handle<T>(
    tree: &Loopback,
    (ino, handle): (INodeNo, FileHandle),
    flags: i32,
    act: impl FnOnce(u64) -> Result<T>,
) -> Result<T> {
    match handle.0 {
        NO_HANDLE => act(tree.open_for_now(node(ino), flags)?.handle()),
        handle => act(handle),
    }
}

/// What the handshake begins with, and where it leads.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// What another process has agreed on with the kernel, if one has.
    pub(super) begun_on: Option<Terms>,
    /// The kernel is told of changes.
    pub(super) coherent: bool,
    /// What is agreed, once it is.
    pub(super) agreed: Arc<OnceLock<Agreed>>,
}

/// How far it came: to its end, or to where it would have to wait, with this left.
fn done_or_left<T, W>(done: Result<T>, left: impl FnOnce() -> W) -> Result<Step<T, W>> {
    match done {
        Err(error) if error.errno() == CoreErrno::WOULDBLOCK => Ok(Step::Left(left())),
        done => done.map(Step::Done),
    }
}

impl Adapter {
    pub(super) fn new(
        tree: Arc<Loopback>,
        service: Service,
        forward: Option<Arc<Forward>>,
        opener: Opener,
        options: &Options,
        negotiation: Negotiation,
    ) -> Self {
        let Options {
            caching,
            listing,
            kernel_checks,
            threads,
            restartable,
            ..
        } = *options;
        Self {
            tree,
            service: Arc::new(service),
            forward,
            slow: Arc::new(Workers::new("loopfs-slow")),
            opener,
            caching,
            listing,
            kernel_checks,
            restartable,
            negotiation,
            spare: Spare::of(threads),
        }
    }

    /// Serves what may take long on a thread of its own, so that the event loops go on serving others:
    /// some writing out of data, some copying of much, or a wait for whoever has a lease on a file.
    fn serve_slowly<R>(
        &self,
        asker: Asker,
        op: Op,
        reply: R,
        work: impl FnOnce(&Loopback) -> Result<R::Ok> + Send + 'static,
    ) where
        R: Respond + Send + 'static,
    {
        self.serve_maybe_slowly(
            asker,
            op,
            reply,
            |_| Ok(Step::Left(())),
            |tree, _, ()| work(tree),
        );
    }

    /// Serves what waits for SRC's disk, or copies: here, which spares waking a thread, as long as another event loop stays
    /// free for everything else.
    fn serve_beside_others<R>(
        &self,
        asker: Asker,
        op: Op,
        reply: R,
        work: impl FnOnce(&Loopback) -> Result<R::Ok> + Send + 'static,
    ) where
        R: Respond + Send + 'static,
    {
        match self.spare.take() {
            Some(_loop) => self
                .service
                .serve(asker, op, reply, |_, _| work(&self.tree)),
            None => self.serve_slowly(asker, op, reply, work),
        }
    }

    /// Serves what is asked of an open file. If it has no handle and somebody has a lease on it, opening it waits, on a
    /// thread of its own, where `work` gets its data once more.
    fn serve_on_file<R>(
        &self,
        asker: Asker,
        op: Op,
        reply: R,
        (file, flags, data): ((INodeNo, FileHandle), i32, &[u8]),
        work: impl Fn(&Loopback, u64, &[u8]) -> Result<R::Ok> + Clone + Send + 'static,
    ) where
        R: Respond + Send + 'static,
    {
        if file.1.0 != NO_HANDLE {
            let work = |_: &Caller, _: &mut R| work(&self.tree, file.1.0, data);
            return self.service.serve(asker, op, reply, work);
        }
        let on_file = move |tree: &Loopback, flags, data: &[u8]| {
            with_handle(tree, file, flags, |handle| work(tree, handle, data))
        };
        let later = on_file.clone();
        let at_once = |_: &mut R| {
            let done = on_file(&self.tree, open_flags::without_waiting(flags), data);
            done_or_left(done, || data.to_vec())
        };
        self.serve_maybe_slowly(asker, op, reply, at_once, move |tree, _, data: Vec<u8>| {
            later(tree, flags, &data)
        });
    }

    /// The same where trying comes first, by `at_once`, and may leave nothing to do.
    fn serve_maybe_slowly<R, W: Send + 'static>(
        &self,
        asker: Asker,
        op: Op,
        reply: R,
        at_once: impl FnOnce(&mut R) -> Result<Step<R::Ok, W>>,
        work: impl FnOnce(&Loopback, &mut R, W) -> Result<R::Ok> + Send + 'static,
    ) where
        R: Respond + Send + 'static,
    {
        self.service
            .serve_or_owe(asker, op, reply, at_once, |owed, left| {
                let tree = Arc::clone(&self.tree);
                let finish = move |reply: &mut R| work(&tree, reply, left);
                // Without a thread it is done here and now: late for others, but done.
                self.slow.hand(Box::new(move |_| owed.answer(finish)));
            });
    }

    fn found(&self, entry: Entry) -> Found {
        Found::Entry(entry, self.caching)
    }

    /// What is asked of the kernel, one by one: a capability that it lacks is left out and its
    /// fall-back is what FUSE does without it.
    fn wanted(&self) -> Vec<InitFlags> {
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_DONT_MASK, // SRC applies umask or default ACL: loopback/create.rs
            InitFlags::FUSE_EXPORT_SUPPORT, // LOOKUP of "." and "..": loopback/export.rs
            InitFlags::FUSE_HAS_IOCTL_DIR,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ];
        if self.kernel_checks {
            // Listing with attributes needs search permission on the directory, which only a
            // daemon that may act for everybody has wherever the caller may list.
            if self.listing != Listing::Never {
                wanted.push(InitFlags::FUSE_DO_READDIRPLUS);
            }
            if self.listing == Listing::Auto {
                wanted.push(InitFlags::FUSE_READDIRPLUS_AUTO);
            }
            wanted.push(InitFlags::FUSE_POSIX_ACL);
        }
        if self.opener.backings.lack().is_none() {
            wanted.push(InitFlags::FUSE_PASSTHROUGH);
        }
        if (self.kernel_checks && self.tree.acts_as_callers()) || self.tree.loses_set_id() {
            // Who writes clears set-id bits in SRC, as the caller or as a daemon without privilege; the kernel need
            // not ask for capabilities before each write, and be told to clear them. Where it does not check
            // permissions, it would clear the sticky bit, which it does not know of, with them.
            wanted.push(InitFlags::FUSE_HANDLE_KILLPRIV_V2);
        }
        if self.forward.is_some() {
            wanted.extend([InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS]);
        }
        if self.restartable {
            wanted.push(InitFlags::FUSE_HAS_RESEND);
        }
        wanted
    }

    /// Whether the kernel is still to be asked for this: what another process did without stays unused.
    fn is_open(&self, capability: InitFlags) -> bool {
        let begun_on = &self.negotiation.begun_on;
        begun_on.is_none_or(|terms| terms.used & capability.bits() != 0)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let (mut used, mut missing) = (Vec::new(), Vec::new());
        let mut bits = 0;
        for capability in self.wanted() {
            let names = capability
                .iter_names()
                .map(|(name, _)| name.trim_start_matches("FUSE_"));
            if self.is_open(capability) && config.add_capabilities(capability).is_ok() {
                used.extend(names);
                bits |= capability.bits();
                continue;
            }
            missing.extend(names);
            if capability == InitFlags::FUSE_PASSTHROUGH {
                self.opener.backings.lacks(Lack::NotInKernel);
            }
        }
        // Neither can fail with these values; if fuser thinks otherwise, its own are safe.
        let _ = config.set_max_stack_depth(if self.tree.is_stacked() { 2 } else { 1 });
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        self.opener.is_not_asked &= self.kernel_checks
            && !self.opener.hears_closes
            && self.tree.can_do_without_handles()
            && !features::is_off("no-opens");
        let abi = config.kernel_abi();
        let mut line = format!("FUSE {}.{}, in use: {}", abi.0, abi.1, used.join(" "));
        if !missing.is_empty() {
            line.push_str("; not in this kernel: ");
            line.push_str(&missing.join(" "));
        }
        if self.opener.is_not_asked {
            self.tree.opens_are_unheard();
            line.push_str("; the kernel opens and closes files without asking");
        }
        let terms = Terms {
            minor: abi.1,
            offered: config.capabilities().bits(),
            used: bits,
            opens_unasked: self.opener.is_not_asked,
            coherent: self.negotiation.coherent,
        };
        // fuser calls this once.
        let _ = self.negotiation.agreed.set(Agreed { line, terms });
        Ok(())
    }

    /// Called when every event loop has ended.
    fn destroy(&mut self) {
        if let Some(forward) = &self.forward {
            forward.end();
        }
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.service
            .serve(asker(req, parent), Op::Lookup, reply, |_, _| {
                let moment = self.tree.moment();
                match self.tree.lookup(node(parent), name) {
                    Ok(entry) => Ok(self.found(entry)),
                    Err(error) if error.errno() == CoreErrno::NOENT => {
                        let keep = self.tree.keep_absence(node(parent), moment);
                        let time = time_of(keep, self.caching.negative);
                        if time.is_zero() {
                            return Err(error);
                        }
                        Ok(Found::Nothing(time))
                    }
                    Err(error) => Err(error),
                }
            });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.service
            .serve_silently(Op::Forget, ino.0, || self.tree.forget(node(ino), nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.service
            .serve(asker(req, ino), Op::Getattr, reply, |_, _| {
                let handle = fh.map(|fh| fh.0).filter(|handle| *handle != NO_HANDLE);
                let attr = self.tree.getattr(node(ino), handle)?;
                if attr.keep == Keep::No && !self.opener.backings.is_open(node(ino)) {
                    self.tree.is_closed(node(ino));
                }
                Ok((attr, self.caching))
            });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>, // the kernel's own idea of ctime, with its write-back cache only
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let (caller, caching) = (caller(req), self.caching);
        let change = move |tree: &Loopback| {
            let set = |handle| tree.setattr(caller, node(ino), &changes, handle);
            let attr = match fh {
                // An ftruncate(2).
                Some(fh) if size.is_some() => {
                    let flags = open_flags::for_writing(open_flags::READ_ONLY);
                    with_handle(tree, (ino, fh), flags, |handle| set(Some(handle)))
                }
                _ => set(None),
            }?;
            Ok((attr, caching))
        };
        // Truncating by name waits for whoever has a lease on the file.
        if size.is_some() && fh.is_none_or(|fh| fh.0 == NO_HANDLE) {
            self.serve_slowly(asker(req, ino), Op::Setattr, reply, change);
        } else {
            self.service
                .serve(asker(req, ino), Op::Setattr, reply, |_, _| {
                    change(&self.tree)
                });
        }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.service
            .serve(asker(req, ino), Op::Readlink, reply, |_, _| {
                self.tree.readlink(node(ino))
            });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.service
            .serve(asker(req, parent), Op::Mknod, reply, |caller, _| {
                let new = NewName {
                    parent: node(parent),
                    name,
                    mode,
                    umask,
                };
                self.tree
                    .mknod(*caller, new, decode_device(rdev))
                    .map(|entry| self.found(entry))
            });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.service
            .serve(asker(req, parent), Op::Mkdir, reply, |caller, _| {
                let new = NewName {
                    parent: node(parent),
                    name,
                    mode,
                    umask,
                };
                self.tree.mkdir(*caller, new).map(|entry| self.found(entry))
            });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.service
            .serve(asker(req, parent), Op::Unlink, reply, |caller, _| {
                self.tree.unlink(*caller, node(parent), name)
            });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.service
            .serve(asker(req, parent), Op::Rmdir, reply, |caller, _| {
                self.tree.rmdir(*caller, node(parent), name)
            });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.service
            .serve(asker(req, parent), Op::Symlink, reply, |caller, _| {
                let entry =
                    self.tree
                        .symlink(*caller, node(parent), link_name, target.as_os_str())?;
                Ok(self.found(entry))
            });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.service
            .serve(asker(req, parent), Op::Rename, reply, |caller, _| {
                let (from, to) = ((node(parent), name), (node(newparent), newname));
                self.tree.rename(*caller, from, to, flags.bits())
            });
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.service
            .serve(asker(req, ino), Op::Link, reply, |caller, _| {
                self.tree
                    .link(*caller, node(ino), node(newparent), newname)
                    .map(|entry| self.found(entry))
            });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.opener.is_not_asked {
            return reply.error(Errno::ENOSYS); // and it never asks again
        }
        let (caller, node, flags) = (caller(req), node(ino), flags.0);
        let at_once = |reply: &mut ReplyOpen| {
            let what = (node, open_flags::without_waiting(flags));
            let register = |file: BorrowedFd<'_>| reply.open_backing(file).map(BackingId::into_raw);
            let opened = self.opener.open(&self.tree, caller, what, register);
            if open_flags::waits(flags) {
                done_or_left(opened, || ())
            } else {
                opened.map(Step::Done)
            }
        };
        let opener = self.opener.clone();
        self.serve_maybe_slowly(
            asker(req, ino),
            Op::Open,
            reply,
            at_once,
            move |tree, reply, ()| {
                let register =
                    |file: BorrowedFd<'_>| reply.open_backing(file).map(BackingId::into_raw);
                opener.open(tree, caller, (node, flags), register)
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.service
            .serve(asker(req, parent), Op::Create, reply, |caller, reply| {
                let new = NewName {
                    parent: node(parent),
                    name,
                    mode,
                    umask,
                };
                let register =
                    |file: BorrowedFd<'_>| reply.open_backing(file).map(BackingId::into_raw);
                let (entry, opening) = if self.opener.is_not_asked {
                    // It would not be told of the end of this one either.
                    let exclusive = open_flags::exclusive(flags);
                    let created = self.tree.create(*caller, new, flags, exclusive)?;
                    self.tree.release(created.opened.handle)?;
                    (created.entry, Opening::without_handle())
                } else {
                    self.opener
                        .create(&self.tree, *caller, (new, flags), register)?
                };
                Ok((entry, opening, self.caching))
            });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = ((ino, fh), open_flags::for_reading(flags.0), &[][..]);
        let read = move |tree: &Loopback, handle, _: &[u8]| tree.read(handle, offset, size);
        self.serve_on_file(asker(req, ino), Op::Read, reply, file, read);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Pages of a shared mapping are written back through any open file, an appending one
        // included: they belong where they are.
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mode = WriteMode {
            append: open_flags::append(flags.0) && !from_cache,
            sync: open_flags::data_sync(flags.0) && !from_cache,
        };
        let caller = caller(req);
        let writer = (!from_cache).then_some(caller);
        let file = ((ino, fh), open_flags::for_writing(flags.0), data);
        let write = move |tree: &Loopback, handle, data: &[u8]| {
            if from_cache {
                tree.writes_back(node(ino));
            }
            tree.write(writer, handle, offset, data, mode)
        };
        self.serve_on_file(asker(req, ino), Op::Write, reply, file, write);
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.opener.is_not_asked {
            // Nothing is left to write when a file is closed, and SRC's file system has nothing to say.
            return reply.error(Errno::ENOSYS);
        }
        self.service
            .serve(asker(req, ino), Op::Flush, reply, |_, _| {
                let result = self.tree.flush(fh.0);
                if let Some(forward) = &self.forward {
                    forward.closed(node(ino), fh.0, lock_owner.0);
                }
                result
            });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>, // the handle tells as much
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.service
            .serve(asker(req, ino), Op::Release, reply, |_, _| {
                if fh.0 == NO_HANDLE {
                    return Ok(());
                }
                let (node, writes) = (node(ino), open_flags::writes(flags.0));
                let last = self.opener.backings.released(node, writes, || {
                    self.tree.hear_writes(node);
                    self.opener.cache.drop_attributes(node);
                });
                if last.is_some() {
                    self.tree.note_closing(fh.0);
                }
                // A backing file is given up before the handle's record is.
                drop(last);
                let result = self.tree.release(fh.0);
                if let Some(forward) = &self.forward {
                    forward.released(node, fh.0);
                }
                result
            });
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(forward) = &self.forward else {
            return reply.error(Errno::ENOSYS); // never asked for
        };
        let request = LockRequest {
            request: req,
            ino,
            handle: fh,
            owner: lock_owner,
            range: Range { start, end },
            kind: typ,
            process: pid,
        };
        self.service
            .serve(asker(req, ino), Op::Getlk, reply, |_, _| {
                forward.test(&request)
            });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(forward) = &self.forward else {
            return reply.error(Errno::ENOSYS); // never asked for
        };
        let request = LockRequest {
            request: req,
            ino,
            handle: fh,
            owner: lock_owner,
            range: Range { start, end },
            kind: typ,
            process: pid,
        };
        forward.set(&self.service, asker(req, ino), &request, sleep, reply);
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_beside_others(asker(req, ino), Op::Fsync, reply, move |tree| {
            with_handle(tree, (ino, fh), open_flags::READ_ONLY, |handle| {
                tree.fsync(handle, datasync)
            })
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.service
            .serve(asker(req, ino), Op::Opendir, reply, |_, _| {
                self.tree
                    .opendir(node(ino), flags.0)
                    .map(Opening::of_directory)
            });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.service
            .serve(asker(req, ino), Op::Readdir, reply, |_, reply| {
                self.tree.readdir(fh.0, offset, |listed| {
                    let kind = kind(listed.kind.unwrap_or(FileType::Unknown));
                    let full = reply.add(INodeNo(listed.ino.0), listed.next, kind, listed.name);
                    if full { Room::Full } else { Room::Taken }
                })
            });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.service
            .serve(asker(req, ino), Op::Readdirplus, reply, |_, reply| {
                self.tree.readdirplus(fh.0, offset, |listed, known| {
                    // fuser has one time for both here: the shorter one is true for both.
                    let shorter = self.caching.attr.min(self.caching.entry);
                    let ttl = time_of(known.keep, shorter);
                    let attr = convert::attr(&known.attr);
                    let generation = Generation(known.generation);
                    let full =
                        reply.add(attr.ino, listed.next, listed.name, &ttl, &attr, generation);
                    if full { Room::Full } else { Room::Taken }
                })
            });
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.service
            .serve(asker(req, ino), Op::Releasedir, reply, |_, _| {
                self.tree.releasedir(fh.0)
            });
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_beside_others(asker(req, ino), Op::Fsyncdir, reply, move |tree| {
            tree.fsyncdir(fh.0, datasync)
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.service
            .serve(asker(req, ino), Op::Statfs, reply, |_, _| {
                self.tree.statfs(node(ino))
            });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32, // macOS resource forks
        reply: ReplyEmpty,
    ) {
        self.service
            .serve(asker(req, ino), Op::Setxattr, reply, |caller, _| {
                self.tree.setxattr(*caller, node(ino), name, value, flags)
            });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.service
            .serve(asker(req, ino), Op::Getxattr, reply, |_, _| {
                self.tree.getxattr(node(ino), name, size)
            });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.service
            .serve(asker(req, ino), Op::Listxattr, reply, |caller, _| {
                self.tree.listxattr(*caller, node(ino), size)
            });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.service
            .serve(asker(req, ino), Op::Removexattr, reply, |caller, _| {
                self.tree.removexattr(*caller, node(ino), name)
            });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.service
            .serve(asker(req, ino), Op::Access, reply, |_, _| {
                self.tree.access(node(ino), mask.bits())
            });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(req);
        let flags = open_flags::for_writing(open_flags::READ_ONLY);
        // Not every file system does it in no time: tmpfs takes half a second for a gigabyte.
        self.serve_beside_others(asker(req, ino), Op::Fallocate, reply, move |tree| {
            with_handle(tree, (ino, fh), flags, |handle| {
                tree.fallocate(caller, handle, mode, offset, length)
            })
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let file = ((ino, fh), open_flags::READ_ONLY, &[][..]);
        let seek = move |tree: &Loopback, handle, _: &[u8]| tree.lseek(handle, offset, whence);
        self.serve_on_file(asker(req, ino), Op::Lseek, reply, file, seek);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags, // none is defined
        reply: ReplyWrite,
    ) {
        let caller = caller(req);
        let cache = Arc::clone(&self.opener.cache);
        let copy = move |tree: &Loopback| {
            let writing = open_flags::for_writing(open_flags::READ_ONLY);
            let copied = with_handle(tree, (ino_in, fh_in), open_flags::READ_ONLY, |from| {
                with_handle(tree, (ino_out, fh_out), writing, |to| {
                    tree.copy_range(caller, (from, offset_in), (to, offset_out), len)
                })
            })?;
            // The kernel knows that one was written, but not that the other was read.
            cache.drop_attributes(node(ino_in));
            Ok(copied)
        };
        if fh_in.0 == NO_HANDLE || fh_out.0 == NO_HANDLE {
            // Opening it may wait for whoever has a lease on it.
            self.serve_slowly(asker(req, ino_in), Op::CopyFileRange, reply, copy);
        } else {
            self.serve_beside_others(asker(req, ino_in), Op::CopyFileRange, reply, copy);
        }
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let caller = caller(req);
        let is_dir = flags.contains(IoctlFlags::FUSE_IOCTL_DIR);
        let cache = Arc::clone(&self.opener.cache);
        let run = move |tree: &Loopback, handle, input: &[u8]| {
            let ioctl = Ioctl::new(cmd)?;
            let answer = tree.ioctl(caller, handle, is_dir, ioctl, input)?;
            if ioctl.changes() {
                cache.drop_attributes(node(ino));
            }
            Ok(fitted(answer, out_size))
        };
        if is_dir {
            let run = |_: &Caller, _: &mut _| run(&self.tree, fh.0, in_data);
            self.service.serve(asker(req, ino), Op::Ioctl, reply, run);
        } else {
            let file = ((ino, fh), open_flags::READ_ONLY, in_data);
            self.serve_on_file(asker(req, ino), Op::Ioctl, reply, file, run);
        }
    }

    // The kernel does without these two: its own poll says "ready", block maps are for block
    // devices, and one ENOSYS is enough for it never to ask again.

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}

/// An ioctl's answer in as many bytes as the caller's number says: a `long` for an int that the
/// kernel below wrote.
fn fitted(mut data: Vec<u8>, size: u32) -> Vec<u8> {
    if !data.is_empty() {
        data.resize(usize::try_from(size).unwrap_or(data.len()).min(64), 0);
    }
    data
}
