//! Open files and directories, by the number that the kernel knows them by.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Loopback;
use super::inode::Inode;
use crate::survive::State;
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

/// What numbers begin with that this process alone knows: where there may be a later one, what is open for longer
/// than a request has numbers from `state`, far below.
#[must_use]
pub fn first(state: Option<&Arc<State>>) -> u64 {
    state.map_or(1, |_| 1 << 62)
}

/// A table of handles. Numbers are never used twice, so that a late request for a released one
/// finds nothing rather than somebody else's file.
#[derive(Debug)]
pub struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    /// An empty table, whose own numbers begin with `first`.
    #[must_use]
    pub fn new(first: u64) -> Self {
        Self {
            next: AtomicU64::new(first),
            open: RwLock::new(HashMap::new()),
        }
    }

    /// Enters an open object under a number that somebody else has found for it.
    pub fn insert_as(&self, number: u64, object: T) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::new(object));
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

impl Loopback {
    /// Enters an open file, recorded for a later process if there may be one; its number.
    pub(super) fn hold_file(&self, file: FileHandle, flags: i32) -> u64 {
        match self.recorded(&file.inode, flags, false) {
            Some(number) => {
                self.files.insert_as(number, file);
                number
            }
            None => self.files.insert(file),
        }
    }

    /// The same for a directory.
    pub(super) fn hold_dir(&self, dir: DirHandle, flags: i32) -> u64 {
        match self.recorded(&dir.inode, flags, true) {
            Some(number) => {
                self.dirs.insert_as(number, dir);
                number
            }
            None => self.dirs.insert(dir),
        }
    }

    fn recorded(&self, inode: &Inode, flags: i32, directory: bool) -> Option<u64> {
        let state = self.state.as_ref()?;
        state.opened(inode.number().0, flags, directory)
    }

    /// An open file or directory is no more: its record is free.
    pub fn let_go(&self, handle: u64) {
        if let Some(state) = &self.state {
            state.closed(handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_number_finds_nothing_ever_again() {
        let handles = Handles::new(1);
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
