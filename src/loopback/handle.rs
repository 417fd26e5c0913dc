//! Open files and directories, by the number that the kernel knows them by.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inode::Inode;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, PoisonError, RwLock};
use crate::sys::dir::DirStream;

/// An open file.
#[derive(Debug)]
pub struct FileHandle {
    /// What is open: kept alive until the release, whatever the kernel forgets meanwhile.
    pub inode: Arc<Inode>,
    file: OwnedFd,
}

impl FileHandle {
    /// A file opened for I/O.
    #[must_use]
    pub fn new(inode: Arc<Inode>, file: OwnedFd) -> Self {
        Self { inode, file }
    }

    /// The descriptor to read and write through.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// An open directory.
#[derive(Debug)]
pub struct DirHandle {
    /// What is open.
    pub inode: Arc<Inode>,
    /// The listing: one reader at a time, as a directory stream has one position.
    pub stream: Mutex<DirStream>,
}

/// A table of handles. Numbers are never used twice, so that a late request for a released one
/// finds nothing rather than somebody else's file.
#[derive(Debug)]
pub struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: RwLock::new(HashMap::new()),
        }
    }

    /// Enters an open object; its number.
    pub fn insert(&self, object: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::new(object));
        number
    }

    /// The object with that number.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&number).map(Arc::clone)
    }

    /// Takes the object out. It is closed when the last request that uses it has ended.
    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.remove(&number)
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_number_finds_nothing_ever_again() {
        let handles = Handles::new();
        let first = handles.insert("a");
        assert_eq!(handles.get(first).as_deref(), Some(&"a"));
        assert!(handles.remove(first).is_some());
        assert!(handles.remove(first).is_none(), "a second release");
        let second = handles.insert("b");
        assert_ne!(first, second);
        assert!(handles.get(first).is_none());
        assert_eq!(handles.len(), 1);
    }
}
