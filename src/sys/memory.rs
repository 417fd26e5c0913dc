//! This process's own memory, read by address: an address that leads nowhere gives an error, and what
//! is read is bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `/proc/self/mem`, for reading.
#[derive(Debug)]
pub struct OwnMemory(File);

impl OwnMemory {
    /// The memory of this process, not of one that it forks.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/mem").map(Self)
    }

    /// Fills `bytes` from `address` on.
    pub fn read(&self, address: usize, bytes: &mut [u8]) -> io::Result<()> {
        let offset = u64::try_from(address).map_err(io::Error::other)?;
        self.0.read_exact_at(bytes, offset)
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_read_and_what_is_not_is_an_error() {
        let memory = OwnMemory::open().unwrap();
        let text = *b"some bytes";
        let mut bytes = [0; 10];
        memory.read(text.as_ptr().addr(), &mut bytes).unwrap();
        assert_eq!(bytes, text);
        assert!(memory.read(0, &mut bytes).is_err());
        assert!(memory.read(usize::MAX - 4, &mut bytes).is_err());
    }
}
