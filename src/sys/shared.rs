//! Memory that outlives a process: a memfd, mapped as words. Whoever has the descriptor has the memory.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags};

use crate::sync::SharedWord;

/// A mapping of a memfd, which is as large as it ever will be. It is sparse: a page costs memory once something
/// other than zeros was written to it.
#[derive(Debug)]
pub struct Shared {
    memory: OwnedFd,
    address: NonNull<SharedWord>,
    words: usize,
}

// SAFETY: the mapping belongs to this value alone, and what is in it are atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// New memory of that many words, all zero.
    pub fn create(name: &str, words: usize) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create(name, flags)?;
        let bytes = words.checked_mul(size_of::<SharedWord>());
        let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
        rustix::fs::ftruncate(&memory, bytes.ok_or(Errno::OVERFLOW)?)?;
        // Without this, whoever has it could make it smaller, and an access would be SIGBUS.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals)?;
        Self::map(memory)
    }

    /// The memory behind a descriptor. `EINVAL` if it could become smaller.
    pub fn map(memory: OwnedFd) -> Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&memory)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Errno::INVAL);
        }
        let bytes = rustix::fs::fstat(&memory)?.st_size;
        let bytes = usize::try_from(bytes).map_err(|_| Errno::OVERFLOW)?;
        let words = bytes / size_of::<SharedWord>();
        // SAFETY: a new mapping, at an address of the kernel's choice, of a file that can't become smaller.
        let address = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::NORESERVE;
            rustix::mm::mmap(null_mut(), bytes, protection, flags, &memory, 0)
        }?;
        let address = NonNull::new(address.cast()).ok_or(Errno::FAULT)?;
        Ok(Self {
            memory,
            address,
            words,
        })
    }

    /// Its words.
    #[must_use]
    pub fn words(&self) -> &[SharedWord] {
        // SAFETY: the mapping is that long, a page begins at a multiple of a word, any bits are a word, and it is
        // there as long as `self`.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.words) }
    }

    /// Gives back the pages that lie wholly between two words: they read as zeros then.
    pub fn discard(&self, from: usize, count: usize) -> Result<()> {
        let bytes = |words: usize| u64::try_from(words * size_of::<SharedWord>());
        let (Ok(from), Ok(len)) = (bytes(from), bytes(count)) else {
            return Err(Errno::OVERFLOW);
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.memory, flags, from, len)
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let bytes = self.words * size_of::<SharedWord>();
        // SAFETY: the mapping is ours, and nobody can have a word of it any more. That it can't fail with
        // the address and length of a mapping leaves nothing to do with the result.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), bytes) };
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn what_is_written_is_there_for_whoever_has_the_descriptor() {
        let first = Shared::create("test", 1 << 20).unwrap();
        first.words()[7].store(99, SeqCst);
        let second = Shared::map(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(second.words().len(), 1 << 20);
        assert_eq!(second.words()[7].load(SeqCst), 99);
        drop(first);
        second.words()[1 << 19].store(5, SeqCst);
        second.discard(0, 512).unwrap();
        assert_eq!(second.words()[7].load(SeqCst), 0);
        assert_eq!(second.words()[1 << 19].load(SeqCst), 5);
        assert!(rustix::fs::ftruncate(&second, 8).is_err(), "sealed");
    }

    #[test]
    fn what_could_become_smaller_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(Shared::map(file.into()).is_err());
    }
}
