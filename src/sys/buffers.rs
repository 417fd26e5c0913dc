//! The system's allocator, with one habit more where a process may be killed and followed by another one: memory for requests is
//! there before the first of them comes.
//!
//! The kernel copies a request into the buffer that read(2) was called with. If it has to make a page of that first, and the process is being
//! killed, it gives the copying up, and answers the program with EIO (`fuse_dev_do_read`): such a request does not come again. What is
//! there already it copies to whoever is dying. fuser asks for zeroed buffers, which consist of nothing until they are written to.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use crate::sync::OnceLock;

/// From this size on memory is taken for such a buffer: fuser's are larger by a page.
const BUFFER: usize = 16 << 20;
/// What of it requests use: 1 MiB of data, which is the kernel's limit, and what stands before that.
const USED: usize = (1 << 20) + (64 << 10);
/// At least so often there is a page.
const PAGE: usize = 4 << 10;

static READY: OnceLock<()> = OnceLock::new();

/// Has buffers that are allocated from now on consist of pages that are there.
pub fn have_ready() {
    // It is said once.
    let _ = READY.set(());
}

/// To be the program's allocator.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: all of it is the system's allocator, which is one; what is written to was allocated just now, and is zero before and after.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if layout.size() >= BUFFER && READY.get().is_some() && !memory.is_null() {
            for at in (0..USED).step_by(PAGE) {
                let byte = memory.wrapping_add(at);
                // SAFETY: it lies within what was allocated, which nobody else knows yet. A write that can't be left out makes the page.
                unsafe { byte.write_volatile(0) };
            }
        }
        memory
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// How many of the pages at `memory` are there.
    fn there(memory: *mut u8, len: usize) -> usize {
        let mut pages = vec![0_u8; len.div_ceil(PAGE)];
        // To the beginning of the page, which the allocator's own words may stand on.
        let start = memory.map_addr(|address| address & !(PAGE - 1));
        // SAFETY: the kernel writes a byte for each page, for which there is room; it reads none of the memory.
        let result = unsafe { libc::mincore(start.cast(), len, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn what_requests_use_of_a_buffer_is_there() {
        let layout = Layout::from_size_align(BUFFER + 4096, 1).unwrap();
        have_ready();
        // SAFETY: the layout has a size.
        let memory = unsafe { Allocator.alloc_zeroed(layout) };
        let there = there(memory, USED);
        // SAFETY: it was allocated with this layout just now.
        unsafe { Allocator.dealloc(memory, layout) };
        assert_eq!(there, USED / PAGE);
    }
}
