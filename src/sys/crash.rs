//! A crash while a thread waits in the kernel for what nothing ends but an answer.
//!
//! Before the kernel writes a core dump it waits until all other threads of the process have stopped (`coredump_wait`), whatever the limit on
//! its size. One that waits for a lock whose owner waits for this process never does; and until then nothing is closed, so that nobody learns of the
//! death. A process that may not be dumped dies at once, as by SIGKILL. That is what it becomes by the first thing that is done about its crash, if a thread
//! of it is in such a call; otherwise its core dump is as good as any other, and is written.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::thread;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::sync::atomic::Ordering;
use crate::sync::{OnceLock, StaticCount, StaticFlag};

/// What the kernel answers with a core dump (signal(7)).
const SIGNALS: [libc::c_int; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// What was done about each before.
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS.len()] =
    [const { OnceLock::new() }; SIGNALS.len()];

/// Calls under way that may have to wait.
static CALLS: StaticCount = StaticCount::new(0);
/// A crash is being dealt with: no such call begins any more.
static CRASHES: StaticFlag = StaticFlag::new(false);

/// Such a call, for as long as it takes.
#[derive(Debug)]
pub struct Call(());

impl Call {
    /// To be had before it begins. Does not return any more when the process crashes.
    #[must_use]
    pub fn begin() -> Self {
        prepare();
        CALLS.fetch_add(1, Ordering::SeqCst);
        // Either this sees the crash, or the crash sees the call.
        while CRASHES.load(Ordering::SeqCst) {
            thread::park();
        }
        Self(())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Has crashes looked at, from the first call on. What is ignored stays so.
fn prepare() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for (&signal, before) in SIGNALS.iter().zip(&BEFORE) {
            let Some(action) = exchange(signal, None) else {
                continue;
            };
            if action.sa_sigaction == libc::SIG_IGN || before.set(action).is_err() {
                continue;
            }
            let mut ours = action;
            ours.sa_sigaction = crashed as *const () as libc::sighandler_t;
            // A stack that has overflown is none to stand on.
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            exchange(signal, Some(&ours));
        }
    });
}

/// What is done about a signal, and from now on `action`, if there is one.
fn exchange(signal: libc::c_int, action: Option<&libc::sigaction>) -> Option<libc::sigaction> {
    let mut before = MaybeUninit::uninit();
    let action = action.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `action` is null or a whole one, whose handler only makes system calls and uses atomics; what was before is
    // written to `before`.
    let result = unsafe { libc::sigaction(signal, action, before.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it was written.
    (result == 0).then(|| unsafe { before.assume_init() })
}

/// The handler. What it does may be done in one (signal-safety(7)).
extern "C" fn crashed(signal: libc::c_int, how: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    CRASHES.store(true, Ordering::SeqCst);
    if CALLS.load(Ordering::SeqCst) > 0 {
        // Without it, it waits as before.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    // SAFETY: the kernel hands over what it knows of the signal.
    let comes_again = unsafe { (*how).si_code } > 0;
    let mut action = SIGNALS
        .iter()
        .position(|&it| it == signal)
        .and_then(|at| BEFORE.get(at)?.get().copied())
        // SAFETY: all zero is one: the default.
        .unwrap_or_else(|| unsafe { MaybeUninit::zeroed().assume_init() });
    if !comes_again {
        action.sa_sigaction = libc::SIG_DFL;
    }
    exchange(signal, Some(&action));
    if !comes_again {
        // Sent by somebody, or by abort(3). It is held back until this returns.
        // SAFETY: takes a number.
        unsafe { libc::raise(signal) };
    }
}
