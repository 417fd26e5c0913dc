//! Operations on the contents of files.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    FallocateFlags, FlockOperation, OFlags, SeekFrom, copy_file_range, fallocate, fcntl_getfl,
    fcntl_setfl, fgetxattr_query, flock, seek,
};
use rustix::io::Errno;

use super::operation::{Allocate, Lock, Operation, Place, Slot, Xattr};
use super::raw::{self, Mapping};
use super::world::{Outcome, World, done, finished};
use crate::common::tree::{checksum, pattern, read_all};

impl World {
    /// Operations on contents; `None` if it is another one.
    pub(super) fn contents(&mut self, operation: &Operation) -> Option<Outcome> {
        use Operation::{
            Allocate, Append, Copy, Holes, KeepMapping, KeptRead, KeptWrite, Lock, MapRead,
            MapWrite, Read, ReadPart, SetAppending, Sync, Truncate, Write,
        };
        Some(match *operation {
            Write {
                ref on,
                offset,
                length,
                seed,
            } => self.write(on, offset, length, seed),
            Append {
                ref on,
                length,
                seed,
            } => self.append(on, length, seed),
            Read { ref on } => self.read(on),
            ReadPart {
                ref on,
                offset,
                length,
            } => self.read_part(on, offset, length),
            Truncate { ref on, size } => self.truncate(on, size),
            Allocate {
                ref on,
                how,
                offset,
                length,
            } => self.allocate(on, how, offset, length),
            MapWrite {
                ref on,
                offset,
                length,
                seed,
            } => self.write_mapped(on, offset, length, seed),
            MapRead {
                ref on,
                offset,
                length,
            } => self.read_mapped(on, offset, length),
            KeepMapping { slot } => self.keep_mapping(slot),
            KeptWrite {
                slot,
                offset,
                length,
                seed,
            } => self.write_kept(slot, offset, length, seed),
            KeptRead {
                slot,
                offset,
                length,
            } => self.kept(slot, |kept| {
                kept.read(clip(offset), length.into())
                    .map(|seen| bytes(&seen))
            }),
            Copy {
                ref from,
                ref to,
                offsets,
                length,
            } => self.copy(from, to, offsets, length),
            Holes { ref on } => self.holes(on),
            Sync { ref on, data_only } => self.sync(on, data_only),
            Lock { slot, how } => self.lock(slot, how),
            SetAppending { slot, appending } => self.set_appending(slot, appending),
            _ => return None,
        })
    }

    fn write(&self, on: &Place, offset: u32, length: u16, seed: u8) -> Outcome {
        let file = self.file(on, &mut writing())?;
        file.write_all_at(&pattern(seed, length.into()), offset.into())
            .and_then(done)
    }

    fn append(&self, on: &Place, length: u16, seed: u8) -> Outcome {
        let file = self.file(on, OpenOptions::new().append(true))?;
        (&*file)
            .write_all(&pattern(seed, length.into()))
            .and_then(done)
    }

    fn read(&self, on: &Place) -> Outcome {
        let file = self.file(on, &mut reading())?;
        read_all(&file).map(|content| bytes(&content))
    }

    fn read_part(&self, on: &Place, offset: u32, length: u16) -> Outcome {
        let file = self.file(on, &mut reading())?;
        let mut buffer = vec![0; length.into()];
        let count = file.read_at(&mut buffer, offset.into())?;
        Ok(bytes(&buffer[..count]))
    }

    fn truncate(&self, on: &Place, size: u32) -> Outcome {
        match on {
            Place::Path(path) => raw::truncate(&self.path(path), size.into()).and_then(done),
            Place::Slot(slot) => self
                .open_file(*slot)?
                .file
                .set_len(size.into())
                .and_then(done),
        }
    }

    fn allocate(&self, on: &Place, how: Allocate, offset: u32, length: u16) -> Outcome {
        let file = self.file(on, &mut writing())?;
        let mode = match how {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
            Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::Zero => FallocateFlags::ZERO_RANGE,
        };
        finished(fallocate(&*file, mode, offset.into(), length.into()))
    }

    /// Within the file as it is: what lies beyond its end can't be reached through a mapping.
    fn write_mapped(&self, on: &Place, offset: u32, length: u16, seed: u8) -> Outcome {
        let file = self.file(on, OpenOptions::new().read(true).write(true))?;
        let Some(mapping) = mapped(&file, true)? else {
            return Ok("empty".to_owned());
        };
        if has_capability(&file) {
            return Ok(KEEPS_CAPABILITY.to_owned());
        }
        let place = clip(offset) % mapping.length();
        let stored = mapping.write(place, &pattern(seed, length.into()))?;
        mapping.sync()?;
        Ok(format!("{stored} bytes"))
    }

    fn read_mapped(&self, on: &Place, offset: u32, length: u16) -> Outcome {
        let file = self.file(on, &mut reading())?;
        let Some(mapping) = mapped(&file, false)? else {
            return Ok("empty".to_owned());
        };
        let place = clip(offset) % mapping.length();
        mapping.read(place, length.into()).map(|seen| bytes(&seen))
    }

    fn keep_mapping(&mut self, slot: Slot) -> Outcome {
        self.settle()?;
        let mapping = mapped(&self.open_file(slot)?.file, true)?;
        let Some(open) = self.files[slot].as_mut().filter(|_| mapping.is_some()) else {
            return Ok("empty".to_owned());
        };
        open.mapping = mapping;
        Ok("kept".to_owned())
    }

    fn write_kept(&self, slot: Slot, offset: u32, length: u16, seed: u8) -> Outcome {
        self.kept(slot, |kept| {
            if has_capability(&self.open_file(slot)?.file) {
                return Ok(KEEPS_CAPABILITY.to_owned());
            }
            let stored = kept.write(clip(offset), &pattern(seed, length.into()))?;
            Ok(format!("{stored} bytes"))
        })
    }

    fn kept(&self, slot: Slot, act: impl FnOnce(&Mapping) -> Outcome) -> Outcome {
        let mapping = self.open_file(slot)?.mapping.as_ref();
        mapping.map_or_else(|| Ok("no mapping".to_owned()), act)
    }

    fn copy(&self, from: &Place, to: &Place, offsets: (u32, u32), length: u16) -> Outcome {
        let from = self.file(from, &mut reading())?;
        let to = self.file(to, &mut writing())?;
        let (mut source, mut target) = (offsets.0.into(), offsets.1.into());
        let mut left = usize::from(length);
        while left > 0 {
            let copied = copy_file_range(&*from, Some(&mut source), &*to, Some(&mut target), left)?;
            if copied == 0 {
                break;
            }
            left -= copied;
        }
        Ok(format!("{} bytes", usize::from(length) - left))
    }

    /// What SEEK_DATA leaves out is zero. That it leaves out as much in both trees is not promised by
    /// any file system: what is in memory at the moment may count.
    fn holes(&self, on: &Place) -> Outcome {
        // Holes are looked for in SRC, which has what was written through a mapping once that is synchronised.
        self.settle()?;
        let file = self.file(on, &mut reading())?;
        let content = if self.shared {
            Vec::new()
        } else {
            read_all(&file)?
        };
        let mut place = 0;
        loop {
            let data = match seek(&*file, SeekFrom::Data(place)) {
                Ok(data) => data,
                Err(Errno::NXIO) => content.len() as u64,
                Err(error) => return Err(error.into()),
            };
            let hole = content.get(clip(place)..clip(data)).unwrap_or_default();
            if hole.iter().any(|byte| *byte != 0) {
                return Ok(format!("what lies from {place} to {data} is no hole"));
            }
            if data >= content.len() as u64 {
                return Ok("holes are empty".to_owned());
            }
            place = seek(&*file, SeekFrom::Hole(data))?;
        }
    }

    fn sync(&self, on: &Place, data_only: bool) -> Outcome {
        let file = self.file(on, &mut reading())?;
        let synced = if data_only {
            file.sync_data()
        } else {
            file.sync_all()
        };
        synced.and_then(done)
    }

    fn lock(&self, slot: Slot, how: Lock) -> Outcome {
        let how = match how {
            Lock::Shared => FlockOperation::NonBlockingLockShared,
            Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Lock::Unlock => FlockOperation::NonBlockingUnlock,
        };
        finished(flock(&self.open_file(slot)?.file, how))
    }

    fn set_appending(&self, slot: Slot, appending: bool) -> Outcome {
        let file = &self.open_file(slot)?.file;
        let mut flags = fcntl_getfl(file)?;
        flags.set(OFlags::APPEND, appending);
        finished(fcntl_setfl(file, flags))
    }
}

/// What is written back from a mapping is written by the daemon, and a write takes a file's
/// capabilities away; a store into the page cache of a plain file does not.
const KEEPS_CAPABILITY: &str = "not where there is a file capability";

fn has_capability(file: &File) -> bool {
    fgetxattr_query(file, Xattr::Capability.name()).is_ok()
}

/// All of a file, unless it is empty.
fn mapped(file: &File, write: bool) -> io::Result<Option<Mapping>> {
    match clip(file.metadata()?.len()) {
        0 => Ok(None),
        length => Mapping::new(file, length, write).map(Some),
    }
}

fn reading() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

fn writing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    options
}

fn bytes(content: &[u8]) -> String {
    format!("{} bytes, {:x}", content.len(), checksum(content))
}

fn clip(number: impl Into<u64>) -> usize {
    usize::try_from(number.into()).expect("files here are small")
}
