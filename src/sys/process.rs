//! Making a process, and waiting for signals without a handler: the few calls of the start-up that
//! rustix does not wrap because they are unsafe in general. Here each checks what makes it safe.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::ptr;

use rustix::process::{Pid, Signal};
use rustix::thread::LinkNameSpaceType;

/// Which of the two processes [`fork`] returned in.
#[derive(Debug)]
pub enum Fork {
    /// The one that called, with the child's process id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Whether this process acts as root, in its user namespace.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Goes to the mount namespace that the file at `path` (`/proc/PID/ns/mnt`) stands for: setns(2), which
/// takes CAP_SYS_ADMIN and a process with one thread.
pub fn enter_mount_namespace(path: &Path) -> io::Result<()> {
    let namespace = fs::File::open(path)?;
    let kind = LinkNameSpaceType::Mount;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))?;
    Ok(())
}

/// Number of threads of this process.
fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// Forks, if this process has one thread only: a lock that another thread holds (the allocator's, for
/// one) would stay locked in the child for ever, because that thread does not exist there.
pub fn fork() -> io::Result<Fork> {
    match thread_count()? {
        1 => {}
        threads => {
            return Err(io::Error::other(format!(
                "{threads} threads are running already"
            )));
        }
    }
    // SAFETY: the only thread of the process is the one here, so the child is a whole copy in which
    // every lock is in the state that this thread left it in; nobody else could have started a thread
    // since the count.
    let result = unsafe { libc::fork() };
    match result {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Has this process run `program` from now on, whatever lies at its path, with these arguments and variables. Returns if that can't be,
/// and nothing has changed then. Signals that are held back stay so, and those that wait go on waiting.
#[must_use]
pub fn become_program(
    program: BorrowedFd<'_>,
    arguments: &[OsString],
    variables: &[(OsString, OsString)],
) -> io::Error {
    let argument = |it: &OsString| CString::new(it.as_bytes());
    let variable = |(name, value): &(OsString, OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let arguments: Result<Vec<_>, _> = arguments.iter().map(argument).collect();
    let variables: Result<Vec<_>, _> = variables.iter().map(variable).collect();
    let (Ok(arguments), Ok(variables)) = (arguments, variables) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let strings = strings.iter().map(|it| it.as_ptr());
        strings.chain([ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&variables));
    // SAFETY: each string ends with NUL, each array with a null pointer, and all live longer than the call, which
    // changes nothing in them.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Signals that wait to be read from an fd instead of acting on this process.
///
/// The mask belongs to the thread, hence not `Send`. It is not restored on drop: a signal that came
/// meanwhile would act at an arbitrary moment; [`restore`](Self::restore) says when.
#[derive(Debug)]
pub struct SignalQueue {
    fd: OwnedFd,
    previous: libc::sigset_t,
    this_thread_only: PhantomData<*const ()>,
}

impl SignalQueue {
    /// Blocks `signals` and queues them. The mask is inherited by a fork, what is queued is not.
    pub fn open(signals: &[Signal]) -> io::Result<Self> {
        let set = signal_set(signals);
        // SAFETY: `set` is initialised and outlives the call, which returns a new fd or -1.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this fd, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let previous = set_mask(libc::SIG_BLOCK, &set)?;
        Ok(Self {
            fd,
            previous,
            this_thread_only: PhantomData,
        })
    }

    /// The oldest signal that waits, if any.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
            Ok(_) => {
                // `ssi_signo` is the first field, see signalfd(2).
                let [a, b, c, d, ..] = info;
                let number = i32::from_ne_bytes([a, b, c, d]);
                Ok(Signal::from_named_raw(number))
            }
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets signals act again as before; those that wait unread act at once.
    pub fn restore(self) -> io::Result<()> {
        set_mask(libc::SIG_SETMASK, &self.previous).map(|_| ())
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Closes every descriptor but stdin, stdout and stderr: those that a careless caller let us inherit.
/// Kept for as long as a daemon runs, a pipe would never end, a lock never be released.
///
/// To be called before this program has opened any of its own.
pub fn close_inherited() {
    // SAFETY: no object of this program owns a descriptor above 2 yet, so none is closed under
    // somebody's hands.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == -1 {
        // Before 5.9, or a filter: one by one, as far as this process can have opened any.
        for fd in open_descriptors() {
            // SAFETY: as above; one that has gone meanwhile (the listing's own) gives EBADF.
            unsafe { libc::close(fd) };
        }
    }
}

fn open_descriptors() -> Vec<libc::c_int> {
    let names = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    names
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&fd| fd > 2)
        .collect()
}

/// How many files this process may have open.
#[must_use]
pub fn file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What this process occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the memory (resident set), in bytes.
    pub memory_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// What this process occupies; 0 for what /proc does not tell.
#[must_use]
pub fn own_usage() -> Usage {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    // Since Linux 6.2 the directory's size is their number (`proc_fd_getattr`): there may be a million.
    let told = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    let descriptors = match told {
        0 => fs::read_dir("/proc/self/fd").map_or(0, |names| names.count() as u64),
        told => told,
    };
    Usage {
        memory_bytes: number("VmRSS:").unwrap_or(0) * 1024,
        descriptors,
        threads: number("Threads:").unwrap_or(0),
    }
}

/// Where the program lay that a link of /proc leads to, and where another one may lie by now.
pub fn place_of_program(link: &Path) -> io::Result<PathBuf> {
    let path = fs::read_link(link)?;
    // Once its name is gone the kernel says so behind it.
    let place = path.as_os_str().as_bytes();
    let place = place.strip_suffix(b" (deleted)").unwrap_or(place);
    Ok(PathBuf::from(OsStr::from_bytes(place)))
}

/// Whether the program of this process is no longer what lies in its place.
#[must_use]
pub fn is_replaced() -> bool {
    let own = Path::new("/proc/self/exe");
    let which = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    place_of_program(own).is_ok_and(|place| which(&place).ok() != which(own).ok())
}

/// The process that `thread` is of, and its name; nothing once it has ended. Its command line is not read: that takes
/// its memory, a page of which may be one of ours.
#[must_use]
pub fn process_of(thread: u32) -> Option<(u32, OsString)> {
    let status = fs::read(format!("/proc/{thread}/status")).ok()?;
    let mut lines = status.split(|&byte| byte == b'\n');
    let process = lines.find_map(|line| line.strip_prefix(b"Tgid:"))?;
    let process = std::str::from_utf8(process).ok()?.trim().parse().ok()?;
    let mut name = fs::read(format!("/proc/{process}/comm")).ok()?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Some((process, OsString::from_vec(name)))
}

/// Gives memory that was freed back to the system. glibc does so by itself only with what lies at the
/// end of a heap; other C libraries are left to their own ways.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the signals that end the daemon off this thread and those it starts: a system call on
/// somebody's behalf must not come back with `EINTR` because the daemon is to end. Another thread
/// has to take them.
pub fn leave_signals_to_others() -> io::Result<()> {
    let set = signal_set(&[Signal::INT, Signal::TERM, Signal::HUP]);
    set_mask(libc::SIG_BLOCK, &set).map(|_| ())
}

/// Has the signals that end the daemon come to this thread, though whoever started this process has held them back: for after it was
/// settled what they do.
pub fn let_signals_in() -> io::Result<()> {
    let set = signal_set(&[Signal::INT, Signal::TERM, Signal::HUP]);
    set_mask(libc::SIG_UNBLOCK, &set).map(|_| ())
}

fn signal_set(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given a pointer to, and can't fail.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: the set is initialised, and a `Signal` is a valid number.
        unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
    }
    set
}

/// Changes the mask of this thread and returns the one before.
fn set_mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut previous = MaybeUninit::uninit();
    // SAFETY: both pointers are valid for the call; it reads `set` and writes `previous`.
    let error = unsafe { libc::pthread_sigmask(how, ptr::from_ref(set), previous.as_mut_ptr()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the call succeeded, so it wrote the previous mask.
    Ok(unsafe { previous.assume_init() })
}

/// Has this thread run before others, if it may: one that has little to do, and that is to do it soon.
pub fn raise_priority() {
    // On Linux 0 is this thread, not its process.
    let _ = rustix::process::setpriority_process(None, -20);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;

    use super::*;

    #[test]
    fn this_process_is_known() {
        let usage = own_usage();
        assert!(usage.memory_bytes > 100_000, "{usage:?}");
        assert!(
            usage.descriptors > 2 && usage.descriptors < 1000,
            "{usage:?}"
        );
        let (process, name) = thread::spawn(|| {
            process_of(
                rustix::thread::gettid()
                    .as_raw_nonzero()
                    .get()
                    .try_into()
                    .unwrap(),
            )
        })
        .join()
        .unwrap()
        .unwrap();
        assert_eq!(process, std::process::id());
        assert!(!name.is_empty());
        assert_eq!(process_of(u32::MAX), None);
    }

    #[test]
    fn fork_refuses_beside_other_threads() {
        thread::scope(|scope| {
            let (stay, leave) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || leave.recv());
            let message = fork().unwrap_err().to_string();
            assert!(
                message.ends_with("threads are running already"),
                "{message}"
            );
            drop(stay);
        });
    }

    #[test]
    fn a_queued_signal_is_read_and_does_not_act() {
        // On a thread of its own, because the mask stays; USR1 would end the process.
        thread::spawn(|| {
            let queue = SignalQueue::open(&[Signal::USR1]).unwrap();
            assert_eq!(queue.next().unwrap(), None);
            // SAFETY: sends a signal to this thread; nothing else is touched.
            let result = unsafe { libc::raise(libc::SIGUSR1) };
            assert_eq!(result, 0);
            assert_eq!(queue.next().unwrap(), Some(Signal::USR1));
            assert_eq!(queue.next().unwrap(), None);
            queue.restore().unwrap();
        })
        .join()
        .unwrap();
    }
}
