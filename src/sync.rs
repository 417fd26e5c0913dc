//! Every concurrency primitive of the crate comes from here: std's, or loom's under `--cfg loom`,
//! so that what the loom models check is the code that ships.

#[cfg(not(loom))]
pub use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard,
    RwLockWriteGuard, Weak, atomic,
};

#[cfg(loom)]
pub use loom::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
// loom's `Arc` has no `Weak` and can't become an `Arc<dyn Trait>`; no model here is about counting
// references.
#[cfg(loom)]
pub use std::sync::{Arc, OnceLock, PoisonError, Weak};

/// A word of memory that processes share: always std's, because loom's own can't lie in such memory.
pub use std::sync::atomic::AtomicU64 as SharedWord;

/// What lies in a static: always std's as well, because loom's own is not made at compile time.
pub use std::sync::atomic::{AtomicBool as StaticFlag, AtomicUsize as StaticCount};

/// Locks `mutex` even if a panic poisoned it: what it guards is kept consistent at every step, and
/// a panic in one operation (answered with EIO, logged, counted) must not stop all the others.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
